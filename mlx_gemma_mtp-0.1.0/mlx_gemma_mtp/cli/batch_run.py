"""`mgm generate --batch-file`: requests from one file, results to another, several at once.

A run that was stopped is continued by the same command. A result depends only on the request, the
settings and the seed, so the results are the same as those of an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlx_gemma_mtp.cli import options
from mlx_gemma_mtp.cli.engine import load_engine
from mlx_gemma_mtp.cli.requests_file import Line, Requests, read
from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.errors import MgmError, UsageError
from mlx_gemma_mtp.show import progress

if TYPE_CHECKING:
    from mlx_gemma_mtp import Completion, Engine

OnResult = Callable[["Completion | None"], None]  # None: the request failed


def run(
    pair: options.Pair,
    sampling: options.Sampling,
    system: str | None,
    batch_file: Path,
    out: Path,
    *,
    max_batch: int,
    restart: bool,
) -> None:
    """Answer all requests of a file.

    Raises UsageError before any work if the file or the settings are wrong, and MgmError at the end
    if requests failed. Ctrl-C ends the process with 130.
    """
    if out.resolve() == batch_file.resolve():
        raise UsageError("--out is --batch-file itself: name another file")
    params = dataclasses.replace(sampling.params(), seed=None)
    requests = read(batch_file, params, system)
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    settings = _settings(pair, sampling, system, requests)
    with closing(ResultsFile(out, settings, seed, restart=restart)) as results:
        lines = [line.seeded(results.seed) for line in requests.lines]
        todo = [line for line in lines if line.number not in results.done]
        failures: dict[int, dict[str, Any]] = {}
        try:
            if todo:
                if results.done:
                    print(f"{len(results.done)} results are already done", file=sys.stderr)
                with load_engine(pair, max_batch=max_batch) as engine, _shown(len(todo)) as shown:
                    for line, ended in _answers(engine, todo, 2 * max_batch):
                        if isinstance(ended, MgmError):
                            failures[line.number] = {"id": line.id, "error": str(ended)}
                            shown(None)
                        else:
                            results.add(line.number, _result(line, ended))
                            shown(ended)
            results.publish(failures)
        except KeyboardInterrupt:
            without = " without --restart" if restart else ""
            kept = (
                f"interrupted; {len(results.done)} of {len(lines)} results are kept: run the same "
                f"command again{without} to continue"
            )
            print(options.interruption(kept), file=sys.stderr)
            raise typer.Exit(options.INTERRUPTED) from None
        if failures:
            first = min(failures)
            again = "" if results.done else " with --restart"
            raise MgmError(
                f"{len(failures)} of {len(lines)} requests failed, the first on line {first} "
                f"({failures[first]['error']}): run the same command again{again} to retry them"
            )


def _settings(
    pair: options.Pair, sampling: options.Sampling, system: str | None, requests: Requests
) -> dict[str, Any]:
    """Return all that results depend on. Drafts are left out: they change no output."""
    from mlx_gemma_mtp.files.hub import is_folder

    is_path = pair.model != "demo" and is_folder(pair.model)
    settings = dataclasses.asdict(sampling)
    del settings["num_draft_tokens"]
    return {
        "batch-file": requests.sha256,
        "model": str(Path(pair.model).expanduser().resolve()) if is_path else pair.model,
        "bits": pair.bits,
        "system": system,
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }


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
    found = dataclasses.asdict(done)
    del found["stats"]
    return {"id": line.id, **found, "prompt_tokens": done.stats.prompt_tokens}


@contextmanager
def _shown(total: int) -> Iterator[OnResult]:
    """Show progress on stderr, and one line of totals at the end."""
    start = time.perf_counter()
    ended = answers = tokens = drafted = accepted = 0

    def speed() -> str:
        return f"{tokens / (time.perf_counter() - start):.0f} tokens/s"

    with progress("items") as update:

        def on_result(done: Completion | None) -> None:
            nonlocal ended, answers, tokens, drafted, accepted
            ended += 1
            if done is not None:
                answers += 1
                tokens += done.stats.generated_tokens
                drafted += done.stats.drafted
                accepted += done.stats.accepted
            update(speed(), ended, total)

        yield on_result
    drafts = f", {accepted / drafted:.0%} of {drafted} drafts accepted" if drafted else ""
    plural = "" if answers == 1 else "s"
    print(f"{answers} answer{plural}, {tokens} tokens, {speed()}{drafts}", file=sys.stderr)
