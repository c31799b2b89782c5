"""Settings as clients of other servers write them."""

from __future__ import annotations

import pytest

from mlx_gemma_mtp.server.asked import params_of
from mlx_gemma_mtp.server.failures import Failure


def test_what_others_write_for_all_and_for_one_token_is_understood() -> None:
    assert params_of({}, top_k=-1).top_k == 0
    params = params_of({}, top_p=0)
    assert (params.top_p, params.top_k) == (1.0, 1)


def test_any_integer_is_a_seed() -> None:
    for seed in (-1, 2**64, -(2**70)):
        drawn = params_of({}, seed=seed).seed
        assert drawn is not None
        assert drawn >= 0


def test_a_wrong_value_has_the_name_that_the_protocol_gives_it() -> None:
    with pytest.raises(Failure, match=r"^options\.num_predict must be at least 1") as failed:
        params_of({"max_tokens": "options.num_predict"}, max_tokens=0)
    assert failed.value.field == "options.num_predict"
