"""`manifest.json`: the contents of a checkpoint's folder, to find modified files.

Files and tensors are listed by SHA-256; `state` are the files that a run needs to resume. Weights of a bundled language
model are listed by size: their tensors are among the `frozen` ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from .errors import CheckpointError, bullet_list
from .hashing import combined_sha256 as combined_sha256
from .hashing import hash_tensors as hash_tensors
from .hashing import tensor_sha256 as tensor_sha256
from .recipe.explain import explain_all
from .recipe.notation import parse_json

FORMAT = 2
RECIPE, TRAINED, MANIFEST, STATE, CHECKPOINTS = (
    "recipe.toml",
    "trained.safetensors",
    "manifest.json",
    "state",
    "checkpoints",
)
WEIGHTS = ".safetensors"
SHOWN = 5
"""Maximum number of problems of one file in a message."""


def _inside(name: str) -> str:
    """A relative path inside the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("the relative path of a file in this folder")
    return name


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
File = Annotated[str, AfterValidator(_inside)]


class PartEntry(BaseModel):
    """One part of the model."""

    model_config = ConfigDict(frozen=True, strict=True)
    name: str
    origin: str = Field(alias="from")
    """Its distribution and version."""
    parameters: NonNegativeInt
    trained: NonNegativeInt


class TextEntry(BaseModel):
    """How text is tokenized: it differs between language models, and between versions of this package.

    The defaults are those of checkpoints without this entry. An unknown key is an error: it would be a rule that this
    version does not implement.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    beginning: list[NonNegativeInt] = []
    """Token ids before everything."""
    joined: bool = False
    """Whether adjacent texts are tokenized as one."""


class Manifest(BaseModel):
    """The contents of manifest.json. Keys of later versions are kept."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    format: Literal[2]
    magma: str
    torch: str
    dtype: Literal["float64", "float32", "float16", "bfloat16"]
    parts: dict[str, PartEntry]
    files: dict[File, Digest] = {}
    weights: dict[File, NonNegativeInt] = {}
    """Bytes of a bundled language model's files of weights."""
    trained: dict[str, Digest]
    frozen: dict[str, Digest]
    state: dict[File, Digest] | None = None
    step: NonNegativeInt | None = None
    text: TextEntry = TextEntry()
    stage: NonNegativeInt | None = None
    """The stage of the recipe that wrote it, counted from 0."""

    @property
    def covers_recipe(self) -> bool:
        """False for folders that were written before manifests listed the recipe."""
        return RECIPE in self.files


def dtype_of(manifest: Manifest) -> torch.dtype:
    """The precision of the model that was saved."""
    dtype: torch.dtype = getattr(torch, manifest.dtype)
    return dtype


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest. Raises `CheckpointError` if it is damaged or has another format."""
    path = folder / MANIFEST
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}; allowed: an object")
    if "format" in raw and raw["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {str(raw['format'])[:40]}; this version reads format {FORMAT}")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = explain_all(Manifest, error.errors(include_url=False))
    raise CheckpointError(f"{path} was modified after saving, or is damaged:{bullet_list(problems, SHOWN)}")


def names_of_part(path: str, names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The names of the tensors of the part at a path, without those of the parts inside it.

    Args:
        path: The path, which is the beginning of these names. Adapters have none: their tensors lie in `lm`.
        names: Names of a model's tensors.
        parts: The paths of all parts.
    """
    inside = tuple(f"{other}." for other in parts if other.startswith(f"{path}."))
    return [name for name in names if name.startswith(f"{path}.") and not name.startswith(inside)]


CHECKPOINT, OWN, NEW = "checkpoint", "own weights", "new"


