"""The benchmark's parts: drawn accepts, windows, cases, the split of a round, what bytes allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from threading import Thread
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import floor as floors
from mlx_gemma_mtp.bench import subject, synthetic
from mlx_gemma_mtp.bench.case import make_case
from mlx_gemma_mtp.bench.floor import Floor
from mlx_gemma_mtp.bench.record import OURS, Case, NumDrafts, Spread, Window
from mlx_gemma_mtp.bench.split import Stopwatch
from mlx_gemma_mtp.bench.synthetic import Draws, expected_tokens
from mlx_gemma_mtp.bench.turn import Rounds, Turn, our_rounds, timed

from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.round import Layout, Newest, draft
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.decode.table import PassClass, PassTable
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.results import Chunk, Stats
from mlx_gemma_mtp.errors import NotEnoughMemoryError, UsageError
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

PairOf = tuple[Target, Drafter]
GREEDY = SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)


@pytest.mark.parametrize("rates", [[0.8], [0.2], [0.84, 0.71, 0.64, 0.70], [1.0], [0.0]])
def test_draws_have_the_stated_rates_by_position(rates: list[float]) -> None:
    draws = Draws([rates])
    accepts = np.array([draws(8, 5) for _ in range(2000)])
    reached = 1.0
    for position in range(5):
        reached *= rates[min(position, len(rates) - 1)]
        assert (accepts > position).mean(axis=0) == pytest.approx(reached, abs=0.02)
    assert accepts.mean() + 1 == pytest.approx(expected_tokens(rates, 5), abs=0.01)


def test_a_few_rounds_are_already_near_the_rates_and_rows_are_independent() -> None:
    draws = Draws([[0.8]])
    accepts = np.array([draws(8, 3) for _ in range(16)])
    assert accepts.mean() + 1 == pytest.approx(expected_tokens([0.8], 3), rel=0.03)
    right = np.array([draws(8, 1) for _ in range(4000)])[:, :, None] > 0
    both = (right & right.swapaxes(1, 2)).mean(axis=0)
    assert both[~np.eye(8, dtype=bool)] == pytest.approx(0.64, abs=0.03)


def test_rows_take_the_lists_of_chances_in_turn(pair: PairOf) -> None:
    accepts = np.array([Draws([[1.0], [0.0], [1.0, 0.0]])(8, 3)])
    assert accepts.tolist() == [[3, 0, 1, 3, 0, 1, 3, 0]]
    player = Draws([[1.0], [0.0]]).player(*pair)
    (found, *_), *_ = played(pair[0], player, [3], seeds=[1, 0])  # whatever their order in a batch
    assert found == [0, 3]


def played(
    target: Target, player: RoundPlayer, counts: list[int], seeds: Sequence[int] = (0, 1)
) -> list[Any]:
    """Accepted drafts, offsets and tokens of rounds with these numbers of drafts."""
    num_rows = len(seeds)
    cache = KVCache.empty(target.config, num_rows, capacity=64, most=4, dtype=mx.float32)
    hidden = mx.zeros((num_rows, 1, target.config.hidden_size))
    newest = Newest(mx.arange(1, num_rows + 1), hidden)
    settings = row_settings([replace(GREEDY, seed=seed) for seed in seeds])
    found = []
    for count in counts:
        drafts = player.draft(cache, newest, settings, count)
        layout = Layout(mx.full(num_rows, 3), packing=None)
        result = player.verify(cache, newest, settings, layout, drafts)
        newest, accepted = result.newest, result.accepted.tolist()
        kept = [row[: one + 1] for row, one in zip(result.tokens.tolist(), accepted, strict=True)]
        found.append((accepted, cache.offset.tolist(), kept))
    return found


def test_a_drawn_round_accepts_and_commits_the_number_drawn(pair: PairOf) -> None:
    target, drafter = pair
    expected, offset = Draws([[0.5]]), np.zeros(2, int)
    for accepted, offsets, _ in played(target, Draws([[0.5]]).player(target, drafter), [3] * 6):
        assert accepted == expected(2, 3)
        offset += np.array(accepted) + 1
        assert offsets == offset.tolist()


def test_a_round_in_step_is_the_round_of_the_engine(pair: PairOf) -> None:
    target, drafter = pair
    counts = [3, 0, 2, 3]
    in_step = played(target, Stopwatch().player(target, drafter), counts)
    assert in_step == played(target, round_player(target, drafter), counts)


def test_slow_drafting_is_shown_as_drafting(pair: PairOf) -> None:
    target, drafter = pair

    def slow(*arguments: Any) -> mx.array:
        for _ in range(11):
            mx.eval(draft(*arguments))
        return draft(*arguments)

    splits = []
    for how in (draft, slow):
        stopwatch = Stopwatch()
        played(target, stopwatch.player(target, drafter, draft=how), [3] * 12)
        splits.append(stopwatch.split(10))
    quick, slowed = splits
    assert slowed["draft_ms"] > 3 * quick["draft_ms"]
    share = [one["draft_ms"] / sum(one.values()) for one in splits]
    assert share[1] > 1.5 * share[0]


def test_the_bandwidth_is_that_of_the_fastest_repeat() -> None:
    clock = accumulate(part for seconds in range(3, 3 + floors.REPEATS) for part in (0.0, seconds))
    assert floors.rate(1024, lambda: None, clock.__next__) == 1024 / 3
    assert floors.bandwidth() > 1e8


def test_the_floor_counts_weights_experts_keys_and_values_once(pair: PairOf) -> None:
    target, drafter = pair
    floor = Floor(target, drafter)
    plain = floor.round_bytes([10], 0)
    experts = 6 * 16 * (128 * 64 + 64 * 64) * 4  # layers, experts, both matrices, bytes
    more = floors.expert_share(target.config, 2) - 4 / 16
    assert floor.verify([10], 2).bytes - plain == pytest.approx(experts * more)
    # Five sliding layers of 2 x 32 and one full layer of 1 x 64, keys and values.
    slot = 2 * 64 * 4
    assert floor.round_bytes([11], 0) - plain == pytest.approx(6 * slot)
    beyond = floor.round_bytes([64 + 50], 0) - floor.round_bytes([64 + 49], 0)
    assert beyond == pytest.approx(slot)  # a sliding layer reads its window, however long the row
    step = sum(a.nbytes for _, a in tree_flatten(drafter.parameters())) + 4 * 10 * slot
    assert floor.round_bytes([10], 3) - floor.verify([10], 4).bytes == pytest.approx(3 * step)


def timed_rounds(
    *played: tuple[float, list[int]], prompts: list[int], **more: int
) -> tuple[Turn, float]:
    """A turn with rounds that take this long and give each row this many tokens; its end."""
    now = 0.0

    def rounds() -> Rounds:
        nonlocal now
        for seconds, counts in played:
            now += seconds
            yield [[7] * count for count in counts]

    return timed(rounds(), [[1] * n for n in prompts], clock=lambda: now, **more), now


def test_a_window_is_timed_once_all_rows_decode_and_are_warm() -> None:
    prefill, warm_up = [(0.0, [1, 0]), (4.5, [2, 0]), (0.5, [1, 1])], (1.0, [1, 1])
    window = [(1.0, [1, 1]), (0.5, [3, 1]), (0.5, [2, 2])]
    turn, end = timed_rounds(
        *prefill, warm_up, *window, (9.0, [9, 9]), prompts=[10, 30], tokens=9, warm_up=1
    )
    assert turn.window == Window(10, 3, 2.0, 40, 5.0)
    assert turn.first_tokens == [0.0, 5.0]
    # The first token of a row and round has waited; the others arrive with it.
    assert sorted(turn.gaps) == [0.0] * 4 + [0.5] * 4 + [1.0] * 2
    assert end == 8.0  # the last round was not played


def test_a_row_that_ends_ends_the_window() -> None:
    played = (1.0, [1, 1]), (1.0, [2, 2]), (1.0, [3, 3])
    turn, _ = timed_rounds(*played, prompts=[1, 1], tokens=99, warm_up=0)
    assert turn.window == Window(10, 2, 2.0, 2, 1.0)


class Steady:
    """In place of an engine: on its own thread each row gets a token every 5 ms."""

    def submit(self, prompt: list[int], params: SamplingParams, on_chunk: Any) -> Any:
        def emit() -> None:
            for _ in range(10):
                time.sleep(0.005)
                on_chunk(Chunk("", [7]))
            on_chunk(Chunk("", [7], "length"))

        Thread(target=emit).start()
        return SimpleNamespace(
            add_done_callback=lambda _: None,
            cancel=lambda: None,
            result=lambda: SimpleNamespace(stats=Stats(prompt_tokens=1)),
        )


def test_rounds_are_timed_where_they_are_played_however_late_they_are_read() -> None:
    found: list[Stats] = []
    at = [time.perf_counter()]
    rounds = our_rounds(Steady(), [[1]], SamplingParams(), found, at)  # type: ignore[arg-type]

    def read_late() -> Rounds:
        for count, one in enumerate(rounds):
            time.sleep(0.1 * (count == 0))  # all others have arrived by now
            yield one

    turn = timed(read_late(), [[1]], tokens=6, warm_up=1, clock=lambda: at[0])
    assert turn.window.tokens == 6
    assert turn.window.seconds > 6 * 0.005
    assert turn.first_tokens[0] > 0.005


def stats(*rounds: tuple[int, int]) -> Stats:
    """A row that played these rounds: drafted, accepted; copied drafts in rounds of more than 8."""
    found = Stats(prompt_tokens=5)
    for drafted, accepted in rounds:
        found.count_round(drafted, accepted, copied=drafted > 8)
    return found


def turn(tokens: int, rounds: int, seconds: float, *rows: Stats) -> Turn:
    return Turn(Window(tokens, rounds, seconds, 50, 0.5), [0.1, 0.3], [0.0, 0.02], [*rows], 1000)


def case_of(
    pair: PairOf,
    count: NumDrafts,
    lengths: list[int],
    turns: list[Turn],
    plain: list[Turn] | None = None,
) -> Case:
    floor = Floor(*pair)
    return make_case("code", OURS, count, lengths, turns, plain, floor, 1e9)


def test_a_case_has_medians_and_what_the_rounds_accepted(pair: PairOf) -> None:
    rows = (stats((3, 3), (3, 0), (3, 2)), stats((3, 1), (3, 3), (3, 3)))
    turns = [turn(20, 4, seconds, *rows) for seconds in (1.0, 2.0, 0.5)]
    found = case_of(pair, 3, [8, 9], turns, [turn(10, 10, 1.0)] * 3)
    assert found.tokens_per_second == Spread(20.0, 10.0, 40.0)
    assert found.speedup == Spread(2.0, 1.0, 4.0)  # each turn over its own
    plain = [turn(10, 10, seconds) for seconds in (0.25, 1.0, 1.0)]  # 40, 10, 10 tokens/s
    uneven = case_of(pair, 3, [8, 9], turns, plain).speedup
    assert uneven == Spread(20 / 10, 20 / 40, 4.0)  # as the two medians shown next to it
    assert found.round_ms == Spread(250.0, 125.0, 500.0)
    assert found.prefill_tokens_per_second.median == 100.0
    assert found.first_token_ms is not None
    assert found.first_token_ms.median == pytest.approx(200.0)
    assert found.acceptance_rate == pytest.approx(12 / 18)
    assert found.acceptance_length == 3.0
    assert found.accepted_histogram == [3, 3, 3, 9]
    assert found.acceptance_by_position == pytest.approx([5 / 6, 4 / 5, 3 / 4])
    assert found.drafted_per_round == 3.0
    assert (found.drafted_by_row, found.tokens_per_pass) == ([3.0, 3.0], 8.0)
    # A turn decodes 10 tokens of every row: midway they are 5 longer.
    num_bytes = Floor(*pair).round_bytes([13, 14], 3)
    assert found.allowed_round_gb == num_bytes / 1e9
    assert found.allowed_tokens_per_second == pytest.approx(5 * 1e9 / num_bytes)
    assert found.allowed_share == pytest.approx(20 / found.allowed_tokens_per_second)


def test_a_case_has_the_drafts_of_each_row(pair: PairOf) -> None:
    waves = [stats((5, 5), (3, 0)), stats((0, 0), (1, 0)), stats((4, 1)), stats((0, 0))]
    found = case_of(pair, "auto", [8, 9], [turn(9, 3, 1.0, *waves)] * 2)
    assert found.drafted_by_row == pytest.approx([12 / 3, 1 / 3])
    assert found.tokens_per_pass == pytest.approx(12 / 3 + 1 / 3 + 2)
    assert found.copied_per_round is None


def test_copied_drafts_are_counted_apart(pair: PairOf) -> None:
    rows = [stats((10, 10), (3, 1)), stats((12, 1), (2, 2))]
    found = case_of(pair, "auto", [8, 9], [turn(9, 3, 1.0, *rows)])
    assert found.copied_per_round == 22 / 4
    assert found.copied_acceptance_rate == 11 / 22
    assert found.acceptance_rate == 14 / 27


def test_positions_that_no_round_reached_are_left_out(pair: PairOf) -> None:
    turns = [turn(2, 2, 1.0, stats((2, 0), (2, 0))), turn(4, 2, 1.0, stats((2, 1), (2, 1)))]
    found = case_of(pair, 2, [8], turns, turns)
    assert found.accepted_histogram == [2, 2, 0]
    assert found.acceptance_by_position == [0.5, 0.0]
    assert case_of(pair, 2, [8], turns[:1]).acceptance_by_position == [0.0]
    assert case_of(pair, "auto", [8], turns).acceptance_by_position is None


def test_a_quantized_random_pair_is_like_one_loaded_with_bits(tiny: str) -> None:
    target, _ = (synthetic.draw(model) for model in synthetic.random_pair(tiny, bits=4))
    bits = {type(module).__name__: module.bits for _, module in target.named_modules()
            if hasattr(module, "bits")}  # fmt: skip
    assert bits == {"QuantizedEmbedding": 8, "QuantizedLinear": 4, "QuantizedExpertLinear": 4}
    assert {layer.router.proj.bits for layer in target.layers} == {8}


def test_a_size_is_a_known_name_or_a_file(tiny: str, tmp_path: Any) -> None:
    assert synthetic.settings("26b") == synthetic.settings("26B-A4B")
    with pytest.raises(UsageError, match="one of E2B, E4B, 12B, 26B-A4B, 31B, or a file, not '7B'"):
        synthetic.settings("7B")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UsageError, match="does not describe"):
        synthetic.settings(str(tmp_path / "bad.json"))


def test_exact_passes_may_hold_fewer_rows_than_a_batch(pair: PairOf) -> None:
    opened = subject.Opened("tiny", OpenPair(*pair, None, {}, None), exact=True)
    with pytest.raises(UsageError, match="--batch takes up to 1 with --exact on: no passes"):
        opened.engine(2, opened.depth())
    opened.engine(2, opened.depth("exact"), without="exact").close()
    table = PassTable({1: 0.1, 8: 0.2}, classes=(PassClass(2, 8, 1, 4),))
    opened = opened._replace(pair=opened.pair._replace(table=table))
    opened.engine(8, opened.depth()).close()
    assert opened.depth("table").table is None


def test_a_size_without_room_is_refused_before_it_is_drawn() -> None:
    opened = subject.random("26B-A4B", bits=4, accept=[[0.8]])
    arguments: dict[str, Any] = {"have": 22 * 10**9, "context": 200, "batch": 1}
    opened.check_room(**arguments)
    with pytest.raises(NotEnoughMemoryError, match="no --peer needs less"):
        opened.check_room(**arguments, copies=1)
    with pytest.raises(NotEnoughMemoryError, match=r"26B-A4B in float32, with 8 x 9,000 tokens"):
        opened.check_room(have=15 * 10**9, context=9000, batch=8)
