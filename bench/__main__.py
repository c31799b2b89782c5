"""Time rounds of a random pair at a real size, plain and with K drafts, by batch.

    python -m mlx_gemma_mtp.bench 31B --batch 1,4,8 --drafts 0,3,5 --accept 0.8

A random drafter is never right, so the accepts are drawn at the stated rate per draft; all of the
compute is done. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx_gemma_mtp.bench.synthetic import TARGETS, random_pair

from mlx_gemma_mtp import speculate
from mlx_gemma_mtp.cache import KVCache, capacity_for
from mlx_gemma_mtp.sampling import MAX_DRAFT_TOKENS, SamplingParams, row_settings
from mlx_gemma_mtp.target import Target

PROMPT_LENGTHS = (180, 900, 420, 1500, 260, 1100, 640, 75)  # a different one in every row
ROUNDS = 16
REPEATS = 5
WARM_UP = 4


def main() -> None:
    """Parse the arguments, measure every case, print."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_gemma_mtp.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "size",
        choices=list(TARGETS),
        help="its bfloat16 weights take 15 (E4B), 24, 51 or 61 GB (31B), caches come on top",
    )
    parser.add_argument(
        "--batch", type=_numbers(1, len(PROMPT_LENGTHS)), default=[1, 4, 8], help="rows (1,4,8)"
    )
    parser.add_argument(
        "--drafts",
        type=_numbers(0, MAX_DRAFT_TOKENS),
        default=[0, 1, 3, 5],
        help="drafts per round (0,1,3,5)",
    )
    parser.add_argument("--accept", type=_chance, default=0.8, help="chance of each draft (0.8)")
    parser.add_argument("--in-step", action="store_true", help="read each round before the next")
    args = parser.parse_args()

    target, drafter = random_pair(args.size)
    # The drawn accepts come in through the round's limit: every draft counts as right up to it.
    speculate.agreeing_prefix = lambda drafts, chosen: mx.full(
        drafts.shape[:1], drafts.shape[1], mx.int32
    )
    play_round = speculate.round_player(target, drafter)
    device = mx.device_info().get("device_name", platform.processor())
    print(
        f"{args.size} bfloat16, random weights, accepts drawn at {args.accept} per draft; {device}"
    )
    print(f"{'batch':>5} {'drafts':>6} {'ms/round':>9} {'spread':>13} {'tok/s':>7} {'peak GB':>8}")
    cases = []
    for batch in args.batch:
        for drafts in args.drafts:
            case = measure(target, play_round, batch, drafts, args.accept, args.in_step)
            cases.append(case)
            spread = f"{case['ms_low']:.1f}-{case['ms_high']:.1f}"
            print(
                f"{batch:>5} {drafts:>6} {case['ms']:>9.2f} {spread:>13} "
                f"{case['tokens_per_second']:>7.1f} {case['peak_gb']:>8.2f}",
                flush=True,
            )
    print(
        json.dumps(
            {
                "size": args.size,
                "accept": args.accept,
                "in_step": args.in_step,
                "device": device,
                "mlx": version("mlx"),
                "cases": cases,
            }
        )
    )


def measure(
    target: Target,
    play_round: speculate.PlayRound,
    batch: int,
    drafts: int,
    accept: float,
    in_step: bool,
) -> dict[str, Any]:
    """Median milliseconds per round over REPEATS runs of ROUNDS rounds, tokens/s, peak memory."""
    rng = random.Random(0)
    lengths = PROMPT_LENGTHS[:batch]
    longest = max(lengths) + (WARM_UP + ROUNDS * REPEATS) * (drafts + 1)
    cache = KVCache.empty(
        target.config,
        batch,
        capacity=capacity_for(longest),
        most=MAX_DRAFT_TOKENS + 1,
        dtype=target.dtype,
    )
    for buffers in (cache.keys, cache.values):
        for index, buffer in enumerate(buffers):
            buffers[index] = mx.random.normal(buffer.shape, buffer.dtype)
            mx.eval(buffers[index])
    cache.offset = mx.array(lengths, mx.int32)
    head = speculate.Head(
        mx.random.randint(0, target.config.vocab_size, (batch,)),
        mx.random.normal((batch, 1, target.config.hidden_size), target.dtype),
    )
    settings = row_settings([SamplingParams(temperature=0, top_k=0, top_p=1, seed=0)] * batch)

    def run(rounds: int) -> tuple[float, int]:
        nonlocal head
        begun, tokens = time.perf_counter(), 0
        waiting: speculate.Round | None = None
        for _ in range(rounds):
            drawn = [_accepted(rng, drafts, accept) for _ in range(batch)]
            tokens += sum(drawn) + batch
            played = play_round(cache, head, settings, mx.array(drawn, mx.int32), drafts)
            head = played.head
            mx.async_eval(played)
            last = played if in_step else waiting
            if last is not None:
                last.tokens.tolist()
            waiting = played
        mx.eval(waiting)
        return time.perf_counter() - begun, tokens

    run(WARM_UP)
    mx.reset_peak_memory()
    runs = [run(ROUNDS) for _ in range(REPEATS)]
    times = [seconds / ROUNDS * 1e3 for seconds, _ in runs]
    return {
        "batch": batch,
        "drafts": drafts,
        "ms": statistics.median(times),
        "ms_low": min(times),
        "ms_high": max(times),
        "tokens_per_second": statistics.median(tokens / seconds for seconds, tokens in runs),
        "peak_gb": mx.get_peak_memory() / 1e9,
    }


def _accepted(rng: random.Random, drafts: int, accept: float) -> int:
    return next((i for i in range(drafts) if rng.random() >= accept), drafts)


def _numbers(low: int, high: int) -> Callable[[str], list[int]]:
    """A reader of lists such as 1,4,8, of numbers from low to high."""

    def read(text: str) -> list[int]:
        numbers = [int(part) for part in text.split(",")]
        if not all(low <= number <= high for number in numbers):
            raise argparse.ArgumentTypeError(f"{text}: must lie in {low} .. {high}")
        return numbers

    return read


def _chance(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must lie in 0 .. 1")
    return float(text)


if __name__ == "__main__":
    main()
