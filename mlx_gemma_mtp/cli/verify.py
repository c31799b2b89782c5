"""`mgm verify`: is a converted folder whole, and with --quality: what did quantizing cost?"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma_mtp.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from mlx_gemma_mtp.convert.verify import Verdict


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `mgm convert` wrote.")],
    measure: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="Also measure perplexity, divergence from the source and acceptance, and write "
            "them into README.md.",
        ),
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="What it was made of: a folder or a name [the manifest's].")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text to measure on [one that comes with mgm].")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts for the acceptance, one a line [that text's questions]."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="At most so many of each text [all].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a folder's files, tensors and pair.

    Exit code 5, and what is wrong, if it is not whole. Without a manifest.json: that its tensors
    are complete and that the pair fits.
    """
    from mlx_gemma_mtp.convert import quality
    from mlx_gemma_mtp.convert import verify as verification

    if not measure and (source, text, prompts, tokens) != (None, None, None, None):
        raise UsageError("--source, --text, --prompts and --tokens belong to --quality")
    verdict = verification.verify(folder, _show)
    faults = verdict.all_faults
    found: dict[str, Any] = {
        "schema": 1,
        "ok": not faults,
        "faults": faults,
        "target": _summary(verdict),
        "drafter": None if verdict.drafter is None else _summary(verdict.drafter),
        "quality": None,
    }
    if not as_json:
        for line in faults or _praise(verdict):
            print(line)
    if measure and not faults:
        measured = quality.measure(
            source or verification.source_of(verdict),
            folder,
            text=text,
            prompts=prompts,
            num_tokens=tokens,
            on_progress=_show,
        )
        found["quality"] = dataclasses.asdict(measured)
        if verdict.manifest is not None:  # else the card is not ours to write
            drafter = None if verdict.drafter is None else verdict.drafter.folder
            quality.write_to_cards(folder, drafter, measured)
        if not as_json:
            print(f"\n{quality.predictions_section(measured)}")
            print(f"\n{quality.drafting_section(measured)}")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise VerificationError(f"{folder}: {count}; convert it again, or fetch a whole copy")


def _summary(verdict: Verdict) -> dict[str, Any]:
    manifest = verdict.manifest
    return {
        "folder": str(verdict.folder),
        "manifest": manifest is not None,
        "files": None if manifest is None else len(manifest.files),
        "tensors": verdict.tensors,
        "bits_per_weight": None if manifest is None else manifest.bits_per_weight,
    }


def _praise(verdict: Verdict) -> list[str]:
    """A line for each folder that was found whole."""
    whole = f"{verdict.tensors} tensors complete"
    if verdict.manifest is None:
        line = f"{verdict.folder}: {whole}; no manifest.json, so files and bits were not compared"
    else:
        manifest = verdict.manifest
        line = (
            f"{verdict.folder}: {len(manifest.files)} files as in manifest.json, {whole}, "
            f"{manifest.bits_per_weight:.2f} bits per weight"
        )
    return [line, *(_praise(verdict.drafter) if verdict.drafter is not None else [])]


def _show(what: str, done: int, total: int) -> None:
    """Progress, in one line of a terminal that goes when it is done."""
    from mlx_gemma_mtp.show import can_draw

    if can_draw():
        line = f"{what} {100 * done // max(1, total)}%" if done < total else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
