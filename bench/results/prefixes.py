"""Prefilled tokens and seconds of agents that share instructions, with and without a prefix cache.

    python -m mlx_gemma_mtp.bench.results.prefixes --turns 30

One conversation whose whole history is sent with every turn, and eight requests at once that differ
in their last message. With the demo's weights, greedily.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlx_gemma_mtp import Completion, Engine, SamplingParams
from mlx_gemma_mtp.engine.pair import OpenPair, open_pair
from mlx_gemma_mtp.files.names import DEMO

TOKENS = 24  # of an answer
PARAMS = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
BUDGET = 10**9
CONTEXT = 32_768
TURN, END = "<|turn>", "<turn|>\n"


def longer(folder: Path) -> OpenPair:
    """Return the demo's pair with more context than it was trained for."""
    for name in (DEMO.name, f"{DEMO.name}-assistant"):
        shutil.copytree(DEMO.parent / name, folder / name)
        path = folder / name / "config.json"
        written = path.read_text()
        path.write_text(
            written.replace(
                '"max_position_embeddings": 4096', f'"max_position_embeddings": {CONTEXT}'
            )
        )
    return open_pair(folder / DEMO.name)


def instructions(engine: Engine, size: int) -> list[int]:
    """Return a system turn of about this many tokens of random words."""
    rng = random.Random(0)
    text = " ".join(
        rng.choice(["file", "read", "the", "tool", "call", "line"]) for _ in range(size)
    )
    ids = engine.encode(f"<bos>{TURN}system\n{text}")[: size - 2]
    return [*ids, *engine.encode(END)]


def asked(engine: Engine, question: str) -> list[int]:
    """Return a user's turn, and the start of the model's."""
    return engine.encode(f"{TURN}user\n{question}{END}{TURN}model\n")


def conversation(engine: Engine, system: list[int], turns: int) -> list[Completion]:
    """Return the answers of a conversation; each prompt is all that came before."""
    history, done = system, list[Completion]()
    for number in range(turns):
        prompt = [*history, *asked(engine, f"What is {number} + {number + 1}?")]
        done += engine.generate(prompt, PARAMS)
        history = [*prompt, *done[-1].tokens, *engine.encode(END)]
    return done


def at_once(engine: Engine, system: list[int], count: int) -> list[Completion]:
    """Return the answers to questions that come at the same time."""
    prompts = [[*system, *asked(engine, f"What is {number} + 25?")] for number in range(count)]
    return engine.generate(prompts, PARAMS)


def show(what: str, start: tuple[float, float], done: Sequence[Completion]) -> None:
    """Print how long it took since then, in all and of the CPU, and what was prefilled."""
    seconds, busy = time.perf_counter() - start[0], time.process_time() - start[1]
    read = [one.stats.prompt_tokens - one.stats.reused_tokens for one in done]
    first = max(one.stats.queue_seconds + one.stats.first_token_seconds for one in done)
    print(
        f"{what}: {seconds:.2f} s ({busy:.2f} s of CPU), {sum(read)} tokens prefilled "
        f"({read[0]} first, then up to {max(read[1:])}), first token after {first:.2f} s at most",
        flush=True,
    )


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--instructions", type=int, default=2000, help="tokens")
    parser.add_argument("--cached", action="store_true", help="leave out the turns without a cache")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pair, outputs = longer(Path(folder)), list[list[list[int]]]()
    for name, most in (("with", BUDGET),) if given.cached else (("with", BUDGET), ("without", 0)):
        for case, play, count in (
            ("conversation", conversation, given.turns),
            ("at once", at_once, 8),
        ):
            with Engine(pair, prefix_cache=most) as engine:
                system = instructions(engine, given.instructions)
                engine.generate([7] * 100, PARAMS)
                start = time.perf_counter(), time.process_time()
                done = play(engine, system, count)
                show(f"{case}, {count}, {name} prefixes", start, done)
            outputs.append([one.tokens for one in done])
    if not given.cached:
        print("equal outputs:", outputs[:2] == outputs[2:])


if __name__ == "__main__":
    main()
