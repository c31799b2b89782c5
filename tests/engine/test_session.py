"""Conversations: the next turn reuses the cache, and its output is as without a session."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from helpers.checkpoints import VOCAB as PAIR_VOCAB
from helpers.checkpoints import PairPaths
from helpers.fake_target import (
    CONFIG,
    ENDLESS,
    SECONDS,
    VOCAB,
    FakeTarget,
    Rounds,
    fake_engine,
    output,
)
from helpers.forced import Forced, Row, always, is_decisive
from helpers.stepped import Stepped, assert_complete
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Completion, Engine, SamplingParams, Session
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.decode.round import draft
from mlx_gemma_mtp.engine.identity import model_identity
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, QueueFullError, SaveError, UsageError
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.target import Target

LIMITS = Limits(
    chunks=(8, 24), rollback=24, max_draft_tokens=7, slot_step=1
)  # rings as tight as possible
PARAMS = replace(ENDLESS, max_tokens=16, num_draft_tokens=7)
WAYS = ("continued", "continued", "rewritten", "cut", "reworded", "undone", "again")

Ids = list[int]


def next_start(
    rng: np.random.Generator, way: str, last: Ids, prompt: Ids, tokens: Ids, words: Ids
) -> tuple[Ids, int]:
    """What the next prompt starts with, and how much of it a session must be able to reuse.

    last: the prompt before this one.
    """
    middle = len(tokens) // 2
    return {
        "continued": ([*prompt, *tokens], len(prompt) + len(tokens) - 1),
        "rewritten": ([*prompt, *tokens[middle + 1 :]], len(prompt)),  # without the thought
        "cut": ([*prompt, *tokens[:middle], *words], len(prompt)),
        "reworded": (prompt[: -int(rng.integers(1, 40))], 0),  # from any depth
        "undone": (last, len(last) if prompt[: len(last)] == last else 0),
        "again": (prompt[:-1], len(prompt) - 1),
    }[way]


class Talk:
    """A conversation that a test drives without threads."""

    def __init__(self, rng: np.random.Generator, limits: Limits = LIMITS) -> None:
        self._rng = rng
        self.stepped = Stepped(max_batch=4, limits=limits)
        self.session = Session(CONFIG, "fake", limits)

    def words(self, low: int = 1, high: int = 20) -> Ids:
        return self._rng.integers(0, VOCAB, self._rng.integers(low, high)).tolist()

    def submit(self, prompt: Ids, max_tokens: int = 10, drafts: int | None = 7) -> Request:
        return self.stepped.submit(prompt, max_tokens, drafts, session=self.session)

    def ask(self, prompt: Ids, max_tokens: int = 10, drafts: int | None = 7) -> Request:
        request = self.submit(prompt, max_tokens, drafts)
        self.stepped.finish()
        assert_complete(request)
        return request


@pytest.fixture
def talk(rng: np.random.Generator) -> Talk:
    return Talk(rng)


def test_a_turn_prefills_only_what_is_new(talk: Talk, rng: np.random.Generator) -> None:
    """Whatever the next turn keeps of the one before it."""
    start, held, last = Ids(), 0, Ids()
    for way in np.concatenate([rng.permutation(WAYS) for _ in range(5)]):
        if len(start) > 800:
            start, held, last = [], 0, []
        prompt = [*start, *talk.words()]
        done = talk.ask(prompt, int(rng.integers(1, 40)), (0, 3, 7)[rng.integers(3)])
        assert done.stats.reused_tokens >= min(held, len(prompt) - 1), way
        start, held = next_start(rng, way, last, prompt, done.tokens, talk.words())
        last = prompt


def test_conversations_do_not_mix(rng: np.random.Generator) -> None:
    talks = [Talk(rng) for _ in range(4)]
    for talk in talks[1:]:
        talk.stepped = talks[0].stepped
    histories: list[Ids] = [[] for _ in talks]
    for turn in range(3):
        prompts = [
            [*history, *talk.words()] for history, talk in zip(histories, talks, strict=True)
        ]
        requests = [talk.submit(p, 20) for talk, p in zip(talks, prompts, strict=True)]
        talks[0].stepped.finish()
        assert_complete(*requests)
        reused = [max(len(history) - 1, 0) for history in histories]
        assert [one.stats.reused_tokens for one in requests] == reused, turn
        histories = [[*one.ids, *one.tokens] for one in requests]
    assert max(event.size for event in talks[0].stepped.rounds) == 4


def test_the_output_before_a_cancellation_is_held(talk: Talk) -> None:
    prompt = talk.words()
    request = talk.submit(prompt, 50)
    while len(request.tokens) < 10:
        talk.stepped.step()
    request.generation.cancel()
    talk.stepped.finish()
    assert request.generation.result(0).finish_reason == "cancelled"
    assert request.tokens == output(prompt, len(request.tokens))
    done = talk.ask([*prompt, *request.tokens, *talk.words()])
    assert done.stats.reused_tokens == len(prompt) + len(request.tokens) - 1


@pytest.mark.parametrize("overlap", [True, False])
def test_a_session_has_its_cache_as_soon_as_its_request_has_ended(
    rng: np.random.Generator, overlap: bool, tmp_path: Path
) -> None:
    talk = Talk(rng, replace(LIMITS, overlap=overlap))
    request = talk.submit(talk.words(), 5)
    talk.stepped.step()
    other = talk.stepped.submit(talk.words(200, 201), 9)
    while not request.ended:  # while the other prompt is read
        talk.stepped.step()
    talk.session.save(tmp_path / "talk")
    talk.stepped.finish(request, other)


def test_a_prompt_cancelled_half_way_is_not_read_twice(talk: Talk) -> None:
    prompt = talk.words(100, 101)
    request = talk.submit(prompt)
    talk.stepped.step(2)
    request.generation.cancel()
    talk.stepped.finish()
    assert request.generation.result(0).finish_reason == "cancelled"
    assert talk.ask(prompt).stats.reused_tokens == sum(LIMITS.chunks)  # the first shows the pace


@pytest.mark.parametrize("fail_at", ["prefill", "round"])
def test_after_an_error_the_next_turn_starts_from_scratch(talk: Talk, fail_at: str) -> None:
    history = talk.words()
    history += talk.ask(history).tokens

    def fail(event: object) -> None:
        if (fail_at == "round") == (talk.stepped.events[-1].what == "round"):
            raise RuntimeError("broken")

    talk.stepped.then = fail
    request = talk.submit([*history, *talk.words()])
    talk.stepped.finish()
    assert request.generation.exception(0) is not None
    talk.stepped.then = lambda _: None
    assert talk.ask([*history, *talk.words()]).stats.reused_tokens == 0


def test_without_memory_for_the_copy_the_next_turn_starts_from_scratch(talk: Talk) -> None:
    class NoRoom(Session):
        def _copy_back(self, *_: object) -> None:
            raise MemoryError

    prompt = talk.words()
    talk.session = NoRoom(CONFIG, "fake", LIMITS)
    talk.ask(prompt)
    assert talk.ask(prompt).stats.reused_tokens == 0


# Engines


@pytest.fixture
def engine() -> Iterator[Engine]:
    with fake_engine(limits=LIMITS) as engine:
        yield engine


def finish(engine: Engine, session: Session, prompt: Ids) -> Completion:
    """One turn, which writes what it writes from scratch."""
    done = engine.submit(prompt, PARAMS, session=session).result(SECONDS)
    assert done.tokens == output(prompt, 16)
    return done


def test_a_session_serves_one_request_at_a_time_and_is_free_as_soon_as_it_has_ended(
    engine: Engine, prompts: list[Ids]
) -> None:
    session = engine.session()
    going = engine.submit(prompts[0], ENDLESS, session=session)
    with pytest.raises(UsageError, match="busy"):
        engine.submit(prompts[0], PARAMS, session=session)
    going.cancel()
    going.result(SECONDS)
    for _ in range(200):
        params = replace(PARAMS, max_tokens=1)
        engine.submit(prompts[0], params, session=session).result(SECONDS)
    finish(engine, session, prompts[0])


def test_a_refused_request_leaves_the_session_free(prompts: list[Ids]) -> None:
    over, rounds = threading.Event(), Rounds()
    rounds.then = lambda: over.wait(SECONDS)
    with fake_engine(max_batch=1, max_queue=1, player=rounds.player) as engine:
        session = engine.session()
        going = [engine.submit(prompts[0], PARAMS)]
        while not rounds.sizes:
            over.wait(0.01)
        going.append(engine.submit(prompts[1], PARAMS))
        with pytest.raises(QueueFullError):
            engine.submit(prompts[2], PARAMS, session=session)
        over.set()
        for one in going:
            one.result(SECONDS)
        finish(engine, session, prompts[2])


def test_a_stream_takes_a_session(engine: Engine, prompts: list[Ids]) -> None:
    session = engine.session()
    history = [*prompts[0], *tokens_of(list(engine.stream(prompts[0], PARAMS, session=session)))]
    last = list(engine.stream([*history, *prompts[1]], PARAMS, session=session))[-1]
    assert last.stats
    assert last.stats.reused_tokens == len(history) - 1


def test_a_saved_session_continues_in_another_engine(
    engine: Engine, prompts: list[Ids], tmp_path: Path
) -> None:
    session, path, prompt = engine.session(), tmp_path / "talk", prompts[3]
    with pytest.raises(UsageError, match="nothing to save"):
        session.save(path)
    tokens = finish(engine, session, prompt).tokens
    session.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["talk"]
    # The answer as it was, then as a template rewrites it.
    for kept, held in ((tokens, len(prompt) + 15), (tokens[9:], len(prompt))):
        with fake_engine(limits=LIMITS) as other:
            done = finish(other, other.session(path), [*prompt, *kept, *prompts[1]])
            assert done.stats.reused_tokens == held


class OtherTarget(FakeTarget):
    """A target whose weights have another identity."""

    def parameters(self) -> dict[str, mx.array]:
        return {"scale": mx.array([1.0])}


class LargeTarget(FakeTarget):
    """A target with a large array, of a size that a sample does not divide."""

    def __init__(self, weights: mx.array) -> None:
        super().__init__()
        self.weights = weights

    def parameters(self) -> dict[str, mx.array]:
        return {"weights": self.weights}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.uint32])
def test_weights_that_differ_a_little_have_another_identity(
    rng: np.random.Generator, dtype: mx.Dtype
) -> None:
    values = rng.integers(1, 2**8, (101, 1009))
    tuned, small = values + (rng.random(values.shape) < 0.1), values[:3].copy()
    small[-1, -1] += 1
    different = [values, values.reshape(1009, 101), tuned, values[:3], small]

    def identity(of: Any) -> str:
        return model_identity(cast(Target, LargeTarget(mx.array(of).astype(dtype))))

    found = mlx_worker().run(lambda: [identity(one) for one in [*different, values.copy()]])
    assert len({*found}) == len(different)
    assert found[-1] == found[0]


def test_weights_with_more_values_than_an_axis_may_have_get_an_identity() -> None:
    def identity(value: int) -> str:
        weights = mx.broadcast_to(mx.array(value, mx.uint8), (2**16, 2**15 + 1))
        assert weights.size > 2**31
        return model_identity(cast(Target, LargeTarget(weights)))

    assert mlx_worker().run(lambda: len({identity(value) for value in (1, 2)})) == 2


def test_a_session_of_another_engine_or_none_is_refused(engine: Engine, prompts: list[Ids]) -> None:
    session = engine.session()
    finish(engine, session, prompts[0])
    with fake_engine(OtherTarget()) as other:
        for wrong, why in ((session, "another engine"), ("chat", "must come from engine.session")):
            for use in (other.submit, other.stream):
                with pytest.raises(UsageError, match=why):
                    use(prompts[0], PARAMS, session=wrong)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match=why):
                other.generate([prompts[0]], PARAMS, sessions=[wrong])  # type: ignore[list-item]
    finish(engine, session, prompts[0])


def test_a_session_that_cannot_be_written_says_so(
    engine: Engine, prompts: list[Ids], tmp_path: Path
) -> None:
    session = engine.session()
    finish(engine, session, prompts[0])
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "talk", tmp_path / "file" / "talk", tmp_path):
        with pytest.raises(SaveError, match="cannot be written") as raised:
            session.save(path)
        assert isinstance(raised.value, OSError)
        assert "\n" not in str(raised.value)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    finish(engine, session, prompts[0])


def test_a_damaged_session_or_one_of_another_model_is_refused(
    engine: Engine, prompts: list[Ids], tmp_path: Path
) -> None:
    session, path = engine.session(), tmp_path / "talk"
    finish(engine, session, prompts[0])
    session.save(path)
    with fake_engine(OtherTarget()) as other, pytest.raises(CheckpointError, match="another model"):
        other.session(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"mgm session 3", b"mgm session 2"))
    with pytest.raises(CheckpointError, match="of this version"):
        engine.session(path)
    for damaged in (b"", whole[: len(whole) // 2], whole[:7], b"{}" * 50, None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a saved session"):
            engine.session(path)


TIGHT = Limits(chunks=(8, 24), rollback=24, max_draft_tokens=7, slot_step=1)
BEYOND = 16  # tokens past its end up to which forced drafts know an output
RIGHT = SamplingParams(temperature=1, top_k=0, top_p=1, ignore_eos=True, num_draft_tokens=7)


# Dense with K = V; experts; layers that share keys and values.
@pytest.mark.parametrize("name", ["12B", "26B-A4B", "E2B"])
def test_every_turn_writes_what_it_writes_from_scratch_and_prefills_only_what_is_new(
    name: str, pairs: dict[str, PairPaths], rng: np.random.Generator, tmp_path: Path
) -> None:
    pair, drafts = open_pair(*pairs[name]), draft
    suppressed = pair.default_tokens("suppress_tokens")

    def current(*arguments: Any) -> mx.array:
        return drafts(*arguments)

    def words(most: int) -> list[int]:
        return rng.integers(0, PAIR_VOCAB, rng.integers(1, most)).tolist()

    def turn(history: list[int], most: int) -> Row:
        for _ in range(20):
            params = replace(RIGHT, seed=int(rng.integers(2**31)))
            prompt = [*history, *words(20)]
            plain = replace(params, max_tokens=most + BEYOND, num_draft_tokens=0)
            row = Row(prompt, params, engine.generate(prompt, plain)[0].tokens)
            if mlx_worker().run(partial(is_decisive, pair.target, row, suppressed)):
                return row
        raise AssertionError("no output without a near tie")

    with Engine(pair, player=partial(round_player, draft=current), limits=TIGHT) as engine:
        session, held = engine.session(), 0
        history: list[int] = []
        for way in ("continue", "rewrite", "continue", "save", "rewrite", "continue"):
            row = turn(history, most := int(rng.integers(1, 40)))
            drafts = Forced(rng, [row], always([row], True))
            params = replace(row.params, max_tokens=most)
            done = engine.submit(row.prompt, params, session=session).result()
            assert done.tokens == row.tokens[:most], way
            assert done.stats.reused_tokens >= min(held, len(row.prompt) - 1)
            answer = words(5) if way == "rewrite" else done.tokens
            history = [*row.prompt, *answer]
            held = len(row.prompt) + (0 if way == "rewrite" else len(answer) - 1)
            if way == "save":
                session.save(tmp_path / "talk")
                session = engine.session(tmp_path / "talk")
