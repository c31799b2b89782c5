"""Requests start and end at random moments, and each writes what it would have written alone.

Every test draws its own schedule: prompts of all lengths, settings, and the moments at which
requests are submitted (each from a thread of its own) and cancelled. The expected outputs are
decoded once per kind: without drafts, one request at a time. Moments are counted in rounds. A
thread may be a little late, so one seed gives the same requests, not the same interleaving.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import EOS, VOCAB, PairPaths
from helpers.forced import Forced, NumbersText, Row, at_random, is_decisive, spelled
from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, SamplingParams
from mlx_gemma_mtp.decode.depth import MOST, Depth
from mlx_gemma_mtp.decode.round import Draft, PlayRound, Round, draft, round_player
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import GenerationError
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.target import Target

# Dense with K = V; experts; per-layer embeddings, shared K/V and a drafter with a centroid head.
SOME_KINDS = ("12B", "26B-A4B", "E2B")
CHUNK = 24  # tokens; prompts up to 90 come in up to four, and wrap every ring
# Short outputs meet here what otherwise only long ones do: they wrap rings and outgrow buffers.
# Every prompt is chunked alike in all runs, because a prompt in other chunks has logits that differ
# by 1e-5. Short prompts may still share a chunk.
LIMITS = Limits(
    chunks=(1, CHUNK),
    pause_seconds=np.inf,
    slot_step=1,
    max_draft_tokens=MOST,
    rounds_ahead=1,
    shrink_after=2,
)
PROMPT_LENGTHS = (1, 2, 5, 8, 11, 16, 18, 24, 25, 33, 60, 90)
TEXT_LENGTHS = (60, 46, 34, 27, 21, 17, 13, 10, 7, 4, 2, 1)
SAMPLING = (
    SamplingParams(temperature=0, top_k=0, top_p=1),
    SamplingParams(temperature=1, top_k=0, top_p=1),
    SamplingParams(temperature=0, top_k=5, top_p=0.5),
    SamplingParams(temperature=1, top_k=64, top_p=0.95),
    SamplingParams(temperature=1, top_k=0, top_p=0.8),
    SamplingParams(temperature=1, top_k=7, top_p=1),
)
SECONDS = 60  # after which something that should long have happened never does

Moment = Literal["waiting", "prefill", "rounds", "talking"]


@dataclass(frozen=True)
class Ask:
    """A request, when it comes, and whether it is cancelled."""

    row: Row
    params: SamplingParams
    start: int = 0  # round
    cancel: Moment | None = None
    cancel_after: int = 0  # chunks of the prompt, rounds since the start, or tokens of output
    read: threading.Event = field(default_factory=threading.Event)  # that many chunks
    cancelled: threading.Event = field(default_factory=threading.Event)


class Clock:
    """Time in rounds. When no request is served, it moves on to the next moment awaited."""

    def __init__(self, draft: Draft = draft) -> None:
        self._draft = draft
        self.sizes: Counter[int] = Counter()  # rounds by number of rows
        self.talking = 0  # requests that have some output and have not ended
        self._moves: list[tuple[int, mx.array, mx.array, mx.array]] = []
        self._now = 0
        self._ahead: list[int] = []
        self._served = 0
        self._changed = threading.Condition()

    def expect(self, moments: list[int]) -> None:
        self._now, self._ahead = 0, sorted(moments)

    def start(self, moment: int) -> None:
        with self._changed:
            self._ahead.remove(moment)
            self._served += 1

    def end(self, _: Future[Completion]) -> None:
        with self._changed:
            self._served -= 1
            if self._served == 0 and self._ahead:
                self._now = max(self._now, self._ahead[0])
            self._changed.notify_all()

    def now(self) -> int:
        with self._changed:
            return self._now

    def wait_until(self, moment: int, generation: Generation | None = None) -> None:
        """Wait for a moment, or the end of a request."""

        def come() -> bool:
            return self._now >= moment or (generation is not None and generation.done())

        with self._changed:
            assert self._changed.wait_for(come, SECONDS), f"round {moment} never came"

    def player(self, *models: Any) -> PlayRound:
        """Stands in for `round_player`: its rounds are counted."""
        play_round = round_player(*models, draft=self._draft)

        def play(kv_cache: KVCache, *others: Any) -> Round:
            before = kv_cache.offset
            played = play_round(kv_cache, *others)
            self._moves.append((self.talking, others[2], before, kv_cache.offset))
            with self._changed:
                self._now += 1
                self.sizes[played.accepted.shape[0]] += 1
                self._changed.notify_all()
            return played

        return play

    def assert_free_rows_stayed(self) -> None:
        """In every round as many rows moved as requests were talking, and no others."""

        def read() -> list[tuple[int, list[int], list[int]]]:
            return [
                (talking, most.tolist(), (after - before).tolist())
                for talking, most, before, after in self._moves
            ]

        for talking, max_accepted, moved in mlx_worker().run(read):
            assert talking == sum(most >= 0 for most in max_accepted)
            for most, tokens in zip(max_accepted, moved, strict=True):
                assert tokens == 0 if most < 0 else 1 <= tokens <= most + 1


@dataclass
class Pieces:
    """The output of a request, piece by piece. `then` is called after each piece."""

    clock: Clock
    then: Callable[[], object] = lambda: None
    pieces: list[Chunk] = field(default_factory=list)
    talking: bool = False
    cancelled_at: float = np.inf  # rounds
    ended_at: int = 0

    def __call__(self, chunk: Chunk) -> None:
        self.pieces.append(chunk)
        continues = chunk.finish_reason is None
        try:
            self.then()
        except ValueError:
            continues = False
            raise
        finally:
            self.clock.talking += continues - self.talking
            self.talking = continues
            self.ended_at = self.clock.now()

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.pieces for token in chunk.tokens]


# Texts written alone


@pytest.fixture(scope="module")
def texts(pairs: dict[str, PairPaths], seed: int) -> Callable[[str], list[Row]]:
    """The outputs of a kind, in random order; decoded on first use."""
    made: dict[str, list[Row]] = {}

    def get(kind: str) -> list[Row]:
        if kind not in made:
            made[kind] = write_alone(pairs[kind], np.random.default_rng([seed, *kind.encode()]))
        return made[kind]

    return get


def write_alone(pair: PairPaths, rng: np.random.Generator) -> list[Row]:
    """Outputs of random prompts without a drafter, one at a time, except those with a near tie."""
    opened = open_pair(pair.target, None)
    suppressed = opened.default_tokens("suppress_tokens")
    lengths = zip(rng.permutation(PROMPT_LENGTHS), rng.permutation(TEXT_LENGTHS), strict=True)
    rows = []
    with Engine(opened, max_batch=1, limits=LIMITS) as alone:
        for number, (size, num_tokens) in enumerate(lengths):
            params = replace(
                SAMPLING[number % len(SAMPLING)],
                max_tokens=int(num_tokens),
                num_draft_tokens=0,
                ignore_eos=True,
            )
            for _ in range(10):
                prompt = rng.integers(0, VOCAB, size).tolist()
                own = replace(params, seed=int(rng.integers(2**32)))
                row = Row(prompt, own, alone.submit(prompt, own).result(SECONDS).tokens)
                if mlx_worker().run(partial(is_decisive, opened.target, row, suppressed)):
                    rows.append(row)
                    break
    assert len(rows) == len(TEXT_LENGTHS), "plain texts differ from one pass, or only tie"
    return rows


def expected(row: Row, params: SamplingParams) -> tuple[list[int], str, str]:
    """Tokens, text and finish reason of a row's request with an earlier end."""
    for end in range(1, len(row.tokens) + 1):
        said = row.tokens[:end]
        if said[-1] in EOS and not params.ignore_eos:
            return said, spelled(said[:-1]), "stop"
        for stop in params.stop_strings:
            if stop in spelled(said):
                return said, spelled(said).split(stop)[0], "stop"
        if end == params.max_tokens:
            return said, spelled(said), "length"
    raise AssertionError("an output that continues past its end")


