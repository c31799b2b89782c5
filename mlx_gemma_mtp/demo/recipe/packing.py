"""Examples as rows of tokens: several chats a row, each with its own positions, and what to learn.

Rows are made by worker processes while the GPU trains. It knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .example import Example
from .tasks import training_stream

TURN_START, TURN_END = 105, 106


class Rows(NamedTuple):
    """A batch of packed rows, all [B, T]. No padding: a chat that is cut off starts over."""

    tokens: Tensor
    chats: Tensor  # which chat of its row a token belongs to
    positions: Tensor
    learned: Tensor  # True for tokens of the model's own, which it must predict

    def to(self, device: torch.device) -> Rows:
        return Rows(*(tensor.to(device, non_blocking=True) for tensor in self))

    def masks(self, window: int) -> dict[str, Tensor]:
        """Who sees whom, [B, 1, T, T]: the chat so far; in sliding layers its window."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        distance = index[:, None] - index[None, :]
        same_chat = self.chats[:, :, None] == self.chats[:, None, :]
        full = same_chat & (distance >= 0)
        return {
            "full_attention": full[:, None],
            "sliding_attention": (full & (distance < window))[:, None],
        }

    def predicting(self, num_tokens: int) -> Tensor:
        """Flat indices i for which tokens i + 1 .. i + num_tokens are all the model's own words."""
        allowed = torch.ones_like(self.learned)
        for ahead in range(1, num_tokens + 1):
            allowed[:, :-ahead] &= self.learned[:, ahead:]
            allowed[:, -ahead:] = False
        return allowed.flatten().nonzero()[:, 0]


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt as the chat template lays it out, up to the model's turn."""
    return tokenizer.apply_chat_template(
        list(example.messages),
        tools=list(example.tools) or None,
        enable_thinking=example.thinking,
        add_generation_prompt=True,
        tokenize=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[list[int], list[bool]]:
    """Token ids of an example, and which to learn: the model's own words, past turns included."""
    prompt = tokenizer.encode(prompt_text(tokenizer, example), add_special_tokens=False)
    completion = tokenizer.encode(example.completion, add_special_tokens=False)
    model_id = tokenizer.convert_tokens_to_ids("model")
    learned = [False] * len(prompt)
    start = 0
    for index, token in enumerate(prompt):
        if token == TURN_START:
            is_model = prompt[index + 1] == model_id
            start = index + 3 if is_model else len(prompt)  # after "<|turn>model\n"
        elif token == TURN_END and start <= index:
            learned[start : index + 1] = [True] * (index + 1 - start)
    return prompt + completion, learned + [True] * len(completion)


class PackedRows(IterableDataset[Rows]):
    """An endless stream of batches; every worker draws from a seed of its own."""

    def __init__(self, tokenizer_folder: Path, num_rows: int, length: int, seed: int) -> None:
        self.tokenizer_folder = tokenizer_folder
        self.num_rows = num_rows
        self.length = length
        self.seed = seed

    def __iter__(self) -> Iterator[Rows]:
        worker = get_worker_info()
        stream = training_stream(self.seed * 1000 + (worker.id if worker else 0))
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        waiting = encode(tokenizer, next(stream))
        while True:
            tokens = torch.zeros(self.num_rows, self.length, dtype=torch.long)
            chats, positions = torch.zeros_like(tokens), torch.zeros_like(tokens)
            learned = torch.zeros_like(tokens, dtype=torch.bool)
            for row in range(self.num_rows):
                filled = 0
                while filled < self.length:
                    ids, own = (part[: self.length - filled] for part in waiting)
                    span = slice(filled, filled + len(ids))
                    tokens[row, span], chats[row, span] = torch.tensor(ids), filled
                    positions[row, span] = torch.arange(len(ids))
                    learned[row, span] = torch.tensor(own)
                    filled += len(ids)
                    if filled < self.length or len(waiting[0]) >= self.length:
                        waiting = encode(tokenizer, next(stream))
            yield Rows(tokens, chats, positions, learned)


def batches(
    tokenizer_folder: Path, num_rows: int, length: int, seed: int, num_workers: int
) -> Iterator[Rows]:
    loader = DataLoader(
        PackedRows(tokenizer_folder, num_rows, length, seed),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
