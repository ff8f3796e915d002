"""The trained weights and the recipe, nothing else.

A folder: `recipe.toml` (resolved), `trained.safetensors` (what training changes), `manifest.json` (format, parts,
versions, fingerprints of both what is here and what training must not change). `state/`, where present, is the
trainer's. A folder that brings its own language model holds it at `lm/`; paths inside are relative to the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .assemble import assemble, recipe_of
from .errors import CheckpointError
from .model import Magma
from .recipe import Recipe
from .registry import installed

FORMAT = 2
RECIPE, TRAINED, MANIFEST, STATE, CHECKPOINTS = (
    "recipe.toml",
    "trained.safetensors",
    "manifest.json",
    "state",
    "checkpoints",
)


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    if plain.numel():
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to fingerprint, in order of name."""
    return {name: fingerprint(tensors[name]) for name in sorted(tensors)}


def digest(prints: Mapping[str, str]) -> str:
    """One fingerprint for many."""
    lines = "".join(f"{name} {prints[name]}\n" for name in sorted(prints))
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when all is written, and is gone where writing failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _share(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)


def _share(folder: Path) -> None:
    """Give each file the mode that the umask gives a new one: safetensors writes for its owner alone."""
    new = folder / ".new"
    new.touch()
    allowed = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and allowed & ~(mode := stat.S_IMODE(path.stat().st_mode)):
            path.chmod(mode | allowed)


def write_text(path: Path, text: str) -> None:
    """Written aside and renamed: a reader sees the old file or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def save(model: Magma, folder: str | Path, recipe: Recipe | None = None) -> Path:
    """Write a model to a folder that `load` opens; without a recipe, the one its parts imply."""
    with written_aside(Path(folder)) as aside:
        write(aside, model, recipe or recipe_of(model, Path(folder).name), fingerprints(model.frozen_tensors()))
    return Path(folder)


def write(
    folder: Path,
    model: Magma,
    recipe: Recipe,
    frozen: Mapping[str, str],
    tensors: Mapping[str, Tensor] | None = None,
    **notes: Any,
) -> None:
    """The three files, into an existing folder. `tensors` where the model itself holds only a share of them."""
    trained = model.trained_tensors() if tensors is None else tensors
    save_file({name: _own(tensor) for name, tensor in trained.items()}, folder / TRAINED)
    (folder / RECIPE).write_text(recipe.to_toml(folder), encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "magma": version("magma-multimodal"),
        "torch": torch.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parts": {
            row.path: {
                "name": row.name,
                "from": str(installed().find(model.parts()[row.path][0].kind, row.name).plugin),
                "parameters": row.parameters,
                "trained": row.trained,
            }
            for row in model.summary()
        },
        "files": _digests(folder),
        "trained": fingerprints(trained),
        "frozen": dict(frozen),
        **notes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what else was brought into a folder, weights left out: their tensors have fingerprints."""
    brought = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".safetensors" and p.name != RECIPE]
    return {path.relative_to(folder).as_posix(): _digest(path) for path in brought}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"


