"""What a benchmark measures, made ready: a loaded pair or a random one, engines on it, peers.

Knows nothing of plans or results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mode
from typing import NamedTuple

import mlx.core as mx
from mlx_gemma_mtp.bench import synthetic
from mlx_gemma_mtp.bench.drawn import Draws, drawn
from mlx_gemma_mtp.bench.floor import Floor
from mlx_gemma_mtp.bench.peer import Peer
from mlx_gemma_mtp.bench.plan import Bench
from mlx_gemma_mtp.bench.record import Subject
from mlx_gemma_mtp.bench.split import SlowDrafter, Stopwatch, in_step
from mlx_gemma_mtp.bench.workload import Workload

from mlx_gemma_mtp import Engine, memory
from mlx_gemma_mtp.depth import Depth
from mlx_gemma_mtp.doctor import backend_name
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.engine import OpenPair, open_pair
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.sizes import in_words
from mlx_gemma_mtp.speculate import PlayRound, round_player
from mlx_gemma_mtp.target import Target
from mlx_gemma_mtp.weights import dtype_name, num_bytes
from mlx_gemma_mtp.worker import mlx_worker

PEERS = ("mlx-lm", "mlx-vlm")


class Opened(NamedTuple):
    """A pair to measure. draws: its accepts are drawn, for it is noise."""

    name: str
    pair: OpenPair
    draws: Draws | None
    shared_experts: int

    def subject(self) -> Subject:
        """As a record tells it."""
        target, drafter = self.pair.target, self.pair.drafter
        return Subject(
            self.name,
            dtype_name(target.dtype),
            _bits(target),
            num_bytes(target),
            None if drafter is None else num_bytes(drafter),
            target.config.num_experts,
            self.draws is not None,
        )

    def slowed(self, times: int) -> Opened:
        """Each draft step done so many times over, to test what is measured."""
        if self.pair.drafter is None or times == 1:
            return self
        slow = SlowDrafter(self.pair.drafter, times)
        return self._replace(pair=self.pair._replace(drafter=slow))


def loaded(model: str, drafter: str | None, *, bits: int | None, force: bool) -> Opened:
    """A pair as `load` takes it. Raises what `load` raises."""
    return Opened(model, open_pair(model, drafter, bits=bits, force=force), None, 0)


def random(
    size: str,
    *,
    bits: int | None,
    accept: Sequence[float],
    shared_experts: int,
    context: int,
    batch: int,
    force: bool,
    tell: Callable[[str], None],
) -> Opened:
    """Noise at a published size. context, batch: what there must be room for, unless forced.

    tell: is called with a line before it is drawn, which takes minutes on a CPU.
    Raises UsageError, NotEnoughMemoryError.
    """
    if size not in synthetic.TARGETS:
        raise UsageError(f"--synthetic is one of {', '.join(synthetic.TARGETS)}, not {size!r}")
    most = synthetic.configs(size)[0].top_k_experts
    if shared_experts > most:
        raise UsageError(f"--overlap is at most {most} for {size}: so many experts a token has")
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    dtype = mx.float32 if on_cpu else mx.bfloat16

    def draw() -> OpenPair:
        target, drafter = synthetic.random_pair(size, dtype, bits)
        if not force:
            have = memory.available() - mx.get_active_memory()
            _check_room(size, target, drafter, context=context, batch=batch, have=have)
        tell(f"drawing {size}: {in_words(num_bytes(target) + num_bytes(drafter))} of weights")
        return OpenPair(synthetic.draw(target), synthetic.draw(drafter), None, {}, None)

    return Opened(size, mlx_worker().run(draw), Draws(accept), shared_experts)


def check_room(opened: Opened, *, context: int, batch: int) -> None:
    """Raise NotEnoughMemoryError unless there is room for so many texts of a loaded pair."""
    pair = opened.pair
    have = mlx_worker().run(memory.available)
    _check_room(opened.name, pair.target, pair.drafter, context=context, batch=batch, have=have)


def check_context(
    opened: Opened, workload: Workload, *, batches: Sequence[int], tokens: int
) -> None:
    """Raise UsageError unless every first prompt and so many tokens fit into the context."""
    lengths = [
        len(row.ids)
        for batch in batches
        for task in workload.tasks_at(batch)
        for row in workload.wave(task, batch, 0)
    ]
    _check_context(opened.name, opened.pair.target, max(lengths) + tokens)


def _check_context(name: str, target: Target, context: int) -> None:
    most = target.config.max_position_embeddings
    if context > most:
        raise UsageError(
            f"{name} takes {most:,} tokens, a prompt and its answer here {context:,}: "
            "give fewer --max-tokens, or shorter prompts"
        )


def _check_room(
    name: str, target: Target, drafter: Drafter | None, *, context: int, batch: int, have: int
) -> None:
    pair, dtype = memory.Pair.of(target, drafter), dtype_name(target.dtype)
    _check_context(name, target, context)
    ways = ["--bits 4"] * (_bits(target) is None) + ["a smaller --batch"] * (batch > 1)
    memory.check(
        pair.needs(context, batch).total,
        have,
        f"{name} in {dtype}, with {batch} text{'s' * (batch > 1)} of {context:,} tokens,",
        despite=" or ".join([*ways, "fewer --prompt-tokens"]) + " needs less, --force tries it",
    )


def engine(
    opened: Opened,
    *,
    batch: int,
    depth: Depth,
    player: Callable[[Target, Drafter | None], PlayRound] = round_player,
) -> Engine:
    """An engine for up to `batch` rows. depth: what it learns goes there. player: of its rounds."""
    play_round = player(opened.pair.target, opened.pair.drafter)
    if opened.draws is not None:
        play_round = drawn(play_round, opened.draws, opened.shared_experts)
    return Engine(opened.pair, max_batch=batch, max_queue=batch, depth=depth, play_round=play_round)


def bench_of(
    opened: Opened, workload: Workload, *, batch: int, depth: Depth, peers: Sequence[str]
) -> Bench:
    """Engines and peers for up to `batch` rows. depth: what the engine learns goes there.

    Raises MgmError where a peer is missing.
    """
    pair, stopwatch = opened.pair, Stopwatch()
    random, names = opened.draws is not None, dict.fromkeys(peers)
    return Bench(
        engine(opened, batch=batch, depth=depth),
        engine(opened, batch=batch, depth=Depth(), player=partial(in_step, stopwatch=stopwatch)),
        stopwatch,
        workload,
        Floor.of(pair.target, pair.drafter),
        mlx_worker().run(lambda: [_peer(name, pair, random=random) for name in names]),
        opened.draws,
    )


def _peer(name: str, pair: OpenPair, *, random: bool) -> Peer:
    # Views of joined experts are as quick on an H100 as copies, for which there is no room beside
    # 26B in bfloat16; whether kernels read the right ones does not matter where all are noise.
    views = backend_name() == "cuda" and random and _bits(pair.target) is None
    if name == "mlx-lm":
        from mlx_gemma_mtp.bench.mlx_lm_peer import MlxLmPeer

        return MlxLmPeer(pair.target, copy_experts=not views)
    from mlx_gemma_mtp.bench.mlx_vlm_peer import MlxVlmPeer

    return MlxVlmPeer(pair.target, pair.drafter, copy_experts=not views)


def _bits(target: Target) -> str | None:
    """The bits of most of a quantized target's modules, as people say them; None for any other."""
    bits = [module.bits for module in target.modules() if "scales" in module]
    return f"{mode(bits)}" if bits else None
