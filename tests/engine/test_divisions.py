"""Rows whose drafts differ in number and source, round by round, write their own outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from helpers.depths import AnyDepth
from helpers.fake_target import CONFIG, VOCAB, FakeTarget, output
from helpers.quoting import QuotingTarget, quoting
from helpers.stepped import Stepped
from mlx_gemma_mtp.engine.exactness import Exactness
from mlx_gemma_mtp.engine.request import Request
from mlx_gemma_mtp.engine.session import Session
from mlx_gemma_mtp.memory import Limits

Write = Callable[[Sequence[int], int], list[int]]


@dataclass
class Talk:
    """A conversation and its last turn."""

    limits: Limits
    ids: list[int] = field(default_factory=list)
    last: Request | None = None

    def __post_init__(self) -> None:
        self.session = Session(CONFIG, "fake", self.limits)

    def prompt(self, rng: np.random.Generator) -> list[int]:
        """The next one: what was said, perhaps without its end, and more."""
        if self.last is not None:
            self.ids = [*self.last.ids, *self.last.tokens]
            cut = int(rng.integers(0, (1, 9, 90)[rng.integers(3)]))
            self.ids = self.ids[: max(0, len(self.ids) - cut)]
        return [*self.ids, *rng.integers(0, VOCAB, rng.integers(1, 12)).tolist()]


def expected(write: Write, request: Request) -> list[int]:
    tokens = write(request.ids, request.max_tokens)
    ends = [at + 1 for at, token in enumerate(tokens) if token in request.eos]
    return tokens[: min(ends, default=len(tokens))]


def draw(
    rng: np.random.Generator, write: Write, *, num_requests: int, copies: bool
) -> list[Request]:
    """Play requests that come, end, stop and are cancelled at random, and check their outputs."""
    most = int(rng.choice([3, 7, 15]))
    limits = Limits(
        chunks=(1, 24),
        pause_seconds=np.inf,
        slot_step=int(rng.choice([1, 32])),
        shrink_after=2,
        max_draft_tokens=most,
        rollback=int(rng.choice([8, 512])),
        overlap=bool(rng.random() < 0.7),
    )
    rule = Exactness(limits, int(rng.integers(1, 9)))
    if rng.random() < 0.4:
        sizes = (8, 24)
        rule = rule._replace(
            limits=replace(limits, chunks=sizes), sizes=sizes, alone=bool(rng.integers(2)), least=5
        )
    target = QuotingTarget() if write is quoting else FakeTarget()
    stepped = Stepped(
        depth=AnyDepth(rng, most),
        target=target,
        exactness=rule,
        copies=copies,
        has_drafter=bool(rng.random() < 0.8),
    )
    talks, requests, cancelled = [Talk(limits) for _ in range(3)], list[Request](), list[Request]()
    for _ in range(num_requests):
        drafts = (0, 1, 3, most, None, None, None)[rng.integers(7)]
        options = {"eos": frozenset(rng.integers(0, VOCAB, rng.integers(0, 4)).tolist())}
        prompt = rng.integers(0, VOCAB, rng.integers(1, 90)).tolist()
        talk = talks[rng.integers(3)]
        if rng.random() < 0.5 and (talk.last is None or talk.last.ended) and len(talk.ids) < 300:
            prompt = talk.prompt(rng)
            options["session"] = talk.session
        request = stepped.submit(prompt, int(rng.integers(1, 60)), drafts, **options)
        if request.session:
            talk.last = request
        requests.append(request)
        stepped.step(int(rng.integers(0, 12)))
        if rng.random() < 0.2 and request.generation.cancel():
            cancelled.append(request)
    while stepped.scheduler.step():
        pass
    for request in requests:
        tokens = expected(write, request)
        done = request.generation.result(0)
        if request in cancelled:
            tokens = tokens[: len(done.tokens)]
        assert done.tokens == tokens
        stats = done.stats
        assert stats.rounds + stats.accepted + 1 >= len(tokens)
        pinned = request.num_draft_tokens
        assert len(stats.drafted_at) <= (most if pinned is None else pinned)
        pairs = zip(stats.copies_drafted_at, stats.drafted_at, strict=False)
        assert all(copied <= drafted for copied, drafted in pairs)
        assert copies or not stats.copies_drafted
    return requests


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("write", [quoting, output])
def test_whatever_the_divisions_each_request_writes_its_own_output(
    write: Write, copies: bool, rng: np.random.Generator
) -> None:
    requests = [
        request for _ in range(3) for request in draw(rng, write, num_requests=14, copies=copies)
    ]
    copied = sum(request.stats.copies_accepted for request in requests)
    assert (copied > 0) == (copies and write is quoting)
