"""The text is the one the target writes alone: whatever is drafted, accepted and batched with it.

Eight plain texts of every kind are decoded once, without a drafter, and checked against a single
pass of the target over each. Every other way to the same texts must give the same tokens. Random
tiny drafters are hardly ever right, so drafts are also forced: right and wrong by a pattern over
rows and positions, and then the counts of accepted drafts must be exactly those of the pattern.

The sliding layers get the tightest ring that the largest K here allows: short texts wrap it.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from conftest import KINDS
from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import (
    Forced,
    NumbersText,
    Row,
    always,
    at_random,
    is_decisive,
    spelled,
)
from mlx_gemma_mtp import Completion, Engine, SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.engine import batch, prefill
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files.checkpoint import read_generation_config
from mlx_gemma_mtp.files.weights import load_target
from mlx_gemma_mtp.model import cache
from mlx_gemma_mtp.model.cache import capacity_for

DRAFTS = (1, 2, 3, 5, 7)
BATCHES = (1, 2, 4, 5, 8)
NUM_ROWS = 8
SOME_KIND = "E2B"  # for what does not depend on the kind
# Rows whose text of SHORT tokens passes the end of the ring twice, one for each kind.
LONG_ROWS = (0, 2, 4, 6, 7)
OWN_RING = (cache.SLOT_STEP, batch.MAX_DRAFT_TOKENS)  # what makes the ring of an engine in use

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, top_k=64, top_p=0.95, ignore_eos=True)
OTHERWISE = SamplingParams(temperature=0.7, top_k=5, top_p=0.8, ignore_eos=True)


@dataclass(frozen=True)
class Plain:
    """The plain texts of one kind."""

    kind: str
    pair: PairPaths
    window: int
    rows: list[Row]

    @property
    def ring(self) -> int:
        """Slots of a sliding layer."""
        needed = self.window + batch.MAX_DRAFT_TOKENS + 1
        return -(-needed // cache.SLOT_STEP) * cache.SLOT_STEP

    @property
    def short(self) -> int:
        """Tokens with which a text that starts just before the ring's end passes it twice."""
        return self.ring + 4

    @property
    def long(self) -> int:
        """Tokens with which any text passes the ring's end twice."""
        return 2 * self.ring + 2

    def pick(self, size: int) -> list[Row]:
        """`size` neighbouring rows, beginning with another long row for every kind."""
        start = LONG_ROWS[KINDS.index(self.kind)]
        return [self.rows[(start + i) % NUM_ROWS] for i in range(size)]


def wraps(row: Row, num_tokens: int, ring: int) -> int:
    """How often a text of num_tokens passes the ring's end; its last token is not written."""
    return (len(row.prompt) + num_tokens - 2) // ring - len(row.prompt) // ring


# The plain texts


@pytest.fixture(scope="module", autouse=True)
def tight_ring() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SLOT_STEP", 1)
        patch.setattr(batch, "MAX_DRAFT_TOKENS", max(DRAFTS))
        patch.setattr(batch, "ROUNDS_AHEAD", 1)  # enough where no session takes over
        patch.setattr(prefill, "PAUSE_SECONDS", np.inf)  # short prompts join before the next round
        yield


@pytest.fixture(scope="module")
def plains(tight_ring: None, pairs: dict[str, PairPaths], seed: int) -> Callable[[str], Plain]:
    """The plain texts of a kind; decoded when first asked for."""
    made: dict[str, Plain] = {}

    def get(kind: str) -> Plain:
        if kind not in made:
            made[kind] = decode_plainly(kind, pairs[kind], seed)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def plain(kind: str, plains: Callable[[str], Plain]) -> Plain:
    """The plain texts of this kind."""
    return plains(kind)


