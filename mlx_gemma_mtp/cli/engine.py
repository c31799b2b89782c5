"""The engine of a command: the models that its options name, downloaded if they are missing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.download import fetch_missing

if TYPE_CHECKING:
    from mlx_gemma_mtp import Engine


def load_engine(pair: options.Pair, *, max_batch: int = 8) -> Engine:
    """Load the models; say so on stderr if no drafter was found."""
    from mlx_gemma_mtp import load
    from mlx_gemma_mtp.show import spinner

    fetch_missing(pair.model, pair.drafter, bits=pair.bits, yes=pair.yes, force=pair.force)
    drafter = options.named_drafter(pair.drafter)
    with spinner(f"loading {pair.model}"):
        engine = load(pair.model, drafter, bits=pair.bits, max_batch=max_batch, force=pair.force)
    if pair.drafter == "auto" and not engine.has_drafter:
        how = "decoding without one (--drafter NAME downloads one)"
        print(f"{pair.model}: no drafter found; {how}", file=sys.stderr)
    return engine
