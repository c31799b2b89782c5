"""The pair that a benchmark measures: loaded or random, with the engines that play it.

Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mode
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_gemma_mtp import Engine, device, memory
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.local import Player
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.weights import dtype_name, num_bytes
from mlx_gemma_mtp.memory import Limits

from . import synthetic
from .record import Subject
from .synthetic import Draws


class Opened(NamedTuple):
    """A pair to measure. draws: for random weights, which take no memory until `draw`.

    exact: of the engines.
    """

    name: str
    pair: OpenPair
    draws: Draws | None = None
    exact: Exact = "auto"

    def subject(self) -> Subject:
        """Itself in a record; `bits` are those of most of the target's modules.

        A record may be shared, so a local folder or file has only its own name.
        """
        path = Path(self.name).expanduser()
        target, drafter = self.pair.target, self.pair.drafter
        bits = [module.bits for module in target.modules() if "scales" in module]
        return Subject(
            name=path.resolve().name if path.exists() else self.name,
            dtype=dtype_name(target.dtype),
            bits=str(mode(bits)) if bits else None,
            target_bytes=num_bytes(target),
            drafter_bytes=None if drafter is None else num_bytes(drafter),
            num_experts=target.config.num_experts,
            random=self.draws is not None,
        )

    def depth(self, without: str = "") -> Depth:
        """Knows the table, and learns what rounds cost. without: one of WITHOUT."""
        table = None if without == "table" else self.pair.table
        return Depth(table=table, exact=False if without == "exact" else self.exact)

    def engine(
        self, batch: int, depth: Depth, player: Player | None = None, without: str = ""
    ) -> Engine:
        """An engine for up to this many rows. depth, without: see `depth`.

        player: one that waits, so that nothing overlaps. Random weights take no copies: those would
        be accepted at the drawn rates. Raises UsageError if exact passes hold fewer rows.
        """
        own = self.draws.player if self.draws else round_player
        exact = False if without == "exact" else self.exact
        limits = Limits(overlap=player is None)
        rule = Exactness.of(exact, depth, limits, batch)
        if rule.max_batch < batch:
            raise UsageError(f"--batch takes up to {rule.max_batch} with --exact on: {rule.note}")
        return Engine(
            self.pair,
            max_batch=batch,
            max_queue=batch,
            player=player or own,
            limits=limits,
            depth=depth,
            exact=exact,
            copies=self.draws is None and without != "copies",
        )

    def draw(self) -> Opened:
        """Compute random weights."""

        def work() -> OpenPair:
            device.keep_resident()
            target, drafter = self.pair.target, self.pair.drafter
            assert drafter is not None
            return self.pair._replace(
                target=synthetic.draw(target), drafter=synthetic.draw(drafter)
            )

        return self._replace(pair=mlx_worker().run(work))

    def check_context(self, tokens: int) -> None:
        """Raise UsageError unless the context holds this many tokens."""
        most = self.pair.target.config.max_position_embeddings
        if tokens > most:
            raise UsageError(
                f"{self.name} has a context of {most:,} tokens; a prompt and its completion take "
                f"{tokens:,} here: reduce --max-tokens, --prompt-tokens or --depth"
            )

    def check_room(self, *, have: int, context: int, batch: int, copies: int = 0) -> None:
        """Raise NotEnoughMemoryError unless `have` bytes hold the pair and its rows.

        copies: how many peers need copies of the experts, which we keep joined.
        """
        target = self.pair.target
        arrays = dict(tree_flatten(target.parameters())).items()
        joined = [a.nbytes for name, a in arrays if ".experts.gate_up_proj." in name]
        need = memory.Pair.of(target, self.pair.drafter).needs(context, batch)
        what = f"{self.name} in {dtype_name(target.dtype)}, with {batch} x {context:,} tokens"
        despite = "--bits 4, a smaller --batch or no --peer needs less, --force tries it"
        memory.check(need + copies * sum(joined), have, what, despite=despite)


def load(model: str, drafter: str | None, *, bits: int | None, force: bool) -> Opened:
    """Arguments and errors are those of `mlx_gemma_mtp.load`."""
    opened = open_pair(model, drafter, bits=bits, force=force)
    mlx_worker().run(device.keep_resident)
    return Opened(model, opened)


# As in the generation_config.json of Google's checkpoints.
GOOGLES = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}


def random(size: str, *, bits: int | None, accept: Sequence[Sequence[float]]) -> Opened:
    """Random weights with Google's sampling defaults, not drawn yet. Raises UsageError."""
    dtype = mx.float32 if device.backend() == "cpu" else mx.bfloat16
    target, drafter = mlx_worker().run(lambda: synthetic.random_pair(size, dtype, bits))
    return Opened(size, OpenPair(target, drafter, None, GOOGLES, None), Draws(accept))
