"""Checkpoints: the trained weights and the recipe.

A folder: `recipe.toml` (resolved), `trained.safetensors` (what training changes), `manifest.json` (format, parts,
versions, SHA-256 of the trained and of the frozen tensors). `state/`, if present, is the trainer's. A folder with its
own language model has it in `lm/`; paths are relative to the folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError, PartError, bullet_list
from .interfaces import FrozenLM
from .io import atomic_folder
from .manifest import (
    FORMAT,
    MANIFEST,
    RECIPE,
    SHOWN,
    TRAINED,
    Manifest,
    check_files,
    differing,
    dtype_of,
    find_checkpoint,
    hash_tensors,
    list_files,
    names_of_part,
    read_manifest,
    tensor_sha256,
)
from .model import Magma, PartSummary
from .plugins.registry import installed
from .recipe.assemble import assemble, recipe_from_model
from .recipe.recipe import Recipe
from .system.device import check_device
from .system.home_paths import expand_home
from .tensors import read_tensors

NOT_COVERED = f"an earlier version wrote {MANIFEST} and did not list it"


def save(model: Magma, folder: str | Path, recipe: Recipe | None = None) -> Path:
    """Write a model to a folder, which `load` opens.

    Args:
        model: The model. Only what training changes is written.
        folder: The folder. An existing one is replaced when everything is written.
        recipe: The model's recipe. Default: a recipe made from the parts and their configs.

    Returns:
        The folder.

    Raises:
        CheckpointError: Weights are not finite.
    """
    with atomic_folder(Path(folder)) as aside:
        write(aside, model, recipe or recipe_from_model(model, Path(folder).name), hash_tensors(model.frozen_tensors()))
    return Path(folder)


def write(
    folder: Path,
    model: Magma,
    recipe: Recipe,
    frozen: Mapping[str, str],
    tensors: Mapping[str, Tensor] | None = None,
    **notes: Any,
) -> None:
    """Write the three files into an existing folder.

    `tensors` are the stored tensors if the model has only partitions of them. The manifest lists everything else in the
    folder, and contains `notes`.
    """
    trained = model.stored_tensors() if tensors is None else tensors
    if problems := not_finite(trained, model.stored_tensors()):
        raise CheckpointError(f"the model cannot be saved:{bullet_list(problems, SHOWN)}")
    save_file({name: _to_contiguous_cpu(tensor) for name, tensor in trained.items()}, folder / TRAINED)
    (folder / RECIPE).write_text(recipe.to_toml(folder), encoding="utf-8")
    manifest = Manifest.model_validate(
        {
            "format": FORMAT,
            "magma": version("magma-multimodal"),
            "torch": torch.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "parts": {row.path: _entry(model, row) for row in model.summary()},
            "trained": hash_tensors(trained),
            "frozen": dict(frozen),
            "text": {"beginning": list(model.lm.beginning), "joined": model.lm.joins},
            **list_files(folder),
            **notes,
        }
    )
    text = manifest.model_dump_json(indent=1, by_alias=True, exclude_none=True)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def _entry(model: Magma, row: PartSummary) -> dict[str, Any]:
    plugin = installed().find(model.parts()[row.path][0].kind, row.name).plugin
    return {"name": row.name, "from": str(plugin), "parameters": row.parameters, "trained": row.trained}


def _to_contiguous_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors needs it."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.numel() * plain.element_size() else plain.clone()


def save_tensors(
    folder: str | Path,
    recipe: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    bring: Callable[[Path], None] = lambda _: None,
    *,
    joined: bool = True,
) -> Magma:
    """Write a checkpoint from tensors, to import other formats.

    Args:
        folder: The folder to write, which `load` opens.
        recipe: The tables of the model's recipe.
        tensors: Tensors by their names in the model; they are looked up one at a time.
        dtype: Precision of the checkpoint.
        bring: Called with the unfinished folder, to write files that the recipe's relative paths name.
        joined: Whether adjacent texts were tokenized as one in training.

    Returns:
        The model on meta, without values.

    Raises:
        CheckpointError: Names, shapes or dtypes differ from those of the model, or weights are not finite.
    """
    with atomic_folder(Path(folder)) as aside:
        bring(aside)
        checked = Recipe.load(recipe, folder=aside)
        model = assemble(checked, device="meta", dtype=dtype)
        model.lm.joins = joined
        trained, frozen = model.stored_tensors(), model.frozen_tensors()
        if problems := describe_mismatches({**trained, **frozen}, tensors):
            raise CheckpointError(f"the tensors do not fit the recipe {checked.name}:{bullet_list(problems, SHOWN)}")

        def cast(name: str) -> Tensor:
            tensor = tensors[name]
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        if problems := not_finite({name: tensors[name] for name in frozen}, frozen):
            raise CheckpointError(f"the tensors cannot be used:{bullet_list(problems, SHOWN)}")
        hashes = {name: tensor_sha256(cast(name)) for name in sorted(frozen)}
        write(aside, model, checked, hashes, {name: cast(name) for name in trained})
    return model


def load(
    folder: str | Path,
    *,
    lm: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Magma:
    """Load a checkpoint.

    Args:
        folder: A checkpoint, or the folder of a run, whose newest checkpoint is loaded.
        lm: New place of a language model that has moved: a folder or a hub name.
        overrides: Changes of the recipe, such as "lm.bos=false".
        device: Device of the model.
        dtype: Precision of the model. Default: that of training.
        verify: Compare the frozen weights with those of training.
        say: Called with each step of loading, for progress messages.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: A tensor or file is missing, unexpected, of another shape, or modified.
        InputError: This machine does not have the device.
        PartError: The weights of a part cannot be loaded.
    """
    device = check_device(device)
    folder = find_checkpoint(folder)
    manifest = read_manifest(folder)
    if not manifest.covers_recipe:
        logging.getLogger(__name__).warning("%s: %s is not checked: %s", folder, RECIPE, NOT_COVERED)
    overrides = [*moved_lm_overrides(lm), *overrides]
    recipe = read_recipe(folder, manifest, overrides)
    try:
        model = rebuild(folder, manifest, recipe, say, overrides)
    except PartError as error:
        part, config = recipe.part("lm")
        if lm is None and part.problems(config):  # damaged files are not solved by another place
            raise PartError(f'{error}. Has it moved? Load it with lm="PLACE", or --lm PLACE in a command') from error
        raise
    if verify:
        say("comparing the fingerprints of the frozen weights")
        check_frozen(model, folder, manifest)
    return model.to(device=device, dtype=dtype).eval()


def moved_lm_overrides(lm: str | Path | None) -> list[str]:
    """The overrides for a language model that has moved to `lm`; a folder is relative to the working folder."""
    if lm is None:
        return []
    here: Path = expand_home(Path(lm))
    return [f"lm.weights={json.dumps(str(here.absolute() if here.is_dir() else lm))}"]


def restore_tokenization(lm: FrozenLM, folder: Path, manifest: Manifest, overrides: Sequence[str] = ()) -> None:
    """Make a language model tokenize text as in the training of the checkpoint; overrides are kept.

    Raises `CheckpointError` for initial tokens that it cannot read.
    """
    if beyond := [token for token in manifest.text.beginning if token >= lm.num_embeddings]:
        raise CheckpointError(
            f"{folder / MANIFEST}: text.beginning: given {beyond[0]}; allowed: tokens of the language model, 0 to "
            f"{lm.num_embeddings - 1}"
        )
    lm.joins = manifest.text.joined
    if not any(override.partition("=")[0] == "lm.bos" for override in overrides):
        lm.beginning = tuple(manifest.text.beginning)


def read_recipe(folder: Path, manifest: Manifest, overrides: Sequence[str] = ()) -> Recipe:
    """A checkpoint's recipe, after all files except the tensors are compared with the manifest."""
    check_files(folder, manifest)
    return Recipe.load(folder / RECIPE, overrides, model_only=True, stage=manifest.stage)


