"""Time per round with a JSON schema, next to the same prompts without one.

    python bench/results/structured.py demo
    python bench/results/structured.py e4b --bits 16 --batch 1,8

Turns alternate. A round lasts from one chunk of the first row to its next, while all rows decode.
Copies are off: text with a schema repeats itself in other rounds than text without one.
With a size, weights are random, no draft is right unless the schema forces it, and the tokenizer is
the demo's with made-up words up to the model's vocabulary.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from mlx_gemma_mtp.bench import subject

from mlx_gemma_mtp import Chunk, Engine, SamplingParams
from mlx_gemma_mtp.engine.load import with_table
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.files.names import DEMO
from mlx_gemma_mtp.text.tokenizer import Text

PERSON = {
    "name": {"type": "string", "maxLength": 16},
    "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "kind": {"enum": ["friend", "colleague", "neighbor", None]},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
}
SCHEMA = {  # longer than any turn
    "type": "array",
    "items": {"type": "object", "properties": PERSON, "required": ["name", "age", "kind"]},
    "minItems": 400,
}
WARM_UP = 8  # rounds, in which rows join and kernels are compiled


class Times(NamedTuple):
    """Milliseconds of rounds: by the clock, and of all threads of the process."""

    wall: list[float]
    cpu: list[float]


def made_up(size: int, folder: Path) -> Text:
    """Return the demo's tokenizer with made-up words, so that it has this many tokens."""
    described = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = described["model"]["vocab"], described["model"]["merges"]
    letters = [one for one in vocabulary if len(one) == 1 and one.isalpha()]
    words, rng = (
        [*letters, *("▁" + one for one in letters if "▁" + one in vocabulary)],
        random.Random(0),
    )
    while len(vocabulary) < size:
        start, last = rng.choice(words), rng.choice(letters)
        if len(start) < 12 and start + last not in vocabulary:
            vocabulary[start + last] = len(vocabulary)
            words.append(start + last)
            merges.append([start, last])
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    return Text(folder)


def opened(model: str, bits: int | None) -> OpenPair:
    """Return the pair; random weights come with a tokenizer of their size."""
    if model == "demo":
        return open_pair("demo", bits=bits, force=True)._replace(fingerprint=None)
    pair = subject.random(model, bits=bits, accept=[[0.0]]).draw().pair
    with tempfile.TemporaryDirectory() as folder:
        text = made_up(pair.target.config.vocab_size, Path(folder))
    return with_table(pair._replace(text=text))


def turn(
    engine: Engine, prompts: Sequence[list[int]], drafts: int, rounds: int, **form: Any
) -> Times:
    """Return the times of this many rounds of all rows."""
    at, enough = list[tuple[float, float]](), threading.Event()

    def note(_: Chunk) -> None:
        at.append((time.perf_counter(), time.process_time()))
        if len(at) > WARM_UP + rounds:
            enough.set()

    most = (WARM_UP + rounds + 8) * (drafts + 1)
    plain = SamplingParams(temperature=1, seed=0, max_tokens=most, num_draft_tokens=drafts)
    params = replace(plain, **form)
    rows = [engine.submit(ids, params, None if n else note) for n, ids in enumerate(prompts)]
    rows[0].add_done_callback(lambda _: enough.set())
    enough.wait()
    for row in rows:
        row.cancel()
    for row in rows:
        row.result()
    wall, cpu = zip(*at[WARM_UP : WARM_UP + rounds + 1], strict=True)
    return Times(*([1e3 * (b - a) for a, b in pairwise(one)] for one in (wall, cpu)))


def median_of(times: Sequence[float]) -> str:
    """Return the median and the quartiles, in milliseconds."""
    low, middle, high = quantiles(times, n=4)
    return f"{middle:7.2f} ms ({low:.2f} to {high:.2f})"


def compare(
    pair: OpenPair, batches: Sequence[int], counts: Sequence[int], turns: int, rounds: int
) -> None:
    """Print two lines for each batch and number of drafts."""
    rng = random.Random(0)
    forms: dict[str, dict[str, Any]] = {
        "free": {"ignore_eos": True},
        "schema": {"json_schema": SCHEMA},
    }
    with Engine(pair, max_batch=8, copies=False) as engine:
        for batch, drafts in product(batches, counts):
            prompts = [[rng.randrange(300, 500) for _ in range(48)] for _ in range(batch)]
            found = {name: list[Times]() for name in forms}
            for number in range(turns + 1):
                for name, form in forms.items():
                    times = turn(engine, prompts, drafts, rounds, **form)
                    if number:  # the first one compiles
                        found[name].append(times)
            for clock in Times._fields:
                free, schema = (
                    [one for times in found[name] for one in getattr(times, clock)]
                    for name in forms
                )
                more = median(schema) / median(free) - 1
                print(
                    f"batch {batch}, {drafts} drafts, {clock:4}: free {median_of(free)}, "
                    f"schema {median_of(schema)}: {more:+.1%}",
                    flush=True,
                )


def main() -> None:
    """Open a pair and compare its rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="demo, or a size such as 26b for random weights")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--batch", default="1,4,8")
    parser.add_argument("--drafts", default="0,3")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    batches, counts = ([*map(int, one.split(","))] for one in (given.batch, given.drafts))
    compare(opened(given.model, given.bits), batches, counts, given.turns, given.rounds)


if __name__ == "__main__":
    main()
