"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

MovedLM = Annotated[
    str | None,
    typer.Option(
        "--lm", metavar="PLACE", help="Where the language model is now, if it has moved: a folder or hub name."
    ),
]
