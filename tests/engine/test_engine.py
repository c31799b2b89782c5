"""The engine as programs use it: any thread, streams, interruptions, many prompts, closing."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_gemma_mtp
from helpers.checkpoints import MAX_POSITIONS, VOCAB, PairPaths
from mlx_gemma_mtp import Chunk, Engine, MgmError, SamplingParams, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.round import PlayRound, Round
from mlx_gemma_mtp.engine import engine
from mlx_gemma_mtp.errors import GenerationError, ModelNotFoundError, UsageError
from mlx_gemma_mtp.text.tokenizer import TextStream

PARAMS = SamplingParams(max_tokens=16, seed=11, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=900, seed=11, ignore_eos=True, num_draft_tokens=0)
SECONDS = 60  # after which a thread that should long have ended hangs


@pytest.fixture(scope="module")
def pair(pairs: dict[str, PairPaths]) -> PairPaths:
    return pairs["12B"]


@pytest.fixture(scope="module")
def running(pair: PairPaths) -> Iterator[Engine]:
    """An engine loaded by a thread that has ended since."""
    with ThreadPoolExecutor(1) as loader:
        loaded = loader.submit(load, *pair).result()
    with loaded:
        yield loaded


@pytest.fixture
def prompts(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, VOCAB, size).tolist() for size in (3, 20, 7, 40, 11, 5, 31)]


class Rounds:
    """Watches the rounds of engines loaded from now on; `then` is called after each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # rows in each round
        self.then: Callable[[], object] = lambda: None

    def player(self, *models: Any) -> PlayRound:
        play_round = speculate.round_player(*models)

        def play(*arguments: Any) -> Round:
            played = play_round(*arguments)
            self.sizes.append(played.accepted.shape[0])
            self.then()
            return played

        return play


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    watched = Rounds()
    monkeypatch.setattr(engine, "round_player", watched.player)
    return watched


class Letters:
    """A detokenizer for checkpoints without one: a letter for each token."""

    def __init__(self) -> None:
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = spelled([token])

    def finalize(self) -> None:
        self.last_segment = ""


class LettersText:
    """Stands in for `text.Text`."""

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        return TextStream(Letters(), stop)


def spelled(tokens: Sequence[int]) -> str:
    return "".join(chr(0x4E00 + token) for token in tokens)


