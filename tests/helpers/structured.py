"""Random schemas on the demo, drafts on and off: what comes out, and whether it is the same.

`python tests/helpers/structured.py 300` prints the counts, batch by batch; 300 take about 15
minutes on two cores.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.schemas import random_schema
from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.engine.pair import open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker

LONG = 1000  # tokens, more than any of these outputs needs
QUESTIONS = ["Who are you?", "What is 17 + 25?", "Zähl bis drei.", "Name a few colors 😀."]


def float32_demo() -> Engine:
    """The demo in float32, where drafts change no bit."""
    pair = open_pair("demo")
    assert pair.drafter is not None
    for model in (pair.target, pair.drafter):
        mlx_worker().run(lambda model=model: model.set_dtype(mx.float32))
    return Engine(pair._replace(fingerprint=None))


def answers(
    engine: Engine, schemas: Sequence[dict[str, Any]], drafts: int, max_tokens: int = 120
) -> list[Completion]:
    """One completion for each schema, eight at a time, at temperature 1."""
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=1,
            top_k=0,
            top_p=1,
            seed=number,
            num_draft_tokens=drafts,
            json_schema=schema,
            thinking=number % 5 == 0,
            thinking_budget=12,
        )
        for number, schema in enumerate(schemas)
    ]
    prompts = [f"{QUESTIONS[n % len(QUESTIONS)]} ({n})" for n in range(len(schemas))]
    return engine.generate(prompts, params)


def count(schemas: Sequence[dict[str, Any]], done: Sequence[Completion]) -> Counter[str]:
    """How many are valid, and how many were cut by their length. Raises if one is not valid."""
    counts: Counter[str] = Counter()
    for schema, completion in zip(schemas, done, strict=True):
        if completion.finish_reason == "stop":
            jsonschema.validate(json.loads(completion.text), schema)
        counts["valid" if completion.finish_reason == "stop" else "cut"] += 1
        counts["with a thought"] += bool(completion.thought)
    return counts


def main(number: int, at_once: int = 60) -> None:
    rng, total = np.random.default_rng(number), Counter[str]()
    with float32_demo() as engine:
        for _ in range(0, number, at_once):
            schemas = [random_schema(rng) for _ in range(at_once)]
            start = time.perf_counter()
            plain, drafted = (answers(engine, schemas, drafts, LONG) for drafts in (0, 3))
            total += count(schemas, plain)
            total["drafts accepted"] += sum(one.stats.accepted for one in drafted)
            total["differ with drafts"] += sum(
                one.tokens != other.tokens for one, other in zip(plain, drafted, strict=True)
            )
            print(f"{dict(total)}, {time.perf_counter() - start:.0f} s for these", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
