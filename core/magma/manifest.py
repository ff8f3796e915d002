"""`manifest.json`: what a checkpoint's folder holds, so that what is there can be compared with what was written.

Files are listed by SHA-256, tensors by fingerprints; `state` is what a run needs to resume. Weights of a bundled
language model are listed by size: their tensors are among the `frozen` ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import Tensor

from .errors import CheckpointError
from .recipe.explain import explain
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
_SHOWN = 5
"""Most problems of one file that a message lists."""


def _inside(name: str) -> str:
    """A path that does not leave the folder."""
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
    """How texts become tokens, where language models and versions of this package differ. By default: as before.

    An unknown key is refused: it would be a rule that this version does not follow.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    beginning: list[NonNegativeInt] = []
    """The token ids before everything."""
    joined: bool = False
    """Are texts that follow each other tokenized as one?"""


class Manifest(BaseModel):
    """What was written. Keys that later versions add are kept."""

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
    """Which of the recipe's [[stages]] wrote it, counted from 0."""

    @property
    def covers_recipe(self) -> bool:
        """False for folders that were written before manifests listed the recipe."""
        return RECIPE in self.files


def dtype_of(manifest: Manifest) -> torch.dtype:
    """The precision of the model that was saved."""
    dtype: torch.dtype = getattr(torch, manifest.dtype)
    return dtype


def read_manifest(folder: Path) -> Manifest:
    """A checkpoint's manifest. Raises `CheckpointError` for one that is damaged, or of another format."""
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
        problems = [explain(Manifest, one) for one in error.errors(include_url=False)]
    raise CheckpointError(f"{path} is not what was written:\n{bullets(problems)}")


CHECKPOINT, OWN, NEW = "checkpoint", "own weights", "new"


def origins(parts: Mapping[str, Collection[str]], manifest: Manifest) -> dict[str, str]:
    """Where each part starts if a checkpoint is the beginning; `parts` are the names of their tensors, by path.

    "checkpoint": it holds the part. "own weights": the part was frozen there, and its weights are where they were.
    "new": the checkpoint's model does not have the part.
    """
    return {
        path: NEW if path not in manifest.parts else CHECKPOINT if manifest.trained.keys() & set(names) else OWN
        for path, names in parts.items()
    }


def find(folder: str | Path) -> Path:
    """The checkpoint that a folder is, or the newest one of the run that it is."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return folder
    found = sorted(p.parent for p in folder.glob(f"{CHECKPOINTS}/[!.]*/{MANIFEST}"))
    if found:
        return found[-1]
    what = "does not exist" if not folder.exists() else f"has no {MANIFEST} and no {CHECKPOINTS}/*/{MANIFEST}"
    raise CheckpointError(f"{folder} {what}; allowed: a checkpoint, or the folder of a run that has one")


# Tensors


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    if plain.numel():
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to fingerprint, in order of name."""
    return {name: tensor_sha256(tensors[name]) for name in sorted(tensors)}


def combined_sha256(prints: Mapping[str, str]) -> str:
    """One fingerprint for many."""
    lines = "".join(f"{name} {prints[name]}\n" for name in sorted(prints))
    return hashlib.sha256(lines.encode()).hexdigest()


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose fingerprints differ, or that only one side has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


# Files


def list_files(folder: Path) -> dict[str, Any]:
    """`files` and `weights` of a folder that is complete but for its manifest."""
    found: dict[str, dict[str, Any]] = {"files": {}, "weights": {}}
    for name, path in _files_below(folder):
        if _is_weights(name):
            found["weights"][name] = path.stat().st_size
        elif name not in (MANIFEST, TRAINED) and not name.startswith(f"{STATE}/"):
            found["files"][name] = _sha256(path)
    return found


def list_state(folder: Path) -> dict[str, str]:
    """`state`, of a checkpoint's folder."""
    return {name: _sha256(path) for name, path in _files_below(folder) if name.startswith(f"{STATE}/")}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `CheckpointError` unless all that `load` reads beside tensors is what was written."""
    wrong = _wrong(folder, manifest.files)
    for name, size in manifest.weights.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name} is not what was written: it has {path.stat().st_size:,} bytes, {size:,} were written")
    if wrong:
        raise CheckpointError(f"{folder}: {', '.join(wrong[:_SHOWN])}{_on_purpose(folder, wrong)}")


def check_state(folder: Path, manifest: Manifest) -> None:
    """Raise `CheckpointError` unless all that a run needs to resume is what was written."""
    if wrong := _wrong(folder, manifest.state or {}):
        raise CheckpointError(
            f"{folder} has no state to go on from: {', '.join(wrong[:_SHOWN])}; an earlier checkpoint of the run may "
            "have one: move this folder out of the run's, then go on with --resume"
        )


def uncovered(folder: Path, manifest: Manifest) -> list[str]:
    """Files that somebody put beside those that an import brought, hidden ones left out."""
    if not manifest.covers_recipe:  # nor are weights listed
        return []
    brought = {PurePosixPath(name).parts[0] for name in [*manifest.files, *manifest.weights] if "/" in name}
    return [
        name
        for name, _ in _files_below(folder)
        if name.partition("/")[0] in brought
        and name not in manifest.files
        and name not in manifest.weights
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    ]


def bullets(problems: Sequence[str]) -> str:
    """A line for each of the first problems, and how many more there are."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join(f"  - {problem}" for problem in [*problems[:_SHOWN], *more])


def _wrong(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    wrong = []
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif _sha256(path) != sha256:
            wrong.append(f"{name} is not what was written")
    return wrong


def _on_purpose(folder: Path, wrong: Sequence[str]) -> str:
    """What to do where a recipe was edited because something else was wanted."""
    if not any(problem.startswith(RECIPE) for problem in wrong):
        return ""
    return (
        f". Put the file back as it was. To train these weights further with other settings, write a recipe with "
        f'[init] checkpoint = "{folder}"; where only the language model has moved, name its new place: '
        'magma.load(FOLDER, lm="PLACE"), or --lm PLACE in a command'
    )


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    """Every file with its path relative to the folder, in order."""
    return [(p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def _is_weights(name: str) -> bool:
    """Of a model that the folder brings: in the folder itself there are the trained tensors, and tables."""
    return name.endswith(WEIGHTS) and "/" in name and not name.startswith(f"{STATE}/")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
