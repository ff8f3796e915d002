"""Check that a checkpoint's folder is complete and unmodified, with the same code as `load`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import (
    NOT_COVERED,
    check_frozen,
    check_stored,
    describe_mismatches,
    frozen_hashes,
    read_recipe,
    read_trained,
    rebuild,
    stored_in,
    stored_parts,
)
from .errors import MagmaError, PartError
from .manifest import (
    MANIFEST,
    RECIPE,
    STATE,
    TRAINED,
    Manifest,
    check_state,
    dtype_of,
    find_checkpoint,
    names_of_part,
    read_manifest,
    uncovered,
)
from .model import Magma
from .recipe.assemble import assemble
from .recipe.recipe import Recipe
from .tensors import read_tensors


@dataclass(frozen=True)
class Finding:
    """The result for one file or part."""

    what: str
    """A file, or a part whose weights are elsewhere."""
    compared: str
    unchecked: str = ""
    """Why it could not be checked. Empty: it is unmodified."""


def verify(
    folder: str | Path, overrides: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compare a checkpoint, or the newest one of a run, and its frozen weights with the manifest.

    Args:
        folder: A checkpoint or the folder of a run.
        overrides: As for `load`.
        say: Called with each step, for progress messages.

    Raises:
        MagmaError: As `load`.
        CheckpointError: Files in `state/` are damaged.
    """
    folder = find_checkpoint(folder)
    manifest = read_manifest(folder)
    say("comparing files")
    recipe = read_recipe(folder, manifest, overrides)
    if (folder / STATE).is_dir():
        check_state(folder, manifest)
    found = [Finding(MANIFEST, f"format {manifest.format}"), *_files(folder, manifest)]
    model, lacking = _built(folder, manifest, recipe, say)
    if model is None:
        reason = "; ".join(lacking.values())
        check_stored(folder / TRAINED, manifest, read_tensors(folder / TRAINED)[0])
        found.append(Finding(TRAINED, "fingerprints", f"names and shapes are not compared with the model: {reason}"))
        found += [Finding(path, "", problem) for path, problem in lacking.items()]
    else:
        found.append(Finding(TRAINED, f"{len(manifest.trained)} tensors: names, shapes, dtypes, values, fingerprints"))
        say("comparing the fingerprints of the frozen weights")
        found += _frozen(model, folder, manifest, lacking)
    return [*found, *_state(folder, manifest)]


def _files(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    if not manifest.covers_recipe:
        yield Finding(RECIPE, "", NOT_COVERED)
    yield from (Finding(name, "SHA-256") for name in manifest.files)
    yield from (Finding(name, f"{size:,} bytes") for name, size in manifest.weights.items())
    yield from (
        Finding(name, "", f"not covered by {MANIFEST}: it was added later") for name in uncovered(folder, manifest)
    )


def _built(
    folder: Path, manifest: Manifest, recipe: Recipe, say: Callable[[str], None]
) -> tuple[Magma | None, dict[str, str]]:
    """Build the model as `load` does, or, if files are missing, with the frozen parts that are present.

    Returns:
        The model, or None if the missing files decide its size; and what the parts lack, by path.
    """
    try:
        return rebuild(folder, manifest, recipe, say), {}
    except MagmaError:
        parts = recipe.parts()
        lacking = {path: "; ".join(found) for path, part, config in parts if (found := part.problems(config))}
        if not lacking:
            raise
    trained = recipe.trained_parts()
    tops = {path: _outermost(path, trained) for path in trained}
    frozen = {"lm", *(f"inputs.{name}.encoder" for name, table in recipe.inputs.items() if not table.trainable)}
    frozen -= {tops[path] for path in stored_parts(manifest) if path in tops}
    absent = {path for path in tops.values() if path not in frozen} | {tops[path] for path in lacking if path in tops}
    for path in trained:
        if path != tops[path] and tops[path] in absent and not trained[path]:
            lacking.setdefault(path, f"it is not loaded without the other parts of {tops[path]}")
    try:
        model = assemble(recipe, dtype=dtype_of(manifest), absent=absent, say=say)
    except PartError:
        return None, lacking
    if describe_mismatches(stored_in(model, manifest), read_tensors(folder / TRAINED)[0]):
        return None, lacking
    read_trained(model, folder)
    return model, lacking


def _outermost(path: str, paths: Iterable[str]) -> str:
    """The path of the part that contains this part and is in no other part, or the path itself."""
    return min((one for one in paths if path == one or path.startswith(f"{one}.")), key=len)


def _frozen(model: Magma, folder: Path, manifest: Manifest, lacking: dict[str, str]) -> Iterator[Finding]:
    """A finding for each part with frozen tensors."""
    here = check_frozen(model, folder, manifest)
    paths = list(model.parts())
    for path in paths:
        inside = names_of_part(path, frozen_hashes(manifest, model), paths)
        if inside:
            unchecked = lacking.get(path, "") if any(name not in here for name in inside) else ""
            yield Finding(path, f"{len(inside)} frozen tensors: fingerprints", unchecked)


def _state(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    there = (folder / STATE).is_dir()
    if manifest.state is None and there:
        yield Finding(f"{STATE}/", "", NOT_COVERED)
    elif manifest.state is not None:
        absent = "absent: the model loads, but no run can resume from it"
        yield Finding(f"{STATE}/", f"{len(manifest.state)} files: SHA-256" if there else absent)
