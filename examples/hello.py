"""Ask the embedded demo model one question."""

from multiprocessing import freeze_support

from mlx_gemma_mtp import SamplingParams, load


def main() -> None:
    with load("demo") as engine:
        [answer] = engine.generate(["What is 17 + 25?"], SamplingParams(max_tokens=32))
    print(answer.text)


if __name__ == "__main__":
    freeze_support()
    main()
