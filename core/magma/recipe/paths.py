"""Config fields that are files or folders: relative paths are resolved when a recipe is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from ..system.home_paths import expand_home


def _resolve(value: str, info: ValidationInfo) -> str:
    """A relative path, where it exists: beside the recipe, in $MAGMA_DATA, in the working folder. Else as given."""
    if (expanded := expand_home(Path(value))).is_absolute():
        return str(expanded)
    folder = (info.context or {}).get("folder")
    places = [folder, os.environ.get("MAGMA_DATA"), Path.cwd()]
    for place in places:
        if place is not None and (Path(place) / value).exists():
            return str((Path(place) / value).resolve())
    return value


def relative(value: Any, folder: Path | None) -> Any:
    """The same tables, with paths inside `folder` as seen from there."""
    if folder is None:
        return value
    if isinstance(value, dict):
        return {key: relative(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [relative(one, folder) for one in value]
    inside = isinstance(value, str) and value.startswith(f"{folder.resolve()}{os.sep}")
    return str(Path(value).relative_to(folder.resolve())) if inside else value


LocalPath = Annotated[str, AfterValidator(_resolve)]
"""A config field that is a file or folder; a relative one is made absolute where it is found."""
Weights = LocalPath
"""A config field that is a hub name or a file or folder: what is not found on disk stays as it is."""
