"""`mgm verify`: checks a converted folder, and with --quality measures what quantizing cost."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import UsageError, VerificationError
from mlx_gemma_mtp.progress import progress
from mlx_gemma_mtp.show import say

if TYPE_CHECKING:
    from mlx_gemma_mtp.convert.verify import Verdict


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model's folder.")],
    measure: Annotated[
        bool, typer.Option("--quality", help="Also measure what quantizing cost; see above.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="A folder or Hub name to compare with [the manifest's].")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to measure on [mgm's].")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts to draft for, one per line [mgm's].")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Maximum tokens of each text [all].")] = None,
    as_json: options.Json = False,
) -> None:
    """Check a folder's files, tensors and pair.

    Lists the faults and exits with 5 if there are any. Without a manifest.json, it only checks
    that the pair matches and would load. --quality measures perplexity, KL divergence and
    acceptance, compared with the source, and writes them to README.md.
    """
    from mlx_gemma_mtp.convert import quality
    from mlx_gemma_mtp.convert import verify as verification

    if not measure and (source, text, prompts, tokens) != (None, None, None, None):
        raise UsageError("--source, --text, --prompts and --tokens need --quality")
    with progress("bytes") as update:
        verdicts = verification.verify(folder, update)
    target, drafter = verdicts[0], verdicts[1] if len(verdicts) > 1 else None
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    found: dict[str, Any] = {
        "schema": 1,
        "ok": not faults,
        "faults": faults,
        "target": _summary(target),
        "drafter": None if drafter is None else _summary(drafter),
        "quality": None,
    }
    if not as_json:
        say("\n".join(faults or map(_line, verdicts)), sys.stdout)
    if measure and not faults:
        with progress("items") as update:
            given = source and options.original(source)
            origin = given or verification.source_of(target)
            measured = quality.measure(
                origin, folder, text=text, prompts=prompts, num_tokens=tokens, on_progress=update
            )
        found["quality"] = dataclasses.asdict(measured)
        if target.manifest is not None:  # other cards are not ours to write
            quality.write_to_cards(folder, None if drafter is None else drafter.folder, measured)
        if not as_json:
            print(f"\n{quality.predictions_section(measured)}")
            print(f"\n{quality.drafting_section(measured)}")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise VerificationError(f"{folder}: {count}; convert it again, or get a complete copy")


def _summary(verdict: Verdict) -> dict[str, Any]:
    manifest = verdict.manifest
    return {
        "folder": str(verdict.folder),
        "manifest": manifest is not None,
        "files": None if manifest is None else len(manifest.files),
        "tensors": verdict.num_tensors,
        "bits_per_weight": None if manifest is None else manifest.bits_per_weight,
    }


def _line(verdict: Verdict) -> str:
    """Return what was checked in a folder without faults."""
    checked, manifest = f"{verdict.num_tensors} tensors complete", verdict.manifest
    if manifest is None:
        return f"{verdict.folder}: {checked}; no manifest.json, so hashes were not compared"
    bits = f"{manifest.bits_per_weight:.2f} bits per weight"
    return f"{verdict.folder}: {checked}, {len(manifest.files)} files as in manifest.json, {bits}"
