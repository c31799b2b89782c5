"""Count outputs that differ from plain decoding alone: drafts on, off and auto, batches, joins.

    python bench/results/exact.py demo --outputs 200
    python bench/results/exact.py 31b --bits 4

At batch N the first 8 N outputs are compared, and all of them where rows join and leave. With
random weights, drafts are the known continuation with 3 of 10 tokens changed, so some are accepted
and some rejected. Exits with 5 if a completion of exact passes differs.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_gemma_mtp.bench import subject
from mlx_gemma_mtp.bench.prompts import of_noise
from mlx_gemma_mtp.bench.record import NumDrafts

from mlx_gemma_mtp import Completion, Engine, SamplingParams, device
from mlx_gemma_mtp.decode.player import round_player
from mlx_gemma_mtp.decode.round import draft
from mlx_gemma_mtp.demo.recipe.tasks import held_out
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.engine.probe import measure
from mlx_gemma_mtp.engine.worker import mlx_worker

DRAFTS: dict[str, list[NumDrafts]] = {
    "plain": [0],
    "3 drafts": [3],
    "auto": ["auto"],
    "by row": [0, 5, "auto", 1, 7],
}
PROBE_SECONDS = 60  # as CUDA compiles for most of the usual 10
LENGTHS = [5, 700, 64, 33, 256, 90, 420, 17]  # of random prompts


def opened(model: str, bits: int | None, count: int) -> tuple[OpenPair, list[list[int]]]:
    """Return the pair with that many prompts."""
    if model == "demo":
        pair = open_pair("demo", bits=bits, force=True)._replace(fingerprint=None)
        assert pair.text is not None
        plain = [one for one in held_out(2 * count) if not one.tools and not one.thinking]
        prompts = [pair.text.prompt(list(one.messages)) for one in plain[:count]]
    else:
        pair = subject.random(model, bits=bits, accept=[[0.8]]).draw().pair
        noise = of_noise(pair.target.config.vocab_size, LENGTHS)
        prompts = noise.wave("random", count, 0)
    if bits is None:
        dtype = mx.float32 if device.backend() == "cpu" else mx.bfloat16
        for module in filter(None, (pair.target, pair.drafter)):
            mlx_worker().run(partial(module.set_dtype, dtype))
    return pair, prompts


def from_known(known: list[list[int]], lengths: Sequence[int]) -> Any:
    """Return a `draft` that knows the output of each seed; lengths: of the prompts."""
    longest = max(map(len, known))
    table = mx.array([tokens + [0] * (longest - len(tokens)) for tokens in known], mx.int32)
    starts = mx.array([*lengths], mx.int32)
    mx.eval(table, starts)

    def guess(
        target: Any, drafter: Any, cache: Any, newest: Any, settings: Any, num_steps: int
    ) -> mx.array:
        if num_steps == 0:
            return draft(target, drafter, cache, newest, settings, 0)
        seed = settings.seed.astype(mx.int32) % len(known)  # [B, 1]
        position = cache.offset[:, None] + mx.arange(1, num_steps + 1)
        at = mx.clip(position - starts[seed], 0, longest - 1)
        wrong = (position * 31 + seed * 17) % 10 < 3
        return mx.where(wrong, (table[seed, at] + 1) % 100, table[seed, at])

    return guess


def completed(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams], batch: int | None
) -> list[Completion]:
    """Return the completions: by `batch` at once, or None: all are submitted, and rows join."""
    if batch is None:
        waiting = [engine.submit(*one) for one in zip(prompts, params, strict=True)]
        return [one.result() for one in waiting]
    found = list[Completion]()
    for at in range(0, len(prompts), batch):
        found += engine.generate(prompts[at : at + batch], params[at : at + batch])
    return found


def compare(
    pair: OpenPair,
    prompts: list[list[int]],
    exact: Any = True,
    *,
    batches: Sequence[int] = (1, 2, 4, 8),
    max_tokens: int = 32,
) -> int:
    """Print a line for each batch and kind of drafts; return how many exact outputs differ."""
    # Lengths differ, so rows join and leave at different times. Every other output is sampled.
    params = [
        SamplingParams(
            seed=at,
            temperature=float(at % 2),
            max_tokens=max_tokens - max_tokens * (at % 7) // 10,
            ignore_eos=True,
            num_draft_tokens=0,
        )
        for at in range(len(prompts))
    ]
    make = partial(Engine, pair, max_batch=8, max_queue=len(prompts), exact=exact)
    with make() as engine:
        print(*engine.notes, sep="\n")
        wanted = completed(engine, prompts, params, 1)
    print(f"alone and plain: {len(wanted)} outputs, {sum(one.exact for one in wanted)} exact")
    player: Any = round_player
    if pair.text is None:  # random weights
        known = from_known([one.tokens for one in wanted], [*map(len, prompts)])
        player = partial(round_player, draft=known)
    faults = 0
    with make(player=player) as engine:
        for batch in [*batches, None]:
            some = len(prompts) if batch is None else min(8 * batch, len(prompts))
            for name, drafts in DRAFTS.items():
                asked = [
                    replace(one, num_draft_tokens=drafts[at % len(drafts)])
                    for at, one in enumerate(params[:some])
                ]
                start = time.perf_counter()
                found = completed(engine, prompts[:some], asked, batch)
                seconds = time.perf_counter() - start
                differ = [a.tokens != b.tokens for a, b in zip(found, wanted, strict=False)]
                both = [a.exact and b.exact for a, b in zip(found, wanted, strict=False)]
                faults += sum(a and b for a, b in zip(differ, both, strict=True))
                print(
                    f"{f'batch {batch}' if batch else 'joins':8} {name:8}: {sum(differ):3} of "
                    f"{some} differ, {sum(both):3} exact, "
                    f"{sum(one.stats.drafted for one in found):5} drafted, "
                    f"{sum(one.stats.accepted for one in found):5} accepted, "
                    f"{sum(len(one.tokens) for one in found) / seconds:7.1f} tokens/s with the "
                    "prompts",
                    flush=True,
                )
    print(f"{faults} outputs of exact passes differ")
    return faults


def main() -> int:
    """Measure the passes of a pair and compare its outputs; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="demo, a size such as 26b, or a file as --synthetic takes it")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--outputs", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--auto", action="store_true", help='exact="auto" instead of True')
    parser.add_argument("--batch", default="1,2,4,8")
    given = parser.parse_args()
    pair, prompts = opened(given.model, given.bits, given.outputs)
    start = time.perf_counter()
    table = measure(pair.target, pair.drafter, seconds=PROBE_SECONDS)
    print(f"measured in {time.perf_counter() - start:.1f} s")
    for part, figures in (table.in_words() if table else {"no table": ""}).items():
        print(f"{part}: {figures}")
    batches = [*map(int, given.batch.split(","))]
    exact = "auto" if given.auto else True
    pair = pair._replace(table=table)
    return 5 if compare(pair, prompts, exact, batches=batches, max_tokens=given.max_tokens) else 0


if __name__ == "__main__":
    sys.exit(main())