# Random schedules


def draw_settings(rng: np.random.Generator, row: Row) -> SamplingParams:
    """The row's own, with another number of drafts and often an earlier end."""
    length = len(row.tokens)
    stop = []
    if length > 2 and rng.random() < 0.4:  # two digits of one token and one of the next
        at = 3 * int(rng.integers(1, length - 1))
        stop = [spelled(row.tokens)[at + 1 : at + 4]]
    return replace(
        row.params,
        max_tokens=int(rng.integers(1, length + 1)) if rng.random() < 0.3 else length,
        num_draft_tokens=(0, 1, 3, 5, "auto")[rng.integers(5)],
        ignore_eos=bool(rng.random() < 0.6),
        stop=stop,
    )


def draw_schedule(rng: np.random.Generator, rows: list[Row], max_batch: int) -> list[Ask]:
    """Each row once, in random order, somewhat faster than they can be served.

    The longest comes first and is not cancelled: the others meet it.
    """
    longest = max(rows, key=lambda row: len(row.tokens))
    asks, start = [Ask(longest, longest.params)], 0
    for number in rng.permutation(len(rows)):
        row = rows[number]
        if row is longest:
            continue
        start += int(rng.integers(0, 2 + 12 // max_batch))
        cancel: Moment | None = None
        if rng.random() < 0.35:
            cancel = ("waiting", "prefill", "rounds", "talking")[rng.integers(4)]
        num_chunks = -(-len(row.prompt) // CHUNK)
        if cancel == "prefill" and num_chunks == 1:
            cancel = "rounds"
        most = {"prefill": num_chunks, "rounds": 40, "talking": len(row.tokens) + 1}
        after = int(rng.integers(1, most[cancel])) if cancel in most else 0
        asks.append(Ask(row, draw_settings(rng, row), start, cancel, after))
    return asks


def ask(running: Engine, clock: Clock, one: Ask) -> tuple[Completion, Pieces]:
    """Submit a request at its moment, cancel it at its other one, and wait for its end."""
    clock.wait_until(one.start)
    clock.start(one.start)
    told = Pieces(clock)
    going: list[Generation] = []  # a piece may come before `submit` is back

    def cancel_in_time() -> None:
        if len(told.tokens) >= one.cancel_after and going:
            cancel()

    def cancel() -> None:
        going[0].cancel()
        told.cancelled_at = min(told.cancelled_at, clock.now())

    if one.cancel == "talking":
        told.then = cancel_in_time
    going.append(running.submit(one.row.prompt, one.params, told))
    going[0].add_done_callback(clock.end)
    if one.cancel == "prefill":
        assert one.read.wait(SECONDS)
        cancel()
        one.cancelled.set()
    if one.cancel == "rounds":
        clock.wait_until(one.start + one.cancel_after, going[0])
    if one.cancel in ("waiting", "rounds"):
        cancel()
    return going[0].result(SECONDS), told


class Reading:
    """Stands in for a target: waits in prompts that must be cancelled while they are read."""

    def __init__(self, target: Target, asks: list[Ask]) -> None:
        self._target = target
        self._at: dict[tuple[int, ...], Ask] = {}  # the last chunks read
        for one in asks:
            if one.cancel == "prefill":
                end = CHUNK * one.cancel_after
                self._at[tuple(one.row.prompt[end - CHUNK : end])] = one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __call__(self, tokens: mx.array, cache: KVCache, *, last_only: bool = False) -> mx.array:
        hidden = self._target(tokens, cache, last_only=last_only)
        if last_only and (one := self._at.get(tuple(tokens[0].tolist()))):
            one.read.set()
            assert one.cancelled.wait(SECONDS)
        return hidden


def assert_as_alone(one: Ask, done: Completion, told: Pieces) -> None:
    """This is the row's own output, or its start, given once and counted correctly."""
    tokens, text, reason = expected(one.row, one.params)
    if one.cancel and done.finish_reason == "cancelled":
        assert len(done.tokens) < len(tokens), one
        assert done.tokens == tokens[: len(done.tokens)], one
        assert done.text == spelled(done.tokens), one
        assert told.ended_at <= told.cancelled_at + 1  # the round under way then
    else:
        assert (done.tokens, done.text, done.finish_reason) == (tokens, text, reason), one
    if one.cancel == "prefill":
        assert (done.tokens, done.finish_reason) == ([], "cancelled")

    assert told.tokens == done.tokens
    assert "".join(chunk.text for chunk in told.pieces) == done.text
    assert (
        [chunk.finish_reason for chunk in told.pieces if chunk.finish_reason]
        == [told.pieces[-1].finish_reason]
        == [done.finish_reason]
    )
    assert told.pieces[-1].stats is done.stats

    stats = done.stats
    assert stats.prompt_tokens == len(one.row.prompt)
    assert stats.generated_tokens == len(done.tokens)
    # Each round gives one token more than it accepts; the last may have been cut by one.
    given = stats.rounds + stats.accepted + min(len(done.tokens), 1)
    assert 0 <= given - len(done.tokens) <= (done.finish_reason != "cancelled")
    drafts = one.params.num_draft_tokens
    assert len(stats.drafted_at) <= (drafts if isinstance(drafts, int) else MOST)
    assert all(
        accepted <= drafted <= stats.rounds
        for accepted, drafted in zip(stats.accepted_at, stats.drafted_at, strict=True)
    )
    if drafts == 0:
        assert stats.rounds == max(len(done.tokens), 1) - 1


def play(
    pair: PairPaths,
    asks: list[Ask],
    max_batch: int,
    draft: Draft = draft,
    depth: Depth | None = None,
) -> list[Completion]:
    """Play a schedule in a new engine and check every output."""
    clock = Clock(draft)
    clock.expect([one.start for one in asks])
    opened = open_pair(*pair)
    opened = opened._replace(target=Reading(opened.target, asks), text=NumbersText())
    running = Engine(opened, max_batch=max_batch, player=clock.player, limits=LIMITS, depth=depth)
    with running, ThreadPoolExecutor(len(asks)) as threads:
        done = list(threads.map(lambda one: ask(running, clock, one), asks))
    clock.assert_free_rows_stayed()
    for one, (completion, told) in zip(asks, done, strict=True):
        assert_as_alone(one, completion, told)
    reasons = Counter(completion.finish_reason for completion, _ in done)
    print(f"rounds by number of rows: {dict(clock.sizes)}; ends: {dict(reasons)}")
    assert max(clock.sizes) <= max_batch
    assert len(clock.sizes) > 1 or max_batch == 1  # they did meet
    return [completion for completion, _ in done]


@pytest.mark.parametrize(("kind", "max_batch"), list(zip(SOME_KINDS, (8, 3, 4), strict=True)))
def test_with_the_drafter_each_request_writes_its_own_output(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    kind: str,
    max_batch: int,
) -> None:
    play(pairs[kind], draw_schedule(rng, texts(kind), max_batch), max_batch)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("max_batch", [1, 2, 3, 4, 8])
def test_with_drafts_right_and_wrong_at_random_each_request_writes_its_own_output(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    kind: str,
    max_batch: int,
) -> None:
    rows = texts(kind)
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.8))
    done = play(pairs[kind], draw_schedule(rng, rows, max_batch), max_batch, forced)
    assert sum(completion.stats.accepted for completion in done) > 0


class AnyDepth(Depth):
    """Another number of drafts for every round."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self._rng = rng

    def choose(self, *_: object) -> int:
        return int(self._rng.integers(MOST + 1))


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("max_batch", [2, 5, 8])
def test_with_another_number_of_drafts_every_round_each_request_writes_its_own_output(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    kind: str,
    max_batch: int,
) -> None:
    rows = texts(kind)
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.8))
    asks = draw_schedule(rng, rows, max_batch)
    play(pairs[kind], asks, max_batch, forced, AnyDepth(rng))


# One row after another


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_row_passes_nothing_on_however_its_request_ended(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    kind: str,
) -> None:
    """The longest request keeps the batch going; the others get the one other row in turn."""
    rows = texts(kind)
    longest = max(rows, key=lambda row: len(row.tokens))
    others = [rows[i] for i in rng.permutation(len(rows)) if 1 < len(rows[i].tokens) < 60][:6]
    clock = Clock(Forced(rng, rows, at_random(rng, rows, rate=0.8)))
    told = [Pieces(clock) for _ in others]
    ended: list[int] = []
    ends = [str(end) for end in rng.permutation(["length", "cancelled", "failed"] * 2)]
    all_here = threading.Event()

    opened = open_pair(*pairs[kind])
    with Engine(opened, max_batch=2, player=clock.player, limits=LIMITS) as running:

        def submit(row: Row, on_chunk: Pieces, **changed: Any) -> Generation:
            generation = running.submit(row.prompt, replace(row.params, **changed), on_chunk)
            generation.add_done_callback(lambda _: ended.append(len(row.tokens)))
            return generation

        def end_by(what: str, number: int) -> None:
            if len(told[number].pieces) == 2:  # by now it has its row
                if what == "cancelled":
                    going[number].cancel()
                if what == "failed":
                    raise ValueError("broken")

        mlx_worker().submit(lambda: all_here.wait(SECONDS))
        longest_one = submit(longest, Pieces(clock), num_draft_tokens=0)
        going = []
        for number, row in enumerate(others):
            told[number].then = partial(end_by, ends[number], number)
            # Few tokens, so that all get their turn while the longest continues.
            most = min(6, len(row.tokens))
            going.append(submit(row, told[number], num_draft_tokens=3, max_tokens=most))
        all_here.set()
        for end, row, pieces, generation in zip(ends, others, told, going, strict=True):
            if end == "failed":
                with pytest.raises(GenerationError, match="broken"):
                    generation.result(SECONDS)
            else:
                assert generation.result(SECONDS).tokens == pieces.tokens
            assert len(pieces.tokens) > 1
            assert pieces.tokens == row.tokens[: len(pieces.tokens)], (end, row)
            assert end != "length" or len(pieces.tokens) == min(6, len(row.tokens))
        assert longest_one.result(SECONDS).tokens == longest.tokens
    assert ended[-1] == len(longest.tokens)
    assert set(clock.sizes) <= {1, 2}
    clock.assert_free_rows_stayed()
