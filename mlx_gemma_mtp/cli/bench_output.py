"""What `mgm bench` leaves: tables on stdout, files, and on stderr what is going on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlx_gemma_mtp.errors import UsageError

if TYPE_CHECKING:
    from mlx_gemma_mtp.bench.record import Record


@dataclass(frozen=True)
class Shown:
    """How it is told."""

    format: Annotated[Literal["table", "md", "csv", "json"], typer.Option()] = "table"
    out: Annotated[Path | None, typer.Option(help="Also write it as JSON, case by case.")] = None
    plot: Annotated[Path | None, typer.Option(help="A folder for plots, as SVG.")] = None
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Say which setting to use; auto starts from there.")
    ] = False
    share: Annotated[bool, typer.Option("--share", help="Print one Markdown row, to paste.")] = (
        False
    )
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Show what --out wrote, and measure nothing; repeatable. Plots take runs that "
            "differ in --batch alone as one.",
        ),
    ] = None

    def check_places(self) -> None:
        """Raise UsageError where a long run would end in a place that there is not."""
        from mlx_gemma_mtp.bench.plot import need_matplotlib

        if self.out is not None and not self.out.absolute().parent.is_dir():
            raise UsageError(f"--out: there is no folder {self.out.absolute().parent}")
        if self.out is not None and self.out.is_dir():
            raise UsageError(f"--out: {self.out} is a folder: name a file")
        if self.plot is None:
            return
        need_matplotlib()
        try:
            self.plot.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--plot: {self.plot} cannot be made: {error.strerror}") from None

    def keep(self, found: dict[str, Any]) -> None:
        """Write what was found so far to --out."""
        from mlx_gemma_mtp.bench.record import write_json

        if self.out is not None:
            write_json(found, self.out)

    def show(self, records: list[Record]) -> None:
        """Print runs, and plot them."""
        from mlx_gemma_mtp.bench import show
        from mlx_gemma_mtp.bench.plot import plot

        if self.share:
            print(show.share_header(), *(show.share(record) for record in records), sep="\n")
            for advice in filter(None, [record.recommendation for record in records]):
                print(advice, file=sys.stderr)
        elif self.format == "csv":
            print(show.csv(records), end="")
        elif self.format == "json":
            for record in records:
                print(json.dumps(record.to_json(), ensure_ascii=False))
        else:
            as_text = show.table if self.format == "table" else show.markdown
            print("\n".join(as_text(record) for record in records), end="")
        if self.plot is not None:
            for path in plot(records, self.plot):
                print(path, file=sys.stderr)


def tell(line: str) -> None:
    """What is going on: one line that changes on a terminal, lines elsewhere."""
    from mlx_gemma_mtp.show import can_draw

    if can_draw():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr)
