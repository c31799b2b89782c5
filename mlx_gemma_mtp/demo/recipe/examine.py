"""The examination: is the answer right, and how many drafts does the target accept?

Runs a saved pair through Transformers, greedily, in float32. Acceptance is that of the real rounds:
draft, verify, continue after the first draft that differs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoTokenizer,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    PreTrainedTokenizerBase,
)

from .architecture import END_TOKENS, use_every_expert
from .drafting import draft_hidden, read
from .example import Example
from .packing import Rows, prompt_text
from .tasks import held_out


class Answer(NamedTuple):
    example: Example
    prompt: list[int]
    tokens: list[int]  # what the target wrote, the token that ended it included
    text: str


class Rounds(NamedTuple):
    """Speculation over one answer. Drafts past the end of the text count as drafted."""

    num_rounds: int
    accepted: list[int]  # per draft position: rounds that accepted at least that many


@torch.inference_mode()
def answer_all(
    target: Gemma4ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch: int = 100,
) -> list[Answer]:
    """Greedy answers, batched by length of the prompt; in the order of `examples`."""
    prompts = [
        tokenizer.encode(prompt_text(tokenizer, example), add_special_tokens=False)
        for example in examples
    ]
    by_length = sorted(range(len(examples)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(by_length), batch):
        chosen = by_length[start : start + batch]
        longest = max(len(prompts[index]) for index in chosen)
        padding = [longest - len(prompts[index]) for index in chosen]
        ids = torch.tensor(
            [[0] * pad + prompts[index] for index, pad in zip(chosen, padding, strict=True)]
        )
        seen = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        device = target.device
        written = target.generate(
            ids.to(device), attention_mask=seen.to(device), max_new_tokens=400, do_sample=False
        )
        for index, row in zip(chosen, written[:, longest:].tolist(), strict=True):
            length = next((at + 1 for at, token in enumerate(row) if token in END_TOKENS), len(row))
            text = tokenizer.decode(row[:length])
            answers[index] = Answer(examples[index], prompts[index], row[:length], text)
    return [answers[index] for index in range(len(examples))]


@torch.inference_mode()
def speculate(
    target: Gemma4ForCausalLM, drafter: Gemma4AssistantForCausalLM, answer: Answer, num_drafts: int
) -> Rounds:
    """The rounds that speculation would have needed for this answer."""
    text = answer.prompt + answer.tokens
    tokens = torch.tensor([text], device=target.device)
    positions = torch.arange(len(text), device=target.device)[None]
    rows = Rows(tokens, torch.ones_like(tokens), positions, tokens)
    masks = rows.masks(target.config.sliding_window)
    reading = read(target, tokens, positions, masks)
    steps = draft_hidden(drafter, target, reading, tokens, positions, masks, num_drafts)
    drafts = [drafter.lm_head(hidden)[0].argmax(-1).tolist() for hidden in steps]

    newest, num_rounds, accepted = len(answer.prompt), 0, [0] * num_drafts
    while newest < len(text) - 1:
        agreed = 0
        while agreed < num_drafts and text[newest + 1 + agreed : newest + 2 + agreed] == [
            drafts[agreed][newest - 1]
        ]:
            accepted[agreed] += 1
            agreed += 1
        num_rounds += 1
        newest += agreed + 1
    return Rounds(num_rounds, accepted)


def report(answers: Sequence[Answer], rounds: Sequence[Rounds]) -> str:
    """A table by task: right answers, acceptance rate (accepted / drafted), and by position."""
    by_task: dict[str, list[tuple[bool, Rounds]]] = {}
    for answer, result in zip(answers, rounds, strict=True):
        for task in (answer.example.task, "all"):
            by_task.setdefault(task, []).append((answer.example.check(answer.text), result))
    lines = [
        "| task | prompts | right | acceptance rate | rounds that accept draft 1 / 2 / … |",
        "|---|---|---|---|---|",
    ]
    for task, results in sorted(by_task.items(), key=lambda item: (item[0] == "all", item[0])):
        right = sum(is_right for is_right, _ in results) / len(results)
        num_rounds = max(1, sum(one.num_rounds for _, one in results))
        by_position = zip(*(one.accepted for _, one in results), strict=True)
        accepted = [sum(counts) for counts in by_position]
        rate = sum(accepted) / max(1, num_rounds * len(accepted))
        places = " / ".join(f"{count / num_rounds:.2f}" for count in accepted)
        lines.append(f"| {task} | {len(results)} | {right:.1%} | {rate:.2f} | {places} |")
    return "\n".join(lines)


def examine(
    target_folder: Path, drafter_folder: Path, num_prompts: int, num_drafts: int, device: str
) -> str:
    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    target = Gemma4ForCausalLM.from_pretrained(target_folder, dtype=torch.float32)
    target = target.to(device).eval()
    drafter = Gemma4AssistantForCausalLM.from_pretrained(drafter_folder, dtype=torch.float32)
    drafter = drafter.to(device).eval()
    use_every_expert(target)
    started = time.monotonic()
    answers = answer_all(target, tokenizer, held_out(num_prompts))
    for example, _, _, text in answers:
        if not example.check(text):
            asked = example.messages[-1]["content"]
            print(f"wrong, {example.task}: {asked}\n  wrote {text[:200]!r}")
            print(f"  taught {example.answer[:200]!r}")
    table = report(answers, [speculate(target, drafter, answer, num_drafts) for answer in answers])
    seconds = time.monotonic() - started
    return f"{table}\n\n{num_prompts} prompts, {num_drafts} drafts, {seconds:.0f} s on {device}"


if __name__ == "__main__":
    here = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=here / "gemma-4-demo-it")
    parser.add_argument("--drafter", type=Path, default=here / "gemma-4-demo-it-assistant")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--num-drafts", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found = parser.parse_args()
    print(examine(found.target, found.drafter, found.prompts, found.num_drafts, found.device))
