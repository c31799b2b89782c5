"""The prediction: its parts compared with what they stand for, and what is shown of it."""

from __future__ import annotations

import shutil
import statistics
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import estimate, metal, reported
from mlx_gemma_mtp.bench.chips import Chip, chips, find_chip, own_chip
from mlx_gemma_mtp.bench.floor import expert_share
from mlx_gemma_mtp.bench.synthetic import SIZES, random_pair

from helpers.command import Here, assert_one_line, found
from mlx_gemma_mtp.device import MAC_SIZES
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.model.cache import KVCache

pytestmark = pytest.mark.slow


@cache
def planned(size: str, bits: int | None = None) -> estimate.Planned:
    return estimate.plan(size, bits=bits)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [None, 4])
def test_a_token_is_multiplied_with_each_weight_that_it_passes(size: str, bits: int | None) -> None:
    models = random_pair(size)
    target, drafter = (
        {name: array.size for name, array in tree_flatten(model.parameters()) if array.ndim > 1}
        for model in models
    )
    config, drafts = models[0].config, models[1].config
    experts = sum(count for name, count in target.items() if ".experts." in name)
    passed = sum(target.values()) - target.get("embed_tokens_per_layer.weight", 0)
    if experts:
        passed -= experts * (config.num_experts - config.top_k_experts) // config.num_experts
    floor = planned(size, bits).floor
    assert floor.verify([0, 0], 3).products == 6 * passed
    step = sum(drafter.values())
    if drafts.use_ordered_embeddings:  # of the tied head, the tokens of 32 clusters of 2048
        step -= drafter["embed_tokens.weight"] * (2048 - 32) // 2048
    assert floor.draft([0]).products == step


def test_quantized_weights_have_their_bytes_and_looked_up_ones_are_not_read() -> None:
    plain, four = planned("E4B"), planned("E4B", 4)
    per_layer = plain.pair.target.vocab_size * 256 * len(plain.pair.target.layers)
    # Two bytes a number; in 8 bits one, with a scale and a bias of two bytes for 64 of them.
    assert plain.pair.target_bytes - plain.floor.verify([0], 1).bytes == 2 * per_layer
    assert four.pair.target_bytes - four.floor.verify([0], 1).bytes == per_layer * (1 + 4 / 64)
    unread, drafts = four.pair.drafter_bytes - four.floor.draft([0]).bytes, four.pair.drafter
    assert drafts is not None
    head = drafts.vocab_size * drafts.hidden_size * (1 + 4 / 64) + 4 * drafts.vocab_size
    assert unread == pytest.approx(head * (2048 - 32) / 2048)


def test_attention_reads_and_multiplies_the_keys_and_values_it_sees() -> None:
    config, floor = planned("26B-A4B").pair.target, planned("26B-A4B").floor
    length = config.sliding_window // 2
    cache = KVCache.empty(config, 1, capacity=length, most=1, dtype=mx.bfloat16)
    layers = zip(cache.keys, cache.values, strict=True)
    held = [k[:, :, :length].nbytes + v[:, :, :length].nbytes for k, v in layers]
    assert floor.verify([length], 1).bytes - floor.verify([0], 1).bytes == sum(held)
    sliding, full = (held[config.last_owner(k)] for k in ("sliding_attention", "full_attention"))
    assert floor.draft([length]).bytes - floor.draft([0]).bytes == 3 * sliding + full
    config, floor = planned("31B").pair.target, planned("31B").floor
    window, heads = (
        config.sliding_window,
        {"sliding_attention": 32 * 256, "full_attention": 32 * 512},
    )
    near, far, beyond = (floor.verify([window + n], 1).products for n in (-1, 0, 1))
    assert far - near == 2 * sum(heads[layer.kind] for layer in config.layers)
    assert beyond - far == 2 * 10 * heads["full_attention"]


