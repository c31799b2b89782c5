"""The engine as programs use it: settings, counts, any thread, streams, interrupts, closing."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from helpers.depths import GivenDepth
from helpers.fake_target import (
    ENDLESS,
    MAX_POSITIONS,
    PARAMS,
    SECONDS,
    VOCAB,
    FakeTarget,
    Rounds,
    fake_engine,
    output,
)
from helpers.random_pair import EXPERTS, random_pair
from helpers.spelled import NumbersText, spelled
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Engine, MgmError, SamplingParams
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.player import RoundPlayer, round_player
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import GenerationError, UsageError
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target


def assert_works(running: Engine, prompt: list[int]) -> None:
    assert running.generate(prompt, PARAMS)[0].tokens == output(prompt, 16)


def assert_stopped(running: Engine, rounds: Rounds, played: int) -> None:
    """No work is left, and the engine still works."""
    running.generate([5], replace(PARAMS, max_tokens=1))  # plays no round of its own
    assert len(rounds.sizes) <= played + 2  # the one in flight, the one after it
    assert_works(running, [5, 6])


# Settings and counts


def test_a_single_prompt_needs_no_list(running: Engine, prompts: list[list[int]]) -> None:
    for one in (prompts[0], [prompts[0]]):
        assert [done.tokens for done in running.generate(one, PARAMS)] == [output(prompts[0], 16)]
    assert running.generate([], PARAMS) == []


def test_a_wrong_prompt_is_refused_before_a_stream_is_read(running: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        running.stream([], PARAMS)


def test_a_seed_repeats_an_output_and_without_one_outputs_differ(prompts: list[list[int]]) -> None:
    free = SamplingParams(max_tokens=24, temperature=1, top_k=0, top_p=1, ignore_eos=True)
    with fake_engine(FakeTarget(certainty=0.05)) as running:
        drawn = running.generate([prompts[0]] * 4, free)
        same = running.generate([prompts[0]] * 2, replace(free, seed=5))
        again = running.generate(prompts[0], replace(free, seed=5))
    assert len({tuple(one.tokens) for one in drawn}) == 4
    assert same[0].tokens == same[1].tokens == again[0].tokens


def test_an_output_without_max_tokens_ends_where_the_context_does(running: Engine) -> None:
    prompt = [5] * (MAX_POSITIONS - 9)
    (done,) = running.generate(prompt, replace(PARAMS, max_tokens=None, num_draft_tokens=5))
    assert (done.tokens, done.finish_reason) == (output(prompt, 9), "length")


def test_auto_takes_what_the_controller_chooses(prompts: list[list[int]]) -> None:
    with fake_engine(depth=GivenDepth(repeat(2))) as running:
        settings = [PARAMS, replace(PARAMS, num_draft_tokens=1)]
        chosen, pinned = running.generate(prompts[:2], settings)
    assert len(chosen.stats.drafted_at) == 2
    assert len(pinned.stats.drafted_at) == 1


def test_each_prompt_may_have_its_own_settings_and_counts_add_up(
    running: Engine, prompts: list[list[int]]
) -> None:
    drafts = [0, 1, 2, 3, 5, 7, 15, 15]
    settings = [
        replace(PARAMS, num_draft_tokens=k, max_tokens=17 + k, temperature=k % 2) for k in drafts
    ]
    for one, prompt, k in zip(running.generate(prompts, settings), prompts, drafts, strict=True):
        stats = one.stats
        assert one.tokens == output(prompt, 17 + k)
        assert stats.prompt_tokens == len(prompt)
        assert stats.generated_tokens == len(one.tokens)
        # One token from the prompt, one from each round, and the accepted ones. The last round may
        # have yielded more than was asked for.
        surplus = 1 + stats.rounds + stats.accepted - stats.generated_tokens
        assert 0 <= surplus <= k
        assert stats.drafted_at == [stats.rounds] * k
        assert stats.drafted == stats.rounds * k
        assert sorted(stats.accepted_at, reverse=True) == stats.accepted_at
        assert stats.acceptance_rate == (stats.accepted / stats.drafted if k else None)
        assert stats.acceptance_length == (16 + k) / stats.rounds
        assert stats.first_token_seconds > 0
        assert 0 < stats.longest_pause_seconds <= stats.decode_seconds
        assert stats.decode_seconds <= stats.rounds * stats.longest_pause_seconds + 1e-3
        assert stats.decode_tokens_per_second == (16 + k) / stats.decode_seconds


def test_an_output_of_one_token_needs_no_round(running: Engine) -> None:
    (done,) = running.generate([5, 6], replace(PARAMS, max_tokens=1))
    assert (len(done.tokens), done.stats.rounds, done.stats.drafted) == (1, 0, 0)
    assert done.stats.acceptance_rate is None
    assert done.stats.acceptance_length is None


# Threads and streams


def test_many_threads_at_once_get_their_own_outputs(prompts: list[list[int]]) -> None:
    together = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> list[list[int]]:
        together.wait(SECONDS)
        stream = running.stream(prompt, PARAMS)
        first = next(stream)
        rest = readers.submit(list, stream).result(SECONDS)  # any thread may read it
        return [running.generate(prompt, PARAMS)[0].tokens, tokens_of([first, *rest])]

    with ThreadPoolExecutor(1) as maker:
        running = maker.submit(fake_engine).result()  # by a thread that ends here
    with running, ThreadPoolExecutor(8) as readers, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, prompts, timeout=SECONDS))
    assert found == [[output(prompt, 16)] * 2 for prompt in prompts]


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_stream_gives_what_generate_gives(
    prompts: list[list[int]], num_draft_tokens: int
) -> None:
    with fake_engine(text=NumbersText()) as running:
        plain = replace(PARAMS, num_draft_tokens=num_draft_tokens)
        whole = running.generate(prompts[0], plain)[0].text
        met, unmet = [whole[20:24]], [whole[-1] + "#"]  # the second is held back until the end
        for params in (plain, replace(plain, stop=met), replace(plain, stop=unmet)):
            (done,) = running.generate(prompts[0], params)
            *earlier, last = chunks = list(running.stream(prompts[0], params))
            assert tokens_of(chunks) == done.tokens
            assert "".join(chunk.text for chunk in chunks) == done.text
            assert {(chunk.finish_reason, chunk.stats) for chunk in earlier} == {(None, None)}
            assert last.finish_reason == done.finish_reason
            assert last.stats is not None
            assert last.stats.rounds == done.stats.rounds
            assert last.stats.generated_tokens == len(done.tokens)
            assert done.text == (whole.split(met[0])[0] if params.stop == met else whole)
            assert done.stop == (met[0] if params.stop == met else None)
        assert whole == spelled(done.tokens)


@pytest.mark.parametrize(("num_read", "closed"), [(0, True), (2, True), (1, False)])
def test_leaving_a_stream_stops_it_and_the_engine_continues(
    prompts: list[list[int]], num_read: int, closed: bool
) -> None:
    rounds = Rounds()
    with fake_engine(player=rounds.player) as running:
        stream = running.stream(prompts[0], ENDLESS)
        chunks = iter(stream)
        for _ in range(num_read):
            next(chunks)
        if closed:
            stream.close()
        del chunks
        assert stream.result(SECONDS).finish_reason == "cancelled"
        assert_stopped(running, rounds, len(rounds.sizes))


@pytest.mark.parametrize("error", [KeyboardInterrupt, GenerationError])
@pytest.mark.parametrize(
    "use",
    [
        lambda running, prompt: running.generate([prompt] * 3, ENDLESS),
        lambda running, prompt: list(running.stream(prompt, ENDLESS)),
    ],
    ids=["generate", "stream"],
)
def test_an_interrupt_or_an_error_reaches_the_caller_and_the_engine_continues(
    prompts: list[list[int]], error: type[BaseException], use: Callable[..., object]
) -> None:
    main, rounds = threading.main_thread().ident, Rounds()
    assert main is not None

    def stop() -> None:
        if len(rounds.sizes) == 3 and error is GenerationError:
            raise RuntimeError("out of something")
        if len(rounds.sizes) == 3:
            signal.pthread_kill(main, signal.SIGINT)  # as Ctrl-C does, in the middle of an output

    rounds.then = stop
    with fake_engine(player=rounds.player) as running:
        with pytest.raises(error) as raised:
            use(running, prompts[0])
        if error is GenerationError:
            assert "out of something" in str(raised.value)
            assert isinstance(raised.value.__cause__, RuntimeError)
        assert_stopped(running, rounds, len(rounds.sizes))


# Closing


def test_closing_frees_the_memory_and_a_closed_engine_says_so(prompts: list[list[int]]) -> None:
    class Heavy(FakeTarget):
        def __init__(self) -> None:
            super().__init__()
            self.weights = mx.zeros((1_000_000,))
            mx.eval(self.weights)

    gc.collect()
    before = mx.get_active_memory()
    with fake_engine(mlx_worker().run(Heavy)) as running:
        running.generate(prompts, PARAMS)
        assert mx.get_active_memory() > before + 4_000_000
    running.close()
    gc.collect()
    assert mx.get_active_memory() < before + 100_000
    assert mx.get_cache_memory() == 0
    for use in (running.generate, running.stream, running.submit):
        with pytest.raises(MgmError, match="closed"):
            use(prompts[0], PARAMS)


def refused(running: Engine, prompt: object, **options: object) -> BaseException:
    with pytest.raises(MgmError) as raised:
        running.submit(prompt, **options).result()  # type: ignore[arg-type]
    return raised.value


def busy(running: Engine) -> BaseException:
    session = running.session()
    running.submit([5], ENDLESS, session=session)
    return refused(running, [5], session=session)


def full(running: Engine) -> BaseException:
    with pytest.raises(MgmError, match="full") as raised:
        [running.submit([5], ENDLESS) for _ in range(1000)]
    return raised.value


def failing(running: Engine) -> BaseException:
    def on_chunk(_: object) -> None:
        try:
            raise KeyError(running)
        except KeyError as error:
            raise ValueError("broken") from error

    return refused(running, [5], on_chunk=on_chunk)


def interrupted(running: Engine) -> BaseException:
    generation = running.submit([5], ENDLESS)
    running.close()
    error = generation.exception()
    assert error is not None
    return error


def left(running: Engine) -> object:
    stream = running.stream([5], ENDLESS)
    next(stream)
    return stream


KEPT: dict[str, Callable[[Engine], object]] = {
    "an empty prompt": lambda running: refused(running, []),
    "a wrong token": lambda running: refused(running, [VOCAB]),
    "wrong settings": lambda running: refused(running, [5], params=3),
    "a prompt too long": lambda running: refused(running, [5] * MAX_POSITIONS),
    "a busy session": busy,
    "a full queue": full,
    "a callback's error": failing,
    "an error of closing": interrupted,
    "a stream half read": left,
    "a completion": lambda running: running.generate([5], PARAMS),
    "a session": lambda running: (
        running.generate([5], PARAMS, sessions=(s := running.session())) and s
    ),
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_closing_lets_go_of_the_model_whatever_is_kept(make: Callable[[Engine], object]) -> None:
    target = FakeTarget()
    running = fake_engine(target, max_queue=4)
    models = [weakref.ref(target), weakref.ref(running._back._scheduler._batch.target)]  # type: ignore[union-attr]
    del target
    kept = make(running)
    running.close()
    gc.collect()
    assert [model() for model in models] == [None, None]
    assert kept
    assert running.closed


def test_engines_of_one_pair_compute_experts_in_ways_of_their_own(rng: np.random.Generator) -> None:
    pair, targets = random_pair(rng, experts=EXPERTS), list[Target]()

    def player(target: Target, drafter: Drafter | None) -> RoundPlayer:
        targets.append(target)
        return round_player(target, drafter)

    with ExitStack() as engines:
        for ways in ({1: "all"}, {1: "tiles"}, {}):
            depth = Depth(table=PassTable(passes={1: 1.0}, ways=ways))
            engines.enter_context(Engine(pair, player=player, depth=depth))
        assert [target.ways[1] for target in targets] == ["all", "tiles", "pairs"]


END = {
    "closed": "with fake_engine() as engine: engine.generate([5, 6, 7], params)",
    "left open": "engine = fake_engine(); engine.generate([5, 6, 7], params)",
    "streaming": "stream = fake_engine().stream([5, 6, 7], params); next(stream)",
    "failed": "import contextlib\nwith contextlib.suppress(Exception): load(DEMO_DRAFTER)",
}


@pytest.mark.parametrize("end", END)
def test_a_process_that_used_an_engine_ends_cleanly(tmp_path: Path, end: str) -> None:
    script = (
        "from helpers.fake_target import fake_engine\n"
        "from mlx_gemma_mtp import SamplingParams, load\n"
        "from mlx_gemma_mtp.files.names import DEMO_DRAFTER\n"
        "params = SamplingParams(max_tokens=60, ignore_eos=True)\n"
    ) + END[end]
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
