"""Ask one question, of the embedded demo model or of another: hello.py [MODEL]."""

import sys
from multiprocessing import freeze_support

from mlx_gemma_mtp import SamplingParams, load


def main() -> None:
    with load(sys.argv[1] if sys.argv[1:] else "demo") as engine:
        [answer] = engine.generate(["What is 17 + 25?"], SamplingParams(max_tokens=32))
    print(answer.text)


if __name__ == "__main__":
    freeze_support()
    main()
