"""Print what the probe finds of pairs with random weights, and why classes are as they are.

    python bench/results/probe.py                          five pairs, 6 minutes on an H200
    python bench/results/probe.py e4b:16 26b:4             size:bits; 16 is bfloat16
    python bench/results/probe.py tiny.json:16             anywhere: a JSON file of shapes

Each pair is measured twice, because the first time compiles kernels. Then passes that get the same
bits are printed in groups.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import mlx.core as mx
from mlx_gemma_mtp.bench import synthetic

from mlx_gemma_mtp import device
from mlx_gemma_mtp.decode.table import PassTable
from mlx_gemma_mtp.engine import agreement
from mlx_gemma_mtp.engine.passes import Bits, Passes, Shaped
from mlx_gemma_mtp.engine.probe import measure
from mlx_gemma_mtp.engine.worker import mlx_worker
from mlx_gemma_mtp.memory import Limits
from mlx_gemma_mtp.model.cache import KVCache
from mlx_gemma_mtp.model.drafter import Drafter
from mlx_gemma_mtp.model.target import Target

PAIRS = ["e4b:16", "26b:4", "26b:16", "31b:4", "31b:16"]


def drawn(size: str, bits: int) -> tuple[Target, Drafter]:
    """Return a pair with random weights; the worker calls this."""
    dtype = mx.float32 if device.backend() == "cpu" else mx.bfloat16
    target, drafter = synthetic.random_pair(size, dtype, bits if bits < 16 else None)
    synthetic.draw(target)
    synthetic.draw(drafter)
    return target, drafter


def compare(target: Target, table: PassTable) -> None:
    """Print passes that get the same bits, in groups; the worker calls this."""
    before, passes = target.ways, Passes(target, Limits())
    groups = dict[str, list[tuple[list[str], Bits]]]()

    def add(kind: str, name: object, cache: KVCache, shaped: Shaped, first: int = 0) -> None:
        found = passes.bits(cache, shaped, first)
        for names, bits in groups.setdefault(kind, []):
            if agreement.agree(bits, found):
                names.append(str(name))
                return
        groups[kind].append(([str(name)], found))

    target.set_ways(table.ways)
    try:
        for batch in (8, 4, 2, 1):
            add("rows", batch, passes.near(batch), Shaped([2, *[0] * (batch - 1)], 2, 8))
        for capacity in (256, 512, 1024, 2048, 4096, 8192):
            far = passes.far(capacity)
            for count in (8, 1, 2, 3, 4, 5, 6, 9, 12, 16):
                shaped, first = Shaped([count], count, 16), max(0, 8 - count)
                add("positions/capacity", f"{count}/{capacity}", far, shaped, first)
        near = passes.near(8)
        for width in sorted(agreement.WIDTHS):
            add("width", width, near, Shaped.narrow(width))
        for tokens in (1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64):
            add("tokens in 64", tokens, near, Shaped.narrow(tokens)._replace(width=64))
    finally:
        target.ways = before
    for kind, alike in groups.items():
        print(f"  {kind}: " + " | ".join(" ".join(names) for names, _ in alike))


def main(names: Sequence[str]) -> None:
    """Measure these pairs, one after the other."""
    worker = mlx_worker()
    print(device.backend(), device.chip_name(), version("mlx"))
    for name in names:
        print(f"== {name}", flush=True)
        size, bits = name.rsplit(":", 1)
        target, drafter = worker.run(partial(drawn, size, int(bits)))
        memory = worker.run(mx.get_active_memory)
        table: PassTable | None = None
        for turn in ("first", "again"):
            start = time.perf_counter()
            table = measure(target, drafter)
            print(f"  {turn}: {time.perf_counter() - start:.2f} s")
            for part, figures in (table.in_words() if table else {"no table": ""}).items():
                print(f"  {turn}: {part}: {figures}", flush=True)
        if table is not None:
            worker.run(partial(compare, target, table))
        after = worker.run(mx.get_active_memory)
        print(f"  memory: {memory / 1e9:.3f} GB before, {after / 1e9:.3f} GB after")
        del target, drafter
        worker.run(mx.clear_cache)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="*", default=PAIRS, help="size:bits")
    main(parser.parse_args().pairs)
