"""Loading and switching models in a chat. Knows nothing of options, nor how a pair is loaded."""

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
    """A loaded pair. context: the longest conversation, in tokens, that fits in memory."""

    engine: Engine
    models: Models
    context: int


def open_pair(models: Models, load: Load) -> Loaded:
    """Load a pair. Raises what `load` does."""
    engine = load(models)
    # With --force nothing may fit by that count: then only the model's own limit is known.
    return Loaded(engine, models, engine.longest_context() or engine.config.max_position_embeddings)


def switch(old: Loaded, models: Models, load: Load, screen: Screen) -> Loaded:
    """Load another pair, already on this disk, and close the old one.

    If both do not fit in memory, the old one is closed first. If the other then fails, the screen
    shows why, and the old one is loaded again and returned. Raises as `open_pair` while the old one
    is still loaded, and MgmError if no pair is loaded any more.
    """
    name = models.model
    if name != "demo" and not hub.is_folder(name) and hub.from_cache(name) is None:
        raise ModelNotFoundError(f"{name} is not downloaded: run mgm pull {name}")
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
