"""What a benchmark measures, made ready: a loaded pair or a random one, engines on it, peers.

Knows nothing of plans or results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mode
from typing import NamedTuple

import mlx.core as mx
from rich.filesize import decimal

from mlx_gemma_mtp import Engine, device, memory
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import PlayRound, round_player
from mlx_gemma_mtp.device import backend
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.weights import dtype_name, num_bytes
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

from . import synthetic
from .drawn import Draws, drawn
from .floor import Floor
from .lend import copied_bytes
from .peer import Peer
from .plan import Bench
from .record import Subject
from .split import SlowDrafter, Stopwatch, in_step
from .workload import Workload

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
    peers: Sequence[str],
    force: bool,
    tell: Callable[[str], None],
) -> Opened:
    """Noise at a published size. context, batch, peers: what there must be room for, unless forced.

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

    def draw() -> Opened:
        target, drafter = synthetic.random_pair(size, dtype, bits)
        pair = OpenPair(target, drafter, None, {}, None)
        opened = Opened(size, pair, Draws(accept), shared_experts)
        if not force:
            have = device.available() - mx.get_active_memory()
            _check_room(opened, context=context, batch=batch, peers=peers, have=have)
        tell(f"drawing {size}: {decimal(num_bytes(target) + num_bytes(drafter))} of weights")
        device.keep_resident()
        pair = pair._replace(target=synthetic.draw(target), drafter=synthetic.draw(drafter))
        return opened._replace(pair=pair)

    return mlx_worker().run(draw)


def check_room(opened: Opened, *, context: int, batch: int, peers: Sequence[str]) -> None:
    """Raise NotEnoughMemoryError unless there is room for so many texts of a loaded pair."""
    have = mlx_worker().run(device.available)
    _check_room(opened, context=context, batch=batch, peers=peers, have=have)


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
            "give fewer --max-tokens, shorter prompts or less --depth"
        )


def _check_room(
    opened: Opened, *, context: int, batch: int, peers: Sequence[str], have: int
) -> None:
    name, target = opened.name, opened.pair.target
    _check_context(name, target, context)
    need = memory.Pair.of(target, opened.pair.drafter).needs(context, batch).total
    what = f"{name} in {dtype_name(target.dtype)}, with {batch} text{'s' * (batch > 1)} of "
    what += f"{context:,} tokens,"
    ways = ["--bits 4"] * (_bits(target) is None) + ["a smaller --batch"] * (batch > 1)
    copied = copied_bytes(target) if _copies_experts(opened) else 0
    if peers and copied:
        need += len({*peers}) * copied
        what += " and copies for --peer"
        ways.append("no --peer")
    ways.append("fewer --prompt-tokens")
    memory.check(need, have, what, despite=f"{' or '.join(ways)} needs less, --force tries it")


def engine(
    opened: Opened,
    *,
    batch: int,
    depth: Depth,
    player: Callable[[Target, Drafter | None], PlayRound] = round_player,
) -> Engine:
    """An engine for up to `batch` rows. depth: what it learns goes there. player: of its rounds."""

    def play(target: Target, drafter: Drafter | None) -> PlayRound:
        play_round = player(target, drafter)
        if opened.draws is None:
            return play_round
        return drawn(play_round, opened.draws, opened.shared_experts)

    return Engine(opened.pair, max_batch=batch, max_queue=batch, depth=depth, player=play)


def bench_of(
    opened: Opened, workload: Workload, *, batch: int, depth: Depth, peers: Sequence[str]
) -> Bench:
    """Engines and peers for up to `batch` rows. depth: what the engine learns goes there.

    Raises MgmError where a peer is missing.
    """
    pair, stopwatch, names = opened.pair, Stopwatch(), dict.fromkeys(peers)
    return Bench(
        engine(opened, batch=batch, depth=depth),
        engine(opened, batch=batch, depth=Depth(), player=partial(in_step, stopwatch=stopwatch)),
        stopwatch,
        workload,
        Floor.of(pair.target, pair.drafter),
        mlx_worker().run(lambda: [_peer(name, opened) for name in names]),
        opened.draws,
    )


def _peer(name: str, opened: Opened) -> Peer:
    target, copy_experts = opened.pair.target, _copies_experts(opened)
    if name == "mlx-lm":
        from .mlx_lm_peer import MlxLmPeer

        return MlxLmPeer(target, copy_experts=copy_experts)
    from .mlx_vlm_peer import MlxVlmPeer

    return MlxVlmPeer(target, opened.pair.drafter, copy_experts=copy_experts)


def _copies_experts(opened: Opened) -> bool:
    """Do peers hold the halves of joined experts as copies?

    Views are as quick on an H100, and there is no room for copies beside 26B in bfloat16; whether
    kernels read the right ones does not matter where all are noise.
    """
    noise = opened.draws is not None and _bits(opened.pair.target) is None
    return not (noise and backend() == "cuda")


def _bits(target: Target) -> str | None:
    """The bits of most of a quantized target's modules, as people say them; None for any other."""
    bits = [module.bits for module in target.modules() if "scales" in module]
    return f"{mode(bits)}" if bits else None