def decode_plainly(kind: str, pair: PairPaths, seed: int) -> Plain:
    """Eight random prompts of many lengths and settings, and their texts without a drafter.

    A text with a near tie is replaced by that of another prompt.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    target = load_target(pair.target, dtype=mx.float32)
    suppressed = read_generation_config(pair.target).get("suppress_tokens") or []
    window = target.config.sliding_window
    plain = Plain(kind, pair, window, [])
    ring, num_tokens = plain.ring, plain.long + max(DRAFTS) + 1
    kinds_of_row = [
        (ring - 2, GREEDY),
        (3, SAMPLED),
        (2 * ring - 1, SAMPLED),
        (window, GREEDY),
        (capacity_for(1) // ring * ring - 2, GREEDY),  # outgrows full-attention layers' buffers
        (window + 1, SAMPLED),
        (ring - 1, GREEDY),
        (3 * ring - 2, OTHERWISE),
    ]
    rows: list[Row | None] = [None] * NUM_ROWS
    with load(pair.target, None) as engine:
        for _ in range(10):
            missing = [i for i, row in enumerate(rows) if row is None]
            if not missing:
                break
            prompts = [rng.integers(0, VOCAB, kinds_of_row[i][0]).tolist() for i in missing]
            params = [
                replace(kinds_of_row[i][1], max_tokens=num_tokens, seed=int(rng.integers(2**32)))
                for i in missing
            ]
            done = engine.generate(prompts, params)
            for i, prompt, settings, one in zip(missing, prompts, params, done, strict=True):
                row = Row(prompt, settings, one.tokens)
                if is_decisive(target, row, suppressed):
                    rows[i] = row
    plain.rows.extend(row for row in rows if row is not None)
    assert len(plain.rows) == NUM_ROWS, "plain texts differ from one pass over them, or only tie"
    return plain


# Ways to the same texts


def again(
    engine: Engine, rows: Sequence[Row], num_tokens: int, num_draft_tokens: int | Sequence[int]
) -> list[Completion]:
    """The rows' prompts decoded side by side, with this many drafts per round."""
    if isinstance(num_draft_tokens, int):
        num_draft_tokens = [num_draft_tokens] * len(rows)
    params = [
        replace(row.params, max_tokens=num_tokens, num_draft_tokens=k)
        for row, k in zip(rows, num_draft_tokens, strict=True)
    ]
    all_here = threading.Event()
    mlx_worker().submit(all_here.wait)  # else the first would begin before the last is there
    under_way = [engine.submit(row.prompt, own) for row, own in zip(rows, params, strict=True)]
    all_here.set()
    return [one.result() for one in under_way]


def assert_plain(done: Sequence[Completion], rows: Sequence[Row], num_tokens: int) -> None:
    for number, (one, row) in enumerate(zip(done, rows, strict=True)):
        assert one.tokens == row.tokens[:num_tokens], f"row {number}, {row.params}"
        assert one.finish_reason == "length"


def case(kind: str, number: int) -> tuple[int, int]:
    """K and batch size: each kind meets every K and every size, the kinds together every pair."""
    return DRAFTS[number], BATCHES[(number + KINDS.index(kind)) % len(BATCHES)]


def test_the_plain_texts_cover_what_is_promised(plain: Plain) -> None:
    lengths = [len(row.prompt) for row in plain.rows]
    assert min(lengths) < plain.window < max(lengths)
    assert plain.window in lengths
    assert max(lengths) > plain.ring
    assert plain.ring == plain.window + max(DRAFTS) + 1
    assert lengths[4] < capacity_for(1) < lengths[4] + plain.short
    assert all(wraps(row, plain.long, plain.ring) >= 2 for row in plain.rows)
    assert all(wraps(plain.rows[i], plain.short, plain.ring) >= 2 for i in LONG_ROWS)
    met = {case(kind, number) for kind in KINDS for number in range(5)}
    assert met == {(k, size) for k in DRAFTS for size in BATCHES}
    assert sum(len(set(row.tokens)) for row in plain.rows) > 100  # they do say something


@pytest.mark.parametrize(("num_drafts", "size"), list(zip(DRAFTS, reversed(BATCHES), strict=True)))
def test_text_with_the_drafter_is_the_plain_text(plain: Plain, num_drafts: int, size: int) -> None:
    rows = plain.pick(size)
    assert wraps(rows[0], plain.short, plain.ring) >= 2
    with load(*plain.pair) as engine:
        done = again(engine, rows, plain.short, num_drafts)
    assert_plain(done, rows, plain.short)
    assert all(one.stats.drafted == one.stats.rounds * num_drafts > 0 for one in done)