def rebuild(
    folder: Path, manifest: Manifest, recipe: Recipe, say: Callable[[str], None], overrides: Sequence[str] = ()
) -> Magma:
    """The model with its trained tensors. `overrides` are already applied to the recipe."""
    model = assemble(
        recipe, dtype=dtype_of(manifest), frozen_weights_only=True, replaced=stored_parts(manifest), say=say
    )
    restore_tokenization(model.lm, folder, manifest, overrides)
    load_trained(model, folder)
    return model


def stored_parts(manifest: Manifest) -> list[str]:
    """Paths of encoders, prefixes, the head and the parts inside them whose weights are in the checkpoint."""
    paths = [path for path in manifest.parts if path != "lm"]  # the adapters' tensors lie inside it
    return [path for path in paths if names_of_part(path, manifest.trained, manifest.parts)]


def load_trained(model: Magma, folder: Path) -> None:
    """Fill a model with a checkpoint's tensors, as `read_trained` finds them."""
    wanted = stored_in(model, read_manifest(folder))
    with torch.no_grad():
        for name, tensor in read_trained(model, folder).items():
            wanted[name].copy_(tensor)
    mark_from_checkpoint(model, wanted)


def mark_from_checkpoint(model: Magma, names: Collection[str]) -> None:
    """Record the frozen parts that have these tensors from a checkpoint, so that new checkpoints contain them too."""
    model.from_checkpoint = frozenset(
        path for path, modules in model.parts().items() if modules[0].frozen and model.part_tensors(path).keys() & names
    )


