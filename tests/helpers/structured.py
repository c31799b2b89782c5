"""Random schemas on the demo, drafts on and off: what comes out, and whether it is the same.

`python tests/helpers/structured.py 300` prints the counts, from the root of the repository.
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

QUESTIONS = ["Who are you?", "What is 17 + 25?", "Zähl bis drei.", "Name a few colors 😀."]


def float32_demo() -> Engine:
    """The demo in float32, where drafts change no bit."""
    pair = open_pair("demo")
    assert pair.drafter is not None
    for model in (pair.target, pair.drafter):
        mlx_worker().run(lambda model=model: model.set_dtype(mx.float32))
    return Engine(pair._replace(fingerprint=None))


def answers(
    engine: Engine, schemas: Sequence[dict[str, Any]], drafts: int, max_tokens: int = 400
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


def main(number: int) -> None:
    rng = np.random.default_rng(number)
    schemas = [random_schema(rng) for _ in range(number)]
    with float32_demo() as engine:
        runs = []
        for drafts in (0, 3):
            start = time.perf_counter()
            runs.append(answers(engine, schemas, drafts))
            seconds = time.perf_counter() - start
            accepted = sum(one.stats.accepted for one in runs[-1])
            print(
                f"drafts {drafts}: {count(schemas, runs[-1])}, {accepted} accepted, {seconds:.0f} s"
            )
    differ = sum(one.tokens != other.tokens for one, other in zip(*runs, strict=True))
    print(f"{differ} outputs differ between drafts on and off")


if __name__ == "__main__":
    main(int(sys.argv[1]))