def test_the_expected_share_of_experts_is_that_of_random_choices(rng: np.random.Generator) -> None:
    config = planned("26B-A4B").pair.target
    assert expert_share(config, 1) == pytest.approx(8 / 128)
    for tokens in (5, 24):
        drawn = [
            len({int(e) for _ in range(tokens) for e in rng.choice(128, 8, replace=False)})
            for _ in range(300)
        ]
        assert statistics.mean(drawn) / 128 == pytest.approx(expert_share(config, tokens), rel=0.02)
    assert expert_share(planned("31B").pair.target, 24) == 0


def parts(size: str, bits: int | None, chip: str, batch: int, num_draft_tokens: int) -> float:
    """Seconds of the kernels of a round without a context, all bandwidth given."""
    floor = planned(size, bits).floor
    num_tokens = batch * (num_draft_tokens + 1)
    found = find_chip(chip)
    return estimate.predicted_round(floor, found, [0] * batch, num_tokens, num_draft_tokens).kernels


def test_a_row_more_costs_arithmetic_and_a_tile_is_paid_for_whole() -> None:
    bandwidth = find_chip("M3 Max").bandwidth
    for bits in (4, 8):
        floor = planned("31B", bits).floor
        one, two, eight, ten, tile, more = (
            parts("31B", bits, "M3 Max", rows, 0) for rows in (1, 2, 8, 10, 32, 33)
        )
        assert one == two == pytest.approx(floor.dense.bytes / bandwidth)
        assert eight - one == pytest.approx(1.5 * floor.dense.products * 9 / 16 / bandwidth)
        assert ten == pytest.approx(tile, rel=0.02)
        assert more - tile == pytest.approx(3.98 * floor.dense.products * 9 / 16 / bandwidth)


def test_bfloat16_reads_its_weights_once_or_computes_tiles() -> None:
    chip, floor = find_chip("M1 Max"), planned("31B").floor
    reads, tile = floor.dense.bytes / chip.bandwidth, 2 * 64 * floor.dense.products / chip.compute
    assert parts("31B", None, "M1 Max", 1, 0) == pytest.approx(reads)
    for rows, tiles in ((2, 1), (64, 1), (65, 2)):
        assert parts("31B", None, "M1 Max", rows, 0) == pytest.approx(tiles * tile)
    few = floor.dense.bytes / find_chip("M4 Max").bandwidth
    assert parts("31B", None, "M4 Max", 15, 0) == pytest.approx(1.15 * few)


def test_every_pair_of_token_and_expert_reads_its_own_expert_below_512() -> None:
    chip, floor = find_chip("M4 Max"), planned("26B-A4B", 4).floor
    expert = floor.experts.bytes / 128 / 30
    assert expert == pytest.approx(3.35e6, rel=0.01)

    def experts(rows: int) -> float:
        dense = (metal.kernels("M4 Max").cost(rows) - 1) * floor.dense.products * 9 / 16
        pairs = parts("26B-A4B", 4, "M4 Max", rows, 0) * chip.bandwidth
        return pairs - dense - floor.dense.bytes

    for rows in (1, 5, 63):
        assert experts(rows) == pytest.approx(30 * 8 * rows * expert)
    # 64 rows choose 98 % of the experts, and a tile of 16 rows costs half of one of 32.
    assert experts(64) == pytest.approx(0.984 * 30 * 128 * expert * 4.5 / 2, rel=0.01)


def test_a_round_is_a_pass_with_its_draft_steps_and_launches() -> None:
    chip, floor = find_chip("M5 Max"), planned("12B", 4).floor
    plain, drafted = (
        estimate.predicted_round(floor, chip, [2000], count + 1, count) for count in (0, 3)
    )
    target, drafter = floor.target, floor.drafter
    assert drafter is not None
    read = floor.draft_step.bytes
    for kind, cost in (("sliding_attention", 1), ("full_attention", 3)):
        read += cost * floor.attention(drafter, [2000], kind).bytes
    passed = (metal.kernels("M5 Max").cost(4) - 1) * floor.dense.products * 9 / 16
    difference = (drafted.kernels - plain.kernels) * chip.bandwidth
    assert difference == pytest.approx(passed + 3 * read)
    assert plain.launches == pytest.approx(26 * len(target.layers) * 1.25e-6)
    assert drafted.launches - plain.launches == pytest.approx(3 * 120 * 1.25e-6)
    assert drafted.seconds(0.5) == pytest.approx(2 * drafted.kernels + drafted.launches)
    what = planned("12B", 4)
    tokens = 1 + 0.5 + 0.25 + 0.125
    found = estimate.speed(what, chip, [2000], 3, [0.5])
    assert found == pytest.approx(tokens / drafted.seconds())


