"""A pair on its way into memory, another one out of it, and how long a text there is room for.

Knows nothing of options, nor of how a pair is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlx_gemma_mtp import hub, memory
from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.transcript import Models
from mlx_gemma_mtp.engine import Engine
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, NotEnoughMemoryError
from mlx_gemma_mtp.worker import mlx_worker

Load = Callable[[Models], Engine]


class Loaded(NamedTuple):
    """A pair that was loaded. context: most tokens of a text that there is room for."""

    engine: Engine
    models: Models
    context: int


def open_pair(models: Models, load: Load) -> Loaded:
    """Load a pair. Raises what `load` does."""
    engine = load(models)
    folder, beside = hub.find_pair(models.model, _drafter(models))

    def longest() -> int:
        pair = memory.read_pair(folder, beside, bits=models.bits)
        return pair.longest_context(batch=1, have=memory.available(), sessions=1)

    # With --force there may be no room by that count: then nothing is known but the model's limit.
    context = mlx_worker().run(longest) or engine.config.max_position_embeddings
    return Loaded(engine, models, context)


def switch(old: Loaded, models: Models, load: Load, screen: Screen) -> Loaded:
    """Load another pair, from this disk, and close the old one.

    Where there is no room for both the old one goes first, and is loaded again if the other fails:
    then that is what is returned, and the screen tells why. Raises as `open_pair` where the old one
    is still as it was.
    """
    for name in (models.model, models.drafter):
        here = name in ("demo", "auto", "none") or hub.is_folder(name)
        if not here and hub.from_cache(name) is None:
            raise ModelNotFoundError(f"{name} is not in the cache: mgm pull {name} fetches it")
    try:
        loaded = open_pair(models, load)
    except NotEnoughMemoryError:
        old.engine.close()
        try:
            return open_pair(models, load)
        except MgmError as error:
            screen.say(f"mgm: {error}")
            return open_pair(old.models, load)
    old.engine.close()
    return loaded


def _drafter(models: Models) -> str | None:
    return None if models.drafter == "none" else models.drafter
