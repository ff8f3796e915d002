"""Splits of the digits."""

from __future__ import annotations

from typing import Literal, cast, get_args

from magma import InputError

Split = Literal["train", "test"]


def check_split(split: str) -> Split:
    """Return the split. Raises `InputError` if it does not exist."""
    if split not in get_args(Split):
        raise InputError(f"split: given {split!r}; allowed: {', '.join(get_args(Split))}")
    return cast(Split, split)