def test_the_best_number_of_drafts_follows_from_the_accepts_and_the_compute() -> None:
    what, fast = planned("31B", 4), find_chip("M5 Max")

    def best(accept: float, batch: int, chip: Chip = fast) -> int:
        return estimate.predict(what, chip, batch=batch, context=100, accept=[accept]).best

    assert best(0, 1) == 0
    assert best(1, 1) == estimate.MOST
    assert best(0.8, 1, find_chip("M1 Max")) < best(0.8, 1, find_chip("M4 Max"))
    assert best(0.8, 8) == 3  # 32 rows: a tile


@pytest.mark.parametrize("bits", [None, 4])
def test_a_folder_counts_what_its_files_hold_and_nothing_is_read(
    bits: int | None, tmp_path: Path
) -> None:
    shutil.copytree(DEMO, tmp_path / "alone", ignore=shutil.ignore_patterns("*drafter*"))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    alone = estimate.plan(str(tmp_path / "alone"), bits=bits)
    with_drafter = estimate.plan("demo", bits=bits)
    assert planned("31B", bits).pair.target_bytes > 15e9
    assert mx.get_peak_memory() - before < 1e6
    stored = sum(path.stat().st_size for path in DEMO.glob("*.safetensors"))
    assert (0.9 < alone.pair.target_bytes / stored < 1) == (bits is None)
    plain, both = (
        estimate.predict(one, find_chip("M4"), batch=2, context=100, accept=[0.8])
        for one in (alone, with_drafter)
    )
    assert plain.tokens_per_second == both.tokens_per_second[:1]
    assert plain.best == 0
    assert 0 < with_drafter.pair.drafter_bytes == both.needs - plain.needs


@pytest.mark.parametrize(
    ("model", "size", "bits"),
    [
        ("e4b", "E4B", None),
        ("26b", "26B-A4B", None),
        ("gemma-4-12B-it", "12B", None),
        ("google/gemma-4-E4B-it", "E4B", None),
        ("mlx-community/gemma-4-e4b-it-8bit", "E4B", 8),
        ("lmstudio-community/gemma-4-31B-it-MLX-4bit", "31B", 4),
    ],
)
def test_a_model_has_the_names_of_the_other_commands_and_need_not_be_here(
    model: str, size: str, bits: int | None
) -> None:
    found = planned(model)
    assert (found.bits, found.pair) == (bits, planned(size, bits).pair)


def test_the_chip_of_this_mac_is_found_by_the_name_that_mlx_reports() -> None:
    assert own_chip("Apple M4 Max") == find_chip("M4 Max")
    for name in ("arm", "Intel(R) Xeon(R) Processor", "NVIDIA H200"):
        with pytest.raises(UsageError, match=r'is not a Mac .* such as --chip "M4 Max"'):
            own_chip(name)


def test_every_chip_has_a_source_for_its_figures() -> None:
    assert len({chip.name for chip in chips()}) == len(chips()) > 20
    for chip in chips():
        assert chip.source.startswith("https://")
        assert {*chip.sizes} <= {*MAC_SIZES}
        assert 60e9 < chip.bandwidth < 2e12
    # Apple's own figures: 2.6, 5.2 and 10.4 TFLOP/s.
    for name, tera in (("M1", 2.6), ("apple m1 pro", 5.2), ("M1  MAX", 10.4)):
        assert find_chip(name).compute == pytest.approx(tera * 1e12, rel=0.03)


