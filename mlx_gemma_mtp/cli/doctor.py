"""`mgm doctor`: what is here, what is amiss, and a self-test."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli.check import exact_products
from mlx_gemma_mtp.errors import MgmError, VerificationError, one_line

if TYPE_CHECKING:
    from mlx_gemma_mtp.check import SelfTest
    from mlx_gemma_mtp.doctor import Checked, Folder, Report


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    self_test: Annotated[
        bool, typer.Option(help="Write texts with and without a drafter; about ten seconds.")
    ] = True,
) -> None:
    """Look at this machine, and test itself.

    Its packages and its models are looked at, and texts of the demo are written. Ends with 0 where
    all is well, 1 where something is amiss, and 5 where those texts are not the same with and
    without the drafter.
    """
    try:
        from mlx_gemma_mtp import check, doctor
    except ImportError as error:
        raise MgmError(
            f"a package cannot be imported ({one_line(error)}): install mgm again"
        ) from None

    report, tested = doctor.examine(), None
    problems = list(report.problems)
    if not as_json:
        _print_report(report)
    if self_test:
        print("the self-test takes about ten seconds ...", file=sys.stderr)
        exact_products()
        try:
            tested = check.self_test()
        except MgmError as error:
            problems.append(f"the self-test cannot be run: {error}")
        else:
            problems += [f"self-test: {where}" for where in tested.differences]
    if as_json:
        found = report.to_json() | {
            "self_test": tested and asdict(tested),
            "problems": problems,
            "healthy": not problems,
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print_end(tested, problems)
    if tested is not None and tested.differences:
        raise typer.Exit(VerificationError.exit_code)
    if problems:
        raise typer.Exit(MgmError.exit_code)


def _print_report(report: Report) -> None:
    from rich.filesize import decimal

    from mlx_gemma_mtp.cli.models import print_columns

    versions = (f"{name} {found or 'missing'}" for name, found in report.versions.items())
    variables = (f"{name}={value}" for name, value in report.variables.items())
    available = decimal(report.available_bytes)
    print_columns(
        [
            ("machine", f"{report.chip}, {decimal(report.memory_bytes)}"),
            ("system", f"{report.system}, {report.architecture}"),
            ("backend", f"{report.backend}, {available} available to a model"),
            ("versions", ", ".join(versions)),
            ("cache", _folder(report.cache)),
            ("learned", _folder(report.depth)),
            ("variables", ", ".join(variables) or "none"),
        ]
    )
    print("models")
    for one in report.models:
        print(f"  {one.model.name}: {_verdict(one)}")


def _verdict(one: Checked) -> str:
    """What there is to say of a model, in one line."""
    from rich.filesize import decimal

    from mlx_gemma_mtp.memory import LOAD_CONTEXT

    if one.model.problem is not None:
        return one.model.problem
    assert one.needs_bytes is not None  # which all have that load
    said = [f"{decimal(one.model.size_bytes)} on disk"]
    needs = f"needs {decimal(one.needs_bytes)} for {LOAD_CONTEXT} tokens"
    room = f"there is room for {one.longest_context}" if one.fits else "does not fit"
    said.append(f"{needs}, {room}")
    said.append("drafts" if one.no_drafts is None else f"drafts nothing: {one.no_drafts}")
    return "; ".join(said)


def _folder(folder: Folder) -> str:
    from rich.filesize import decimal

    writable = "writable" if folder.writable else "not writable"
    return f"{folder.path}, {decimal(folder.free_bytes)} free, {writable}"


def _print_end(tested: SelfTest | None, problems: list[str]) -> None:
    if tested is not None:
        same = "the same" if not tested.differences else "NOT the same"
        print(f"self-test: {tested.completions} completions, {same} with and without the drafter;")
        for speed in tested.speeds:
            print(
                f"  batch {speed.batch}: {speed.plain:.0f} tokens/s without it, "
                f"{speed.drafted:.0f} with it"
            )
        print("  drafts are forced, also where they are wrong: `mgm bench` measures what they gain")
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        print("all is well")
