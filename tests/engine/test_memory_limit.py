"""An engine with a memory limit refuses, shortens and queues what would exceed it."""

from collections.abc import Sequence

import mlx.core as mx
import pytest

from helpers.fake_target import (
    PARAMS,
    SECONDS,
    FakeTarget,
    Rounds,
    fake_engine,
    fake_pair,
    output,
)
from mlx_gemma_mtp import Generation, SamplingParams, device, load
from mlx_gemma_mtp.engine.budget import Budget, room_for
from mlx_gemma_mtp.engine.local import Local
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import NotEnoughMemoryError, PromptTooLongError, UsageError
from mlx_gemma_mtp.memory import Limits, Pair

PAIR = Pair.of(*fake_pair().models)
LONGEST = 300  # tokens that fit at batch 1
LIMIT = PAIR.needs(LONGEST, 1)


def test_a_prompt_that_does_not_fit_is_refused_and_others_are_served() -> None:
    with fake_engine(memory_limit=LIMIT) as engine, fake_engine() as free:
        with pytest.raises(PromptTooLongError, match="memory_limit") as refused:
            engine.submit([5] * 2 * LONGEST, PARAMS)
        assert str(refused.value).startswith(f"prompt is too long: {2 * LONGEST} tokens > ")
        assert "\n" not in str(refused.value)
        assert (
            engine.generate([5] * 20, PARAMS)[0].tokens == free.generate([5] * 20, PARAMS)[0].tokens
        )
        assert engine.longest_context() < free.longest_context()


def test_an_output_ends_where_the_memory_does() -> None:
    params = SamplingParams(temperature=0, ignore_eos=True)
    longest = Budget(PAIR, LIMIT).context
    assert LONGEST <= longest < LONGEST + 256
    with fake_engine(memory_limit=LIMIT) as engine:
        (done,) = engine.generate([5] * 20, params)
    assert (done.finish_reason, len(done.tokens)) == ("length", longest - 20)


def test_requests_that_do_not_fit_together_wait_for_each_other(
    prompts: Sequence[list[int]],
) -> None:
    params = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
    limits = {LIMIT: 1, PAIR.needs(LONGEST, 2): 2, None: 8}
    outputs = []
    for limit, rows in limits.items():
        rounds = Rounds()
        with fake_engine(player=rounds.player, memory_limit=limit) as engine:
            outputs.append([done.tokens for done in engine.generate(prompts, params)])
        assert max(rounds.sizes) == rows
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("options", [{"memory_limit": LIMIT}, {"max_batch": 1}])
def test_a_request_that_waits_for_one_in_the_background_lets_it_finish(
    options: dict[str, int],
) -> None:
    going, sizes = list[Generation](), list[int]()

    def on_pass(rows: list[list[int]]) -> None:
        sizes.append(len(rows[0]))
        if len(sizes) == 1:
            going.append(engine.submit([7] * 250, PARAMS))

    limits = Limits(chunks=(64,))
    with fake_engine(FakeTarget(on_pass), limits=limits, **options) as engine:
        background = engine.submit([5] * 250, PARAMS, priority=-1)
        assert background.result(SECONDS).tokens == output([5] * 250, PARAMS.max_tokens or 0)
        assert going[0].result(SECONDS).tokens == output([7] * 250, PARAMS.max_tokens or 0)
    assert len(sizes) > 2  # it came while the other was read


def test_prefixes_give_way_to_requests_that_need_the_memory() -> None:
    spare = 2000
    limit = PAIR.needs(LONGEST, 1) + spare
    with fake_engine(memory_limit=limit, prefix_cache=10**9) as engine:
        for start in range(60):
            engine.generate([start] * 70, PARAMS)
        assert engine.status.prefix_bytes > 2 * spare
        prompt, meanwhile = [5] * (LONGEST - PARAMS.max_tokens), list[int]()
        going = engine.submit(
            prompt, PARAMS, lambda _: meanwhile.append(engine.status.prefix_bytes)
        )
        assert going.result(SECONDS).tokens == output(prompt, PARAMS.max_tokens)
        assert 0 < min(meanwhile) <= spare


def test_without_a_limit_a_prompt_is_checked_against_the_memory_of_the_machine() -> None:
    available = device.available()
    with load("demo", None) as engine:
        assert isinstance(engine._back, Local)
        most = engine._back.budget.most
        assert most is not None
        assert most < available + engine._back.budget.pair.target_bytes + 10**9
        # What others hold in this process is not there for it.
        other = mlx_worker().run(lambda: mx.zeros((10**7,), mx.uint8) + 1)
        mlx_worker().run(lambda: mx.eval(other))
        assert room_for(engine._back.budget.pair) <= device.available() - 10**7
    with load("demo", None, force=True) as engine:
        assert engine._back.budget.most is None


def test_a_pair_that_exceeds_its_limit_is_not_loaded() -> None:
    message = r"^demo.* memory_limit is 10\.0 MB: .*, or raise it$"
    with pytest.raises(NotEnoughMemoryError, match=message):
        load("demo", memory_limit=10_000_000)
    with pytest.raises(NotEnoughMemoryError, match=r"memory_limit is 1\.0 kB, .* a higher limit"):
        load("demo", memory_limit=1000, force=True)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "12 GB", True])
def test_a_limit_is_a_number_of_bytes(wrong: object) -> None:
    with pytest.raises(UsageError, match="memory_limit"):
        load("demo", memory_limit=wrong)  # type: ignore[arg-type]
