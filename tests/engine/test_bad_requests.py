"""A prompt or a setting that is not valid is refused in one line, and harms no other request."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.broken import GREEDY, each, refusal
from helpers.fake_target import MAX_POSITIONS, VOCAB, fake_engine, fake_pair, fake_player
from mlx_gemma_mtp import Engine, MgmError, SamplingParams, load
from mlx_gemma_mtp.errors import ClosedError, ModelNotFoundError, PromptTooLongError, UsageError
from mlx_gemma_mtp.files.names import DEMO


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The demo pair, which has a tokenizer."""
    with load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def plain_engine() -> Iterator[Engine]:
    """A target without drafter and without tokenizer."""
    with Engine(fake_pair()._replace(drafter=None), player=fake_player) as engine:
        yield engine


A_MESSAGE = {"role": "user", "content": "Hi"}
WRONG_PROMPTS: list[Any] = [
    *(None, 5, 1.5, True, b"Hi", bytearray(b"Hi"), {"Hi"}, {5, 6}, {}, A_MESSAGE),
    *((word for word in ("a", "b")), iter([5, 6]), np.array([5.0]), mx.array([5, 6])),
    *([True, False], [5.0, 6.0], [5, "Hi"], ["Hi", 5], [5, A_MESSAGE], ["Hi", None]),
    *([A_MESSAGE, None], [[[5]]], [[5.0]], [b"Hi"], [[True]], [[5, "Hi"]]),
    *([{"role": "user"}], [{"content": "Hi"}], [{"role": "user", "content": 5}]),
    *([{"role": 5, "content": "Hi"}], [A_MESSAGE, {"role": "assistant", "tool_calls": 5}]),
    [A_MESSAGE, {"role": "assistant", "tool_calls": [{}]}],
    *("\ud83d", [{"role": "user", "content": "\ud83d"}]),  # half a character
]


@pytest.mark.parametrize(
    "prompt", WRONG_PROMPTS, ids=lambda prompt: ascii(prompt).split(" at 0x")[0][:30]
)
def test_a_prompt_of_a_wrong_kind_is_refused(engine: Engine, prompt: Any) -> None:
    refusal(UsageError, lambda: engine.generate(prompt, GREEDY))
    refusal(UsageError, lambda: list(engine.stream(prompt, GREEDY)))


@pytest.mark.parametrize("tokens", [None, 5, "5", [-1], [2**40], [5.0], [True], {5}, ["Hi"]])
def test_tokens_of_a_wrong_kind_are_refused(engine: Engine, tokens: Any) -> None:
    refusal(UsageError, lambda: engine.decode(tokens))


def test_an_id_without_a_token_is_not_decoded(engine: Engine) -> None:
    for unknown in (engine.config.vocab_size, 2**31 - 1):
        assert f"{unknown} is not a token" in refusal(
            UsageError, lambda unknown=unknown: engine.decode([5, unknown])
        )


@pytest.mark.parametrize("text", [None, 5, b"Hi", ["Hi"], "\ud83d"], ids=ascii)
def test_text_of_a_wrong_kind_is_refused(engine: Engine, text: Any) -> None:
    refusal(UsageError, lambda: engine.encode(text))


EMPTY_PROMPTS: list[Any] = ["", " \n\t ", [""], [[]], [[5], []], ["Hi", ""]]


def test_an_empty_prompt_or_a_batch_to_stream_is_refused(engine: Engine) -> None:
    for prompt in EMPTY_PROMPTS:
        assert "empty" in refusal(UsageError, partial(engine.generate, prompt, GREEDY))
    for prompt in ("", " ", []):
        assert "empty" in refusal(UsageError, lambda prompt=prompt: [*engine.stream(prompt)])
    refusal(UsageError, lambda: list(engine.stream(["Hi", "Hi"], GREEDY)))


@pytest.mark.parametrize("token", [VOCAB, -1, 2**31, 2**70, -(2**70), np.int64(VOCAB)])
def test_an_id_outside_the_vocabulary_is_named(plain_engine: Engine, token: int) -> None:
    asks = [
        partial(plain_engine.generate, prompt, GREEDY)
        for prompt in ([token], [5, token, 6], [[5], [6, token]])
    ]
    for ask in (*asks, partial(plain_engine.count_tokens, [5, token])):
        message = refusal(UsageError, ask)
        assert str(token) in message
        assert str(VOCAB) in message


def test_ids_of_numpy_are_ids(plain_engine: Engine) -> None:
    expected = plain_engine.generate([5, 6], GREEDY)[0].tokens
    assert plain_engine.generate(list(np.array([5, 6])), GREEDY)[0].tokens == expected
    assert plain_engine.generate(np.array([5, 6]), GREEDY)[0].tokens == expected  # type: ignore[arg-type]
    assert plain_engine.generate((5, 6), GREEDY)[0].tokens == expected


def test_a_prompt_longer_than_the_model_allows_is_refused(plain_engine: Engine) -> None:
    for length in (MAX_POSITIONS, MAX_POSITIONS + 1, 10 * MAX_POSITIONS):
        message = refusal(PromptTooLongError, partial(plain_engine.generate, [5] * length, GREEDY))
        assert str(length) in message
        assert f"> {MAX_POSITIONS - 1} maximum" in message
    [longest] = plain_engine.generate([5] * (MAX_POSITIONS - 1), GREEDY)
    assert (len(longest.tokens), longest.finish_reason) == (1, "length")


def test_text_needs_a_tokenizer(plain_engine: Engine) -> None:
    for prompt in ("Hi", ["Hi"], [A_MESSAGE]):
        message = refusal(UsageError, partial(plain_engine.generate, prompt, GREEDY))
        assert "tokenizer" in message
    ask = partial(plain_engine.generate, [5], SamplingParams(stop="x"))
    assert "tokenizer" in refusal(UsageError, ask)


