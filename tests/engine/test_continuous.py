"""Requests come, talk and go at random, and each of them writes what it would have written alone.

Every test draws its own schedule: prompts of all lengths, settings, moments at which requests are
submitted (each from a thread of its own) and cancelled. What they should have said is decoded once
per kind: plainly, one request at a time. Moments are counted in rounds; a thread may be a little
late for its own, so one seed gives the same requests, not the same interleaving.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import EOS, VOCAB, PairPaths
from helpers.forced import Forced, NumbersText, Row, at_random, is_decisive, spelled
from mlx_gemma_mtp import Chunk, Completion, Engine, Generation, SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.depth import MOST, Depth
from mlx_gemma_mtp.decode.round import PlayRound, Round
from mlx_gemma_mtp.engine import batch, engine, prefill, scheduler
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import GenerationError
from mlx_gemma_mtp.files.checkpoint import read_generation_config
from mlx_gemma_mtp.files.weights import load_target
from mlx_gemma_mtp.model import cache
from mlx_gemma_mtp.model.cache import KVCache

# Dense with K = V; experts; per-layer embeddings, shared K/V and a drafter with a centroid head.
SOME_KINDS = ("12B", "26B-A4B", "E2B")
CHUNK = 24  # tokens; prompts up to 90 come in up to four, and wrap every ring
CAPACITY_STEP = 32  # slots; so texts outgrow their buffers
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
SECONDS = 60  # after which what should long have happened never does

Moment = Literal["waiting", "prefill", "rounds", "talking"]


@dataclass(frozen=True)
class Ask:
    """A request, when it comes, and whether it is cancelled."""

    row: Row
    params: SamplingParams
    start: int = 0  # round
    cancel: Moment | None = None
    cancel_after: int = 0  # chunks of the prompt, rounds since the start, or tokens said


class Clock:
    """Time in rounds. When nobody is served, it runs on to the next moment that is awaited."""

    def __init__(self) -> None:
        self.sizes: Counter[int] = Counter()  # rounds by number of rows
        self.talking = 0  # requests that have said something and not ended
        self._moves: list[tuple[int, mx.array, mx.array, mx.array]] = []
        self._now = 0
        self._ahead: list[int] = []
        self._served = 0
        self._changed = threading.Condition()

    def expect(self, moments: list[int]) -> None:
        self._now, self._ahead = 0, sorted(moments)

    def begin(self, moment: int) -> None:
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
        """Stands in for `round_player`: its rounds are what is counted."""
        play_round = speculate.round_player(*models)

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
        """Did in every round as many rows move as requests were talking, and no other?"""

        def read() -> list[tuple[int, list[int], list[int]]]:
            return [
                (talking, limit.tolist(), (after - before).tolist())
                for talking, limit, before, after in self._moves
            ]

        for talking, limits, moved in mlx_worker().run(read):
            assert talking == sum(limit >= 0 for limit in limits)
            for limit, tokens in zip(limits, moved, strict=True):
                assert tokens == 0 if limit < 0 else 1 <= tokens <= limit + 1


@dataclass
class Told:
    """What a request was told, piece by piece. What it does after a piece: `then`."""

    clock: Clock
    then: Callable[[], object] = lambda: None
    pieces: list[Chunk] = field(default_factory=list)
    talking: bool = False
    cancelled_at: float = np.inf  # rounds
    ended_at: int = 0

    def __call__(self, chunk: Chunk) -> None:
        self.pieces.append(chunk)
        goes_on = chunk.finish_reason is None
        try:
            self.then()
        except ValueError:
            goes_on = False
            raise
        finally:
            self.clock.talking += goes_on - self.talking
            self.talking = goes_on
            self.ended_at = self.clock.now()

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.pieces for token in chunk.tokens]


# Texts written alone


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    """Little texts meet what otherwise only long ones do.

    Every prompt is chunked alike in all runs: how much is read between two rounds depends on
    timing, and a prompt in other chunks has logits that differ by 1e-5.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "CHUNKS", (CHUNK,))
        patch.setattr(scheduler, "CHUNKS", (1,))  # short prompts may still share a chunk
        patch.setattr(cache, "SLOT_STEP", 1)
        patch.setattr(batch, "MAX_DRAFT_TOKENS", MOST)
        patch.setattr(batch, "ROUNDS_AHEAD", 1)
        patch.setattr(batch, "SHRINK_AFTER", 2)
        for module in (cache, batch, prefill):
            patch.setattr(
                module, "capacity_for", lambda length: -(-length // CAPACITY_STEP) * CAPACITY_STEP
            )
        yield


@pytest.fixture(scope="module")
def texts(small_steps: None, pairs: dict[str, PairPaths], seed: int) -> Callable[[str], list[Row]]:
    """The texts of a kind, in random order; decoded when first asked for."""
    made: dict[str, list[Row]] = {}

    def get(kind: str) -> list[Row]:
        if kind not in made:
            made[kind] = write_alone(pairs[kind], np.random.default_rng([seed, *kind.encode()]))
        return made[kind]

    return get


def write_alone(pair: PairPaths, rng: np.random.Generator) -> list[Row]:
    """Texts of random prompts without a drafter, one at a time; those with a near tie left out."""
    suppressed = read_generation_config(pair.target).get("suppress_tokens") or []
    target = load_target(pair.target, dtype=mx.float32)
    lengths = zip(rng.permutation(PROMPT_LENGTHS), rng.permutation(TEXT_LENGTHS), strict=True)
    rows = []
    with load(pair.target, None, max_batch=1) as alone:
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
                if is_decisive(target, row, suppressed):
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
    raise AssertionError("a text that goes on past its end")


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

    The longest comes first, and is left alone: the others meet it.
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


def ask(running: Engine, clock: Clock, one: Ask) -> tuple[Completion, Told]:
    """Submit a request at its moment, cancel it at its other, and wait for what it becomes."""
    clock.wait_until(one.start)
    clock.begin(one.start)
    told = Told(clock)
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
    if one.cancel == "rounds":
        clock.wait_until(one.start + one.cancel_after, going[0])
    if one.cancel in ("waiting", "rounds"):
        cancel()
    return going[0].result(SECONDS), told


def cancel_in_prefill(monkeypatch: pytest.MonkeyPatch, asks: list[Ask]) -> None:
    """Have those cancelled who are to be so after some chunk of their prompt."""
    advance = Prefill.advance
    after = {one.row.params.seed: one.cancel_after for one in asks if one.cancel == "prefill"}

    def advance_and_cancel(self: Prefill, most: int) -> int:
        num_tokens = advance(self, most)
        seed = self.request.params.seed
        if seed in after:
            after[seed] -= 1
            if after[seed] == 0:
                self.request.generation.cancel()
        return num_tokens

    monkeypatch.setattr(Prefill, "advance", advance_and_cancel)


def assert_as_alone(one: Ask, done: Completion, told: Told) -> None:
    """Is this what the row says alone, or its beginning, told once and counted right?"""
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
    monkeypatch: pytest.MonkeyPatch, pair: PairPaths, asks: list[Ask], max_batch: int
) -> list[Completion]:
    """Play a schedule in a new engine and check every text."""
    clock = Clock()
    clock.expect([one.start for one in asks])
    monkeypatch.setattr(engine, "round_player", clock.player)
    cancel_in_prefill(monkeypatch, asks)
    with load(*pair, max_batch=max_batch) as running, ThreadPoolExecutor(len(asks)) as threads:
        running.text = NumbersText()  # type: ignore[assignment]
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
def test_with_the_drafter_everyone_writes_his_own_text(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    max_batch: int,
) -> None:
    play(monkeypatch, pairs[kind], draw_schedule(rng, texts(kind), max_batch), max_batch)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("max_batch", [1, 2, 3, 4, 8])