def stored_in(model: Magma, manifest: Manifest) -> dict[str, Tensor]:
    """The model's tensors that are in the checkpoint: the trained ones, and listed ones of frozen parts."""
    frozen = {name: tensor for name, tensor in model.frozen_tensors().items() if name in manifest.trained}
    return {**model.trained_tensors(), **frozen}


def read_trained(model: Magma, folder: Path) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint, as `read_stored` reads them."""
    manifest = read_manifest(folder)
    return read_stored(folder, manifest, stored_in(model, manifest))


def read_stored(folder: Path, manifest: Manifest, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Raises:
        CheckpointError: They are not exactly the `wanted` ones, with equal shapes and kinds of dtypes, or they are
            modified or not finite.
    """
    path = folder / TRAINED
    found = read_tensors(path)[0]
    if problems := describe_mismatches(wanted, found):
        raise CheckpointError(f"{path} does not fit the model:{bullet_list(problems, SHOWN)}")
    check_stored(path, manifest, found)
    if problems := not_finite(found, wanted):
        raise CheckpointError(f"{path} cannot be used:{bullet_list(problems, SHOWN)}")
    return found


def check_stored(path: Path, manifest: Manifest, found: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` if trained tensors were modified after saving."""
    if damaged := differing(manifest.trained, hash_tensors(found)):
        raise CheckpointError(
            f"{path}: {len(damaged)} tensors were modified after saving, the first is {damaged[0]}: restore the file"
        )


def check_frozen(model: Magma, folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The frozen tensors except those on meta. Raises `CheckpointError` if they differ from those of training."""
    tensors = model.frozen_tensors()
    here = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    before = {name: sha for name, sha in frozen_hashes(manifest, model).items() if name in here or name not in tensors}
    if changed := differing(before, hash_tensors(here)):
        raise CheckpointError(
            f"{folder}: {len(changed)} of {len(before)} frozen tensors differ from those of training, the first is "
            f"{changed[0]}: check lm.weights and the weights of frozen encoders"
        )
    if problems := not_finite(here, here):
        raise CheckpointError(f"{folder}: the frozen weights cannot be used:{bullet_list(problems, SHOWN)}")
    return here


def frozen_hashes(manifest: Manifest, model: Magma) -> dict[str, str]:
    """SHA-256 of each frozen tensor of a checkpoint, by the name that the tensor has in the model today."""
    return {
        f"lm.{model.lm.present_name(name.removeprefix('lm.'))}" if name.startswith("lm.") else name: sha256
        for name, sha256 in manifest.frozen.items()
    }


def describe_mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """How `found` differs from `wanted`: names, shapes, dtypes. Floating-point tensors may have any precision."""
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is not a tensor of this model" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        model, file = wanted[name], found[name]
        if tuple(file.shape) != _shape(model):
            problems.append(f"{name} is {list(file.shape)}, the model's is {list(_shape(model))}")
        elif file.dtype != model.dtype and not (file.is_floating_point() and model.is_floating_point()):
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (file, model)]
            problems.append(f"{name} is {kinds[0]}, the model's is {kinds[1]}")
    return sorted(problems)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The whole shape, also of a parameter that ZeRO-3 has partitioned."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def not_finite(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor with NaN or infinity, except for buffers if the model has them in the same places.

    Masks have them. A model on meta has no values to compare with.
    """
    return [f"{name} holds NaN or infinity" for name, t in tensors.items() if not (_finite(t) or _like(t, model[name]))]


def _finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    plain = tensor.detach()
    low, high = (plain.float() if plain.element_size() == 1 else plain).aminmax()  # NaN if there is one
    return bool(low.isfinite() & high.isfinite())


def _like(tensor: Tensor, model: Tensor) -> bool:
    if isinstance(model, nn.Parameter):
        return False
    return model.is_meta or torch.equal(tensor.detach().cpu().isfinite(), model.detach().cpu().isfinite())
