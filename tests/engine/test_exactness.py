"""Which completions are exact, and how prompts are read and rows are limited for it."""

from dataclasses import replace
from itertools import repeat
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.depths import GivenDepth
from helpers.fake_target import CONFIG, PARAMS, VOCAB, FakeTarget, fake_engine, output
from helpers.stepped import LONG, Stepped
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Exact
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.engine.exactness import NO_CLASS, NO_DRAFTS, Exactness
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.packing import Packing

LIMITS = Limits(start_seconds=1e9, pause_seconds=1e6)  # as on the quickest machine
CHUNKS = LIMITS.chunks
WIDE, PLAIN = PassClass(3, 64, 1, 16), PassClass(1, 4, 1, 1)
LENGTHS = [5, 64, 70, 150, 200, 3000]


def table(*classes: PassClass, chunks: tuple[int, ...] = CHUNKS) -> PassTable:
    """Of a machine on which a pass takes as long with more tokens."""
    seconds = dict.fromkeys((1, 64), 1.0)
    return PassTable(passes=seconds, steps={1: 0.01}, classes=classes, chunks=chunks)


class Reads(FakeTarget):
    """Notes the tokens of each pass over prompts, with padding, and of products over last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[int, int]] = []
        self.least: set[int] = set()
        self.most = 8  # prompts for which there is memory

    def read(self, tokens: mx.array, cache: KVCache, *rest: Any) -> mx.array:
        if len(tokens) > self.most:
            raise RuntimeError("no memory")
        self.passes.append((tokens.shape[0], tokens.shape[1]))
        self.least.add(rest[-1])
        return super().read(tokens, cache, *rest)


class Elsewhere(Reads):
    """Reads other tokens than it gets in passes whose bits this table does not promise."""

    def __init__(self, known: PassTable) -> None:
        super().__init__()
        self._chunks, [self._class] = known.chunks, known.classes

    def __call__(
        self, tokens: mx.array, cache: KVCache, packing: Packing | None = None
    ) -> mx.array:
        (_, positions), one = tokens.shape, self._class
        width = tokens.size if packing is None else packing.rows.size
        agrees = one.least_positions <= positions <= one.most_positions and self._holds(width)
        return super().__call__(tokens if agrees else (tokens + 1) % VOCAB, cache, packing)

    def read(self, tokens: mx.array, cache: KVCache, *rest: Any) -> mx.array:
        size, length = tokens.shape
        agrees = size == 1 and length in self._chunks and self._holds(max(size, rest[-1]))
        return super().read(tokens if agrees else (tokens + 1) % VOCAB, cache, *rest)

    def _holds(self, width: int) -> bool:
        return self._class.least_width <= width <= self._class.most_width


class Under(Stepped):
    """A scheduler under this rule."""

    def __init__(
        self,
        exact: Exact,
        known: PassTable | None,
        depth: Depth | None = None,
        target: Reads | None = None,
        **options: Any,
    ) -> None:
        """options: as of Stepped."""
        self.target, depth = target or Reads(), depth or Depth(table=known, exact=exact)
        self.rule = Exactness.of(exact, Depth(table=known, exact=exact), LIMITS, 8)
        super().__init__(depth=depth, exactness=self.rule, target=self.target, **options)

    def play(self, lengths: list[int], rng: np.random.Generator) -> list[bool]:
        """Requests that come together write their outputs; returns which are exact."""
        prompts = [rng.integers(0, VOCAB, length).tolist() for length in lengths]
        requests = [self.submit(prompt, 12, None) for prompt in prompts]
        self.finish(*requests)
        return [request.generation.result(0).exact for request in requests]


def test_insisting_reads_each_prompt_alone_in_sizes_that_agree(rng: np.random.Generator) -> None:
    stepped = Under(True, table(WIDE))
    assert all(stepped.play(LENGTHS, rng))
    sizes = [64, 64, 128, 128, 64, 256, 2048, 512, 256, 128, 64]
    assert stepped.target.passes == [(1, size) for size in sizes]
    assert stepped.target.least == {WIDE.least_width}
    assert max(event.size for event in stepped.rounds) == 8
    assert any(event.drafts for event in stepped.rounds)


def test_while_others_decode_only_the_sizes_of_passes_change(rng: np.random.Generator) -> None:
    stepped = Under(True, table(WIDE, chunks=(64, 2048)))
    first = stepped.submit(rng.integers(0, VOCAB, 5).tolist(), LONG)
    stepped.step(5)
    late = stepped.submit(rng.integers(0, VOCAB, 300).tolist(), LONG)
    stepped.finish(first, late)
    assert stepped.target.passes == [(1, 64)] * 6
    assert late.generation.result(0).exact


@pytest.mark.parametrize("chunks", [(), (512,)])
def test_if_sizes_do_not_agree_passes_follow_from_the_prompt(
    rng: np.random.Generator, chunks: tuple[int, ...]
) -> None:
    stepped = Under(True, table(WIDE, chunks=chunks))
    assert all(stepped.play([5, 600, 20], rng))
    assert stepped.target.passes == [(1, 5), (1, 512), (1, 88), (1, 20)]


def test_auto_pads_a_prompt_that_comes_alone_and_reads_others_together(
    rng: np.random.Generator,
) -> None:
    stepped = Under("auto", table(WIDE))
    assert stepped.play([5, 60, 70], rng) == [False] * 3
    assert stepped.play([100], rng) == [True]
    assert stepped.target.passes == [(3, 70), (1, 128)]


def test_prompts_that_fail_together_are_read_whole_one_by_one(rng: np.random.Generator) -> None:
    stepped = Under("auto", table(WIDE))
    stepped.target.most = 1
    assert stepped.play([130, 140], rng) == [True] * 2
    assert stepped.target.passes == [(1, 128), (1, 64)] * 2


@pytest.mark.parametrize(
    ("exact", "known"),
    [
        ("auto", None),
        ("auto", table(chunks=CHUNKS)),
        (False, table(WIDE)),
    ],
)
def test_nothing_is_done_where_it_would_cost_or_is_not_wanted(
    rng: np.random.Generator, exact: Exact, known: PassTable | None
) -> None:
    stepped = Under(exact, known)
    assert stepped.play([100], rng) == [False]
    assert stepped.target.passes == [(1, 100)]


def test_auto_without_sizes_that_agree_leaves_it_to_the_prompt(rng: np.random.Generator) -> None:
    stepped = Under("auto", table(WIDE, chunks=CHUNKS[:-1]))
    found = [exact for length in (100, 512, 600) for exact in stepped.play([length], rng)]
    assert found == [True, True, False]
    assert stepped.target.passes == [(1, 100), (1, 512), (1, 600)]


def test_one_round_outside_the_class_is_enough(rng: np.random.Generator) -> None:
    """The controller's rounds are, those that are given are not."""
    for depth, exact in ((None, True), (GivenDepth(repeat(2)), False)):
        stepped = Under(True, table(WIDE), depth)
        assert stepped.play([20, 30], rng) == [exact] * 2
    # Without any round the prompt decides.
    request = stepped.submit(rng.integers(0, VOCAB, 9).tolist(), 1)
    stepped.finish(request)
    assert request.generation.result(0).exact


