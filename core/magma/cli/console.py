"""Terminal output: the plan of a run, the current activity, a progress bar, tables of results."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..system.ranks import is_first

if TYPE_CHECKING:
    from ..plan import Plan
    from ..runs.tasks import RunCallbacks


class _LastingConsole(RichConsole):
    """A console that stops printing when its terminal or pipe is gone: a run still has a checkpoint to save.

    Ctrl-C ends the `tee` that a run prints to, and a closed terminal refuses what is written.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        with self._lasting():
            super().print(*objects, **options)

    def __exit__(self, *error: Any) -> None:
        with self._lasting():  # of a bar, which writes when its block ends
            super().__exit__(*error)

    def on_broken_pipe(self) -> None:
        self.quiet = True  # rich would end the process

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.quiet = True


def plain_console(**options: Any) -> RichConsole:
    """A console that prints text unchanged: brackets and colons of a path are neither markup nor an emoji."""
    return _LastingConsole(**options, markup=False, emoji=False, highlight=False)


class _Bar(Progress):
    """A bar, and below it the step's values: on one line they are too long for most terminals."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields.get("news"):
                yield Text(f"  {task.fields['news']}", style="dim")


class Screen:
    """Output of a run: the current activity, the parts, a progress bar, a table. Only rank 0 prints.

    On a terminal it is a live line; elsewhere one line per update, at most every three seconds.
    """

    QUIET_S = 3.0

    def __init__(self) -> None:
        self.active = is_first()
        self.console = plain_console(stderr=True, quiet=not self.active)
        texts = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[count]}"))
        columns = (SpinnerColumn(), next(texts), BarColumn(), next(texts), TimeRemainingColumn())
        self.live = _Bar(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.live.add_task("starting", total=None, news="", count="")
        self.spoke = 0.0
        self.first: tuple[int, float] | None = None
        """The first step that was seen, and when."""
        self.stopped_by = 0
        """The signal that stopped the run."""
        self.began = time.perf_counter()

    def __enter__(self) -> Screen:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, text: str) -> None:
        """Show the current activity."""
        self.live.reset(self.task, description=text, total=None, news="", count="")
        if not self.console.is_terminal or text.startswith("step"):
            self._line(text)

    def note(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self._line(text)

    def _line(self, text: str) -> None:
        self.spoke = time.perf_counter()
        self.console.print(Text.assemble((f"{self.spoke - self.began:6.1f} s", "dim"), "  ", text), soft_wrap=True)

    def callbacks(self) -> RunCallbacks:
        """This screen as a run's callbacks."""
        from ..runs.tasks import RunCallbacks

        return RunCallbacks(
            say=self.say,
            step=self._step,
            plan=self._plan,
            answered=self.answered,
            note=self.note,
            stopped=self._stopped,
        )

    def _stopped(self, number: int) -> None:
        self.stopped_by = number

    def _bar(self, what: str, done: int, total: int, news: str, left: Callable[[], str] = str) -> None:
        if self.live.tasks[0].total != (total or None):
            self.live.reset(self.task, total=total or None)
        count = f"{done:,}/{total:,}" if total else f"{done:,}"
        self.live.update(self.task, description=what, completed=done, count=count, news=news)
        if not self.console.is_terminal and time.perf_counter() - self.spoke >= self.QUIET_S:
            self._line(f"{what} {count.replace(',', '')}  {news}{left()}")

    def _step(self, now: Any) -> None:
        step, moment = self.first = self.first or (now.step, time.perf_counter())
        seconds = time.perf_counter() - moment

        def left() -> str:
            if now.step == step or now.step >= now.steps:  # one step gives no speed; it is much slower than the others
                return ""
            return f"  {_duration((now.steps - now.step) * seconds / (now.step - step))} left"

        self._bar("training step", now.step, now.steps, _news(now), left)

    def answered(self, what: str, done: int) -> None:
        """Show the number of answered questions. Their total is not known before the last one."""
        self._bar(f"asking {what}:", done, 0, "answers")

    def _plan(self, plan: Plan) -> None:
        print_plan(plan, self.console)

    def scores(self, report: dict[str, Any]) -> None:
        """Print a table of each task in a report."""
        self.live.stop()
        for name, scores in report.get("tasks", {}).items():
            measures = report.get("measures", {}).get(name, {})
            table = Table(name.partition(".")[2], *scores, box=None, header_style="bold")
            for column in table.columns[1:]:
                column.justify = "right"
            if measures:
                table.add_column("measured as")
            for score in scores["model"]:
                how = [measures.get(score, "")] if measures else []
                table.add_row(score, *(f"{column[score]:.3f}" for column in scores.values()), *how)
            self.console.print(table)
        if report.get("tasks"):
            self.console.print(
                "model: as trained. shuffled: each question with the media of another question. blind: without media.",
                soft_wrap=True,
            )

    def report(self, report: dict[str, Any], out: Path, again: list[str]) -> None:
        """Print the results, or the command that resumes the run."""
        self.live.stop()
        if not report["finished"]:
            reason = f" ({report['stop_reason']})" if "stop_reason" in report else ""
            self.console.print(
                f"{report['stopped_by']} stopped the run at step {report['steps']}{reason}. A checkpoint is saved. "
                "Resume:\n"
                f"  {shlex.join(again)}",
                soft_wrap=True,  # the command has to be copied in one piece
            )
            return
        self.scores(report)
        self.console.print(
            f"{report['frozen_tensors']} frozen tensors are unchanged: sha256 {report['frozen_fingerprint']}\n"
            f"{report['steps']} training steps took {_duration(report['seconds'])}; all files are in {out}",
            soft_wrap=True,
        )


