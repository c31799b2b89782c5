"""Decode with a random pair at a real size, plain and with K drafts, by batch; beside mlx-vlm.

    python -m mlx_gemma_mtp.bench 31B --batch 1,4,8 --drafts 0,3,5,auto --accept 0.8 --peer

A random drafter is never right, so the accepts are drawn at the stated chance of each draft, given
that those before it came true; all of the compute is done. Prints a table; --out writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import mlx.core as mx
from mlx_gemma_mtp.bench.decode import Sample, decode, speed
from mlx_gemma_mtp.bench.drawn import Draws, drawn_round_player
from mlx_gemma_mtp.bench.floor import Floor, bandwidth
from mlx_gemma_mtp.bench.mlx_vlm_peer import MlxVlmPeer
from mlx_gemma_mtp.bench.synthetic import TARGETS, random_pair

from mlx_gemma_mtp import engine as engines
from mlx_gemma_mtp.drafter import Drafter
from mlx_gemma_mtp.engine import Engine
from mlx_gemma_mtp.errors import MgmError
from mlx_gemma_mtp.layers import join_projections
from mlx_gemma_mtp.request import Stats
from mlx_gemma_mtp.sampling import MAX_DRAFT_TOKENS
from mlx_gemma_mtp.speculate import PlayRound
from mlx_gemma_mtp.target import Target
from mlx_gemma_mtp.worker import mlx_worker

PROMPT_LENGTHS = (180, 900, 420, 1500, 260, 1100, 640, 75)  # a different one in every row
SCHEMA = 1

Drafts = int | Literal["auto"]
Case = dict[str, Any]


def main() -> None:
    """Parse the arguments, measure every case, print and write."""
    args = _parser().parse_args()
    accepts = args.accept or [[0.8]]  # not a default: argparse would append to it
    target, drafter = mlx_worker().run(lambda: _pair(args.size))
    rate = mlx_worker().run(bandwidth)
    floor = Floor(target, drafter)
    dtype = str(target.dtype).rpartition(".")[2]
    device = mx.device_info().get("device_name", platform.processor())
    print(
        f"{args.size}, {dtype}, random weights; {device}, "
        f"{rate / 1e12:.2f} TB/s; prompts of {', '.join(map(str, PROMPT_LENGTHS))} tokens, the "
        "first B of them",
        flush=True,
    )
    cases: list[Case] = []
    for accept in accepts:
        cases += _ours(args, target, drafter, accept, floor, rate)
    peer = _peer(args, target, drafter, accepts[0], cases) if args.peer else []
    if args.out:
        found = {
            "schema": SCHEMA,
            "command": shlex.join(["python", "-m", "mlx_gemma_mtp.bench", *sys.argv[1:]]),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device,
            "mlx": version("mlx"),
            "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("MLX_")},
            "size": args.size,
            "dtype": dtype,
            "bandwidth_bytes_per_second": rate,
            "prompt_lengths": PROMPT_LENGTHS,
            "cases": cases,
            "mlx_vlm_0.7.10": peer,
        }
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def _pair(size: str) -> tuple[Target, Drafter]:
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    target, drafter = random_pair(size, mx.float32 if on_cpu else mx.bfloat16)
    return join_projections(target), join_projections(drafter)


def _ours(
    args: argparse.Namespace,
    target: Target,
    drafter: Drafter,
    accept: Sequence[float],
    floor: Floor,
    rate: float,
) -> list[Case]:
    """Every batch and number of drafts at this acceptance, through one engine."""
    draws = Draws(accept)
    shared = "" if not args.overlap else f", {args.overlap} experts shared by a row's tokens"
    print(f"\naccepts drawn at {', '.join(map(str, accept))}{shared}")
    print(
        f"{'batch':>5} {'drafts':>6} {'ms/round':>9} {'tok/s':>8} {'low':>8} {'high':>8} "
        f"{'x plain':>8} {'allowed':>8} {'floor':>8} {'share':>6} {'experts':>8} {'drafted':>8}"
    )
    cases: list[Case] = []

    def player(target: Target, drafter: Drafter | None) -> PlayRound:
        return drawn_round_player(target, drafter, draws, args.overlap)

    with patch.object(engines, "round_player", player):
        engine = Engine(target, drafter, text=None, defaults={}, max_batch=8, max_queue=8)
    with engine:
        for batch in args.batch:
            lengths = PROMPT_LENGTHS[:batch]
            for drafts, samples, stats in _in_turns(args, engine, lengths):
                found, distinct = speed(samples), stats.distinct_experts
                case: Case = {
                    "accept": accept,
                    "shared_experts": args.overlap,
                    "batch": batch,
                    "drafts": drafts,
                    **found._asdict(),
                    "samples": [sample._asdict() for sample in samples],
                    "drafted_per_round": stats.drafted / stats.rounds,
                    "distinct_experts": distinct,
                }
                if drafts != "auto":
                    num_bytes = floor.round_bytes(lengths, drafts, distinct)
                    ideal = batch * draws.expected_tokens(drafts) * rate / num_bytes
                    case |= {"round_bytes": num_bytes, "floor_tokens_per_second": ideal}
                cases.append(case)
                _print_case(case, cases)
    return cases


def _in_turns(
    args: argparse.Namespace, engine: Engine, lengths: Sequence[int]
) -> list[tuple[Drafts, list[Sample], Stats]]:
    """One sample of every number of drafts, then the next, so that drift hits all alike."""
    samples: dict[Drafts, list[Sample]] = {drafts: [] for drafts in args.drafts}
    stats: dict[Drafts, Stats] = {}
    for turn in range(args.samples):
        for drafts in args.drafts[:: -1 if turn % 2 else 1]:
            first = args.auto_warm_up if drafts == "auto" else args.warm_up
            sample, stats[drafts] = decode(
                engine,
                lengths,
                drafts,
                rounds=args.rounds,
                samples=1,
                warm_up=args.warm_up if turn else first,
            )
            samples[drafts] += sample
    return [(drafts, samples[drafts], stats[drafts]) for drafts in args.drafts]


def _print_case(case: Case, cases: list[Case]) -> None:
    plain = _find(cases, batch=case["batch"], accept=case["accept"], drafts=0)
    gain = allowed = floor = share = ""
    if plain:
        gain = f"{_gain(case, plain):.2f}"
    if "floor_tokens_per_second" in case:
        ideal = case["floor_tokens_per_second"]
        floor, share = f"{ideal:.0f}", f"{case['tokens_per_second'] / ideal:.0%}"
        allowed = f"{ideal / plain['floor_tokens_per_second']:.2f}" if plain else ""
    experts = "" if case["distinct_experts"] is None else f"{case['distinct_experts']:.1f}"
    print(
        f"{case['batch']:>5} {case['drafts']:>6} {case['ms']:>9.2f} "
        f"{case['tokens_per_second']:>8.1f} {case['low']:>8.1f} {case['high']:>8.1f} "
        f"{gain:>8} {allowed:>8} {floor:>8} {share:>6} {experts:>8} "
        f"{case['drafted_per_round']:>8.2f}",
        flush=True,
    )


def _gain(case: Case, plain: Case) -> float:
    """Speed-up over plain decoding: the median over the turns, each against its own."""
    rates = ([s["tokens"] / s["seconds"] for s in c["samples"]] for c in (case, plain))
    return statistics.median(a / b for a, b in zip(*rates, strict=True))


def _peer(
    args: argparse.Namespace,
    target: Target,
    drafter: Drafter,
    accept: Sequence[float],
    ours: list[Case],
) -> list[Case]:
    """mlx-vlm on the same arrays, at this acceptance. Takes the pair apart."""
    gc.collect()  # the engine's compiled rounds hold the arrays
    print(f"\nmlx-vlm 0.7.10, the same weights, accepts drawn at {', '.join(map(str, accept))}")
    print(f"{'batch':>5} {'drafts':>6} {'tok/s':>8} {'low':>8} {'high':>8}   ours: plain, best")

    def measure() -> list[Case]:
        peer = MlxVlmPeer(target, drafter)
        cases = []
        for batch in args.batch:
            for drafts in args.peer_drafts:
                samples = peer.decode(
                    PROMPT_LENGTHS[:batch],
                    drafts,
                    Draws(accept),
                    rounds=args.rounds,
                    samples=args.samples,
                    warm_up=args.warm_up,
                )
                found = speed(samples)
                case: Case = {
                    "accept": accept,
                    "batch": batch,
                    "drafts": drafts,
                    "tokens_per_second": found.tokens_per_second,
                    "low": found.low,
                    "high": found.high,
                }
                _print_peer(case, ours)
                cases.append(case)
        return cases

    return mlx_worker().run(measure)


def _print_peer(case: Case, cases: list[Case]) -> None:
    same = [c for c in cases if (c["batch"], c["accept"]) == (case["batch"], case["accept"])]
    theirs, plain = case["tokens_per_second"], _find(same, drafts=0)
    best = max(same, key=lambda c: c["tokens_per_second"])
    ours = f"{plain['tokens_per_second'] / theirs:.2f} x, " if plain else ""
    print(
        f"{case['batch']:>5} {case['drafts']:>6} {theirs:>8.1f} {case['low']:>8.1f} "
        f"{case['high']:>8.1f}   {ours}{best['tokens_per_second'] / theirs:.2f} x "
        f"({best['drafts']} drafts)",
        flush=True,
    )


def _find(cases: list[Case], **wanted: Any) -> Case | None:
    return next((c for c in cases if all(c[key] == wanted[key] for key in wanted)), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_gemma_mtp.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "size",
        choices=list(TARGETS),
        help="its bfloat16 weights take 15 (E4B), 24, 51 or 61 GB (31B), caches come on top",
    )
    add("--batch", type=_list(_rows), default=[1, 4, 8], help="rows: 1, 2, 4 or 8 (1,4,8)")
    add("--drafts", type=_list(_drafts), default=[0, 3, 5], help="per round, or auto (0,3,5)")
    add(
        "--accept",
        type=_list(_chance),
        action="append",
        help="chance of each draft, by position; the last one holds on; may be repeated (0.8)",
    )
    add("--overlap", type=int, default=0, help="experts that a row's tokens share in a round (0)")
    add("--rounds", type=int, default=16, help="rounds of a sample (16)")
    add("--samples", type=int, default=5, help="samples of a case: median, lowest, highest (5)")
    add("--warm-up", type=int, default=6, help="rounds before a sample (6)")
    add(
        "--auto-warm-up",
        type=int,
        default=150,
        help="before the first one of auto, which learns (150)",
    )
    add("--peer", action="store_true", help="measure mlx-vlm 0.7.10 too, in the same run")
    add("--peer-drafts", type=_list(int), default=[0, 3], help="drafts of the peer (0,3)")
    add("--out", type=Path, help="write everything as JSON")
    return parser


def _list(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [read(part) for part in text.split(",")]


def _rows(text: str) -> int:
    if int(text) not in (1, 2, 4, 8):
        raise argparse.ArgumentTypeError(f"{text}: must be 1, 2, 4 or 8")
    return int(text)


def _drafts(text: str) -> Drafts:
    if text != "auto" and not 0 <= int(text) <= MAX_DRAFT_TOKENS:
        raise argparse.ArgumentTypeError(f"{text}: must lie in 0 .. {MAX_DRAFT_TOKENS}")
    return "auto" if text == "auto" else int(text)


def _chance(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must lie in 0 .. 1")
    return float(text)


if __name__ == "__main__":
    try:
        main()
    except MgmError as error:
        sys.exit(f"error: {error}")
