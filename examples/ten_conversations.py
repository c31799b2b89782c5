"""Ten conversations at once in one event loop. Eight decode together, the others wait for a row.

Each remembers its own name and knows nothing of the others.
"""

import argparse
import asyncio
import sys
import time

from mlx_gemma_mtp import Engine, MgmError, SamplingParams, aload

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack")


async def conversation(engine: Engine, name: str) -> int:
    """Introduce someone, and ask for the name again. Return how many tokens that took."""
    chat = engine.chat(params=SamplingParams(temperature=0, max_tokens=100))
    num_tokens = 0
    for question in (f"My name is {name}.", "What is my name?"):
        answer = await chat.asend(question)
        num_tokens += answer.stats.generated_tokens
        print(f"{question} -> {answer.text}")
    return num_tokens


async def main(model: str) -> None:
    async with await aload(model) as engine:
        start = time.perf_counter()
        counts = await asyncio.gather(*(conversation(engine, name) for name in NAMES))
        seconds = time.perf_counter() - start
    print(f"{len(counts)} conversations, {sum(counts)} tokens in {seconds:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo", help="a folder, a Hub name, or a size")
    try:
        asyncio.run(main(parser.parse_args().model))
    except MgmError as error:
        sys.exit(str(error))