def test_with_drafts_right_and_wrong_at_random_everyone_writes_his_own_text(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    max_batch: int,
) -> None:
    rows = texts(kind)
    monkeypatch.setattr(speculate, "draft", Forced(rng, rows, at_random(rng, rows, rate=0.8)))
    done = play(monkeypatch, pairs[kind], draw_schedule(rng, rows, max_batch), max_batch)
    assert sum(completion.stats.accepted for completion in done) > 0


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("max_batch", [2, 5, 8])
def test_with_another_number_of_drafts_every_round_everyone_writes_his_own_text(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    max_batch: int,
) -> None:
    rows = texts(kind)
    monkeypatch.setattr(speculate, "draft", Forced(rng, rows, at_random(rng, rows, rate=0.8)))
    monkeypatch.setattr(Depth, "choose", lambda *_: int(rng.integers(MOST + 1)))
    play(monkeypatch, pairs[kind], draw_schedule(rng, rows, max_batch), max_batch)


# One row after another


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_row_passes_nothing_on_however_its_request_ended(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """The longest text keeps the batch going; the others have the one other row in turn."""
    rows = texts(kind)
    longest = max(rows, key=lambda row: len(row.tokens))
    others = [rows[i] for i in rng.permutation(len(rows)) if 1 < len(rows[i].tokens) < 60][:6]
    monkeypatch.setattr(speculate, "draft", Forced(rng, rows, at_random(rng, rows, rate=0.8)))
    clock = Clock()
    monkeypatch.setattr(engine, "round_player", clock.player)
    told = [Told(clock) for _ in others]
    ended: list[int] = []
    ends = [str(end) for end in rng.permutation(["length", "cancelled", "failed"] * 2)]
    all_here = threading.Event()

    with load(*pairs[kind], max_batch=2) as running:

        def submit(row: Row, on_chunk: Told, **changed: Any) -> Generation:
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
        keeping_on = submit(longest, Told(clock), num_draft_tokens=0)
        going = []
        for number, row in enumerate(others):
            told[number].then = partial(end_by, ends[number], number)
            # Few tokens, so that all have their turn while the longest goes on.
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
        assert keeping_on.result(SECONDS).tokens == longest.tokens
    assert ended[-1] == len(longest.tokens)
    assert set(clock.sizes) <= {1, 2}
    clock.assert_free_rows_stayed()