def test_the_prediction_is_printed_as_table_and_json(mgm_here: Here) -> None:
    arguments = ["estimate", "26b-a4b", "--chip", "M4 Max", "--bits", "4", "--batch", "1,8"]
    shown = mgm_here(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "A prediction, not a measurement" in shown.stdout
    tables = [line for line in shown.stdout.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= 80
    error = reported.error()
    on_others = f"other chips it is {error.unseen_low:.2f} to {error.unseen_high:.2f} times"
    assert on_others in " ".join(shown.stdout.split())
    known = mgm_here("estimate", "26b", "--chip", "M5 Max", "--batch", "1").stdout
    assert f" chips it is {error.low:.2f} to {error.high:.2f} times" in " ".join(known.split())
    assert f"{error.chips['M5 Max']:.2f} on this chip" in " ".join(known.split())
    said = found(mgm_here(*arguments, "--json"))
    assert said["share"] == estimate.SHARE
    assert said["error"] == error._asdict()
    assert any("/mlx/issues/3839" in source for source in said["sources"])
    (weights,) = said["weights"]
    for one in weights["predictions"]:
        speeds = one["tokens_per_second"]
        assert len(speeds) == 1 + estimate.MOST
        assert speeds[one["best"]] == max(speeds)
        assert f"{max(speeds) / speeds[0]:.2f}x" in shown.stdout
        assert one["fits"] == [48, 64, 128]


def test_a_size_is_predicted_in_bfloat16_8_and_4_bits(mgm_here: Here) -> None:
    arguments = ["estimate", "26b", "--chip", "M4 Max", "--batch", "1"]
    shown = mgm_here(*arguments).stdout
    assert max(map(len, shown[shown.index("Tokens/s") :].splitlines())) <= 80
    said = found(mgm_here(*arguments, "--json"))["weights"]
    assert [one["bits"] for one in said] == [None, 8, 4]
    rows = [line.split() for line in shown.splitlines() if line.startswith((" bf", " 8", " 4"))]
    smallest = [one["predictions"][0]["fits"][0] for one in said]
    assert smallest == sorted(smallest, reverse=True)
    for row, one in zip(rows, said, strict=True):
        assert one["predictions"][0]["fits"] == [
            int(part.strip(",")) for part in row[row.index("GB") + 1 : -1]
        ]
    assert len(estimate.plans("demo")) == len(estimate.plans("google/gemma-4-E4B-it")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["12B", "--chip", "M4 Mx"], 2, "nearest are M4 Max"),
        (["12B", "--chip", "?"], 2, "M1 Ultra"),
        (["poem"], 3, "give a size (e2b, e4b, 12b, 26b, 31b)"),
        (["poem", "--chip", "M4"], 3, "give a size (e2b, e4b, 12b, 26b, 31b)"),
        (["someone/else", "--chip", "M4"], 3, "give a size (e2b, e4b, 12b, 26b, 31b)"),
        (["./no/e4b", "--chip", "M4"], 3, "give a size (e2b, e4b, 12b, 26b, 31b)"),
        (["12B", "--chip", "M4", "--batch", "1;2"], 2, "--batch"),
        (["12B", "--chip", "M4", "--batch", "3"], 2, "--batch takes 1, 2, 4, 8"),
        (["12B", "--chip", "M4", "--context", "1000000"], 2, "1 to 262,144 for 12B"),
        (["12B", "--chip", "M4", "--context", "0"], 2, "1 to 262,144 for 12B"),
        (["12B", "--chip", "M4", "--accept", "84,71"], 2, "0 to 1"),
        (["12B", "--chip", "M4", "--bits", "3"], 2, "4 or 8"),
    ],
)
def test_a_wrong_estimate_is_refused_in_one_line(
    arguments: list[str], code: int, word: str, mgm_here: Here
) -> None:
    assert_one_line(mgm_here("estimate", *arguments), code, word)