def _news(now: Any) -> str:
    """A step in one line: loss, learning rates, speed, GPU utilisation, memory."""
    rates = sorted(set(now.rates.values()))
    lowest, highest = f"{rates[0]:.2g}", f"{rates[-1]:.2g}"
    words = [
        f"loss {_loss(now.loss)}{' (skipped)' if now.skipped else ''}",
        *(f"{name.rpartition('.')[2]} {_loss(value)}" for name, value in now.auxiliary_losses.items()),
        f"lr {lowest}" if lowest == highest else f"lr {lowest} to {highest}",
        f"{now.samples_per_s:.4g} samples/s",
        f"{now.tokens_per_s:,.0f} tokens/s",
    ]
    if now.flops_per_s is not None:
        words.append(f"{_scaled(now.flops_per_s, 'FLOP')}/s")
        if now.peak_flops_per_s is not None:
            plain, useful = (x / now.peak_flops_per_s for x in (now.flops_per_s, now.useful_flops_per_s))
            words.append(f"MFU {plain:.0%}, useful {useful:.0%}")
    return "  ".join([*words, f"memory {_scaled(now.memory, 'B')}"])


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def print_plan(plan: Plan, console: RichConsole | None = None) -> None:
    """Print a table of the parts, and the costs of an example and of the run."""
    console = console or _stdout()
    if plan.stage:
        console.print(Text(plan.stage, style="bold"))
    table = Table("part", "name", "parameters", "trained", "learning rate", box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    starts = [[part.start] if part.start else [] for part in plan.parts]
    if any(starts):
        table.add_column("starts from")
    for part, start in zip(plan.parts, starts, strict=True):
        rate = f"{part.lr:g}" if part.lr else ""
        trained = f"{part.trained:,}" if part.trained else "frozen" if part.parameters else ""
        table.add_row(part.path, part.name, f"{part.parameters:,}", trained, rate, *start)
    table.add_row("all", "", f"{plan.totals['parameters']:,}", f"{plan.totals['trained']:,}", "")
    console.print(table)
    tokens = plan.tokens_per_example
    inputs = " + ".join(f"{one.tokens} {name}" for name, one in plan.inputs.items())
    line = f"{inputs or '0 media'} + {tokens['text']} text (assumed) = {tokens['total']} tokens an example"
    if plan.flops_per_sample:
        line += f"; {_scaled(plan.flops_per_sample, 'FLOP')} a sample"
    console.print(line, soft_wrap=True)
    for part in plan.parts:
        if part.blocks and (part.sites or {part.copies} != set(part.blocks)):  # usually one in every block
            count = "1 adapter" if part.copies == 1 else f"{part.copies} adapters"
            where = f" at {', '.join(part.sites)}; {part.parameters:,} parameters" if part.sites else ""
            console.print(
                f"{part.path}: {count}, in {part.blocks[0]} of {part.blocks[1]} blocks{where}", soft_wrap=True
            )
    if plan.costs_problem:
        console.print(f"FLOPs and activations are unknown: {plan.costs_problem}", markup=False, soft_wrap=True)
    if plan.length:
        run = plan.length
        console.print(
            f"{run.steps:,} steps of {run.batch_size} examples ({run.samples:,} samples), {plan.precision}; "
            f"checkpoint: {_scaled(plan.checkpoint_bytes, 'B')}, "
            f"optimizer state for resume: {_scaled(plan.state_bytes, 'B')}",
            soft_wrap=True,
        )
    print_warnings(plan.warnings, console)


def print_warnings(warnings: Iterable[str], console: RichConsole | None = None) -> None:
    """Print warnings about a recipe, by default on standard error."""
    console = console or plain_console(stderr=True)
    for warning in warnings:
        console.print(Text(f"warning: {warning}"), soft_wrap=True)


def print_memory(plan: Plan, console: RichConsole | None = None) -> None:
    """Print the memory of one GPU: a row for every ZeRO stage, a column for every micro-batch size."""
    if not plan.memory or not plan.length:
        return
    console = console or _stdout()
    sizes = sorted({row.micro_batch for row in plan.memory})
    table = Table("a GPU", "weights", "gradients", "buffers", "optimizer", box=None, header_style="bold")
    for size in sizes:
        table.add_column(f"batch {size}")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in (1, 2, 3):
        rows = {row.micro_batch: row for row in plan.memory if row.stage == stage}
        static = rows[sizes[0]]
        name = f"ZeRO {stage}{' *' if stage == plan.length.stage else ''}"
        table.add_row(
            name,
            *(_scaled(value, "B") for value in (static.weights, static.gradients, static.buffers, static.optimizer)),
            *(_scaled(rows[size].total, "B") for size in sizes),
        )
    console.print(table)
    legend = "; * is the recipe's stage" if plan.length.stage else ""  # stage 0 is not in the table
    gpus = "1 GPU" if plan.world == 1 else f"{plan.world} GPUs"
    console.print(
        f"{gpus}, {plan.length.accumulation} x {plan.length.micro_batch_size} examples each a step; activations "
        f"{_scaled(plan.activation_bytes_per_sample, 'B')} an example, all kept{legend}",
        soft_wrap=True,
    )


def print_columns(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(*heads, box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    _stdout().print(table)


def _stdout() -> RichConsole:
    """A file or a pipe is as wide as a table needs."""
    return plain_console(width=None if sys.stdout.isatty() else 160)


def _scaled(value: float | None, unit: str) -> str:
    """Three digits and a decimal prefix: 4.44 TFLOP."""
    if value is None or not math.isfinite(value):
        return "unknown"
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes, "P")
    return f"{value:.3g} {prefix}{unit}"


def _duration(seconds: float) -> str:
    """In the largest unit that fits, and the next smaller one: 45 s, 1 min 30 s, 2 h 5 min, 3 d."""
    for unit, smaller, ratio, size in (("d", "h", 24, 3_600), ("h", "min", 60, 60), ("min", "s", 60, 1)):
        count, rest = divmod(round(seconds / size), ratio)
        if count > 0:
            return f"{count:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{max(0, round(seconds))} s"
