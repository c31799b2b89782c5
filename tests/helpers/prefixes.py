"""A scheduler on the fake pair that keeps prefixes, and prompts that look like messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.fake_target import VOCAB
from helpers.stepped import Stepped
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.memory import Limits

Ids = list[int]

TURN = VOCAB - 1  # starts every message
OPENING = [TURN, 1, 2]  # of the model's turn
LEAST = 8  # tokens of a prefix
LIMITS = Limits(
    chunks=(LEAST, 64), pause_seconds=np.inf, slot_step=1, rollback=24, max_draft_tokens=7
)
MUCH = 10**9  # bytes


def words(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(3, TURN, count).tolist()


def caching(most: int = MUCH, limits: Limits = LIMITS, **options: Any) -> Stepped:
    """most: bytes. options: as of Stepped."""
    return Stepped(limits=limits, prefix_cache=most, turn=TURN, **options)


def ask(stepped: Stepped, prompt: Ids, max_tokens: int = 5, drafts: int = 0) -> Request:
    """Have one prompt answered to the end."""
    request = stepped.submit(prompt, max_tokens, drafts)
    stepped.finish(request)
    return request


def num_read(request: Request) -> int:
    """Tokens that were prefilled for it."""
    return len(request.ids) - request.stats.reused_tokens
