"""The splits that the digits have."""

from __future__ import annotations

from typing import Literal, cast, get_args

from magma import InputError

Split = Literal["train", "test"]


def check_split(split: str) -> Split:
    """The split as given. Raises `InputError` for one that does not exist."""
    if split not in get_args(Split):
        raise InputError(f"split: given {split!r}; allowed: {', '.join(get_args(Split))}")
    return cast(Split, split)
