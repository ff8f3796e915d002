"""Facts about countries: `countries.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Country:
    """A row of `countries.csv`. Several accepted answers are separated by `|`."""

    code: str
    """ISO 3166-1 alpha-2; XK for Kosovo."""
    country: str
    """The usual English name, with its article, as after "the flag of"."""
    capital: str
    continent: str


@cache
def read_countries() -> dict[str, Country]:
    """The countries by code."""
    with Path(__file__).with_name("countries.csv").open(encoding="utf-8", newline="") as lines:
        return {row["code"]: Country(**row) for row in csv.DictReader(lines)}
