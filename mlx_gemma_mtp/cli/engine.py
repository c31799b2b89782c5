"""The engine of a command: the models that its options name, downloaded if they are missing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.download import fetch_missing, offer_drafter

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine


def load_engine(
    pair: options.Loading,
    *,
    max_batch: int = 8,
    max_queue: int = 256,
    context: int | None = None,
    prefix_cache: int | None = None,
    idle_unload: float | None = None,
    within: AbstractContextManager[None] | None = None,
) -> Engine:
    """Load the models, which must have a tokenizer.

    A drafter that is not here is offered, or named on stderr. What people should know of the
    checkpoint goes to stderr too, once. within: entered while they are loaded, after all questions.
    Others as `load`.
    """
    from mlx_gemma_mtp import load
    from mlx_gemma_mtp.files.find import check_tokenizer
    from mlx_gemma_mtp.progress import spinner
    from mlx_gemma_mtp.show import say

    fetch_missing(pair.model, pair.drafter, bits=pair.bits, yes=pair.yes, force=pair.force)
    check_tokenizer(pair.model)
    if pair.drafter == "auto":
        offer_drafter(pair.model, bits=pair.bits, yes=pair.yes, force=pair.force)
    drafter = options.named_drafter(pair.drafter)
    with within or nullcontext(), spinner(f"loading {pair.model}") as show:
        engine = load(
            pair.model,
            drafter,
            bits=pair.bits,
            max_batch=max_batch,
            max_queue=max_queue,
            context=context,
            prefix_cache=prefix_cache,
            idle_unload=idle_unload,
            force=pair.force,
            exact=options.as_exact(pair.exact),
            copies=pair.copies,
            probe=lambda share: show(f"measuring this machine, once: {share:.0%}"),
            on_progress=lambda share: show(f"loading {pair.model}: {share:.0%}"),
            keep_resident=True,  # a chat may rest for minutes between two turns
            warm_up=False,  # most commands send a request at once; a chat warms up by itself
        )
    for note in engine.notes:
        say(f"{pair.model}: {note}")
    return engine
