"""Gemma 4 with its multi-token-prediction drafters, on MLX.

Importing this package is quick: MLX and everything else are imported with the first name used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlx_gemma_mtp.decode.params import SamplingParams
    from mlx_gemma_mtp.engine.chat import Chat
    from mlx_gemma_mtp.engine.engine import Engine
    from mlx_gemma_mtp.engine.generation import Generation
    from mlx_gemma_mtp.engine.load import load
    from mlx_gemma_mtp.engine.results import Chunk, Completion
    from mlx_gemma_mtp.engine.session import Session
    from mlx_gemma_mtp.engine.turn import ChatEvent, Turn
    from mlx_gemma_mtp.errors import MgmError
    from mlx_gemma_mtp.text.calls import ToolCall

__all__ = [
    "Chat",
    "ChatEvent",
    "Chunk",
    "Completion",
    "Engine",
    "Generation",
    "MgmError",
    "SamplingParams",
    "Session",
    "ToolCall",
    "Turn",
    "__version__",
    "load",
]

_HOMES = {
    "Chat": "engine.chat",
    "ChatEvent": "engine.turn",
    "Chunk": "engine.results",
    "Completion": "engine.results",
    "Engine": "engine.engine",
    "Generation": "engine.generation",
    "MgmError": "errors",
    "SamplingParams": "decode.params",
    "Session": "engine.session",
    "ToolCall": "text.calls",
    "Turn": "engine.turn",
    "load": "engine.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
