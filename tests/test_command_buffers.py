"""Limits of command buffers: which models get higher ones, on which Macs, and when."""

import os

import pytest
from mlx_gemma_mtp.bench import synthetic

from mlx_gemma_mtp.command_buffers import (
    LEAST,
    NAMES,
    OTHERS,
    OWN,
    BufferLimits,
    Shape,
    choose_limits,
    limits_set,
    moderate,
    num_buffers,
)
from mlx_gemma_mtp.files.checkpoint import read_target_config
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.files.published import SIZES
from mlx_gemma_mtp.model.config import TargetConfig

OPS, MB = NAMES


def shape_of(short: str) -> Shape:
    return Shape.of(config_of(short))


def config_of(short: str) -> TargetConfig:
    return TargetConfig.from_dict(synthetic.settings(short)[0])


@pytest.mark.parametrize("chip", ["Apple M1", "Apple M2 Ultra", "Apple M4 Pro"])
def test_mixtures_and_small_models_get_moderate_limits(chip: str) -> None:
    for short in ("e2b", "e4b", "26b"):
        limits = moderate(shape_of(short), chip)
        assert limits is not None
        assert 50 < limits.max_ops <= 100
        assert limits.max_mb == 160
    for short in ("12b", "31b"):
        assert moderate(shape_of(short), chip) is None


@pytest.mark.parametrize("chip", ["Apple M5", "Apple M5 Max", "Apple M10", "Apple A18 Pro", ""])
def test_newer_and_unknown_chips_keep_the_limits_of_mlx(chip: str) -> None:
    assert not any(moderate(shape_of(one.short), chip) for one in SIZES)


def test_a_round_keeps_enough_command_buffers() -> None:
    for one in SIZES:
        config = config_of(one.short)
        chosen = moderate(shape_of(one.short), "Apple M3") or OWN["s"]
        assert num_buffers(config, chosen) >= LEAST
        # What other tools advise does not.
        assert num_buffers(config, BufferLimits(1000, 1000)) < LEAST
    demo = read_target_config(DEMO)
    assert moderate(Shape.of(demo), "Apple M3") is None


def test_the_count_is_near_what_was_found_in_mlx() -> None:
    assert 80 <= num_buffers(config_of("26b"), OTHERS) <= 100
    assert 100 <= num_buffers(config_of("31b"), OTHERS) <= 125


def test_mlx_starts_with_the_limits_and_the_environment_is_as_before() -> None:
    environ = {"PATH": "/bin"}
    seen: list[dict[str, str]] = []

    def start() -> None:
        seen.append(dict(environ))

    choose_limits(shape_of("26b"), "Apple M2", environ=environ, start=start)
    choose_limits(shape_of("26b"), "Apple M5", environ=environ, start=start)
    choose_limits(shape_of("31b"), "Apple M2", environ=environ, start=start)
    assert seen == [{"PATH": "/bin", OPS: "87", MB: "160"}]
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("name", NAMES)
def test_limits_of_the_user_stay(name: str) -> None:
    environ = {name: "70"}
    choose_limits(shape_of("26b"), "Apple M2", environ=environ, start=environ.clear)
    assert environ == {name: "70"}


def test_without_metal_nothing_is_chosen() -> None:
    before = dict(os.environ)
    choose_limits(shape_of("26b"), start=os.environ.clear)
    assert dict(os.environ) == before


def test_the_limits_in_effect_are_those_of_the_user_or_of_the_chip() -> None:
    assert limits_set("applegpu_g13g", {}) == (40, 40)
    assert limits_set("applegpu_g16s", {}) == (50, 50)
    assert limits_set("applegpu_g14d", {OPS: "1000"}) == (1000, 50)
    assert limits_set("applegpu_g14d", {OPS: "many", MB: " 9 MB"}) == (0, 9)
