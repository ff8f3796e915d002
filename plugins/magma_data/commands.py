"""The commands `magma data convert|check|show`. Slow imports happen when a command runs."""

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

Folder = Annotated[Path, typer.Argument(help="A folder that `magma data convert` wrote.")]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes; each one works on a shard at a time.")]
_DEFAULT_WORKERS = min(8, os.cpu_count() or 1)


def convert(
    name: Annotated[
        str, typer.Argument(help='Name of a data set, such as vqa2; the page "Published data sets" lists them.')
    ],
    sources: Annotated[
        list[Path], typer.Argument(help="Folders that contain its official files, at any depth, or the files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write. An unfinished conversion is resumed.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Convert only this split. Repeat the option for several. Default: all.")
    ] = None,
    layout: Annotated[
        list[str] | None, typer.Option(help="Layout of the official files, for data sets with several.")
    ] = None,
    workers: Workers = _DEFAULT_WORKERS,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images read per shard.")] = 1000,
    min_size: Annotated[int, typer.Option(min=0, help="Drop images whose shorter side has fewer pixels.")] = 0,
    min_similarity: Annotated[float | None, typer.Option(help="laion: minimum CLIP similarity.")] = None,
    language: Annotated[str | None, typer.Option(help="wit: language of the rows. Default: en.")] = None,
    restval: Annotated[
        Literal["train", "restval", "none"] | None,
        typer.Option(
            help="coco_captions: put Karpathy's `restval` into train, its own split, or nowhere. Default: train."
        ),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Allow missing part files (-00003-of-00010).")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Time limit for the download of an image, in seconds.")
    ] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Simultaneous downloads per process.")] = 32,
) -> None:
    """Convert the official files of a data set to WebDataset shards. The same command resumes after an interruption."""
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
    index = FileIndex(sources)
    found = chosen.find(index, options)
    saved_options = {**asdict(options), "splits": found.splits, "layouts": found.layouts}
    conversion = Conversion(
        chosen.name,
        chosen.kind,
        {split: partial_of(chosen.items, split, found, options) for split in found.splits},
        ShardSettings(samples_per_shard, min_size, timeout, threads),
        {**saved_options, "files": index.sizes(found.files())},
        chosen.readme(),
    )
    try:
        with display:
            report, before = write_shards(conversion, out, workers, display.show_conversion)
    except KeyboardInterrupt:
        typer.echo("Stopped. Complete shards are kept; the same command resumes after them.", err=True)
        raise typer.Exit(130) from None
    _print_report(report)
    typer.echo(f"{out} {'was complete already: nothing to do' if before else 'is complete'}")


def check(folder: Folder, workers: Workers = _DEFAULT_WORKERS) -> None:
    """Verify a folder of shards: hashes, counts, every image, every field. Exit status 1 if there are problems."""
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
    typer.echo(f"{folder} has no problems: {'; '.join(counts)}")


def show(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: FOLDER/sheet.png.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random selection.")] = 0,
    split: Annotated[str | None, typer.Option(help="Show only images of this split.")] = None,
) -> None:
    """Draw a contact sheet: random images with their captions, questions or statements."""
    from .convert.contact_sheet import draw_contact_sheet

    png = out or folder / "sheet.png"
    drawn = draw_contact_sheet(folder, png, count, seed, split)
    typer.echo(f"{drawn} images: {png}")


class _ProgressDisplay:
    """Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.unit, self.last_line = unit, 0.0
        texts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[count]}"))
        columns = (SpinnerColumn(), next(texts), BarColumn(), next(texts))
        live = self.console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not live)
        self.task = self.bar.add_task("reading", total=None, count="")
        self.description = ""
        self.start: tuple[float, int] = time.monotonic(), 0

    def __enter__(self) -> _ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show_conversion(self, progress: Progress) -> None:
        """Show the progress of a conversion."""
        self.update(progress.split, progress.read, progress.total)

    def update(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; `total` 0: unknown."""
        if what != self.description:
            self.description, self.start = what, (time.monotonic(), done)
            self.bar.reset(self.task, total=total or None)
        seconds, first = time.monotonic() - self.start[0], self.start[1]
        speed = f", {(done - first) / seconds:,.0f}/s" if done > first and seconds else ""
        count = f"{done:,}{f'/{total:,}' if total else ''} {self.unit}{speed}"
        self.bar.update(self.task, description=what, completed=done, count=count)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= self.SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"{what} {count}", soft_wrap=True)


def _print_report(report: dict[str, Any]) -> None:
    """Print a table with one row per split and one per reason for dropped rows."""
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
    _make_console().print(table)


def _make_console() -> Console:
    """A console for stdout. For a file or a pipe it is wide enough for every table."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 160)