def texts(running: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    return [one.tokens for one in running.generate(prompts, params)]


# Threads


def test_many_threads_at_once_get_their_own_texts(
    running: Engine, prompts: list[list[int]]
) -> None:
    expected = [texts(running, [prompt], PARAMS)[0] for prompt in prompts]
    together = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> list[list[int]]:
        together.wait(SECONDS)
        generated = texts(running, [prompt], PARAMS)[0]
        streamed = [token for chunk in running.stream(prompt, PARAMS) for token in chunk.tokens]
        return [generated, streamed]

    with ThreadPoolExecutor(len(prompts)) as threads:
        found = list(threads.map(ask, prompts, timeout=SECONDS))
    assert found == [[one, one] for one in expected]


def test_a_stream_may_be_read_by_another_thread(running: Engine, prompts: list[list[int]]) -> None:
    stream = running.stream(prompts[0], PARAMS)
    first = next(stream)
    with ThreadPoolExecutor(1) as other:
        rest = other.submit(list, stream).result(SECONDS)
    tokens = [token for chunk in [first, *rest] for token in chunk.tokens]
    assert tokens == texts(running, [prompts[0]], PARAMS)[0]


# Streams


@pytest.mark.parametrize("num_draft_tokens", [0, 3])
def test_a_stream_gives_what_generate_gives(
    pair: PairPaths, prompts: list[list[int]], num_draft_tokens: int
) -> None:
    with load(*pair) as running:
        running.text = LettersText()  # type: ignore[assignment]
        plain = replace(PARAMS, num_draft_tokens=num_draft_tokens)
        whole = running.generate(prompts[0], plain)[0].text
        met, unmet = [whole[6:8]], [whole[-1] + "#"]  # the second is held back until the end
        for params in (plain, replace(plain, stop=met), replace(plain, stop=unmet)):
            (done,) = running.generate(prompts[0], params)
            chunks: list[Chunk] = list(running.stream(prompts[0], params))
            assert [token for chunk in chunks for token in chunk.tokens] == done.tokens
            assert "".join(chunk.text for chunk in chunks) == done.text
            assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert [chunk.stats for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert chunks[-1].finish_reason == done.finish_reason
            assert chunks[-1].stats is not None
            assert chunks[-1].stats.rounds == done.stats.rounds
            assert chunks[-1].stats.generated_tokens == len(done.tokens)
            stopped = params.stop == met
            assert done.text == (whole[: whole.index(met[0])] if stopped else whole)
        assert whole == spelled(done.tokens)


def leave_closed(stream: Iterator[Chunk]) -> None:
    next(stream)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def leave_by_break(stream: Iterator[Chunk]) -> None:
    for chunk in stream:
        if chunk.tokens:
            break


def leave_unread(stream: Iterator[Chunk]) -> None:
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("leave", [leave_closed, leave_by_break, leave_unread])
def test_leaving_a_stream_stops_it_and_the_engine_goes_on(
    pair: PairPaths,
    prompts: list[list[int]],
    rounds: Rounds,
    leave: Callable[[Iterator[Chunk]], None],
) -> None:
    with load(*pair) as running:
        expected = texts(running, [prompts[1]], PARAMS)
        leave(running.stream(prompts[0], ENDLESS))
        gc.collect()
        played = len(rounds.sizes)
        running.generate(prompts[0], replace(PARAMS, max_tokens=1))  # plays no round of its own
        assert len(rounds.sizes) <= played + 2  # the one under way, the one after it
        assert texts(running, [prompts[1]], PARAMS) == expected


# Interruptions and errors


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the shell has this process ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stream_to_end(running: Engine, prompt: list[int], params: SamplingParams) -> None:
    for _ in running.stream(prompt, params):
        pass


def generate(running: Engine, prompt: list[int], params: SamplingParams) -> None:
    running.generate([prompt] * 3, params)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("use", [generate, stream_to_end])
def test_an_interrupt_stops_the_work_and_the_engine_goes_on(
    pair: PairPaths, prompts: list[list[int]], rounds: Rounds, use: Callable[..., None]
) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        if len(rounds.sizes) == played + 3:
            signal.pthread_kill(main, signal.SIGINT)  # as Ctrl-C does, in the midst of a text

    with load(*pair) as running:
        expected = texts(running, [prompts[1]], PARAMS)
        played = len(rounds.sizes)
        rounds.then = interrupt
        with pytest.raises(KeyboardInterrupt):
            use(running, prompts[0], ENDLESS)
        rounds.then = lambda: None
        played = len(rounds.sizes)
        running.generate(prompts[0], replace(PARAMS, max_tokens=1))
        assert len(rounds.sizes) <= played + 2
        assert texts(running, [prompts[1]], PARAMS) == expected


@pytest.mark.parametrize("use", [generate, stream_to_end])
def test_an_error_in_a_round_reaches_the_caller_and_the_engine_goes_on(
    pair: PairPaths, prompts: list[list[int]], rounds: Rounds, use: Callable[..., None]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of something")

    with load(*pair) as running:
        expected = texts(running, [prompts[1]], PARAMS)
        rounds.then = fail
        with pytest.raises(GenerationError, match="out of something") as raised:
            use(running, prompts[0], PARAMS)
        assert isinstance(raised.value.__cause__, RuntimeError)
        rounds.then = lambda: None
        assert texts(running, [prompts[1]], PARAMS) == expected


# Prompts


def test_more_prompts_than_rows_come_back_in_order(
    pair: PairPaths, running: Engine, prompts: list[list[int]], rounds: Rounds
) -> None:
    expected = [texts(running, [prompt], PARAMS)[0] for prompt in prompts]
    with load(*pair, max_batch=2) as narrow:
        assert texts(narrow, prompts, PARAMS) == expected
    assert max(rounds.sizes) == 2


def test_each_prompt_may_have_its_own_settings(running: Engine, prompts: list[list[int]]) -> None:
    settings = [
        replace(PARAMS, max_tokens=3 + i, temperature=i % 2, seed=i) for i in range(len(prompts))
    ]
    done = running.generate(prompts, settings)
    alone = [running.generate(*pair)[0] for pair in zip(prompts, settings, strict=True)]
    assert [one.tokens for one in done] == [one.tokens for one in alone]
    assert [len(one.tokens) for one in done] == [one.max_tokens for one in settings]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_settings_must_be_as_many_as_prompts(
    running: Engine, prompts: list[list[int]], count: int
) -> None:
    with pytest.raises(UsageError, match=f"3 prompts but {count} settings"):
        running.generate(prompts[:3], [PARAMS] * count)


def test_a_single_prompt_may_be_given_bare(running: Engine, prompts: list[list[int]]) -> None:
    bare = running.generate(prompts[0], PARAMS)
    listed = running.generate([prompts[0]], [PARAMS])
    assert [one.tokens for one in bare] == [one.tokens for one in listed]
    assert len(bare) == 1
    assert running.generate([], PARAMS) == []


def test_a_seed_repeats_a_text_and_without_one_texts_differ(
    running: Engine, prompts: list[list[int]]
) -> None:
    free = SamplingParams(max_tokens=24, temperature=1, top_k=0, top_p=1, ignore_eos=True)
    drawn = texts(running, [prompts[0]] * 4, free)
    assert len({tuple(tokens) for tokens in drawn}) == 4
    same = texts(running, [prompts[0]] * 2, replace(free, seed=5))
    assert same[0] == same[1] == texts(running, [prompts[0]], replace(free, seed=5))[0]


def test_a_text_without_max_tokens_ends_where_the_context_does(
    running: Engine, rng: np.random.Generator
) -> None:
    prompt = rng.integers(0, VOCAB, MAX_POSITIONS - 9).tolist()
    unbounded = replace(PARAMS, max_tokens=None, num_draft_tokens=5)
    (done,) = running.generate(prompt, unbounded)
    assert len(done.tokens) == 9
    assert done.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "empty"),
        ([5, VOCAB], f"{VOCAB} is outside the vocabulary"),
        ([5, -1], "-1 is outside the vocabulary"),
        ([5] * MAX_POSITIONS, f"{MAX_POSITIONS} tokens"),
        ("text", "no tokenizer"),
        ([{"role": "user", "content": "text"}], "no tokenizer"),
    ],
)
def test_a_prompt_that_cannot_be_honoured_is_refused_before_any_work(
    running: Engine, prompt: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        running.generate(prompt, PARAMS)
    single = prompt[0] if prompt == [[]] else prompt
    with pytest.raises(UsageError, match=message):
        running.stream(single, PARAMS)  # at once, not when first read


def test_stop_strings_without_a_tokenizer_are_refused(
    running: Engine, prompts: list[list[int]]
) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        running.generate(prompts[0], replace(PARAMS, stop="end"))


# Counts


def test_counts_add_up(running: Engine, prompts: list[list[int]]) -> None:
    drafts = [0, 1, 2, 3, 5, 7, 15]
    settings = [replace(PARAMS, num_draft_tokens=k, max_tokens=24) for k in drafts]
    for one, prompt, k in zip(running.generate(prompts, settings), prompts, drafts, strict=True):
        stats = one.stats
        assert stats.prompt_tokens == len(prompt)
        assert stats.generated_tokens == len(one.tokens) == 24
        # One token from the prompt, one from each round, and the accepted; the last round may
        # have given more than was asked for.
        surplus = 1 + stats.rounds + stats.accepted - stats.generated_tokens
        assert 0 <= surplus <= k
        assert stats.drafted_at == [stats.rounds] * k
        assert stats.drafted == stats.rounds * k
        assert sorted(stats.accepted_at, reverse=True) == stats.accepted_at
        assert stats.acceptance_rate == (stats.accepted / stats.drafted if k else None)
        assert stats.acceptance_length == (stats.generated_tokens - 1) / stats.rounds
        assert stats.first_token_seconds > 0
        assert stats.decode_seconds > 0
        assert stats.decode_tokens_per_second == 23 / stats.decode_seconds


def test_a_text_of_one_token_needs_no_round(running: Engine, prompts: list[list[int]]) -> None:
    (done,) = running.generate(prompts[0], replace(PARAMS, max_tokens=1))
    assert (len(done.tokens), done.stats.rounds, done.stats.drafted) == (1, 0, 0)
    assert done.stats.acceptance_rate is None
    assert done.stats.acceptance_length is None


def test_drafts_need_a_drafter_and_auto_goes_without(
    pair: PairPaths, prompts: list[list[int]]
) -> None:
    with load(pair.target, None) as plain:
        (done,) = plain.generate(prompts[0], PARAMS)
        assert done.stats.drafted == 0
        with pytest.raises(ModelNotFoundError, match="drafter"):
            plain.generate(prompts[0], replace(PARAMS, num_draft_tokens=1))


def test_auto_takes_what_the_controller_chooses(
    running: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Depth, "choose", lambda *_: 2)
    chosen, pinned = running.generate(prompts[:2], [PARAMS, replace(PARAMS, num_draft_tokens=1)])
    assert len(chosen.stats.drafted_at) == 2
    assert len(pinned.stats.drafted_at) == 1


# Closing


def test_a_closed_engine_says_so(pair: PairPaths, prompts: list[list[int]]) -> None:
    with load(*pair) as running:
        expected = texts(running, [prompts[0]], PARAMS)
    running.close()
    running.close()
    with pytest.raises(MgmError, match="closed"):
        running.generate(prompts[0], PARAMS)
    with pytest.raises(MgmError, match="closed"):
        running.stream(prompts[0], PARAMS)
    with load(*pair) as again:
        assert texts(again, [prompts[0]], PARAMS) == expected


def test_whoever_still_waits_when_the_engine_closes_is_told_so(
    pair: PairPaths, prompts: list[list[int]], rounds: Rounds
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(SECONDS)

    running = load(*pair)
    rounds.then = hold
    with ThreadPoolExecutor(3) as threads:
        under_way = threads.submit(running.generate, prompts[0], PARAMS)
        assert reached.wait(SECONDS)
        waiting = threads.submit(running.generate, prompts[1], PARAMS)
        time.sleep(0.2)
        closing = threads.submit(running.close)
        time.sleep(0.2)
        go_on.set()
        closing.result(SECONDS)
        # Whichever came first, it is a text or the one error made for this.
        for asked in (under_way, waiting):
            assert isinstance(asked.exception(SECONDS), MgmError | None)


def test_closing_gives_the_memory_back(pair: PairPaths, prompts: list[list[int]]) -> None:
    gc.collect()
    before = mx.get_active_memory()
    running = load(*pair)
    running.generate(prompts, PARAMS)
    weights = sum(path.stat().st_size for path in pair.target.glob("*.safetensors"))
    assert mx.get_active_memory() > before + weights / 2
    running.close()
    gc.collect()
    assert mx.get_active_memory() < before + weights / 10
    assert mx.get_cache_memory() == 0


END = {
    "closed": "with load(*folders) as engine: engine.generate([5, 6, 7], params)",
    "left open": "engine = load(*folders); engine.generate([5, 6, 7], params)",
    "streaming": "stream = load(*folders).stream([5, 6, 7], params); next(stream)",
    "failed": "import contextlib\nwith contextlib.suppress(Exception): load(folders[1])",
}


@pytest.mark.parametrize("end", END)
def test_a_process_that_used_an_engine_ends_cleanly(
    pair: PairPaths, tmp_path: Path, end: str
) -> None:
    script = (
        "import sys; from pathlib import Path; from mlx_gemma_mtp import SamplingParams, load\n"
        "folders = [Path(name) for name in sys.argv[1:]]\n"
        "params = SamplingParams(max_tokens=60, ignore_eos=True)\n"
    ) + END[end]
    where = {"PYTHONPATH": str(Path(mlx_gemma_mtp.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, pair)],
        cwd=tmp_path,
        env=os.environ | where,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