def test_without_a_class_insisting_decodes_one_by_one_and_without_drafts(
    prompts: list[list[int]],
) -> None:
    with fake_engine(exact=True) as engine:
        assert engine.notes == (NO_CLASS,)
        done = engine.generate(prompts, [PARAMS, replace(PARAMS, num_draft_tokens=3)] * 4)
    assert [one.tokens for one in done] == [output(prompt, 16) for prompt in prompts]
    assert all(one.exact and not one.stats.drafted for one in done)


def test_without_a_class_no_pass_is_padded_though_that_were_quicker(
    rng: np.random.Generator,
) -> None:
    stepped = Under(True, PassTable(passes={1: 2.0, 8: 1.0}, steps={1: 0.01}))
    assert stepped.play([20, 30], rng) == [True, True]
    assert {event.size for event in stepped.rounds} == {1}


def test_insisting_has_no_more_rows_than_the_class_holds(prompts: list[list[int]]) -> None:
    known = table(PLAIN)
    with fake_engine(depth=Depth(table=known, exact=True), exact=True) as engine:
        assert engine.notes == (NO_DRAFTS,)
        done = engine.generate(prompts, PARAMS)
    assert all(one.exact and not one.stats.drafted for one in done)
    stepped = Under(True, known)
    stepped.play([5] * 8, np.random.default_rng(0))
    assert max(event.size for event in stepped.rounds) == PLAIN.most_width


def test_a_turn_of_a_session_is_judged_by_its_own_passes(rng: np.random.Generator) -> None:
    stepped, session = Under("auto", table(WIDE)), Session(CONFIG, "fake", LIMITS)
    other = [rng.integers(0, VOCAB, 70).tolist() for _ in range(2)]
    ids, found = rng.integers(0, VOCAB, 90).tolist(), list[Request]()
    for turn in range(3):
        found.append(stepped.submit(ids, 12, None, session=session))
        others = [stepped.submit(prompt, 12, None) for prompt in other if turn == 1]
        stepped.finish(found[-1], *others)
        ids = [*ids, *found[-1].tokens, *rng.integers(0, VOCAB, 10).tolist()]
    assert [one.generation.result(0).exact for one in found] == [True, True, True]
    assert all(one.stats.reused_tokens for one in found[1:])
    assert stepped.target.passes[-1] == (1, 64)