@pytest.mark.parametrize("number", range(5))
def test_text_is_plain_whatever_is_accepted(
    plain: Plain, number: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_drafts, size = case(plain.kind, number)
    rows = plain.pick(size)
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.85))
    monkeypatch.setattr(speculate, "draft", forced)
    with load(*plain.pair) as engine:
        done = again(engine, rows, plain.long, num_drafts)
    assert_plain(done, rows, plain.long)
    for i, one in enumerate(done):
        forced.assert_counted(i, one.stats, plain.long, num_drafts)


def test_rows_accept_nothing_everything_or_a_pattern_side_by_side(
    plain: Plain, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, everything = always(plain.rows, False), always(plain.rows, True)
    odd = [np.arange(len(pattern)) % 2 == 1 for pattern in everything]
    late = [np.arange(len(pattern)) % 4 != 0 for pattern in everything]
    seldom = at_random(rng, plain.rows, rate=0.3)
    choices = [nothing, everything, odd, late, seldom, everything, nothing, odd]
    turn = int(rng.integers(NUM_ROWS))
    patterns = [choices[(i + turn) % NUM_ROWS][i] for i in range(NUM_ROWS)]
    forced = Forced(rng, plain.rows, patterns)
    monkeypatch.setattr(speculate, "draft", forced)
    with load(*plain.pair) as engine:
        done = again(engine, plain.rows, plain.short, 3)
    assert_plain(done, plain.rows, plain.short)
    for i, one in enumerate(done):
        forced.assert_counted(i, one.stats, plain.short, 3)
    rates = {one.stats.acceptance_rate for one in done}
    assert {0, 1} < rates


def test_each_row_has_its_own_number_of_drafts(
    plains: Callable[[str], Plain], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plains(SOME_KIND)
    forced = Forced(rng, plain.rows, at_random(rng, plain.rows, rate=0.9))
    monkeypatch.setattr(speculate, "draft", forced)
    drafts = rng.permutation([0, 1, 2, 3, 4, 5, 6, 7]).tolist()
    with load(*plain.pair) as engine:
        done = again(engine, plain.rows, plain.short, drafts)
    assert_plain(done, plain.rows, plain.short)
    for i, one in enumerate(done):
        forced.assert_counted(i, one.stats, plain.short, drafts[i])


def test_each_prompt_alone_gives_the_same_text(
    plain: Plain, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = plain.pick(1)[0]
    with load(plain.pair.target, None) as engine:
        assert_plain(again(engine, [row], plain.short, 0), [row], plain.short)
    for row in plain.rows:
        monkeypatch.setattr(speculate, "draft", Forced(rng, [row], always([row], True)))
        with load(*plain.pair) as engine:
            assert_plain(again(engine, [row], plain.long, max(DRAFTS)), [row], plain.long)


def test_the_most_drafts_and_the_ring_of_an_engine_in_use(
    plain: Plain, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SLOT_STEP", OWN_RING[0])
    monkeypatch.setattr(batch, "MAX_DRAFT_TOKENS", OWN_RING[1])
    num_tokens = min(len(row.tokens) for row in plain.rows)
    assert all(wraps(row, num_tokens, plain.ring) >= 1 for row in plain.rows)
    forced = Forced(rng, plain.rows, at_random(rng, plain.rows, rate=0.9))
    monkeypatch.setattr(speculate, "draft", forced)
    with load(*plain.pair) as engine:
        done = again(engine, plain.rows, num_tokens, MAX_DRAFT_TOKENS)
    assert_plain(done, plain.rows, num_tokens)


def test_a_prompt_may_come_in_chunks_that_wrap_the_ring(
    plain: Plain, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "CHUNKS", (13,))
    rows = [row for row in plain.rows if len(row.prompt) > 13]
    forced = Forced(rng, rows, always(rows, True))
    monkeypatch.setattr(speculate, "draft", forced)
    with load(*plain.pair) as engine:
        done = again(engine, rows, plain.short, 7)
    assert_plain(done, rows, plain.short)


# Ends inside a draft. K = 5 and everything accepted: a round gives 6 tokens.


def inside_a_draft(index: int, num_draft_tokens: int) -> bool:
    """Is this token of an always accepted text neither the first nor the last of its round?"""
    return index > 0 and 0 < (index - 1) % (num_draft_tokens + 1) < num_draft_tokens


@pytest.fixture
def everything_right(
    plains: Callable[[str], Plain], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> Plain:
    plain = plains(SOME_KIND)
    monkeypatch.setattr(speculate, "draft", Forced(rng, plain.rows, always(plain.rows, True)))
    return plain


@pytest.mark.parametrize("num_drafts", [0, 5])
def test_an_end_token_inside_a_draft_ends_the_text(
    everything_right: Plain, num_drafts: int, tmp_path: Path
) -> None:
    plain = everything_right
    texts = [row.tokens[: plain.long] for row in plain.rows]
    # Of each a token that is new inside a draft, if any; they are the end tokens of all.
    eos = set()
    for i, text in enumerate(texts):
        fresh = (j for j, token in enumerate(text) if token not in text[:j])
        inside = [j for j in fresh if inside_a_draft(j, 5)]
        eos |= {text[j] for j in sorted(inside, key=lambda j: abs(j - 3 * i))[:1]}
    last = plain.long - 1
    ends = [next((j for j, token in enumerate(text) if token in eos), last) for text in texts]
    assert any(inside_a_draft(end, 5) for end in ends)
    assert len(set(ends)) > 1

    folder = shutil.copytree(plain.pair.target, tmp_path / "target")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(eos)}))
    params = [
        replace(row.params, max_tokens=plain.long, num_draft_tokens=num_drafts, ignore_eos=False)
        for row in plain.rows
    ]
    with load(folder, plain.pair.drafter) as engine:
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, text, end in zip(done, texts, ends, strict=True):
        assert one.tokens == text[: end + 1]
        assert one.finish_reason == ("stop" if text[end] in eos else "length")


@pytest.mark.parametrize("num_drafts", [0, 5])
def test_a_stop_string_inside_a_draft_ends_the_text(
    everything_right: Plain, num_drafts: int
) -> None:
    plain = everything_right
    params, ends = [], []
    for i, row in enumerate(plain.rows):
        # Two digits of one token and one of the next; it may occur earlier than where it was taken.
        taken = next(j for j in range(3 * i + 2, plain.long) if inside_a_draft(j, 5))
        stop = spelled(row.tokens)[3 * taken - 2 : 3 * taken + 1]
        ends.append(spelled(row.tokens).index(stop))
        params.append(
            replace(
                row.params, max_tokens=plain.long, num_draft_tokens=num_drafts, stop=["#", stop]
            )
        )
    last_tokens = [(end + 2) // 3 for end in ends]  # with it the stop string is complete
    assert any(inside_a_draft(last, 5) for last in last_tokens)
    assert len(set(last_tokens)) > 1
    with load(*plain.pair) as engine:
        engine.text = NumbersText()  # type: ignore[assignment]
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, row, end, last in zip(done, plain.rows, ends, last_tokens, strict=True):
        assert one.text == spelled(row.tokens)[:end]
        assert one.tokens == row.tokens[: last + 1]
        assert one.finish_reason == "stop"


@pytest.mark.parametrize("num_drafts", [0, 5])
def test_rows_end_at_different_tokens_of_a_draft(everything_right: Plain, num_drafts: int) -> None:
    plain = everything_right
    limits = [1, 2, 4, 7, 8, 12, 13, 30]
    assert any(inside_a_draft(limit - 1, 5) for limit in limits)
    params = [
        replace(row.params, max_tokens=limit, num_draft_tokens=num_drafts)
        for row, limit in zip(plain.rows, limits, strict=True)
    ]
    with load(*plain.pair) as engine:
        done = engine.generate([row.prompt for row in plain.rows], params)
    for one, row, limit in zip(done, plain.rows, limits, strict=True):
        assert one.tokens == row.tokens[:limit]
        assert one.finish_reason == "length"
        assert one.stats.rounds == -(-(limit - 1) // (num_drafts + 1))
