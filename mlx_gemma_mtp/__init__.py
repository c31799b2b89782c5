"""Gemma 4 with its multi-token-prediction drafters, on MLX.

Importing this package is cheap: MLX and everything else come in with the first name used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlx_gemma_mtp.channels import ToolCall
    from mlx_gemma_mtp.engine import Engine, load
    from mlx_gemma_mtp.errors import MgmError
    from mlx_gemma_mtp.request import Chunk, Completion, Generation
    from mlx_gemma_mtp.sampling import SamplingParams
    from mlx_gemma_mtp.session import Session

__all__ = [
    "Chunk",
    "Completion",
    "Engine",
    "Generation",
    "MgmError",
    "SamplingParams",
    "Session",
    "ToolCall",
    "__version__",
    "load",
]

_HOMES = {
    "Chunk": "request",
    "Completion": "request",
    "Engine": "engine",
    "Generation": "request",
    "MgmError": "errors",
    "SamplingParams": "sampling",
    "Session": "session",
    "ToolCall": "channels",
    "load": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
