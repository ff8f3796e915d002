"""Find and read the file of a recipe, and merge it into the file that it extends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError, did_you_mean
from .notation import parse_toml
from .tables import merge_recipes

SUFFIX = ".toml"


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a bundled recipe ("quickstart", "paper/frozen")."""
    path = Path(source)
    if path.is_file():
        return path
    known = bundled()
    if str(source) in known:
        return known[str(source)]
    hint = did_you_mean(str(source), known)
    raise RecipeError(
        str(source), [f"no such file, and no bundled recipe has this name.{hint} Bundled: {', '.join(known)}"]
    )


def bundled() -> dict[str, Path]:
    """The recipes of this package: file by name."""
    here = Path(__file__).parents[1]
    # inside the package in a wheel, at the top of a checkout
    folder = next((f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()), here)
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob(f"*{SUFFIX}"))}


def read_tables(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a file, merged into those of the file that it extends."""
    path = path.resolve()
    if path in seen:
        raise RecipeError(str(seen[0]), [f"extends itself: {' -> '.join(str(p) for p in (*seen, path))}"])
    try:
        raw = parse_toml(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except (OSError, ValueError) as error:
        raise RecipeError(str(path), [str(error)]) from error
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise RecipeError(
            str(path), [f"extends: given {base!r}; allowed: the path of another recipe, or the name of a bundled one"]
        )
    beside = path.parent / base
    parent = beside if beside.is_file() else bundled().get(base.removesuffix(SUFFIX))
    if parent is None:
        hint = did_you_mean(base.removesuffix(SUFFIX), bundled())
        raise RecipeError(
            str(path), [f"extends: given {base!r}; {beside} does not exist, and no bundled recipe has this name.{hint}"]
        )
    inherited = read_tables(parent, (*seen, path))
    inherited.pop("published", None)  # these are scores of that recipe only
    return merge_recipes(inherited, raw)


def remove_switched_off(raw: dict[str, Any]) -> None:
    """Apply `false`, which removes an inherited adapter, input or head, or the stages."""
    for key in ("inputs", "adapters"):
        if isinstance(raw.get(key), Mapping):
            raw[key] = {name: table for name, table in raw[key].items() if table is not False}
    for key in ("head", "stages"):
        if raw.get(key) is False:
            del raw[key]