@pytest.mark.parametrize("one", [WIDE, PLAIN, PassClass(2, 12, 2, 4)])
def test_a_completion_that_says_it_is_exact_is(rng: np.random.Generator, one: PassClass) -> None:
    """Whatever the costs, the drafts asked for, and who decodes next to it."""
    found = dict[Exact, set[tuple[bool, bool]]]()
    for exact in (True, "auto"):
        seconds = {count: float(rng.choice([1, 1, 3])) for count in (1, 2, 5, 12, 24, 64)}
        known = replace(table(one), passes=seconds)
        stepped = Under(exact, known, target=Elsewhere(known))
        requests = list[Request]()
        for _ in range(14):
            prompt = rng.integers(0, VOCAB, rng.integers(1, 200)).tolist()
            drafts = (0, 3, 15, None, None, None)[rng.integers(6)]
            requests.append(stepped.submit(prompt, int(rng.integers(2, 30)), drafts))
            stepped.step(int(rng.integers(0, 9)))
        while stepped.scheduler.step():
            pass
        found[exact] = {
            (done.exact, done.tokens == output(request.ids, request.max_tokens))
            for request in requests
            for done in [request.generation.result(0)]
        }
    assert found[True] == {(True, True)}
    assert (True, False) not in found["auto"]


@pytest.mark.parametrize("exact", [True, "auto"])
def test_a_completion_that_says_it_is_exact_is_after_a_hit(
    rng: np.random.Generator, exact: Exact
) -> None:
    """Also if others read what it starts with, or wrote it."""
    known, found = table(WIDE), set[tuple[bool, bool]]()
    stepped = Under(exact, known, target=Elsewhere(known), prefix_cache=10**9)
    talks, requests = [rng.integers(0, VOCAB, 150).tolist() for _ in range(3)], list[Request]()
    for _ in range(20):
        n = int(rng.integers(3))
        prompt = [*talks[n], *rng.integers(0, VOCAB, rng.integers(1, 100)).tolist()]
        requests.append(stepped.submit(prompt, int(rng.integers(2, 30)), None))
        stepped.step(int(rng.integers(0, 30)))
        if requests[-1].ended and len(prompt) < 600:
            talks[n] = [*prompt, *requests[-1].tokens]
    stepped.finish()
    for one in requests:
        done = one.generation.result(0)
        found.add((done.exact, done.tokens == output(one.ids, one.max_tokens)))
    assert sum(one.stats.reused_tokens > 0 for one in requests) > 5
    assert (True, True) in found
    assert (True, False) not in found
    assert exact == "auto" or len(found) == 1


def test_prefixes_end_where_a_pass_does_if_passes_follow_from_the_prompt(
    rng: np.random.Generator,
) -> None:
    stepped = Under(True, table(WIDE, chunks=(512,)), prefix_cache=10**9)
    prompt, reused = rng.integers(0, VOCAB, 600).tolist(), list[int]()
    for tail in (5, 200, 300):
        request = stepped.submit([*prompt, *rng.integers(0, VOCAB, tail).tolist()], 30)
        stepped.finish(request)
        assert request.generation.result(0).exact
        reused.append(request.stats.reused_tokens)
        prompt = [*request.ids, *request.tokens] if tail == 200 else prompt
    assert reused == [0, 512, 512]
    assert stepped.target.passes == [(1, 512), (1, 93), (1, 288), (1, 512), (1, 106)]


@pytest.mark.parametrize("length", [30, 33, 40])
def test_padding_is_no_part_of_what_a_session_holds(rng: np.random.Generator, length: int) -> None:
    """It overwrites what a turn needs that goes back behind the end of the prompt."""
    limits = replace(LIMITS, chunks=(8, 24), slot_step=1, rollback=8)
    rule = Exactness(limits, 1, sizes=limits.chunks)
    reused = set[int]()
    for back in range(12):
        session, prompt = Session(CONFIG, "fake", limits), rng.integers(0, VOCAB, length).tolist()
        stepped = Stepped(exactness=rule)
        for ids in (prompt, [*prompt[: length - back], *rng.integers(0, VOCAB, 3).tolist()]):
            request = stepped.submit(ids, 9, session=session)
            stepped.finish(request)
        reused.add(request.stats.reused_tokens)
    assert length in reused
    assert 0 in reused
