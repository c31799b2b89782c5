"""Seconds to the first tokens of short prompts that come at once, ours next to mlx-lm's.

    python -m mlx_gemma_mtp.bench.results.first_tokens 8 24

Both read and decode with the demo's weights, greedily. mlx-lm's BatchGenerator has its own default
rows, and then as many as ours.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_gemma_mtp import Engine, SamplingParams
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.worker import mlx_worker

from ..peers.lend import lend, settings

ROWS, TOKENS = 8, 16
LENGTHS = (12, 40)  # of the prompts, in tokens


def ours(engine: Engine, prompts: list[list[int]]) -> list[float]:
    """Return when each prompt had its first token."""
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    start, at = time.perf_counter(), dict[int, float]()

    def note(number: int) -> Any:
        return lambda _: at.setdefault(number, time.perf_counter() - start)

    for generation in [engine.submit(ids, params, note(n)) for n, ids in enumerate(prompts)]:
        generation.result()
    return [at[number] for number in range(len(prompts))]


def theirs(model: Any, prompts: list[list[int]], options: dict[str, Any]) -> list[float]:
    """Return when each prompt had its first token."""
    from mlx_lm.generate import BatchGenerator

    start, at = time.perf_counter(), dict[int, float]()
    generator = BatchGenerator(model, max_tokens=TOKENS, **options)
    uids, left = generator.insert(prompts), len(prompts)
    while left:
        for answer in generator.next_generated():
            at.setdefault(answer.uid, time.perf_counter() - start)
            left -= answer.finish_reason is not None
    generator.close()
    return [at[uid] for uid in uids]


def lent(pair: OpenPair) -> Any:
    """Return mlx-lm's model with our arrays."""
    from mlx_lm.models.gemma4_text import Model, ModelArgs

    model = Model(ModelArgs.from_dict(settings(pair.target.config)))
    lend(pair.target, model)
    return model


def main() -> None:
    """Print the seconds of the first and of the last prompt: medians of some turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    pair, rng = open_pair("demo"), random.Random(0)
    model = mlx_worker().run(lambda: lent(pair))
    few = {"completion_batch_size": ROWS, "prefill_batch_size": ROWS}
    with Engine(pair, max_batch=ROWS) as engine:
        for count in given.counts:
            sizes = [rng.randint(*LENGTHS) for _ in range(count)]
            prompts = [[rng.randrange(10, 500) for _ in range(size)] for size in sizes]
            everyone = {
                "ours": lambda asked: ours(engine, asked),
                "mlx-lm": lambda asked: mlx_worker().run(lambda: theirs(model, asked, {})),
                f"mlx-lm, {ROWS} rows": lambda asked: mlx_worker().run(
                    lambda: theirs(model, asked, few)
                ),
            }
            took: dict[str, list[list[float]]] = {name: [] for name in everyone}
            for _ in range(given.turns + 1):
                for name, play in everyone.items():
                    took[name].append(play(prompts))
                    mlx_worker().run(mx.clear_cache)
            for name, turns in took.items():
                first = [turn[0] for turn in turns[1:]]
                last = [max(turn) for turn in turns[1:]]
                whole = f"first {median(first):.3f} s, last {median(last):.3f} s"
                print(f"{count} prompts, {name}: {whole}", flush=True)


if __name__ == "__main__":
    main()
