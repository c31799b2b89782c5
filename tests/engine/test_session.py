"""Conversations: the next turn reuses the cache, and its output is as without a session."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

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
from helpers.stepped import Stepped, assert_complete
from helpers.traffic import tokens_of
from mlx_gemma_mtp import Completion, Engine, Session
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.errors import CheckpointError, QueueFullError, UsageError
from mlx_gemma_mtp.memory import Limits

LIMITS = Limits(chunks=(8, 24), max_draft_tokens=7, slot_step=1)  # rings as tight as possible
PARAMS = replace(ENDLESS, max_tokens=16, num_draft_tokens=7)
WAYS = ("continued", "continued", "rewritten", "cut", "reworded", "undone", "again")

Ids = list[int]


class History:
    """What the next prompt starts with, and how much of it a session must be able to reuse."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.ids: Ids = []
        self.held = 0
        self._rng = rng
        self._last: Ids = []  # the prompt before

    def continue_(self, way: str, prompt: Ids, tokens: Ids, words: Ids) -> None:
        """Prepare the turn after the one with this prompt and these tokens of output."""
        middle, last, self._last = len(tokens) // 2, self._last, prompt
        if way == "continued":  # the answer stays as it is
            self.ids, self.held = [*prompt, *tokens], len(prompt) + len(tokens) - 1
        elif way == "rewritten":  # a template takes the thought out
            self.ids, self.held = [*prompt, *tokens[middle + 1 :]], len(prompt)
        elif way == "cut":  # the answer is kept in part
            self.ids, self.held = [*prompt, *tokens[:middle], *words], len(prompt)
        elif way == "reworded":  # the end of the prompt changes, at any depth
            self.ids, self.held = prompt[: -int(self._rng.integers(1, 40))], 0
        elif way == "undone":  # the prompt before this one is held if this one starts with it
            self.ids, self.held = last, len(last) if prompt[: len(last)] == last else 0
        else:  # the same prompt once more
            self.ids, self.held = prompt[:-1], len(prompt) - 1


class Talk:
    """A conversation that a test drives without threads."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.stepped = Stepped(max_batch=4, limits=LIMITS)
        self.session = Session(CONFIG, "fake", LIMITS)

    def words(self, low: int = 1, high: int = 20) -> Ids:
        return self._rng.integers(0, VOCAB, self._rng.integers(low, high)).tolist()

    def submit(self, prompt: Ids, max_tokens: int = 10, drafts: int | None = 7) -> Request:
        self.session.claim()
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
    history = History(rng)
    for way in np.concatenate([rng.permutation(WAYS) for _ in range(5)]):
        if len(history.ids) > 800:
            history = History(rng)
        prompt = [*history.ids, *talk.words()]
        done = talk.ask(prompt, int(rng.integers(1, 40)), (0, 3, 7)[rng.integers(3)])
        assert done.stats.reused_tokens >= min(history.held, len(prompt) - 1), way
        history.continue_(way, prompt, done.tokens, talk.words())


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


def test_a_prompt_cancelled_half_way_is_not_read_twice(talk: Talk) -> None:
    prompt = talk.words(100, 101)
    request = talk.submit(prompt)
    talk.stepped.step(2)
    request.generation.cancel()
    talk.stepped.finish()
    assert request.generation.result(0).finish_reason == "cancelled"
    assert talk.ask(prompt).stats.reused_tokens == 2 * LIMITS.chunks[-1]


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
        def copy_back(self, *_: object) -> None:
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


def test_a_damaged_session_or_one_of_another_model_is_refused(
    engine: Engine, prompts: list[Ids], tmp_path: Path
) -> None:
    session, path = engine.session(), tmp_path / "talk"
    finish(engine, session, prompts[0])
    session.save(path)
    with fake_engine(OtherTarget()) as other, pytest.raises(CheckpointError, match="another model"):
        other.session(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:7], b"{}" * 50, None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a saved session"):
            engine.session(path)