def _own(tensor: Tensor) -> Tensor:
    """On the CPU, in one piece, with memory that is its own: what safetensors can write."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.numel() * plain.element_size() else plain.clone()


def save_tensors(
    folder: str | Path,
    recipe: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    bring: Callable[[Path], None] = lambda _: None,
) -> Magma:
    """Write a folder that `load` opens from tensors by their names in the model, for who imports a checkpoint.

    `bring` is called with the folder while nobody sees it, to put there what the recipe's relative paths name. The
    model exists on meta alone, and is returned; tensors are looked up one at a time. Raises `CheckpointError` for
    names or shapes that are not the model's.
    """
    with written_aside(Path(folder)) as aside:
        bring(aside)
        checked = Recipe.load(recipe, folder=aside)
        model = assemble(checked, device="meta", dtype=dtype)
        trained, frozen = model.trained_tensors(), model.frozen_tensors()
        found = {name: tuple(tensors[name].shape) for name in tensors}
        if problems := _misfits({name: tuple(t.shape) for name, t in {**trained, **frozen}.items()}, found):
            raise CheckpointError(f"the tensors do not fit the recipe {checked.name}:\n" + problems)

        def cast(name: str) -> Tensor:
            tensor = tensors[name]
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        prints = {name: fingerprint(cast(name)) for name in sorted(frozen)}
        write(aside, model, checked, prints, {name: cast(name) for name in trained})
    return model


def _misfits(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> str:
    """A line for every name or shape of `found` that is not that of `wanted`."""
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is not a tensor of this model" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {list(found[name])}, the model's is {list(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if tuple(found[name]) != tuple(wanted[name])
    ]
    return "\n".join(f"  - {problem}" for problem in sorted(problems))


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, of a format that this version reads."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {type(error).__name__}: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST} has format {found!r}; this version reads format {FORMAT}")
    return dict(manifest)


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Magma:
    """The model of a checkpoint, in eval mode, in its own precision unless `dtype` says otherwise.

    `verify` compares the frozen weights with those it was trained with (in its own precision alone). Raises
    `CheckpointError` for anything missing, unexpected, misshapen or changed.
    """
    folder = find(folder)
    manifest = read_manifest(folder)
    own = getattr(torch, str(manifest.get("dtype")), None)
    if not isinstance(own, torch.dtype):
        raise CheckpointError(f"{folder / MANIFEST}: dtype is {manifest.get('dtype')!r}, which torch does not know")
    if changed := [name for name, digest in manifest.get("files", {}).items() if _digest(folder / name) != digest]:
        raise CheckpointError(f"{folder}: {', '.join(changed)} is not what was written")
    recipe = Recipe.load(folder / RECIPE, model_only=True)
    model = assemble(recipe, dtype=own, frozen_weights_only=True, say=say)
    load_trained(model, folder)
    if verify:
        say("comparing the frozen weights' fingerprints")
        check_frozen(manifest.get("frozen", {}), fingerprints(model.frozen_tensors()), str(folder))
    return model.to(device=device, dtype=dtype).eval()


def load_trained(model: Magma, folder: Path, *, new_parts: bool = False) -> None:
    """Fill a model's trained tensors from a checkpoint, as `read_trained` finds them."""
    wanted = model.trained_tensors()
    with torch.no_grad():
        for name, tensor in read_trained(model, folder, new_parts=new_parts).items():
            wanted[name].copy_(tensor)


def read_trained(model: Magma, folder: Path, *, new_parts: bool = False) -> dict[str, Tensor]:
    """A checkpoint's tensors: exactly the model's trained ones, of exactly those shapes, undamaged.

    With `new_parts`, parts that the checkpoint's model does not have, such as a head, are not asked for.
    """
    wanted = model.trained_tensors()
    if new_parts:
        known = read_manifest(folder)["parts"]
        new = [m for path, modules in model.parts().items() if path not in known for m in modules]
        fresh = {id(t) for module in new for t in [*module.parameters(), *module.buffers()]}
        wanted = {name: tensor for name, tensor in wanted.items() if id(tensor) not in fresh}
    path = folder / TRAINED
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if problems := _misfits({name: _shape(t) for name, t in wanted.items()}, {n: t.shape for n, t in found.items()}):
        raise CheckpointError(f"{path} does not fit the model:\n{problems}")
    if damaged := differing(read_manifest(folder).get("trained", {}), fingerprints(found)):
        raise CheckpointError(
            f"{path} is damaged: {len(damaged)} of its tensors are not what was written, the first is {damaged[0]}"
        )
    return found


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose fingerprints differ, or that only one side has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], where: str) -> None:
    """Raise `CheckpointError` unless both sets of fingerprints are the same."""
    if changed := differing(before, after):
        raise CheckpointError(
            f"{where}: {len(changed)} of {len(before)} frozen tensors are not what they were, the first is "
            f"{changed[0]}: are these the weights that the run was trained with?"
        )
