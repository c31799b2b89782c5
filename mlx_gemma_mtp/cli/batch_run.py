"""`mgm generate --batch-file`: requests from one file, results to another, several at once.

A run that was stopped is continued by the same command. A result depends only on the request, the
settings and the seed, so the results are the same as those of an uninterrupted run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.engine import load_engine
from mlx_gemma_mtp.cli.requests_file import Line, read
from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.errors import INTERRUPTED, MgmError, UsageError
from mlx_gemma_mtp.progress import progress
from mlx_gemma_mtp.show import say

if TYPE_CHECKING:
    from mlx_gemma_mtp import Completion, Engine


def run(
    pair: options.Loading,
    sampling: options.Sampling,
    system: str | None,
    batch_file: Path,
    out: Path,
    *,
    max_batch: int,
    restart: bool,
) -> None:
    """Answer all requests of a file. Raises MgmError at the end if requests failed."""
    if out.resolve() == batch_file.resolve():
        raise UsageError("--out is --batch-file itself: name another file")
    requests, sha256 = read(batch_file, replace(sampling.params(), seed=None), system)
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    settings = {"batch-file": sha256, "system": system, **_settings(pair, sampling)}
    with closing(ResultsFile(out, settings, seed, restart=restart)) as results:
        lines = [line.seeded(results.seed) for line in requests]
        todo = [line for line in lines if line.number not in results.done]
        if results.done and todo:
            say(f"already done: {len(results.done)} of {len(lines)}")
        try:
            failures = _answer(pair, todo, results, max_batch) if todo else {}
            results.publish(failures)
        except KeyboardInterrupt:
            command = "the same command again" + (" without --restart" if restart else "")
            kept = f"interrupted; {len(results.done)} of {len(lines)} results are kept"
            say(options.interruption(f"{kept}: run {command} to continue"))
            raise typer.Exit(INTERRUPTED) from None
        if failures:
            first = min(failures)
            why = f"the first on line {first} ({failures[first]['error']})"
            command = "the same command again" + ("" if results.done else " with --restart")
            failed = f"{len(failures)} of {len(lines)} requests failed"
            raise MgmError(f"{failed}, {why}: run {command} to retry them")


def _settings(pair: options.Loading, sampling: options.Sampling) -> dict[str, Any]:
    """Return the options that results depend on. Drafts are left out: they change no output."""
    from mlx_gemma_mtp.files.names import is_folder

    is_path = pair.model != "demo" and is_folder(pair.model)
    model = str(Path(pair.model).expanduser().resolve()) if is_path else pair.model
    settings = {name.replace("_", "-"): value for name, value in asdict(sampling).items()}
    del settings["num-draft-tokens"]
    return {"model": model, "bits": pair.bits, **settings}


def _answer(
    pair: options.Loading, todo: list[Line], results: ResultsFile, max_batch: int
) -> dict[int, dict[str, Any]]:
    """Answer these lines, with progress and one line of totals; return the failures, by line."""
    failures: dict[int, dict[str, Any]] = {}
    tokens = drafted = accepted = 0
    with load_engine(pair, max_batch=max_batch) as engine, progress("items") as update:
        start = time.perf_counter()
        for ended, (line, answer) in enumerate(_answers(engine, todo, 2 * max_batch), 1):
            if isinstance(answer, MgmError):
                failures[line.number] = {"id": line.id, "error": str(answer)}
            else:
                results.add(line.number, _result(line, answer))
                tokens += answer.stats.generated_tokens
                drafted += answer.stats.drafted
                accepted += answer.stats.accepted
            speed = f"{tokens / (time.perf_counter() - start):.0f} tokens/s"
            update(speed, ended, len(todo))
    count = len(todo) - len(failures)
    drafts = f", {accepted / drafted:.0%} of {drafted} drafts accepted" if drafted else ""
    answers = f"{count} answer{'' if count == 1 else 's'}"
    say(f"{answers}, {tokens} tokens, {speed}{drafts}")
    return failures


def _answers(
    engine: Engine, lines: Iterable[Line], most: int
) -> Iterator[tuple[Line, Completion | MgmError]]:
    """Yield each line with its answer or error as it ends; at most `most` run or wait."""
    waiting = iter(lines)
    running: dict[Future[Completion], Line] = {}
    while True:
        while len(running) < most and (line := next(waiting, None)):
            try:
                running[engine.submit(line.prompt, line.params)] = line
            except UsageError as error:  # that only the model can show: too long, for example
                yield line, error
        if not running:
            return
        for generation in wait(running, return_when=FIRST_COMPLETED).done:
            line = running.pop(generation)
            try:
                yield line, generation.result()
            except MgmError as error:
                yield line, error


def _result(line: Line, done: Completion) -> dict[str, Any]:
    """Return what is written of an answer: nothing that differs from run to run, like its speed."""
    found = asdict(done)
    del found["stats"], found["exact"]
    return {"id": line.id, **found, "prompt_tokens": done.stats.prompt_tokens}
