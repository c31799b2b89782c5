"""The benchmark: draws at the stated rates, all of the compute, the floor's bytes, the JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import __main__ as bench
from mlx_gemma_mtp.bench import synthetic
from mlx_gemma_mtp.bench.decode import Sample, speed
from mlx_gemma_mtp.bench.drawn import Draws, drawn_round_player
from mlx_gemma_mtp.bench.floor import Floor

from mlx_gemma_mtp.cache import KVCache
from mlx_gemma_mtp.config import DrafterConfig, TargetConfig
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.sampling import SamplingParams, row_settings
from mlx_gemma_mtp.speculate import Head
from mlx_gemma_mtp.target import Target

WINDOW = 64
SHAPE: dict[str, Any] = {
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
    "moe_intermediate_size": 32,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a size that a CPU can run."""

    def drafter(_: str, target: TargetConfig) -> DrafterConfig:
        kinds = ["sliding_attention"] * 3 + ["full_attention"]
        shape = SHAPE | {"hidden_size": 32, "num_hidden_layers": 4, "layer_types": kinds}
        return DrafterConfig.from_dict(
            {
                "model_type": "gemma4_assistant",
                "text_config": {"model_type": "gemma4_text", **shape},
                "backbone_hidden_size": target.hidden_size,
                "use_ordered_embeddings": False,
            }
        )

    monkeypatch.setitem(synthetic.TARGETS, "tiny", SHAPE | EXPERTS | {"num_hidden_layers": 6})
    monkeypatch.setattr(synthetic, "_drafter", drafter)
    return "tiny"


@pytest.fixture
def pair(tiny: str) -> tuple[Target, Drafter]:
    return synthetic.random_pair(tiny, mx.float32)


@pytest.mark.parametrize("rates", [[0.8], [0.2], [0.84, 0.71, 0.64, 0.70], [1.0], [0.0]])
def test_draws_come_at_the_stated_rates_by_position(rates: list[float]) -> None:
    draws = Draws(rates)
    drawn = np.array([draws(8, 5) for _ in range(2000)])
    reached = 1.0
    for position in range(5):
        reached *= rates[min(position, len(rates) - 1)]
        assert (drawn > position).mean(axis=0) == pytest.approx(reached, abs=0.02)
    assert drawn.mean() + 1 == pytest.approx(draws.expected_tokens(5), abs=0.01)


def test_a_few_rounds_come_near_the_rates_already() -> None:
    draws = Draws([0.8])
    drawn = np.array([draws(8, 3) for _ in range(16)])
    assert drawn.mean() + 1 == pytest.approx(draws.expected_tokens(3), rel=0.03)


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
    play = drawn_round_player(target, drafter, Draws([0.5]))
    cache = KVCache.empty(target.config, 2, capacity=64, most=4, dtype=mx.float32)
    head = Head(mx.array([1, 2]), mx.zeros((2, 1, target.config.hidden_size)))
    settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)] * 2)
    expected, offset = Draws([0.5]), np.zeros(2, int)
    for _ in range(6):
        played = play(cache, head, settings, mx.array([3, 3]), 3)
        head = played.head
        drawn = expected(2, 3)
        assert played.accepted.tolist() == drawn
        offset += np.array(drawn) + 1
        assert cache.offset.tolist() == offset.tolist()


def test_shared_experts_are_those_of_the_rows_first_token(pair: tuple[Target, Drafter]) -> None:
    target, drafter = pair
    alone, shared = [], []
    for counts, num_shared in ((alone, 0), (shared, 4)):
        play = drawn_round_player(target, drafter, Draws([1.0]), num_shared)
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


def test_the_floor_counts_weights_experts_keys_and_values_once(
    pair: tuple[Target, Drafter],
) -> None:
    target, drafter = pair
    floor = Floor(target, drafter)
    plain = floor.round_bytes([10], 0, 16)
    experts = 6 * 16 * (64 * 64 + 64 * 32) * 4  # layers, experts, both maps, bytes
    assert plain - floor.round_bytes([10], 0, 4) == pytest.approx(experts * 12 / 16)
    # Five sliding layers of 2 x 32 and one full layer of 1 x 64, keys and values.
    slot = 2 * 64 * 4
    assert floor.round_bytes([11], 0, 16) - plain == 6 * slot
    beyond = floor.round_bytes([WINDOW + 50], 0, 16) - floor.round_bytes([WINDOW + 49], 0, 16)
    assert beyond == slot  # a sliding layer looks at its window, however long the text
    drafted = floor.round_bytes([10], 3, 16) - plain
    step = sum(a.nbytes for _, a in tree_flatten(drafter.parameters())) + 4 * 10 * slot
    assert drafted == 3 * step


def test_speed_is_the_median_of_the_samples() -> None:
    found = speed([Sample(20, 10, 2.0), Sample(40, 10, 2.0), Sample(90, 10, 1.0)])
    assert found == (20.0, 10.0, 90.0, 200.0)


def test_the_table_and_the_json_hold_every_case(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    quick = "--batch 1,2 --drafts 0,3,auto --rounds 2 --samples 2 --warm-up 2 --auto-warm-up 2"
    monkeypatch.setattr(bench, "PROMPT_LENGTHS", (9, 70))
    monkeypatch.setattr(bench, "bandwidth", lambda: 1e10)
    monkeypatch.setattr(sys, "argv", ["bench", tiny, *quick.split(), "--out", str(out)])
    bench.main()
    found, table = json.loads(out.read_text()), capsys.readouterr().out
    assert [(c["batch"], c["drafts"]) for c in found["cases"]] == [
        (batch, drafts) for batch in (1, 2) for drafts in (0, 3, "auto")
    ]
    for case in found["cases"]:
        assert 0 < case["low"] <= case["tokens_per_second"] <= case["high"]
        assert 4 <= case["distinct_experts"] <= 16
        assert f"{case['tokens_per_second']:.1f}" in table
        if case["drafts"] != "auto":
            assert case["floor_tokens_per_second"] > case["tokens_per_second"]
