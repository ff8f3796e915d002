"""`magma data convert|check|show`: parse, call, print. Whatever is slow to import is imported when a command runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .convert.conversion import Progress

Folder = Annotated[Path, typer.Argument(help="A folder that `magma data convert` made.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; shards are shared among them.")]
_CPUS = min(8, os.cpu_count() or 1)


def convert(
    name: Annotated[str, typer.Argument(help="A data set of docs/data.md, such as vqa2.")],
    sources: Annotated[list[Path], typer.Argument(help="Folders with its official files, anywhere below.")],
    out: Annotated[Path, typer.Option(help="Folder to write; one that was begun goes on.")],
    split: Annotated[list[str] | None, typer.Option(help="This split alone; repeat it for several.")] = None,
    layout: Annotated[list[str] | None, typer.Option(help="Of a set that is published in several ways.")] = None,
    workers: Workers = _CPUS,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images read for a shard.")] = 1000,
    min_size: Annotated[int, typer.Option(min=0, help="Leave out images with a side of fewer pixels.")] = 0,
    min_similarity: Annotated[float | None, typer.Option(help="laion: least CLIP similarity.")] = None,
    language: Annotated[str | None, typer.Option(help="wit: rows of this language; en by default.")] = None,
    restval: Annotated[
        Literal["train", "restval", "none"] | None,
        typer.Option(help="coco_captions, Karpathy's: where the fourth part goes; train by default."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Do without numbered files that are missing.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an image of the web may take.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Downloads at once, in each process.")] = 32,
) -> None:
    """Make WebDataset shards of a data set's official files; the same command goes on after an interruption."""
    from dataclasses import asdict
    from functools import partial as partial_of

    from .convert.base_set import Options
    from .convert.conversion import Conversion
    from .convert.conversion import convert as write_shards
    from .convert.registry import find_set
    from .convert.required_files import FileIndex
    from .convert.shards import ShardSettings

    chosen = find_set(name)()
    options = Options(*(tuple(split or ()), tuple(layout or ()), partial, min_size, min_similarity, language, restval))
    display = _ProgressDisplay("images")
    tree = FileIndex(sources)
    found = chosen.find(tree, options)
    kept = {**asdict(options), "splits": found.splits, "layouts": found.layouts}
    conversion = Conversion(
        chosen.name,
        chosen.kind,
        {split: partial_of(chosen.items, split, found, options) for split in found.splits},
        ShardSettings(samples_per_shard, min_size, timeout, threads),
        {**kept, "files": tree.sizes(found.files())},
    )
    try:
        with display:
            report, before = write_shards(conversion, out, workers, display.show_conversion)
    except KeyboardInterrupt:
        typer.echo("Stopped; whole shards are kept, and the same command goes on from them.", err=True)
        raise typer.Exit(130) from None
    _print_report(report)
    typer.echo(f"{out} {'was finished already: nothing to do' if before else 'is finished'}")


def check(folder: Folder, workers: Workers = _CPUS) -> None:
    """Read a whole folder: hashes, counts, every image, every field. Exit status 1 where something is wrong."""
    from .convert.check import check as check_folder
    from .convert.shard_format import read_index

    with _ProgressDisplay("shards") as display:
        problems = check_folder(folder, workers, lambda done, total: display.update("checking", done, total))
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {folder}")
        raise typer.Exit(1)
    counts = [f"{name} {one.samples:,} images, {one.rows:,} rows" for name, one in read_index(folder).splits.items()]
    typer.echo(f"{folder} is as it was written: {'; '.join(counts)}")


def show(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Where to draw; DIR/sheet.png where it is not given.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images on the sheet.")] = 24,
    seed: Annotated[int, typer.Option(help="Another one picks other images.")] = 0,
    split: Annotated[str | None, typer.Option(help="Images of this split alone.")] = None,
) -> None:
    """Draw some images with what is said about them."""
    from .convert.contact_sheet import draw_contact_sheet

    png = out or folder / "sheet.png"
    drawn = draw_contact_sheet(folder, png, count, seed, split)
    typer.echo(f"{drawn} images: {png}")


class _ProgressDisplay:
    """A bar on a terminal; elsewhere a line now and then. Both on stderr."""

    QUIET_S = 5.0

    def __init__(self, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.unit, self.spoke = unit, 0.0
        texts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[count]}"))
        columns = (SpinnerColumn(), next(texts), BarColumn(), next(texts))
        live = self.console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not live)
        self.task = self.bar.add_task("reading", total=None, count="")
        self.now = ""
        self.began: tuple[float, int] = time.monotonic(), 0

    def __enter__(self) -> _ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show_conversion(self, progress: Progress) -> None:
        """How far a conversion is."""
        self.update(progress.split, progress.read, progress.total)

    def update(self, what: str, done: int, total: int) -> None:
        """`total` 0: unknown."""
        if what != self.now:
            self.now, self.began = what, (time.monotonic(), done)
            self.bar.reset(self.task, total=total or None)
        seconds, first = time.monotonic() - self.began[0], self.began[1]
        speed = f", {(done - first) / seconds:,.0f}/s" if done > first and seconds else ""
        count = f"{done:,}{f'/{total:,}' if total else ''} {self.unit}{speed}"
        self.bar.update(self.task, description=what, completed=done, count=count)
        if not self.console.is_terminal and time.monotonic() - self.spoke >= self.QUIET_S:
            self.spoke = time.monotonic()
            self.console.print(f"{what} {count}", soft_wrap=True)


def _print_report(report: dict[str, Any]) -> None:
    """A row a split, a row below it for each reason."""
    from rich.table import Table

    table = Table("split", "read", "written", "dropped", "reason", box=None, header_style="bold")
    for column in table.columns[1:4]:
        column.justify = "right"
    for name, counts in report["splits"].items():
        dropped = sum(counts["dropped"].values())
        table.add_row(
            name, f"{counts['read']:,}", f"{counts['written']:,}", f"{dropped:,}", "all reasons" if dropped else ""
        )
        for reason, count in counts["dropped"].items():
            table.add_row("", "", "", f"{count:,}", reason)
        for reason, count in counts["trimmed"].items():
            table.add_row("", "", "", f"({count:,})", reason)
    _stdout().print(table)


def _stdout() -> Console:
    """A file or a pipe is as wide as a table needs."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 160)
