"""What dividing a pass among rows gains on Macs, and how far the controller stays behind the best.

    python tests/helpers/gains.py gain      # a Markdown table: predictions, seconds
    python tests/helpers/gains.py play [R]  # simulated runs of R rounds, minutes

Not a test: its full runs take too long for one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from helpers.machines import MACS, TEXTS, Machine, Played, best_of, mac, play, steady
from mlx_gemma_mtp.decode.depth import Depth
from mlx_gemma_mtp.decode.division import Chances, Division

KINDS = {"0.95": "edits", "0.85": "code", "0.55": "chat", "0.35": "creative"}
MIXES = {
    "alike": [("0.55",) * batch for batch in (4, 8)],
    "mixed": [
        ("0.85", "0.85", "0.55", "0.35"),
        ("0.85", "0.85", "0.85", "0.55", "0.55", "0.55", "0.35", "0.35"),
    ],
    "apart": [(*["0.95"] * half, *["0.35"] * half) for half in (2, 4)],
}
PLAYED = {
    1: [("0.95",), ("0.8",), ("0.5",), ("0.2",), ("published",)],
    2: [("0.95",) * 2, ("0.5",) * 2, ("0.95", "0.2")],
    4: [("0.95",) * 4, ("0.8",) * 4, ("0.5",) * 4, ("0.2",) * 4, ("0.95", "0.85", "0.55", "0.2")],
    8: [
        *(("0.95",) * 8, ("0.8",) * 8, ("0.5",) * 8, ("0.2",) * 8),
        ("0.95", "0.95", "0.85", "0.85", "0.55", "0.55", "0.2", "0.2"),
    ],
}
TABLE_ERROR = 0.07
PROBED_CONTEXT = 50  # tokens, of a probe


def chosen(machine: Machine, texts: tuple[str, ...]) -> tuple[Division, float]:
    """Return the division of one who knows costs and chances, and its tokens per second."""
    table = machine.probed(np.random.default_rng(0), 0.0)
    rows = [Chances(np.cumprod(TEXTS[text]).tolist()) for text in texts]
    division = Depth(table=table).choose(rows)
    tokens = sum(
        1 + sum(row.reached[:count]) for row, count in zip(rows, division.drafts, strict=True)
    )
    shape = division.shape
    return division, tokens / machine.seconds(0, shape.num_tokens, shape.num_steps)


def gains() -> Iterator[str]:
    """Yield the lines of a table of tokens per second, with one K for all and with a division."""
    yield "| Mac | 4 bits | rows | plain | one K for all | per row | drafts of each row | gain |"
    yield "|---|---|---|---|---|---|---|---|"
    for chip, size in MACS:
        for name, mixes in MIXES.items():
            for texts in mixes:
                machine = mac(chip, size, len(texts))
                best = best_of(machine, steady(texts, 1), range(1))
                division, speed = chosen(machine, texts)
                drafts = ", ".join(
                    f"{kind} "
                    + "/".join(
                        str(count)
                        for count, other in zip(division.drafts, texts, strict=True)
                        if other == text
                    )
                    for text, kind in KINDS.items()
                    if text in texts
                )
                gain = f"{speed / best.single - 1:+.0%}".replace("-0", "+0")
                yield (
                    f"| {chip} | {size} | {len(texts)} {name} | {best.plain:.0f} | "
                    f"{best.single:.0f} | {speed:.0f} | {drafts} | {gain} |"
                )


def played(rounds: int, error: float | None) -> Iterator[tuple[str, str, int, str, Played]]:
    """Play all Macs; error: of the table that they start from, None: they start from none."""
    rng = np.random.default_rng(5)
    for chip, size in MACS:
        for batch, texts in PLAYED.items():
            probed = mac(chip, size, batch, PROBED_CONTEXT)
            for each in texts:
                depth = Depth(table=None if error is None else probed.probed(rng, error))
                one = play(rng, depth, mac(chip, size, batch), steady(each, rounds))
                yield chip, size, batch, "mixed" if len(set(each)) > 1 else "alike", one


def summary(runs: list[tuple[str, str, int, str, Played]]) -> Iterator[str]:
    """Yield lines: percent behind the best division, mean (worst), for each part of the runs."""
    behind = np.array([100 * one.behind_best() for *_, one in runs])
    plain = max(100 * one.behind_plain() for *_, one in runs)
    shapes = np.mean([len(one.shapes) for *_, one in runs])
    yield f"all: {behind.mean():.1f} ({behind.max():.1f}), worst behind plain {plain:.1f}"
    yield f"{shapes:.0f} shapes a run"
    for part in range(4):
        for value in sorted({run[part] for run in runs}, key=str):
            of = np.array([run[part] == value for run in runs])
            yield f"{value}: {behind[of].mean():.1f} ({behind[of].max():.1f})"


if __name__ == "__main__":
    if sys.argv[1] == "gain":
        print(*gains(), sep="\n")
    else:
        for error in (TABLE_ERROR, None):
            print("with a table" if error else "without a table")
            print(*summary(list(played(int((*sys.argv, 2000)[2]), error))), sep="\n", flush=True)
