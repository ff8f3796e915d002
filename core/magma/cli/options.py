"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Set one value, such as train.lr=1e-4. Repeat the option for several."
    ),
]
MovedLM = Annotated[
    str | None,
    typer.Option("--lm", metavar="PLACE", help="New place of a language model that has moved: a folder or hub name."),
]
