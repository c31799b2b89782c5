"""The benchmark's parts: draws, windows, cases, the split, the floor, the recommendation."""

import re
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import cases, decode, stamp, subject, synthetic
from mlx_gemma_mtp.bench.decode import Sample
from mlx_gemma_mtp.bench.drawn import Draws, drawn
from mlx_gemma_mtp.bench.floor import Floor, bandwidth
from mlx_gemma_mtp.bench.recommend import recommend
from mlx_gemma_mtp.bench.record import Case, Record, Spread, Subject
from mlx_gemma_mtp.bench.split import SlowDrafter, Stopwatch, in_step
from mlx_gemma_mtp.bench.window import Window
from mlx_gemma_mtp.bench.workload import Row, Workload

from mlx_gemma_mtp import Chunk
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.decode.round import Head, round_player
from mlx_gemma_mtp.decode.sampling import row_settings
from mlx_gemma_mtp.engine.results import Stats
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

WINDOW = 64
SHAPE: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "sliding_window": WINDOW,
    "hidden_size_per_layer_input": 0,
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 4,
    "moe_intermediate_size": 64,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a size that a CPU can run."""

    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    drafter = {
        "model_type": "gemma4_assistant",
        "text_config": SHAPE | {"num_hidden_layers": 4, "layer_types": kinds},
        "backbone_hidden_size": SHAPE["hidden_size"],
        "use_ordered_embeddings": False,
    }
    target = SHAPE | EXPERTS | {"num_hidden_layers": 6}
    monkeypatch.setattr(synthetic, "settings", lambda _: (target, drafter))
    return "tiny"


@pytest.fixture
def pair(tiny: str) -> tuple[Target, Drafter]:
    target, drafter = synthetic.random_pair(tiny, mx.float32)
    return synthetic.draw(target), synthetic.draw(drafter)


@pytest.mark.parametrize("rates", [[0.8], [0.2], [0.84, 0.71, 0.64, 0.70], [1.0], [0.0]])
def test_draws_come_at_the_stated_rates_by_position(rates: list[float]) -> None:
    draws = Draws(rates)
    accepts = np.array([draws(8, 5) for _ in range(2000)])
    reached = 1.0
    for position in range(5):
        reached *= rates[min(position, len(rates) - 1)]
        assert (accepts > position).mean(axis=0) == pytest.approx(reached, abs=0.02)
    assert accepts.mean() + 1 == pytest.approx(draws.expected_tokens(5), abs=0.01)


def test_a_few_rounds_come_near_the_rates_already() -> None:
    draws = Draws([0.8])
    accepts = np.array([draws(8, 3) for _ in range(16)])
    assert accepts.mean() + 1 == pytest.approx(draws.expected_tokens(3), rel=0.03)


def test_draws_of_rows_are_independent() -> None:
    draws = Draws([0.8])
    right = np.array([draws(8, 1) for _ in range(4000)])[:, :, None] > 0
    both = (right & right.swapaxes(1, 2)).mean(axis=0)
    apart = both[~np.eye(8, dtype=bool)]
    assert apart == pytest.approx(0.64, abs=0.03)


def test_a_drawn_round_accepts_what_was_drawn_and_moves_by_it(
    pair: tuple[Target, Drafter],
) -> None:
    target, drafter = pair
    play = drawn(round_player(target, drafter), Draws([0.5]))
    cache = KVCache.empty(target.config, 2, capacity=64, most=4, dtype=mx.float32)
    head = Head(mx.array([1, 2]), mx.zeros((2, 1, target.config.hidden_size)))
    settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)] * 2)
    expected, offset = Draws([0.5]), np.zeros(2, int)
    for _ in range(6):
        played = play(cache, head, settings, mx.array([3, 3]), 3)
        head = played.head
        accepts = expected(2, 3)
        assert played.accepted.tolist() == accepts
        offset += np.array(accepts) + 1
        assert cache.offset.tolist() == offset.tolist()


def test_shared_experts_are_those_of_the_rows_first_token(pair: tuple[Target, Drafter]) -> None:
    target, drafter = pair
    alone, shared = [], []
    for counts, num_shared in ((alone, 0), (shared, 4)):
        play = drawn(round_player(target, drafter), Draws([1.0]), num_shared)
        cache = KVCache.empty(target.config, 1, capacity=64, most=8, dtype=mx.float32)
        head = Head(mx.array([1]), mx.ones((1, 1, target.config.hidden_size)))
        settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)])
        for _ in range(3):
            played = play(cache, head, settings, mx.array([7]), 7)
            assert played.distinct_experts is not None
            counts.append(played.distinct_experts.item())
            head = played.head
    assert shared == [4, 4, 4]
    assert min(alone) > 4


def test_the_bandwidth_is_of_the_fastest_read_or_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, copies = (4.0, 2.0, 3.0), (5.0, 7.0, 2.5)  # s
    clock = accumulate(part for seconds in (*reads, *copies) for part in (0.0, seconds))
    module = "mlx_gemma_mtp.bench.floor"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=clock.__next__))
    monkeypatch.setattr(f"{module}.CPU_BUFFER_BYTES", 1024)
    monkeypatch.setattr(f"{module}.REPEATS", len(reads))
    assert bandwidth() == 2 * 1024 / 2.0


def test_the_floor_counts_weights_experts_keys_and_values_once(
    pair: tuple[Target, Drafter],
) -> None:
    target, drafter = pair
    floor = Floor.of(target, drafter)
    plain = floor.round_bytes([10], 0, 16)
    experts = 6 * 16 * (128 * 64 + 64 * 64) * 4  # layers, experts, both maps, bytes
    assert plain - floor.round_bytes([10], 0, 4) == pytest.approx(experts * 12 / 16)
    # Five sliding layers of 2 x 32 and one full layer of 1 x 64, keys and values.
    slot = 2 * 64 * 4
    assert floor.round_bytes([11], 0, 16) - plain == 6 * slot
    beyond = floor.round_bytes([WINDOW + 50], 0, 16) - floor.round_bytes([WINDOW + 49], 0, 16)
    assert beyond == slot  # a sliding layer looks at its window, however long the text
    drafted = floor.round_bytes([10], 3, 16) - plain
    step = sum(a.nbytes for _, a in tree_flatten(drafter.parameters())) + 4 * 10 * slot
    assert drafted == 3 * step


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(decode, "perf_counter", lambda: self.now)

    def rounds(self, notes: decode._Notes, *rounds: list[int], seconds: float = 1.0) -> None:
        """Rounds one after the other; each gives so many tokens to each row."""
        for counts in rounds:
            self.now += seconds
            for row, count in enumerate(counts):
                notes.take(row, Chunk("", [7] * count))


def test_a_window_is_timed_once_all_rows_decode_and_are_warm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, notes = Clock(monkeypatch), decode._Notes(2, tokens=8, warm_up=1)
    notes.take(0, Chunk("", [1]))  # the first row decodes alone
    clock.now = 5.0
    notes.take(0, Chunk("", [1, 1]))
    notes.take(1, Chunk("", [1]))  # the second joins
    clock.rounds(notes, [1, 1], [1, 1], seconds=1.0)  # a round, a warm one
    clock.rounds(notes, [3, 1], [2, 2], [4, 4], seconds=0.5)
    assert notes.over.is_set()
    sample = notes.sample(0.0, [], [[1] * 10, [1] * 30])
    assert sample.window == (10, 3, 2.0, 40, 5.0)
    assert sample.first_tokens == [0.0, 5.0]
    # Of a burst, the first token has waited; the others come with it.
    assert sorted(sample.gaps) == [0.0] * 4 + [0.5] * 4 + [1.0] * 2


def test_the_round_in_which_a_text_ends_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notes = Clock(monkeypatch), decode._Notes(2, tokens=99, warm_up=0)
    clock.rounds(notes, [1, 1], [2, 2], [3, 3])
    clock.now += 1
    notes.take(0, Chunk("", [7]))
    notes.take(1, Chunk("", [7], finish_reason="stop"))
    assert notes.over.is_set()
    sample = notes.sample(0.0, [], [[1], [1]])
    assert sample.window[:3] == (10, 2, 2.0)


def stats(*rounds: tuple[int, int]) -> Stats:
    """A row that played these rounds: drafted, accepted."""
    found = Stats(prompt_tokens=5)
    for drafted, accepted in rounds:
        found.count_round(drafted, accepted)
    return found


def sample(tokens: int, rounds: int, seconds: float, *rows: Stats) -> Sample:
    window = Window(tokens, rounds, seconds, 50, 0.5)
    return Sample(window, [0.1, 0.3], [0.0, 0.02], list(rows), 1000)


def test_a_case_holds_medians_and_what_the_rounds_accepted(pair: tuple[Target, Drafter]) -> None:
    floor = Floor.of(*pair)
    rows = (stats((3, 3), (3, 0), (3, 2)), stats((3, 1), (3, 3), (3, 3)))
    turns = [sample(20, 4, 1.0, *rows), sample(20, 4, 2.0, *rows), sample(20, 4, 0.5, *rows)]
    plain = [sample(10, 10, 1.0), sample(10, 10, 1.0), sample(10, 10, 1.0)]
    found = cases.case(
        "mlx-gemma-mtp", "code", 3, [8, 9], turns,
        plain=plain, floor=floor, bytes_per_second=1e9, accept=None,
    )  # fmt: skip
    assert found.decode_tokens_per_second == (20.0, 10.0, 40.0)
    assert found.speedup == (2.0, 1.0, 4.0)  # each turn against its own
    assert found.round_ms == (250.0, 125.0, 500.0)
    assert found.prefill_tokens_per_second.median == 100.0
    assert found.first_token_ms == pytest.approx((200.0,) * 3)
    assert found.acceptance_rate == pytest.approx(12 / 18)
    assert found.acceptance_length == 3.0
    assert found.accepted_histogram == [1, 1, 1, 3]  # of one turn: the others repeat its texts
    assert found.acceptance_by_position == pytest.approx([5 / 6, 4 / 5, 3 / 4])
    assert found.drafted_per_round == 3.0
    assert found.floor is not None
    # A turn decodes 10 tokens in every row: midway they are 5 longer.
    num_bytes = floor.verify_bytes([13, 14], None) + 3 * floor.draft_bytes([13, 14])
    assert found.floor.round_bytes == num_bytes
    assert found.floor.tokens_per_second == pytest.approx(5 * 1e9 / num_bytes)
    assert found.floor.share == pytest.approx(20 / found.floor.tokens_per_second)


@pytest.mark.parametrize(("accept", "histogram"), [(None, [2, 0, 0]), ([0.5], [2, 2, 0])])
def test_drawn_accepts_count_in_every_turn_and_a_chance_that_no_round_reached_is_none(
    pair: tuple[Target, Drafter], accept: list[float] | None, histogram: list[int]
) -> None:
    turns = [sample(2, 2, 1.0, stats((2, 0), (2, 0))), sample(4, 2, 1.0, stats((2, 1), (2, 1)))]
    found = cases.case(
        "mlx-gemma-mtp", "code", 2, [8], turns,
        plain=turns, floor=Floor.of(*pair), bytes_per_second=1e9, accept=accept,
    )  # fmt: skip
    assert found.accepted_histogram == histogram
    assert found.acceptance_by_position == ([0.0] if accept is None else [0.5, 0.0])


def test_a_slowed_draft_step_shows_as_drafting_and_changes_no_text(
    pair: tuple[Target, Drafter],
) -> None:
    target, drafter = pair
    splits, texts = [], []
    for times in (1, 12):
        stopwatch = Stopwatch()
        slowed = SlowDrafter(drafter, times)
        play = in_step(target, slowed, stopwatch)
        cache = KVCache.empty(target.config, 2, capacity=256, most=4, dtype=mx.float32)
        head = Head(mx.array([1, 2]), mx.zeros((2, 1, target.config.hidden_size)))
        settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)] * 2)
        played = []
        for _ in range(12):
            found = play(cache, head, settings, mx.array([3, 3]), 3)
            head = found.head
            played.append((found.tokens.tolist(), found.accepted.tolist()))
        splits.append(stopwatch.split(10))
        texts.append(played)
    quick, slow = splits
    assert slow.draft_ms > 3 * quick.draft_ms
    share = slow.draft_ms / (slow.draft_ms + slow.verify_ms + slow.host_ms)
    assert share > 1.5 * quick.draft_ms / (quick.draft_ms + quick.verify_ms + quick.host_ms)
    assert texts[0] == texts[1]


def test_a_round_in_step_is_the_engines_round(pair: tuple[Target, Drafter]) -> None:
    target, drafter = pair
    settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)])
    texts = []
    for play in (round_player(target, drafter), in_step(target, drafter, Stopwatch())):
        cache = KVCache.empty(target.config, 1, capacity=64, most=4, dtype=mx.float32)
        head, text = Head(mx.array([1]), mx.zeros((1, 1, target.config.hidden_size))), []
        for num_drafts in (3, 0, 2, 3):
            found = play(cache, head, settings, mx.array([3]), num_drafts)
            head = found.head
            text += found.tokens[0, : found.accepted.item() + 1].tolist()
        texts.append(text)
    assert texts[0] == texts[1]


def test_rows_of_a_batch_take_the_tasks_in_turn_and_differ() -> None:
    made = Workload(("a", "b"), lambda task, number: Row([ord(task), number], lambda _: "next"))
    assert made.tasks_at(1) == ("a", "b")
    assert made.tasks_at(4) == ("mixed",)
    rows = [row.ids for number in (0, 1) for row in made.wave("mixed", 4, number)]
    assert [ids[0] for ids in rows] == [ord(task) for task in "abababab"]
    assert [ids[1] for ids in rows] == list(range(8))


def test_a_quantized_random_pair_is_as_loaded_with_bits(tiny: str) -> None:
    target, _ = (synthetic.draw(model) for model in synthetic.random_pair(tiny, bits=4))
    bits = {type(module).__name__: module.bits for _, module in target.named_modules()
            if hasattr(module, "bits")}  # fmt: skip
    assert bits == {"QuantizedEmbedding": 8, "QuantizedLinear": 4, "QuantizedExpertLinear": 4}
    routers = [layer.router.proj.bits for layer in target.layers]
    assert set(routers) == {8}


def test_a_pair_is_drawn_after_it_is_said(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def draw(model: Target | Drafter) -> Target | Drafter:
        steps.append("drawn")
        return model

    monkeypatch.setitem(synthetic.TARGETS, tiny, {})
    monkeypatch.setattr(synthetic, "draw", draw)
    subject.random(
        tiny, bits=None, accept=[1.0], shared_experts=0, context=9, batch=1, peers=[], force=True,
        tell=steps.append,
    )  # fmt: skip
    assert re.fullmatch(r"drawing tiny: [\d.]+ [kMG]B of weights", steps[0])
    assert steps[1:] == ["drawn", "drawn"]


def speeds(**by_drafts: float) -> list[Case]:
    """Summary cases at batch 1 of so many tokens per second."""
    return [
        Case(
            "mlx-gemma-mtp",
            "code",
            1,
            "auto" if name == "auto" else int(name[1:]),
            [5],
            [],
            decode_tokens_per_second=Spread(rate, rate, rate),
            round_ms=Spread(1, 1, 1),
            prefill_tokens_per_second=Spread(1, 1, 1),
            speedup=Spread.of([rate / by_drafts.get("k0", 1)]),
        )
        for name, rate in by_drafts.items()
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (speeds(k0=50, k3=100, k5=90, auto=99), r"Leave num_draft_tokens at auto .* 1\.98 x .*3"),
        (speeds(k0=50, k3=100, auto=80), r"Set num_draft_tokens to 3 at batch 1 .*2\.00 x"),
        (speeds(k0=50, k3=45, auto=49), r"Decode plainly .*0\.90 x, 3 drafts.*98%"),
    ],
)
def test_the_recommendation_follows_what_was_measured(found: list[Case], said: str) -> None:
    subject = Subject("tiny", "float32", None, 1, 1, 0, False)
    record = Record("mgm bench", stamp.stamp(), subject, {}, 1e9, cases=found)
    assert re.search(said, recommend(record))


def test_a_recommendation_needs_plain_decoding_and_auto() -> None:
    subject = Subject("tiny", "float32", None, 1, 1, 0, False)
    record = Record("mgm bench", stamp.stamp(), subject, {}, 1e9, cases=speeds(k3=9, auto=9))
    with pytest.raises(UsageError, match="--drafts 0,3,auto"):
        recommend(record)
