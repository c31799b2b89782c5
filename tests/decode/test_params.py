"""SamplingParams: which settings are accepted, and where unset ones come from."""

from typing import Any

import pytest

from mlx_gemma_mtp import SamplingParams
from mlx_gemma_mtp.decode.params import MAX_DRAFT_TOKENS, NO_FILTER
from mlx_gemma_mtp.errors import UsageError

# Values of each setting at the border of its range, and outside.
BORDERS: dict[str, tuple[list[Any], list[Any]]] = {
    "max_tokens": ([1], [0, -1, 2.5]),
    "temperature": ([0, 5], [-0.1, float("inf"), float("nan"), "hot"]),
    "top_k": ([0], [-1, 1.5]),
    "top_p": ([1], [0.0, -0.5, 1.01, float("nan")]),
    "seed": ([0, 2**32 - 1], [-1, 2**32, 0.5]),
    "num_draft_tokens": (
        [0, MAX_DRAFT_TOKENS, "auto"],
        [-1, MAX_DRAFT_TOKENS + 1, "many", None],
    ),
    "stop": (["end", ["end", "stop"]], ["", ["end", ""], [3]]),
}


@pytest.mark.parametrize("field", BORDERS)
def test_a_setting_is_accepted_up_to_its_border_and_refused_by_name_beyond(field: str) -> None:
    accepted, refused = BORDERS[field]
    for value in accepted:
        assert getattr(SamplingParams(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(UsageError, match=field):
            SamplingParams(**{field: value})


def test_unset_values_come_from_generation_config() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (0.7, 64, 0.95)
    own = SamplingParams(temperature=0, top_k=0, top_p=1, seed=5).resolved(defaults)
    assert (own.temperature, own.top_k, own.top_p, own.seed) == (0, 0, 1, 5)


@pytest.mark.parametrize("defaults", [{}, {"temperature": None, "top_k": None, "top_p": None}])
def test_without_a_generation_config_unset_values_are_plain(defaults: dict[str, None]) -> None:
    taken = SamplingParams().resolved(defaults)
    assert (taken.temperature, taken.top_k, taken.top_p) == (1.0, NO_FILTER, 1.0)


def test_a_checkpoint_that_does_not_sample_is_greedy_unless_a_temperature_is_set() -> None:
    defaults = {"do_sample": False, "temperature": 0.7}
    assert SamplingParams().resolved(defaults).temperature == 0
    assert SamplingParams(temperature=1.0).resolved(defaults).temperature == 1.0


def test_an_unset_seed_is_drawn_once_for_each_request() -> None:
    taken = [SamplingParams().resolved({}) for _ in range(4)]
    assert len({one.seed for one in taken}) == 4
    assert taken[0].resolved({}) == taken[0]
