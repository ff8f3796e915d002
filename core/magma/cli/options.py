"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUNS = Path("runs")
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value, such as train.lr=1e-4.")
]
MovedLM = Annotated[
    str | None,
    typer.Option(
        "--lm", metavar="PLACE", help="Where the language model is now, if it has moved: a folder or hub name."
    ),
]