def origins(parts: Mapping[str, Collection[str]], manifest: Manifest) -> dict[str, str]:
    """Where the weights of each part come from if training starts from a checkpoint.

    Args:
        parts: Names of the tensors of each part, by path.
        manifest: The checkpoint's manifest.

    Returns:
        By path: "checkpoint" (it contains the part), "own weights" (the part was frozen; its own weights are loaded) or
        "new" (the checkpoint's model does not have the part).
    """
    return {
        path: NEW if path not in manifest.parts else CHECKPOINT if manifest.trained.keys() & set(names) else OWN
        for path, names in parts.items()
    }


def find_checkpoint(folder: str | Path) -> Path:
    """The folder itself if it is a checkpoint, or the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return folder
    found = sorted(p.parent for p in folder.glob(f"{CHECKPOINTS}/[!.]*/{MANIFEST}"))
    if found:
        return found[-1]
    what = "does not exist" if not folder.exists() else f"has no {MANIFEST} and no {CHECKPOINTS}/*/{MANIFEST}"
    raise CheckpointError(f"{folder} {what}; allowed: a checkpoint, or the folder of a run that has one")


# Tensors


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose hashes differ or that only one side has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


# Files


def list_files(folder: Path) -> dict[str, Any]:
    """`files` and `weights` of a folder that is complete except for its manifest."""
    found: dict[str, dict[str, Any]] = {"files": {}, "weights": {}}
    for name, path in _files_below(folder):
        if _is_weights(name):
            found["weights"][name] = path.stat().st_size
        elif name not in (MANIFEST, TRAINED) and not name.startswith(f"{STATE}/"):
            found["files"][name] = file_sha256(path)
    return found


def list_state(folder: Path) -> dict[str, str]:
    """`state`, of a checkpoint's folder."""
    return {name: file_sha256(path) for name, path in _files_below(folder) if name.startswith(f"{STATE}/")}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `CheckpointError` if a file that `load` reads, tensors excepted, was modified."""
    wrong = _wrong(folder, manifest.files)
    for name, size in manifest.weights.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size:
            wrong.append(
                f"{name} was modified after saving: it has {path.stat().st_size:,} bytes, {size:,} were written"
            )
    if wrong:
        raise CheckpointError(f"{folder}: {', '.join(wrong[:SHOWN])}{_recipe_advice(folder, wrong)}")


def check_state(folder: Path, manifest: Manifest) -> None:
    """Raise `CheckpointError` if a file that a run needs to resume was modified."""
    if wrong := _wrong(folder, manifest.state or {}):
        raise CheckpointError(
            f"{folder} cannot be resumed from: {', '.join(wrong[:SHOWN])}. To resume from an earlier checkpoint, move "
            "this folder out of the run's folder and use --resume"
        )


def uncovered(folder: Path, manifest: Manifest) -> list[str]:
    """Files that were added to the folders of an import, except hidden ones."""
    if not manifest.covers_recipe:  # nor are weights listed
        return []
    bundled = {PurePosixPath(name).parts[0] for name in [*manifest.files, *manifest.weights] if "/" in name}
    return [
        name
        for name, _ in _files_below(folder)
        if name.partition("/")[0] in bundled
        and name not in manifest.files
        and name not in manifest.weights
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]


def _wrong(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    wrong = []
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif file_sha256(path) != sha256:
            wrong.append(f"{name} was modified after saving")
    return wrong


def _recipe_advice(folder: Path, wrong: Sequence[str]) -> str:
    """What to do if the recipe was edited."""
    if not any(problem.startswith(RECIPE) for problem in wrong):
        return ""
    return (
        f". Restore the file. To train these weights with other settings, write a recipe with "
        f'[init] checkpoint = "{folder}". If only the language model has moved, give its new place: '
        'magma.load(FOLDER, lm="PLACE"), or --lm PLACE in a command'
    )


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    """Every file with its path relative to the folder, in order."""
    return [(p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def _is_weights(name: str) -> bool:
    """Whether a file has weights of a bundled model: those are in subfolders."""
    return name.endswith(WEIGHTS) and "/" in name and not name.startswith(f"{STATE}/")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. Raises `CheckpointError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
