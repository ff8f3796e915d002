"""Which column of the data holds which field, and which folder holds the media: keys that all rows have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from magma import InputError, LocalPath, PartConfig, did_you_mean

MEDIUM = "image"
"""The field of a row that holds its medium, by default."""
_MANY = 20
"""At most this many columns are listed in an error."""


@dataclass(frozen=True)
class Columns:
    """Field to column, where the two have different names."""

    given: Mapping[str, str] = field(default_factory=dict)
    input: str = MEDIUM
    """The model's input that gets the medium: a column with this name holds it, too."""
    media: Path | None = None
    """The folder that paths of media are relative to; None: that of the rows."""

    def of(self, name: str) -> str:
        """The column of a field."""
        return self.given.get(name, name)

    @property
    def medium(self) -> str | None:
        """The column that was given for the medium."""
        return self.given.get(MEDIUM)

    def check_given(self, where: str, known: Collection[str]) -> str | None:
        """The column that was given for the medium. Raises `InputError` where it is not among the `known` ones."""
        if self.medium is not None and self.medium not in known:
            raise InputError(f"{where}: columns: given {self.medium!r}; allowed: {list_columns(known)}")
        return self.medium

    def implied_by_input(self, known: Collection[str]) -> str | None:
        """A column with the input's name; that of the default name is for the layout to find."""
        return self.input if self.input != MEDIUM and self.input in known else None


DEFAULT_COLUMNS = Columns()
"""Every column is called as its field."""


def list_columns(columns: Iterable[str]) -> str:
    """Columns as an error lists them."""
    names = list(columns)
    return ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "") if names else "nothing"


class ColumnsConfig(PartConfig):
    """Rows whose columns may have any name."""

    names: ClassVar[tuple[str, ...]] = ()
    """Fields that `columns` may rename."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other words for some of them."""
    columns: dict[str, str] = Field({})
    """Field to column, for columns with other names, as in `{ caption = "text" }`. In a tar, the column is the suffix
    of a member."""

    def resolve_columns(self) -> Columns:
        """What rows need to know of it."""
        known = self._known()
        return Columns({known[name]: column for name, column in self.columns.items()})

    def missing(self) -> list[str]:
        """Folders of this config that are not there."""
        return []

    def _known(self) -> dict[str, str]:
        """What `columns` may have as its keys, to the field that each means."""
        return {name: name for name in self.names} | dict(self.aliases)

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        known = self._known()
        meant: dict[str, str] = {}
        for name in self.columns:
            if name not in known:
                raise ValueError(f"columns of {', '.join(known)}, not of {name!r}.{did_you_mean(name, known)}")
            if known[name] in meant:
                raise ValueError(f"one column for {meant[known[name]]} or {name}, which mean the same field")
            meant[known[name]] = name
        return self


class MediaConfig(ColumnsConfig):
    """The same with a medium in each row."""

    input: str = MEDIUM
    """Name of the model's input that gets the media."""
    media: LocalPath | None = None
    """Folder that the paths in rows are relative to. Default: the folder of the rows."""

    def resolve_columns(self) -> Columns:
        return replace(super().resolve_columns(), input=self.input, media=Path(self.media) if self.media else None)

    def missing(self) -> list[str]:
        if self.media is None or Path(self.media).is_dir():
            return []
        return [
            f"media: given {self.media!r}, which is no folder beside the recipe, in $MAGMA_DATA or in the working "
            "folder; allowed: the folder that the paths in the rows are relative to"
        ]

    def _known(self) -> dict[str, str]:
        return {self.input: MEDIUM, MEDIUM: MEDIUM} | super()._known()
