"""Types of config fields that are files or folders. Relative paths are resolved when a recipe is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from ..system.home_paths import expand_home


def _resolve(value: str, info: ValidationInfo) -> str:
    """Look up a relative path next to the recipe, in $MAGMA_DATA and in the working folder. Otherwise unchanged."""
    if (expanded := expand_home(Path(value))).is_absolute():
        return str(expanded)
    folder = (info.context or {}).get("folder")
    places = [folder, os.environ.get("MAGMA_DATA"), Path.cwd()]
    for place in places:
        if place is not None and (Path(place) / value).exists():
            return str((Path(place) / value).resolve())
    return value


def relative(value: Any, folder: Path | None) -> Any:
    """The same tables with paths inside `folder` relative to it."""
    if folder is None:
        return value
    if isinstance(value, dict):
        return {key: relative(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [relative(one, folder) for one in value]
    inside = isinstance(value, str) and value.startswith(f"{folder.resolve()}{os.sep}")
    return str(Path(value).relative_to(folder.resolve())) if inside else value


LocalPath = Annotated[str, AfterValidator(_resolve)]
"""Type of a config field that is a file or folder. A relative path that exists becomes absolute."""
Weights = LocalPath
"""Type of a config field that is a hub name, a file or a folder. A name that is not on disk is unchanged."""
