"""What a person reads while a run trains and when it ends."""

from __future__ import annotations

import errno
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from magma.cli import console as module
from magma.cli.console import Screen, _duration, _scaled
from magma.training.progress import Progress


def progress(step: int, **fields: Any) -> Progress:
    values = {"steps": 1000, "loss": 1.5, "rates": {"a": 1e-3}, "samples_per_s": 8.0, "tokens_per_s": 99.0}
    speeds = {"flops_per_s": None, "useful_flops_per_s": None, "peak_flops_per_s": None}
    return Progress(**{"step": step, **values, **speeds, "memory": 10**9, "skipped": False, **fields})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A screen that is no terminal: what it prints for each of (second, progress)."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def shown(*told: tuple[float, Progress]) -> list[str]:
        screen, text = Screen(), io.StringIO()
        screen.console = module.plain_console(file=text)
        callbacks = screen.callbacks()
        for second, one in told:
            now[0] = second
            callbacks.step(one)
        return text.getvalue().splitlines()

    return shown


def test_no_estimate_is_printed_before_there_is_one(lines: Any) -> None:
    """The first step is slow, and its end is the first moment that is known: the second step gives a speed."""
    first, second, last = lines((50.0, progress(1)), (55.0, progress(2)), (5045.0, progress(1000)))
    assert first == "  50.0 s  training step 1/1000  loss 1.5000  lr 0.001  8 samples/s  99 tokens/s  memory 1 GB"
    assert second.endswith("memory 1 GB  1 h 23 min left")  # 998 steps of 5 s
    assert last.endswith("memory 1 GB")
    (resumed,) = lines((50.0, progress(900)))
    assert "left" not in resumed


def test_what_is_not_finite_is_said_in_words(lines: Any) -> None:
    """And ends: a number that never falls below 1000 has no prefix."""
    (line,) = lines((9.0, progress(1, loss=math.nan, skipped=True, flops_per_s=math.inf, samples_per_s=0.0)))
    assert "loss not finite (skipped)" in line
    assert "  unknown/s  " in line
    assert not any(word in line for word in ("nan", "inf "))
    assert _scaled(math.nan, "B") == _scaled(None, "B") == "unknown"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((0, "0 s"), (0.4, "0 s"), (-3, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (90, "1 min 30 s"), (119.7, "2 min")),
        *((3599.8, "1 h"), (3600, "1 h"), (3630, "1 h"), (3660, "1 h 1 min"), (7170, "2 h"), (86_400, "1 d")),
        *((86_399, "1 d"), (100_000, "1 d 4 h"), (9e9, "104,166 d 16 h")),
    ],
)
def test_durations_have_units_that_fit(seconds: float, expected: str) -> None:
    assert _duration(seconds) == expected


def test_the_end_explains_the_columns(tmp_path: Path) -> None:
    screen, text = Screen(), io.StringIO()
    screen.console = module.plain_console(file=text, width=200)
    scores = {"model": {"accuracy": 0.9}, "shuffled": {"accuracy": 0.1}, "blind": {"accuracy": 0.1}}
    report = {"finished": True, "tasks": {"0.digits": scores}, "frozen_tensors": 45, "frozen_fingerprint": "1a"}
    screen.report({**report, "steps": 20, "seconds": 100.2}, tmp_path, [])
    assert "shuffled: each question with the media of another question. blind: without media." in text.getvalue()
    assert "45 frozen tensors are unchanged: sha256 1a\n" in text.getvalue()
    assert f"20 training steps took 1 min 40 s; all files are in {tmp_path}" in text.getvalue()


FOREIGN = "runs/exp[seven] [/x] [bold]a :bug: $x_{"


def test_foreign_text_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets and colons of a path are neither markup nor an emoji, wherever something is printed."""
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen()
    screen.say(FOREIGN)
    screen.note(FOREIGN)
    stopped = {"finished": False, "steps": 3, "stopped_by": "SIGTERM"}
    screen.report(stopped, tmp_path, ["magma", "--out", FOREIGN, "--resume"])
    finished = {"finished": True, "steps": 3, "seconds": 1, "frozen_tensors": 1, "frozen_fingerprint": "1a"}
    scores = {"model": {FOREIGN: 0.5}}
    tasks = {"tasks": {f"0.{FOREIGN}": scores}, "measures": {f"0.{FOREIGN}": {FOREIGN: FOREIGN}}}
    screen.report({**finished, **tasks}, Path(FOREIGN), [])
    module.print_columns([FOREIGN], [[FOREIGN]])
    shown = capsys.readouterr()
    assert shown.out.count(FOREIGN) == 2
    lines = [line for line in shown.err.splitlines() if FOREIGN in line]
    assert len(lines) == 6
    assert lines[2].strip() == f"magma --out '{FOREIGN}' --resume"
    assert lines[3].count(FOREIGN) == 1
    assert lines[4].count(FOREIGN) == 2


@pytest.mark.parametrize("folder", ["core", "plugins"])
def test_no_console_reads_markup(folder: str) -> None:
    """Columns of a bar have a switch of their own."""
    for file in (Path(__file__).parents[3] / folder).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for call in re.findall(r"\b\w*Console\(.*(?:stderr|width|\*\*options).*\)", text):
            assert "markup=False, emoji=False" in call, f"{file}: {call}"
        for call in re.findall(r"\bTextColumn\(.*?\)", text):
            assert "markup=False" in call, f"{file}: {call}"


def test_a_bar_shows_foreign_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    plain = module.plain_console
    monkeypatch.setattr(module, "plain_console", lambda **_: plain(file=text, force_terminal=True, width=200))
    with Screen() as screen:
        screen.say(FOREIGN)
        screen.live.refresh()
    assert FOREIGN in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_screen_that_is_gone_does_not_end_a_run(number: int, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`magma recipe run R 2>&1 | tee log`: Ctrl-C ends tee first; a closed terminal refuses what is written."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(number, os.strerror(number))

    plain, gone = module.plain_console, Gone()
    monkeypatch.setattr(module, "plain_console", lambda **_: plain(file=gone, force_terminal=terminal))
    with Screen() as screen:
        screen.say("saving a checkpoint")
        screen.note("a note")
        screen.callbacks().step(progress(1))
        screen.live.refresh()
        screen.report({"finished": False, "steps": 1, "stopped_by": "SIGINT"}, Path(), ["magma"])
    assert screen.console.quiet
