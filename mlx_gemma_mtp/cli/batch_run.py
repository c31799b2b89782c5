"""`mgm generate --batch-file`: requests from one file, results to another, several side by side.

Nothing is lost when it is stopped: the same command goes on. What a result holds depends on the
request, the settings and the seed alone, so that an interrupted run ends like any other.
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
from mlx_gemma_mtp.cli.requests_file import Line, Requests, read
from mlx_gemma_mtp.cli.results_file import ResultsFile
from mlx_gemma_mtp.errors import MgmError, UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp import Completion, Engine

OnResult = Callable[["Completion | None"], None]  # None: it failed


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

    Raises UsageError before any work where the file or the settings are no good, and MgmError at
    the end where requests failed. Ctrl-C ends the process with 130.
    """
    if out.resolve() == batch_file.resolve():
        raise UsageError("--out is --batch-file itself: name another file")
    params = dataclasses.replace(sampling.params(), seed=None)
    requests = read(batch_file, params, system)
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    begun_with = _begun_with(pair, sampling, system, requests)
    with closing(ResultsFile(out, begun_with, seed, restart=restart)) as results:
        todo = [line.seeded(results.seed) for line in requests.lines]
        todo = [line for line in todo if line.number not in results.done]
        failures: dict[int, dict[str, Any]] = {}
        try:
            if todo:
                if results.done:
                    print(f"{len(results.done)} results are there already", file=sys.stderr)
                with pair.load(max_batch=max_batch) as engine, _shown(len(todo)) as on_result:
                    for line, ended in _answers(engine, todo, 2 * max_batch):
                        if isinstance(ended, MgmError):
                            failures[line.number] = {"id": line.id, "error": str(ended)}
                            on_result(None)
                        else:
                            results.add(line.number, _result(line, ended))
                            on_result(ended)
            results.publish(failures)
        except KeyboardInterrupt:
            without = " without --restart" if restart else ""
            said = (
                f"interrupted; {len(results.done)} of {len(requests.lines)} results are kept, "
                f"and the same command{without} goes on"
            )
            print(options.interruption(said), file=sys.stderr)
            raise typer.Exit(options.INTERRUPTED) from None
        if failures:
            number, failure = next(iter(sorted(failures.items())))
            again = "" if results.done else " with --restart"
            raise MgmError(
                f"{len(failures)} of {len(requests.lines)} requests failed, the first on line "
                f"{number} ({failure['error']}); the same command{again} tries them again"
            )


def _begun_with(
    pair: options.Pair, sampling: options.Sampling, system: str | None, requests: Requests
) -> dict[str, Any]:
    """All that results depend on. Drafts are not in it: they change no text."""
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
    """Each line with its answer or what it failed with, as they end; `most` are under way."""
    waiting = iter(lines)
    under_way: dict[Future[Completion], Line] = {}
    more = True
    while under_way or more:
        while more and len(under_way) < most:
            line = next(waiting, None)
            if line is None:
                more = False
                break
            try:
                under_way[engine.submit(line.prompt, line.params)] = line
            except UsageError as error:  # only with the model: longer than it takes, say
                yield line, error
        ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for generation in ended:
            line = under_way.pop(generation)
            try:
                yield line, generation.result()
            except MgmError as error:
                yield line, error


def _result(line: Line, done: Completion) -> dict[str, Any]:
    """What is written of an answer: nothing that another run would find otherwise, as its speed."""
    found = dataclasses.asdict(done)
    del found["stats"]
    return {"id": line.id, **found, "prompt_tokens": done.stats.prompt_tokens}


@contextmanager
def _shown(total: int) -> Iterator[OnResult]:
    """Progress on standard error: a bar at a terminal, and at the end a line everywhere."""
    start = time.perf_counter()
    answers = tokens = drafted = accepted = 0

    def speed() -> str:
        return f"{tokens / (time.perf_counter() - start):.0f} tokens/s"

    with _bar(total) as advance:

        def on_result(done: Completion | None) -> None:
            nonlocal answers, tokens, drafted, accepted
            if done is not None:
                answers += 1
                tokens += done.stats.generated_tokens
                drafted += done.stats.drafted
                accepted += done.stats.accepted
            advance(speed())

        yield on_result
    came_true = f", {accepted / drafted:.0%} of {drafted} drafts accepted" if drafted else ""
    texts = "1 text" if answers == 1 else f"{answers} texts"
    print(f"{texts}, {tokens} tokens, {speed()}{came_true}", file=sys.stderr)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar that advances by one, with something said beside it; nothing but at a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda said: bar.update(task, advance=1, description=said)
