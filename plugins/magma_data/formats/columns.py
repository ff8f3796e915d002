"""The keys `columns`, `input` and `media` of data sources and tasks: which column has which field."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from magma import InputError, LocalPath, PartConfig, did_you_mean

MEDIUM = "image"
"""Default name of the field that has the medium of a row."""
_MAX_LISTED = 20
"""Maximum number of columns that an error message lists."""


@dataclass(frozen=True)
class Columns:
    """Map of fields to columns, for those with different names."""

    given: Mapping[str, str] = field(default_factory=dict)
    input: str = MEDIUM
    """Name of the model's input. A column with this name is taken as the medium, too."""
    media: Path | None = None
    """Folder that the paths of media are relative to; None: the folder of the rows."""

    def of(self, name: str) -> str:
        """The column of a field."""
        return self.given.get(name, name)

    @property
    def medium(self) -> str | None:
        """The column of the medium, if `columns` names it."""
        return self.given.get(MEDIUM)

    def check_given(self, where: str, known: Collection[str]) -> str | None:
        """The column of the medium, if `columns` names it. Raises `InputError` if it is not a `known` column."""
        if self.medium is not None and self.medium not in known:
            raise InputError(f"{where}: columns: given {self.medium!r}; allowed: {list_columns(known)}")
        return self.medium

    def implied_by_input(self, known: Collection[str]) -> str | None:
        """A column with the name of the input, except for the default name, which each format handles."""
        return self.input if self.input != MEDIUM and self.input in known else None


DEFAULT_COLUMNS = Columns()
"""All columns have the names of their fields."""


def list_columns(columns: Iterable[str]) -> str:
    """Columns as text for an error message."""
    names = list(columns)
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "") if names else "nothing"


class ColumnsConfig(PartConfig):
    """Keys of rows whose columns can be renamed."""

    names: ClassVar[tuple[str, ...]] = ()
    """Fields that `columns` may contain."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of fields."""
    columns: dict[str, str] = Field({})
    """Field to column, for columns with other names, as in `{ caption = "text" }`. In a tar, the column is the suffix
    of a member."""

    def resolve_columns(self) -> Columns:
        """The mapping of fields to columns that rows use."""
        known = self._allowed_keys()
        return Columns({known[name]: column for name, column in self.columns.items()})

    def missing(self) -> list[str]:
        """Problems with folders of this config that do not exist."""
        return []

    def _allowed_keys(self) -> dict[str, str]:
        """Allowed keys of `columns`, with the field of each."""
        return {name: name for name in self.names} | dict(self.aliases)

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        known = self._allowed_keys()
        key_of_field: dict[str, str] = {}
        for name in self.columns:
            if name not in known:
                raise ValueError(
                    f"columns for the fields {', '.join(known)}, not for {name!r}.{did_you_mean(name, known)}"
                )
            if known[name] in key_of_field:
                raise ValueError(
                    f"a column for {key_of_field[known[name]]} or {name}, not for both: they are the same field"
                )
            key_of_field[known[name]] = name
        return self


class MediaConfig(ColumnsConfig):
    """Keys of rows with a medium."""

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
            f"media: given {self.media!r}, which is not a folder beside the recipe, in $MAGMA_DATA or in the working "
            "directory; allowed: the folder that the paths in the rows are relative to"
        ]

    def _allowed_keys(self) -> dict[str, str]:
        return {self.input: MEDIUM, MEDIUM: MEDIUM} | super()._allowed_keys()
