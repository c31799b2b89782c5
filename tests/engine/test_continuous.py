"""Requests start and end at random moments, and each writes what it would have written alone.

Every test draws its own schedule: prompts, settings, and the rounds at which requests are submitted
and cancelled, each from its own thread. Expected outputs are decoded alone, without drafts. Threads
may be late, so one seed gives the same requests, not the same interleaving.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from helpers.checkpoints import EOS, PairPaths
from helpers.depths import AnyDepth
from helpers.forced import Forced, Row, at_random
from helpers.schedule import CHUNK, Ask, Clock, Pieces, Reading, ask, draw_schedule, write_alone
from helpers.spelled import NumbersText, spelled
from helpers.traffic import assert_counted, assert_told_once
from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.player import Draft
from mlx_gemma_mtp.decode.round import draft
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.errors import GenerationError
from mlx_gemma_mtp.memory import Limits

# Dense with K = V; experts; per-layer embeddings, shared K/V and a drafter with a centroid head.
SOME_KINDS = ("12B", "26B-A4B", "E2B")
# Short outputs meet here what otherwise only long ones do: they wrap rings and outgrow buffers.
# Every prompt is chunked alike in all runs, because a prompt in other chunks has logits that differ
# by 1e-5. Short prompts may still share a chunk.
LIMITS = Limits(
    chunks=(1, CHUNK),
    pause_seconds=np.inf,
    slot_step=1,
    max_draft_tokens=7,
    shrink_after=2,
)
PROMPT_LENGTHS = (1, 2, 5, 8, 11, 16, 18, 24, 25, 33, 60, 90)
TEXT_LENGTHS = (60, 46, 34, 27, 21, 17, 13, 10, 7, 4, 2, 1)


@pytest.fixture(scope="module")
def texts(pairs: dict[str, PairPaths], seed: int) -> Callable[[str], list[Row]]:
    """The outputs of a kind, in random order; decoded on first use."""
    made: dict[str, list[Row]] = {}

    def get(kind: str) -> list[Row]:
        if kind not in made:
            rng = np.random.default_rng([seed, *kind.encode()])
            sizes, lengths = rng.permutation(PROMPT_LENGTHS), rng.permutation(TEXT_LENGTHS)
            made[kind] = write_alone(pairs[kind], rng, sizes, lengths, LIMITS)
        return made[kind]

    return get


def expected(row: Row, params: SamplingParams) -> tuple[list[int], str, str]:
    """Tokens, text and finish reason of a row's request with an earlier end."""
    for end in range(1, len(row.tokens) + 1):
        tokens = row.tokens[:end]
        if tokens[-1] in EOS and not params.ignore_eos:
            return tokens, spelled(tokens[:-1]), "stop"
        for stop in params.stop_strings:
            if stop in spelled(tokens):
                return tokens, spelled(tokens).split(stop)[0], "stop"
        if end == params.max_tokens:
            return tokens, spelled(tokens), "length"
    raise AssertionError("an output that continues past its end")


def assert_as_alone(one: Ask, told: Pieces) -> None:
    """This is the row's own output, or its start, given once and counted correctly."""
    tokens, text, reason = expected(one.row, one.params)
    done = told.done
    if isinstance(done, GenerationError) and one.end == "failing":
        assert "broken" in str(done)
        assert told.tokens == tokens[: len(told.tokens)], one
        assert len(told.tokens) - len(told.pieces[-1].tokens) < one.after <= len(told.tokens)
        return
    assert isinstance(done, Completion)
    if one.end and done.finish_reason == "cancelled":
        assert len(done.tokens) < len(tokens), one
        assert done.tokens == tokens[: len(done.tokens)], one
        assert done.text == spelled(done.tokens), one
        assert told.ended_at <= told.cancelled_at + 1  # the round under way then
    else:
        assert (done.tokens, done.text, done.finish_reason) == (tokens, text, reason), one
    if one.end == "prefill":
        assert (done.tokens, done.finish_reason) == ([], "cancelled")

    assert_told_once(told.pieces, done)
    drafts = one.params.num_draft_tokens
    stats = assert_counted(told.pieces, one.row.prompt, drafts)
    assert drafts != 0 or stats.rounds == max(len(done.tokens), 1) - 1


def play(
    pair: PairPaths,
    asks: list[Ask],
    max_batch: int,
    draft: Draft = draft,
    depth: Depth | None = None,
) -> list[Completion]:
    """Play a schedule in a new engine and check every output."""
    clock = Clock(draft, [one.start for one in asks])
    opened = open_pair(*pair)
    opened = opened._replace(target=Reading(opened.target, asks), text=NumbersText())
    running = Engine(opened, max_batch=max_batch, player=clock.player, limits=LIMITS, depth=depth)
    with running, ThreadPoolExecutor(len(asks)) as threads:
        told = list(threads.map(partial(ask, running, clock), asks))
    clock.assert_free_rows_stayed()
    for one, pieces in zip(asks, told, strict=True):
        assert_as_alone(one, pieces)
    reasons = Counter(pieces.pieces[-1].finish_reason for pieces in told)
    print(f"rounds by number of rows: {dict(clock.sizes)}; ends: {dict(reasons)}")
    assert max(clock.sizes) <= max_batch
    assert len(clock.sizes) > 1 or max_batch == 1  # they did meet
    return [pieces.done for pieces in told if isinstance(pieces.done, Completion)]


@pytest.mark.parametrize(
    ("drafts", "number", "max_batch"),
    [
        (drafts, number, max_batch)
        for drafts, sizes in {
            "the drafter's": (8, 3, 4),
            "right and wrong at random": (1, 2, 3, 4, 8),
            "another division every round": (2, 5, 8),
        }.items()
        for number, max_batch in enumerate(sizes)
    ],
)
def test_whatever_the_drafts_each_request_writes_its_own_output(
    pairs: dict[str, PairPaths],
    texts: Callable[[str], list[Row]],
    rng: np.random.Generator,
    seed: int,
    drafts: str,
    number: int,
    max_batch: int,
) -> None:
    """Each run has each way to draft with each kind; which size meets which kind is its seed's."""
    kind = SOME_KINDS[(seed + number) % len(SOME_KINDS)]
    rows = texts(kind)
    asks = draw_schedule(rng, rows, max_batch)
    if drafts == "the drafter's":
        play(pairs[kind], asks, max_batch)
        return
    forced = Forced(rng, rows, at_random(rng, rows, rate=0.8))
    any_depth = AnyDepth(rng, LIMITS.max_draft_tokens)
    depth = any_depth if drafts == "another division every round" else None
    done = play(pairs[kind], asks, max_batch, forced, depth)
    assert sum(completion.stats.accepted for completion in done) > 0
