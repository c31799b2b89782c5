"""A pair on its way into memory, another one out of it, and how long a text there is room for.

Knows nothing of options, nor of how a pair is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlx_gemma_mtp.chat.screen import Screen
from mlx_gemma_mtp.chat.transcript import Models
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.errors import MgmError, ModelNotFoundError, NotEnoughMemoryError
from mlx_gemma_mtp.files import hub

Load = Callable[[Models], Engine]


class Loaded(NamedTuple):
    """A pair that was loaded. context: most tokens of a text that there is room for."""

    engine: Engine
    models: Models
    context: int


def open_pair(models: Models, load: Load) -> Loaded:
    """Load a pair. Raises what `load` does."""
    engine = load(models)
    # With --force there may be no room by that count: then nothing is known but the model's limit.
    return Loaded(engine, models, engine.longest_context() or engine.config.max_position_embeddings)


def switch(old: Loaded, models: Models, load: Load, screen: Screen) -> Loaded:
    """Load another pair, from this disk, and close the old one.

    Where there is no room for both the old one goes first, and is loaded again if the other fails:
    then that is what is returned, and the screen tells why. Raises as `open_pair` where the old one
    is still as it was, and MgmError where it could not be loaded again and so stays closed.
    """
    name = models.model
    if name != "demo" and not hub.is_folder(name) and hub.from_cache(name) is None:
        raise ModelNotFoundError(f"{name} is not in the cache: mgm pull {name} fetches it")
    try:
        loaded = open_pair(models, load)
    except NotEnoughMemoryError:
        old.engine.close()
        try:
            return open_pair(models, load)
        except MgmError as error:
            screen.say(f"mgm: {error}")
        try:
            return open_pair(old.models, load)
        except MgmError as error:
            raise MgmError(f"{error}; no model is loaded now: /model NAME loads one") from None
    old.engine.close()
    return loaded
