"""The benchmark's prompts: as long as stated, different in every row, the same in every run.

With the demo's tokenizer, whose chat template is Gemma's, and with one that knows single characters
only, so that a word is many tokens.
"""

import json
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from mlx_gemma_mtp.bench.material import exchanges, sections
from mlx_gemma_mtp.bench.tasks import LENGTHS, TASKS, Prompt, prompts

from mlx_gemma_mtp.errors import UsageError
from mlx_gemma_mtp.files.hub import DEMO
from mlx_gemma_mtp.text.tokenizer import Text


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(DEMO)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """The demo's tokenizer without the merges that make tokens longer than a character."""
    folder = tmp_path_factory.mktemp("letters")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder / name)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return Text(folder)


def missing(text: Text, prompt: Prompt, tokens: int) -> int:
    """Tokens that a prompt is shorter than that; negative where it is longer."""
    return tokens - len(text.prompt(prompt.messages))


def said(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt.messages)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_as_long_as_stated_and_differ_from_row_to_row(text: Text, task: str) -> None:
    lengths = [*LENGTHS, *LENGTHS, 5 * LENGTHS[0]]
    made = prompts(text, task, lengths)
    for prompt, tokens in zip(made, lengths, strict=True):
        assert 0 <= missing(text, prompt, tokens) <= max(4, 0.03 * tokens)
        assert prompt.task == task
        assert prompt.follow_up
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert (len(roles) >= 7) == (task == "multi-turn")
    assert len({said(prompt) for prompt in made}) == len(made)
    assert prompts(text, task, lengths[5:8], first_row=5) == made[5:8]


@pytest.mark.parametrize("task", TASKS)
def test_a_longer_prompt_of_a_row_has_the_same_request(text: Text, task: str) -> None:
    short, long = (prompts(text, task, [tokens], first_row=3)[0] for tokens in (300, 1000))
    same = 100 if task == "multi-turn" else 300  # characters; then it has more exchanges
    assert said(short)[:same] == said(long)[:same]


@pytest.mark.parametrize("task", TASKS)
def test_rows_differ_in_who_asks_already(text: Text, task: str) -> None:
    rows = (0, 1, 8, 24, 32, 575)
    made = [prompts(text, task, [240], first_row=row)[0] for row in rows]
    assert len({said(prompt)[:100] for prompt in made}) == len(rows)


def test_no_prompt_has_a_slot_left(text: Text) -> None:
    for task in TASKS:
        (prompt,) = prompts(text, task, [1500], depth=500)
        assert "<" not in said(prompt).replace(" < ", "").replace(":<{", ""), task


def test_it_hits_lengths_where_a_word_is_many_tokens(letters: Text) -> None:
    for task in TASKS:
        lengths = [1000, 1007]
        for prompt, tokens in zip(prompts(letters, task, lengths), lengths, strict=True):
            assert 0 <= missing(letters, prompt, tokens) <= 0.03 * tokens


@pytest.mark.parametrize("task", ["extract", "multi-turn"])
def test_a_very_long_prompt_goes_on_without_repeating_itself(text: Text, task: str) -> None:
    (prompt,) = prompts(text, task, [20_000])
    assert 0 <= missing(text, prompt, 20_000) <= 600
    contents = [message["content"] for message in prompt.messages]
    parts = list(pairwise(contents)) if task == "multi-turn" else contents[0].split("\n\n")
    assert len(parts) > 100
    assert len(set(parts)) > 0.95 * len(parts)


def test_a_depth_stands_before_the_task_and_counts_on_top(
    text: Text, rng: np.random.Generator
) -> None:
    task, depth = TASKS[rng.integers(len(TASKS))], int(rng.integers(100, 3000))
    print(f"task {task}, depth {depth}")
    made = prompts(text, task, LENGTHS, depth=depth)
    for prompt, alone, tokens in zip(made, prompts(text, task, LENGTHS), LENGTHS, strict=True):
        assert prompt.messages[2:] == alone.messages
        assert 0 <= missing(text, prompt, tokens + depth) <= max(4, 0.03 * (tokens + depth))
    assert len({prompt.messages[0]["content"] for prompt in made}) == len(made)


@pytest.mark.parametrize("task", TASKS)
def test_a_length_below_the_least_is_refused_with_the_least_that_all_rows_take(
    text: Text, task: str
) -> None:
    with pytest.raises(UsageError) as refused:
        prompts(text, task, [9] * 8)
    least = int(str(refused.value).split(" at least ")[1].split()[0])
    for prompt in prompts(text, task, [least] * 8):
        assert 0 <= missing(text, prompt, least) <= max(4, 0.03 * least)
        assert (len(prompt.messages) >= 7) == (task == "multi-turn")
    with pytest.raises(UsageError, match=f"at least {least} tokens: {least - 1} are too few"):
        prompts(text, task, [least - 1] * 8)


def test_a_depth_below_the_least_is_refused_with_the_least(text: Text) -> None:
    with pytest.raises(UsageError, match=r"a depth takes at least .* tokens: 9 are") as refused:
        prompts(text, "chat", [1000], depth=9)
    least = int(str(refused.value).split(" at least ")[1].split()[0])
    assert least < 100
    (prompt,) = prompts(text, "chat", [1000], depth=least)
    assert 0 <= missing(text, prompt, 1000 + least) <= 30


def test_a_task_that_there_is_not_is_refused_with_those_that_there_are(text: Text) -> None:
    with pytest.raises(UsageError, match="'poetry', only chat, code, summarise, extract"):
        prompts(text, "poetry", [300])


def test_another_process_puts_the_same_material_together() -> None:
    script = (
        f"from {sections.__module__} import exchanges, sections;"
        "print([next(sections('chat', '3')), next(exchanges('3'))])"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == str([next(sections("chat", "3")), next(exchanges("3"))])
