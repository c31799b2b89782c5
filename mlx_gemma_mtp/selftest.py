"""The self-test: does the embedded pair write the same texts with and without its drafter, here?

In float32, where that is exact, at temperature 0 and 1, alone and four side by side. It also tells
how fast both were; the pair is far too small for this to say anything about Gemma 4's speed.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_gemma_mtp.check import parting
from mlx_gemma_mtp.decode.params import SamplingParams
from mlx_gemma_mtp.engine.engine import Engine
from mlx_gemma_mtp.engine.pair import OpenPair
from mlx_gemma_mtp.engine.results import Completion
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.files import checkpoint as weights
from mlx_gemma_mtp.files import hub
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.layers import fuse_projections
from mlx_gemma_mtp.model.target import Target
from mlx_gemma_mtp.text.tokenizer import Text

# They go on past their answers' ends, where the drafter is often wrong.
PROMPTS = (
    "What is 17 + 25?",
    "Tell me a story.",
    "Spell the word elephant.",
    "Write the numbers from 1 to 20.",
)
TEMPERATURES = (0.0, 1.0)  # speeds are those of the last one: nothing is compiled then
BATCHES = (1, len(PROMPTS))
NUM_DRAFT_TOKENS = 3
MAX_TOKENS = 24


class Speed(NamedTuple):
    """Tokens per second of all texts of a batch together, with the drafter and without."""

    batch: int
    drafted: float
    plain: float


class SelfTest(NamedTuple):
    """What came out: how many texts were compared, and where two parted that must not."""

    texts: int
    partings: list[str]
    acceptance_rate: float
    speeds: list[Speed]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields; a mapping for each speed."""
        return self._asdict() | {"speeds": [speed._asdict() for speed in self.speeds]}


def run() -> SelfTest:
    """Run it. Raises MgmError where the pair cannot be loaded, or its texts not be written."""
    start = time.perf_counter()
    texts, drafted, accepted = 0, 0, 0
    partings: list[str] = []
    speeds: list[Speed] = []
    text = Text(hub.DEMO)
    with _engine(text, with_drafter=True) as drafting, _engine(text, with_drafter=False) as plain:
        for temperature in TEMPERATURES:
            alone: list[int] | None = None
            speeds = []
            for batch in BATCHES:
                found = _texts(drafting, batch, temperature)
                wanted = _texts(plain, batch, temperature)
                where = f"temperature {temperature:g}, batch {batch}"
                for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
                    texts += 1
                    drafted, accepted = drafted + one.stats.drafted, accepted + one.stats.accepted
                    partings += _parting(f"{where}, text {i}", one.tokens, other.tokens)
                alone = wanted[0].tokens if alone is None else alone
                partings += _parting(f"{where}, text 0 beside others", wanted[0].tokens, alone)
                speeds.append(Speed(batch, _speed(found), _speed(wanted)))
    seconds = time.perf_counter() - start
    return SelfTest(texts, partings, accepted / drafted, speeds, seconds)


def _engine(text: Text, *, with_drafter: bool) -> Engine:
    """The demo in float32. What it learns of depth is forgotten: other runs use other types."""

    def read() -> tuple[Target, Drafter | None]:
        target = weights.load_target(hub.DEMO, dtype=mx.float32)
        if not with_drafter:
            return fuse_projections(target), None
        drafter = weights.load_drafter(hub.DEMO_DRAFTER, target.config, dtype=mx.float32)
        return fuse_projections(target), fuse_projections(drafter)

    defaults = weights.read_generation_config(hub.DEMO)
    models = mlx_worker().run(read)
    return Engine(OpenPair(*models, text, defaults, None), max_batch=max(BATCHES), max_queue=8)


def _texts(engine: Engine, batch: int, temperature: float) -> list[Completion]:
    params = [
        SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=temperature,
            seed=seed,
            num_draft_tokens=NUM_DRAFT_TOKENS if engine.has_drafter else 0,
            ignore_eos=True,
        )
        for seed in range(batch)
    ]
    return engine.generate(PROMPTS[:batch], params)


def _parting(where: str, found: list[int], wanted: list[int]) -> list[str]:
    """Where two token lists part, in words; nothing where they do not."""
    parted = parting(found, wanted)
    if parted is None:
        return []
    one, other = (next(iter(tokens), None) for tokens in (parted.found, parted.wanted))
    return [f"{where}: token {parted.position} is {one} and should be {other}"]


def _speed(done: list[Completion]) -> float:
    tokens = sum(one.stats.generated_tokens - 1 for one in done)
    return tokens / max(one.stats.decode_seconds for one in done)
