"""The prediction: compared with measurements, and its parts with what they stand for."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_gemma_mtp.bench import estimate
from mlx_gemma_mtp.bench.chips import Chip, chips, find_chip, own_chip
from mlx_gemma_mtp.bench.floor import expert_share
from mlx_gemma_mtp.bench.record import OURS, read
from mlx_gemma_mtp.bench.synthetic import SIZES, random_pair

from helpers.command import Here, assert_one_line, found
from mlx_gemma_mtp.device import MAC_SIZES
from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.model.cache import KVCache

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[2] / "bench" / "results"
# The SXM one; dense bfloat16.
H100 = Chip("H100", 3.35e12, 989e12, (), "https://www.nvidia.com/en-us/data-center/h100/")


def measured() -> Iterator[tuple[str, float, Callable[[float], float]]]:
    """The size and the speed of every case of ours with a fixed number of drafts on an H100.

    With them the prediction for a share.
    """
    for path in sorted(RESULTS.glob("h100-*.json")):
        run = read(path)
        what = planned(run.subject.name, int(run.subject.bits) if run.subject.bits else None)
        for case in run.cases:
            if case.engine == OURS and case.num_draft_tokens != "auto":
                at = (what, H100, case.prompt_tokens, case.num_draft_tokens, run.plan.accept or [])
                yield what.name, case.tokens_per_second.median, partial(estimate.speed, *at)


@cache
def planned(size: str, bits: int | None = None) -> estimate.Planned:
    return estimate.plan(size, bits=bits)


def test_predictions_are_near_what_was_measured_and_never_below_at_the_roofline() -> None:
    cases = list(measured())
    ratios = [predict(estimate.SHARE) / speed for size, speed, predict in cases if size == "31B"]
    assert len(ratios) > 10
    assert 0.7 < min(ratios) < max(ratios) < 1.4
    assert statistics.median(ratios) == pytest.approx(1, abs=0.1)
    # At small batches the host decides how fast 26B and E4B are there: far below it.
    assert all(predict(1) > speed for _, speed, predict in cases)


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


def test_a_pass_takes_as_long_as_its_bytes_or_its_products() -> None:
    what, lengths = planned("12B"), [500, 900]
    floor, infinite = what.floor, float("inf")
    reads, computes = Chip("a", 1e9, infinite, (), ""), Chip("b", infinite, 1e12, (), "")
    tokens = 2 * (1 + 0.5 + 0.25 + 0.125)
    found = estimate.speed(what, reads, lengths, 3, [0.5], share=0.5)
    assert found == pytest.approx(0.5e9 * tokens / floor.round_bytes(lengths, 3))
    found = estimate.speed(what, computes, lengths, 3, [0.5], share=0.5)
    products = floor.verify(lengths, 4).products + 3 * floor.draft(lengths).products
    assert found == pytest.approx(0.5e12 * tokens / (2 * products))


def test_the_best_number_of_drafts_follows_from_the_accepts_and_the_compute() -> None:
    what, fast = planned("31B"), find_chip("M5 Max")

    def best(accept: float, batch: int, chip: Chip = fast) -> int:
        return estimate.predict(what, chip, batch=batch, context=100, accept=[accept]).best

    assert best(0, 1) == 0
    assert best(1, 1) == estimate.MOST_DRAFTS
    assert best(0.8, 8, find_chip("M1 Max")) < best(0.8, 1, find_chip("M1 Max"))


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
    assert f"{estimate.SHARE:.0%}" in shown.stdout
    said = found(mgm_here(*arguments, "--format", "json"))
    assert said["share_assumed"] == estimate.SHARE
    (weights,) = said["weights"]
    for one in weights["predictions"]:
        speeds = one["tokens_per_second"]
        assert len(speeds) == 1 + estimate.MOST_DRAFTS
        assert speeds[one["best"]] == max(speeds)
        assert f"{max(speeds) / speeds[0]:.2f}x" in shown.stdout
        assert one["fits"] == [48, 64, 128]


def test_a_size_is_predicted_in_bfloat16_8_and_4_bits(mgm_here: Here) -> None:
    arguments = ["estimate", "26b", "--chip", "M4 Max", "--batch", "1"]
    shown = mgm_here(*arguments).stdout
    assert max(map(len, shown[shown.index("Tokens/s") :].splitlines())) <= 80
    said = found(mgm_here(*arguments, "--format", "json"))["weights"]
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
        (["12B", "--chip", "M4", "--accept", "84,71"], 2, "0 to 1"),
        (["12B", "--chip", "M4", "--bits", "3"], 2, "4 or 8"),
    ],
)
def test_a_wrong_estimate_is_refused_in_one_line(
    arguments: list[str], code: int, word: str, mgm_here: Here
) -> None:
    assert_one_line(mgm_here("estimate", *arguments), code, word)
