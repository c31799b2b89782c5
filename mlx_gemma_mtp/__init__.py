"""Gemma 4 with its multi-token-prediction drafters, on MLX.

Importing this package is quick: MLX and everything else are imported with the first name used.
Logs to "mlx_gemma_mtp".
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlx_gemma_mtp.decode.params import SamplingParams
    from mlx_gemma_mtp.engine.aload import aload
    from mlx_gemma_mtp.engine.chat import Chat
    from mlx_gemma_mtp.engine.engine import Engine
    from mlx_gemma_mtp.engine.generation import Generation
    from mlx_gemma_mtp.engine.load import load
    from mlx_gemma_mtp.engine.results import (
        Chunk,
        Completion,
        FinishReason,
        Stats,
        TokenLogprobs,
    )
    from mlx_gemma_mtp.engine.session import Session
    from mlx_gemma_mtp.engine.status import Status
    from mlx_gemma_mtp.engine.turn import ChatEvent, Turn
    from mlx_gemma_mtp.errors import (
        CheckpointError,
        ClosedError,
        GenerationError,
        LoadCancelledError,
        MgmError,
        ModelNotFoundError,
        NotEnoughMemoryError,
        PromptTooLongError,
        QueueFullError,
        RequestTimeoutError,
        SaveError,
        UsageError,
        VerificationError,
        WorkerDiedError,
    )
    from mlx_gemma_mtp.text.call_stream import CallDelta
    from mlx_gemma_mtp.text.calls import ToolCall
    from mlx_gemma_mtp.text.messages import Message, Prompt

__all__ = [
    "CallDelta",
    "Chat",
    "ChatEvent",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "Engine",
    "FinishReason",
    "Generation",
    "GenerationError",
    "LoadCancelledError",
    "Message",
    "MgmError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "Prompt",
    "PromptTooLongError",
    "QueueFullError",
    "RequestTimeoutError",
    "SamplingParams",
    "SaveError",
    "Session",
    "Stats",
    "Status",
    "TokenLogprobs",
    "ToolCall",
    "Turn",
    "UsageError",
    "VerificationError",
    "WorkerDiedError",
    "__version__",
    "aload",
    "load",
]

_HOMES = {
    "decode.params": ("SamplingParams",),
    "engine.aload": ("aload",),
    "engine.chat": ("Chat",),
    "engine.engine": ("Engine",),
    "engine.generation": ("Generation",),
    "engine.load": ("load",),
    "engine.results": ("Chunk", "Completion", "FinishReason", "Stats", "TokenLogprobs"),
    "engine.session": ("Session",),
    "engine.status": ("Status",),
    "engine.turn": ("ChatEvent", "Turn"),
    "text.call_stream": ("CallDelta",),
    "text.calls": ("ToolCall",),
    "text.messages": ("Message", "Prompt"),
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an app says where it goes


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
