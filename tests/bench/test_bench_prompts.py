"""The benchmark's prompts: as long as asked, different in every row, the same in every run.

With the demo's tokenizer, whose chat template is Gemma's.
"""

import numpy as np
import pytest
from mlx_gemma_mtp.bench import prompts
from mlx_gemma_mtp.bench.prompts import DEMO_TASKS, LENGTHS, TASKS, conversation

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.tokenizer import Text

pytestmark = pytest.mark.slow

LONGEST_WORD = 24  # tokens of a word in the demo's small vocabulary


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(DEMO)


def assert_as_long(text: Text, ids: list[int], tokens: int) -> None:
    assert 0 <= tokens - len(ids) < LONGEST_WORD


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_as_long_as_asked_and_differ_from_row_to_row(text: Text, task: str) -> None:
    made = prompts.of_tasks(text, [task]).wave(task, 8, 0)
    for ids, tokens in zip(made, LENGTHS, strict=True):
        assert_as_long(text, ids, tokens)
    requests = [conversation(text, task, row, 400)[0]["content"][:100] for row in range(8)]
    assert len({*requests}) == 8
    assert prompts.of_tasks(text, [task]).wave(task, 2, 2) == made[4:6]


@pytest.mark.parametrize("task", TASKS)
def test_a_longer_prompt_continues_the_same_request(text: Text, task: str) -> None:
    short, long = (conversation(text, task, 3, tokens) for tokens in (300, 6000))
    assert short[:-1] == long[:-1]
    assert (len(long) > 1) == (task == "multi-turn")
    assert long[-1]["content"][:100] == short[-1]["content"][:100]
    assert_as_long(text, text.prompt(long), 6000)
    assert "{material}" not in str(long)


def test_a_depth_is_in_front_of_the_task_and_in_addition(
    text: Text, rng: np.random.Generator
) -> None:
    task, depth = TASKS[rng.integers(len(TASKS))], int(rng.integers(100, 3000))
    print(f"task {task}, depth {depth}")
    for row, tokens in enumerate(LENGTHS):
        made = conversation(text, task, row, tokens, depth)
        alone = conversation(text, task, row, tokens)
        assert made[2:] == alone
        assert_as_long(text, text.prompt(made), tokens + depth)


@pytest.mark.parametrize("task", TASKS)
def test_a_length_below_the_least_is_refused_with_the_least(text: Text, task: str) -> None:
    with pytest.raises(UsageError) as refused:
        conversation(text, task, 0, 9)
    least = int(str(refused.value).split(" at least ")[1].split()[0])
    assert_as_long(text, text.prompt(conversation(text, task, 0, least)), least)
    with pytest.raises(UsageError, match=f"at least {least} tokens: {least - 1} are too few"):
        conversation(text, task, 0, least - 1)
    with pytest.raises(UsageError, match="a prompt with --depth takes at least"):
        conversation(text, task, 0, 1000, depth=9)


def test_the_demo_has_prompts_of_its_own(text: Text) -> None:
    made = prompts.of_demo(text, DEMO_TASKS)
    for task in DEMO_TASKS:
        assert len({tuple(ids) for ids in made.wave(task, 8, 0)}) == 8


def test_rows_of_a_batch_take_the_tasks_in_turn_and_differ() -> None:
    made = prompts.Prompts(("a", "b"), lambda task, number: [ord(task), number])
    assert made.tasks_at(1) == ["a", "b"]
    assert made.tasks_at(4) == ["mixed"]
    rows = [ids for number in (0, 1) for ids in made.wave("mixed", 4, number)]
    assert [ids[0] for ids in rows] == [ord(task) for task in "abababab"]
    assert [ids[1] for ids in rows] == list(range(8))


def test_random_prompts_have_the_lengths_asked_for() -> None:
    made = prompts.of_noise(100, [9, 30]).wave("random", 4, 0)
    assert [len(ids) for ids in made] == [9, 30, 9, 30]
    assert made == prompts.of_noise(100, [9, 30]).wave("random", 4, 0)