def test_a_broken_chat_template_is_reported_in_one_line(tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO, tmp_path / "model")
    for template in ("{% if %}\n{{ x }}", "{{ raise_exception('one\\ntwo') }}", "{{ 1 / 0 }}"):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(MgmError) as caught, load(folder, None) as engine:
            engine.generate("Hi", GREEDY)
        assert str(caught.value).isprintable(), template


WRONG_SETTINGS: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, "5", True, 2**31, [5], float("inf")],
    "temperature": [-1, -0.1, float("nan"), float("inf"), "0", True, 1j, [1.0], 10**400],
    "top_k": [-1, 1.5, "3", True, 2**31, [3]],
    "top_p": [0, -0.1, 1.1, float("nan"), "1", True, [0.5]],
    "seed": [-1, 2**32, 1.5, "a", True, [1]],
    "stop": ["", [""], ["a", ""], 5, [5], b"a", b"", {"a"}, None, ["a", None], np.array(["a"])],
    "num_draft_tokens": [-1, 16, 1.5, "3", "none", True, None, [1], np.array([1, 2])],
    "ignore_eos": ["no", None, [True]],
    "thinking": ["no", None, 1],
}


@each(WRONG_SETTINGS)
def test_a_wrong_setting_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(UsageError, lambda: SamplingParams(**{name: value})).startswith(f"{name} ")


UNUSUAL: dict[str, list[Any]] = {
    "max_tokens": [np.int64(3)],
    "temperature": [0, 1, 1e-320, 1e39, np.float32(0.5), Fraction(1, 2), Decimal("0.5")],
    "top_k": [0, 2**31 - 1, np.int32(3), np.uint8(3)],
    "top_p": [1, 1e-30, np.float32(0.5), Fraction(1, 2)],
    "seed": [0, 2**32 - 1, np.uint32(5), np.int64(5)],
    "num_draft_tokens": [0, np.int64(2)],
}


@each(UNUSUAL)
def test_an_unusual_setting_is_refused_at_once_or_works(
    engine: Engine, name: str, value: Any
) -> None:
    try:
        params = SamplingParams(**{"max_tokens": 3, "ignore_eos": True} | {name: value})
    except UsageError:
        assert not isinstance(value, int | float)
        return
    assert len(engine.generate([5], params)[0].tokens) == 3


def test_settings_of_a_wrong_kind_or_for_another_number_of_prompts_are_refused(
    engine: Engine,
) -> None:
    wrong: list[Any] = [5, "greedy", {"temperature": 0}, [5], [None, 5], SamplingParams]
    for params in wrong:
        refusal(UsageError, partial(engine.generate, "Hi", params))
        refusal(UsageError, lambda params=params: list(engine.stream("Hi", params)))
    for one in ("greedy", b"greedy"):
        assert "must be SamplingParams" in refusal(UsageError, partial(engine.generate, "Hi", one))
    for count in (0, 1, 3):
        refusal(UsageError, partial(engine.generate, ["Hi", "Hello"], [GREEDY] * count))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda engine: engine.session(3),
        lambda engine: engine.session(""),
        lambda engine: engine.session().save(3),
        lambda engine: engine.chat(saved=b"x"),
        lambda engine: engine.submit([5], GREEDY, "x"),
        lambda engine: engine.generate([5], GREEDY, sessions="x"),
    ],
)
def test_other_arguments_of_a_wrong_kind_are_refused_at_once(
    plain_engine: Engine, wrong: Callable[[Engine], object]
) -> None:
    refusal(UsageError, lambda: wrong(plain_engine))


async def asynchronous(_: float) -> None: ...


@pytest.mark.parametrize("wrong", [3, asynchronous])
@pytest.mark.parametrize("name", ["force", "warm_up", "cancel", "on_progress", "probe"])
def test_options_of_a_wrong_kind_are_refused_before_anything_is_loaded(
    name: str, wrong: Any
) -> None:
    assert refusal(UsageError, lambda: load("demo", **{name: wrong})).startswith(f"{name} must be")


def test_drafts_without_a_drafter_are_refused(plain_engine: Engine) -> None:
    params = SamplingParams(num_draft_tokens=3)
    ask = partial(plain_engine.generate, [[5], [6]], [GREEDY, params])
    assert "drafter" in refusal(ModelNotFoundError, ask)
    assert not plain_engine.generate([5], GREEDY)[0].stats.drafted


def test_an_engine_answers_as_before_after_every_wrong_request(
    engine: Engine, plain_engine: Engine
) -> None:
    before = engine.generate("What is 2 + 3?", GREEDY)[0].tokens
    batch = [one.tokens for one in plain_engine.generate([[5], [6, 7], [8]], GREEDY)]
    for prompt in (*WRONG_PROMPTS, *EMPTY_PROMPTS):
        with contextlib.suppress(MgmError, TypeError):
            engine.generate(prompt, GREEDY)
    assert engine.generate("What is 2 + 3?", GREEDY)[0].tokens == before
    for wrong in ([6, VOCAB], [], [6] * MAX_POSITIONS):
        kind = PromptTooLongError if len(wrong) == MAX_POSITIONS else UsageError
        refusal(kind, partial(plain_engine.generate, [[5], wrong, [8]], GREEDY))
        done = plain_engine.generate([[5], [6, 7], [8]], GREEDY)
        assert [one.tokens for one in done] == batch


def test_a_closed_engine_says_so() -> None:
    engine = fake_engine()
    engine.close()
    engine.close()
    assert "closed" in refusal(ClosedError, lambda: engine.generate([5], GREEDY))
    assert "closed" in refusal(ClosedError, lambda: list(engine.stream([5], GREEDY)))
