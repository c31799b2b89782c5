"""Conversations: what an earlier turn left in the cache is used, and the text is as without it.

Every turn is also decoded from nothing, by the same engine, and must say the same. Rings are as
tight as they may be, so that they wrap, and drafts are all right, so that rounds run past the end.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from helpers.checkpoints import VOCAB, PairPaths
from helpers.forced import Forced, Row, is_decisive
from mlx_gemma_mtp import Chunk, Completion, Engine, SamplingParams, Session, load
from mlx_gemma_mtp.decode import round as speculate
from mlx_gemma_mtp.engine import batch, prefill
from mlx_gemma_mtp.engine.prefill import Prefill
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.errors import CheckpointError, QueueFullError, UsageError
from mlx_gemma_mtp.model import cache
from mlx_gemma_mtp.model.target import Target

# Dense with K = V; experts; layers that share keys and values.
SOME_KINDS = ("12B", "26B-A4B", "E2B")
CHUNKS = (8, 24)
BEYOND = 16  # tokens by which forced drafts know the text past its end
PARAMS = SamplingParams(temperature=1, top_k=0, top_p=1, ignore_eos=True, num_draft_tokens=7)

Ids = list[int]


@pytest.fixture(scope="module", autouse=True)
def tight() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SLOT_STEP", 1)
        patch.setattr(batch, "MAX_DRAFT_TOKENS", 7)
        patch.setattr(prefill, "CHUNKS", CHUNKS)
        patch.setattr(batch, "CHUNKS", CHUNKS)
        yield


@pytest.fixture(scope="module")
def engines(pairs: dict[str, PairPaths], tight: None) -> Iterator[dict[str, Engine]]:
    loaded = {kind: load(*pairs[kind], max_batch=4) for kind in SOME_KINDS}
    yield loaded
    for engine in loaded.values():
        engine.close()


@pytest.fixture
def engine(engines: dict[str, Engine]) -> Engine:
    return engines["12B"]


class Talk:
    """Turns with random words whose text is known from decoding it from nothing."""

    def __init__(self, engine: Engine, rng: np.random.Generator) -> None:
        self.engine = engine
        self._rng = rng
        self._target: Target = engine._open._target
        self._suppressed: Ids = engine._defaults.get("suppress_tokens", [])

    def words(self, low: int, high: int) -> Ids:
        return self._rng.integers(0, VOCAB, self._rng.integers(low, high)).tolist()

    def turn(self, history: Ids, most: int) -> Row:
        """History and some new words, and up to BEYOND tokens more than `most` of the answer."""
        for _ in range(20):
            params = replace(PARAMS, seed=int(self._rng.integers(2**31)))
            prompt = [*history, *self.words(1, 20)]
            plain = replace(params, max_tokens=most + BEYOND, num_draft_tokens=0)
            row = Row(prompt, params, self.engine.generate(prompt, plain)[0].tokens)
            if mlx_worker().run(partial(is_decisive, self._target, row, self._suppressed)):
                return row
        raise AssertionError("no text without a near tie")

    def ask(self, row: Row, most: int, session: Session | None) -> Completion:
        params = replace(row.params, max_tokens=most)
        return self.engine.submit(row.prompt, params, session=session).result()


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Callable[[Row], None]:
    """Makes all drafts of a row right."""

    def force(row: Row) -> None:
        right = np.ones(len(row.prompt) + len(row.tokens), bool)
        drafts = mlx_worker().run(lambda: Forced(rng, [row], [right]))
        monkeypatch.setattr(speculate, "draft", drafts)

    return force


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_every_turn_says_what_it_says_from_nothing_and_prefills_only_what_is_new(
    engines: dict[str, Engine],
    rng: np.random.Generator,
    forced: Callable[[Row], None],
    kind: str,
) -> None:
    talk, session = Talk(engines[kind], rng), engines[kind].session()
    history: Ids = []
    prompts: list[Ids] = [[]]
    held = 0  # tokens the session must be able to give
    ways = ["on", "on", "rewritten", "cut", "reworded", "undone", "again"]
    for number, way in enumerate([*rng.permutation(ways), *rng.permutation(ways)]):
        most = int(rng.integers(1, 40)) if number else 1
        row = talk.turn(history, most)
        forced(row)
        done = talk.ask(row, most, session)
        assert done.tokens == row.tokens[:most], (number, way)
        assert done.stats.reused_tokens >= min(held, len(row.prompt) - 1)
        prompt, said = row.prompt, done.tokens
        if way == "on":  # the answer stays as it is
            history, held = [*prompt, *said], len(prompt) + most - 1
        elif way == "rewritten":  # a template takes the thought out
            history, held = [*prompt, *said[most // 2 + 1 :]], len(prompt)
        elif way == "cut":  # the answer is kept in part
            history, held = [*prompt, *said[: most // 2], *talk.words(1, 5)], len(prompt)
        elif way == "reworded":  # the prompt's end has become another: any depth
            history, held = prompt[: -int(rng.integers(1, 40))], 0
        elif way == "undone":  # the prompt before this one is held, if this one began with it
            last = prompts[-1]
            history, held = last, len(last) if prompt[: len(last)] == last else 0
        else:  # the same once more
            history, held = prompt[:-1], len(prompt) - 1
        prompts.append(prompt)


def test_conversations_side_by_side_do_not_mix(
    engines: dict[str, Engine], rng: np.random.Generator
) -> None:
    talk = Talk(engines["26B-A4B"], rng)
    turns: list[list[Row]] = []
    for _ in range(4):
        history: Ids = []
        turns.append([])
        for _ in range(3):
            turns[-1].append(talk.turn(history, 20))
            history = [*turns[-1][-1].prompt, *turns[-1][-1].tokens[:20]]

    def hold(rows: list[Row]) -> list[Completion]:
        session = talk.engine.session()
        return [talk.ask(row, 20, session) for row in rows]

    with ThreadPoolExecutor(4) as threads:
        for rows, done in zip(turns, threads.map(hold, turns), strict=True):
            assert [one.tokens for one in done] == [row.tokens[:20] for row in rows]
            reused = [one.stats.reused_tokens for one in done]
            assert reused == [0, *[len(row.prompt) + 19 for row in rows[:-1]]]


def test_what_was_said_until_it_was_cancelled_is_held(
    engine: Engine, rng: np.random.Generator
) -> None:
    talk, session, enough = Talk(engine, rng), engine.session(), Event()
    row = talk.turn([], 50)
    heard: Ids = []

    def hear(chunk: Chunk) -> None:
        heard.extend(chunk.tokens)
        if len(heard) >= 10:
            enough.set()

    going = engine.submit(row.prompt, replace(row.params, max_tokens=900), hear, session=session)
    assert enough.wait(60)
    going.cancel()
    done = going.result()  # some rounds more than were waited for
    assert done.finish_reason == "cancelled"
    more = talk.turn([*row.prompt, *done.tokens], 10)
    again = talk.ask(more, 10, session)
    assert again.tokens == more.tokens[:10]
    assert again.stats.reused_tokens == len(row.prompt) + len(done.tokens) - 1


def test_a_prompt_cancelled_half_way_is_not_read_twice(
    engine: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, session = Talk(engine, rng), engine.session()
    row = talk.turn(talk.words(100, 101), 10)
    advance = Prefill.advance
    chunks = 0

    def twice(self: Prefill, most: int) -> int:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            self.request.generation.cancel()
        return advance(self, most)

    monkeypatch.setattr(Prefill, "advance", twice)
    assert talk.ask(row, 10, session).finish_reason == "cancelled"
    monkeypatch.undo()
    done = talk.ask(row, 10, session)
    assert done.tokens == row.tokens[:10]
    assert done.stats.reused_tokens == 2 * CHUNKS[-1]


def test_a_session_answers_one_at_a_time(engine: Engine, rng: np.random.Generator) -> None:
    talk, session = Talk(engine, rng), engine.session()
    row = talk.turn([], 10)
    running = engine.submit(row.prompt, replace(row.params, max_tokens=900), session=session)
    with pytest.raises(UsageError, match="answering already"):
        talk.ask(row, 10, session)
    running.cancel()
    running.result()
    assert talk.ask(row, 10, session).tokens == row.tokens[:10]


def test_a_request_that_was_refused_leaves_the_session_free(
    engine: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, session = Talk(engine, rng), engine.session()
    row = talk.turn([], 10)

    def full(*_: Any, **__: Any) -> None:
        raise QueueFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(engine._open, "submit", full)
        with pytest.raises(QueueFullError):
            talk.ask(row, 10, session)
    assert talk.ask(row, 10, session).tokens == row.tokens[:10]


def test_where_there_is_no_room_for_it_the_next_turn_is_prefilled_whole(
    engine: Engine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, session = Talk(engine, rng), engine.session()
    row = talk.turn([], 10)

    def no_room(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Session, "keep_row", no_room)
        assert talk.ask(row, 10, session).tokens == row.tokens[:10]
    done = talk.ask(row, 10, session)
    assert done.tokens == row.tokens[:10]
    assert done.stats.reused_tokens == 0


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_saved_session_goes_on_in_another_engine(
    engines: dict[str, Engine],
    pairs: dict[str, PairPaths],
    rng: np.random.Generator,
    tmp_path: Path,
    kind: str,
) -> None:
    talk, session = Talk(engines[kind], rng), engines[kind].session()
    first = talk.turn([], 40)
    talk.ask(first, 40, session)
    session.save(tmp_path / "talk")
    assert [path.name for path in tmp_path.iterdir()] == ["talk"]
    on = talk.turn([*first.prompt, *first.tokens[:40]], 12)
    rewritten = talk.turn([*first.prompt, *first.tokens[30:40]], 12)
    with load(*pairs[kind], max_batch=1) as other:
        elsewhere = Talk(other, rng)
        for row, held in ((on, len(first.prompt) + 39), (rewritten, len(first.prompt))):
            done = elsewhere.ask(row, 12, other.session(tmp_path / "talk"))
            assert done.tokens == row.tokens[:12]
            assert done.stats.reused_tokens >= held


def test_a_saved_session_of_another_model_or_a_damaged_one_is_refused(
    engines: dict[str, Engine], rng: np.random.Generator, tmp_path: Path
) -> None:
    engine = engines["12B"]
    talk, session = Talk(engine, rng), engine.session()
    path = tmp_path / "talk"
    with pytest.raises(UsageError, match="nothing to save"):
        session.save(path)
    talk.ask(talk.turn([], 5), 5, session)
    session.save(path)
    with pytest.raises(CheckpointError, match="of another model"):
        engines["E2B"].session(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:7], b"{}" * 50):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no saved session"):
            engine.session(path)
    with pytest.raises(CheckpointError, match="no saved session"):
        engine.session(tmp_path / "nowhere")
