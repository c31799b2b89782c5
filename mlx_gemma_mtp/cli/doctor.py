"""`mgm doctor`: what this machine has, what is wrong, and a self-test."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.errors import MgmError, VerificationError, one_line
from mlx_gemma_mtp.show import say

if TYPE_CHECKING:
    from mlx_gemma_mtp.check import SelfTest
    from mlx_gemma_mtp.doctor import Checked, CommandBuffers, Place, Report


def doctor(
    as_json: options.Json = False,
    no_self_test: Annotated[
        bool, typer.Option("--no-self-test", help="Leave out the self-test (up to 30 seconds).")
    ] = False,
) -> None:
    """Check this machine and run a self-test.

    Checks packages, folders and models, and that the demo's completions are the same with and
    without its drafter. Exit codes: 0 healthy, 1 a problem, 5 completions differ.
    """
    try:
        from mlx_gemma_mtp import check, device, doctor
    except ImportError as error:
        raise MgmError(
            f"a package cannot be imported ({one_line(error)}): install mgm again"
        ) from None

    report, tested = doctor.examine(), None
    if not as_json:
        print_report(report)
    if not no_self_test:
        say("running the self-test, up to half a minute ...")
        device.exact_products()
        try:
            tested = check.self_test()
        except MgmError as error:
            report.problems.append(f"the self-test failed: {error}")
    raise typer.Exit(conclude(report, tested, as_json=as_json))


def print_report(report: Report) -> None:
    """Print everything except the problems of the machine."""
    from rich.filesize import decimal

    from mlx_gemma_mtp.show import columns, wrapped

    width = columns(sys.stdout)

    def show(start: str, indent: int, text: str) -> None:
        broken = wrapped(text, width and width - indent)
        print(start + broken.replace("\n", "\n" + " " * indent))

    best = report.best_fit
    fits = "" if best.fits else "nothing fits; the smallest is "
    available = decimal(report.available_bytes)
    versions = (f"{name} {found or 'missing'}" for name, found in report.versions.items())
    variables = (f"{name}={value}" for name, value in report.variables.items())
    for name, found in (
        ("machine", f"{report.chip}, {decimal(report.memory_bytes)}"),
        ("system", f"{report.system}, {report.architecture}"),
        ("backend", f"{report.backend}, {available} available to a model"),
        *([("buffers", _buffers(report.buffers))] if report.buffers else []),
        ("best fit", f"{fits}mgm chat {best.asked}: {best.name}, {decimal(best.needs)}"),
        ("versions", ", ".join(versions)),
        ("cache", _place(report.cache)),
        ("timings", _place(report.depth)),
        ("variables", ", ".join(variables) or "none"),
    ):
        show(f"{name:11}", 11, found)
    print("models")
    for one in report.models:
        show("  ", 4, f"{one.model.name}: {_verdict(one)}")
        for table in one.tables:
            for name, figures in table.in_words().items():
                show("    ", 6, f"{name}: {figures}")


def conclude(report: Report, tested: SelfTest | None, *, as_json: bool) -> int:
    """Print the self-test and the problems, with --json the whole report; return the exit code."""
    differences = tested.differences if tested else []
    problems = [*report.problems, *(f"self-test: {one}" for one in differences)]
    if as_json:
        found = report.to_json() | {
            "self_test": tested and asdict(tested),
            "problems": problems,
            "healthy": not problems,
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        if tested is not None:
            same = "NOT the same" if differences else "the same"
            print(f"self-test: {tested.completions} completions, {same} with and without drafter")
        for problem in problems:
            say(f"problem: {problem}", sys.stdout)
        if not problems:
            print("no problems found")
    if differences:
        return VerificationError.exit_code
    return MgmError.exit_code if problems else 0


def _verdict(one: Checked) -> str:
    from rich.filesize import decimal

    from mlx_gemma_mtp.memory import LOAD_CONTEXT

    if one.model.problem is not None:
        return one.model.problem
    assert one.needs_bytes is not None  # every model without a problem has it
    room = f"up to {one.longest_context:,} fit" if one.fits else "does not fit"
    drafts = one.no_drafts or "drafter ready"
    return (
        f"{decimal(one.model.size_bytes)} on disk; {decimal(one.needs_bytes)} for "
        f"{LOAD_CONTEXT:,} tokens; {room}; {drafts}"
    )


def _buffers(buffers: CommandBuffers) -> str:
    of = "set by you" if buffers.set_by_user else "MLX's own; raised for models that gain from it"
    return f"up to {buffers.max_ops} launches or {buffers.max_mb} MB, {of}"


def _place(place: Place) -> str:
    from rich.filesize import decimal

    writable = "writable" if place.writable else "not writable"
    return f"{place.path}, {decimal(place.free_bytes)} free, {writable}"
