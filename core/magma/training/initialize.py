"""`[init] checkpoint` and the start of a stage: a new model gets weights of a checkpoint, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import mark_from_checkpoint, read_stored, read_trained, stored_in
from ..errors import CheckpointError
from ..manifest import CHECKPOINT, NEW, OWN, Manifest, dtype_of, names_of_part, origins, read_manifest, tensor_sha256
from ..model import Magma


def load_initial_weights(
    model: Magma, folder: Path, dtype: torch.dtype, say: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """Load the weights that a checkpoint holds into the parts of a newly assembled model.

    A part may be frozen now and trained in the checkpoint, or the reverse. A part that was frozen there keeps its own
    weights.

    Args:
        model: In the precision of its parts' files, as `assemble` without a device leaves it.
        folder: The checkpoint.
        dtype: The precision of the loaded weights.
        say: Receives a line that says where each part's weights come from.

    Returns:
        The origin of each part, by path.

    Raises:
        CheckpointError: If a part's own weights differ from those of the checkpoint's run, or tensors do not fit.
    """
    manifest = read_manifest(folder)
    parts = {path: model.part_tensors(path) for path in model.parts()}
    found = origins(parts, manifest)
    say(f"starting from {folder}: {summary(found)}")
    own = {path: _own(tensors, manifest) for path, tensors in parts.items() if found[path] == CHECKPOINT}
    own |= {path: parts[path] for path, origin in found.items() if origin == OWN}
    stored = {
        name: tensor
        for path, tensors in parts.items()
        if found[path] == CHECKPOINT
        for name, tensor in tensors.items()
        if name not in own[path]
    }
    values = read_stored(folder, manifest, stored)
    _check_own(folder, manifest, own)
    _assign(stored, values, dtype)
    mark_from_checkpoint(model, stored)
    return found


def _assign(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give the targets these values, in the run's precision."""
    for name, target in targets.items():
        value = values[name]
        target.data = value.to(target.device, dtype if value.is_floating_point() else value.dtype)


def summary(found: Mapping[str, str]) -> str:
    """Where the parts' weights come from, in a line: "checkpoint: adapters.mlp; own weights: lm"."""
    groups = {kind: [path for path, origin in found.items() if origin == kind] for kind in (CHECKPOINT, OWN, NEW)}
    return "; ".join(f"{kind}: {', '.join(paths)}" for kind, paths in groups.items() if paths)


def _own(tensors: Mapping[str, Tensor], manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of a part that the checkpoint's run did not train."""
    return {name: t for name, t in tensors.items() if name in manifest.frozen and name not in manifest.trained}


def _check_own(folder: Path, manifest: Manifest, own: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise `CheckpointError` unless the parts' own weights are those of the checkpoint's run, in its precision.

    Names are not compared: inside the language model they change with the adapters.
    """
    dtype = dtype_of(manifest)
    lines = ""
    for path, tensors in own.items():
        names = [n for n in names_of_part(path, manifest.frozen, manifest.parts) if n not in manifest.trained]
        expected = Counter(manifest.frozen[name] for name in names)
        actual = Counter(tensor_sha256(t.to(dtype) if t.is_floating_point() else t) for t in tensors.values())
        if count := max((actual - expected).total(), (expected - actual).total()):
            lines += f"\n  - {path}: {count} of {len(names)} tensors differ"
    if lines:
        raise CheckpointError(
            f"{folder}: parts that were frozen in its run start from their own weights, and these differ from those of "
            f"that run:{lines}\nUse the same weights, sizes and seed for these parts"
        )


def restore_frozen(model: Magma, folder: Path, dtype: torch.dtype) -> None:
    """Before a run resumes: load the frozen parts whose weights its checkpoint holds, in `dtype`."""
    stored = stored_in(model, read_manifest(folder))
    frozen = {name: stored[name] for name in stored.keys() - model.trained_tensors().keys()}
    if not frozen:
        return
    _assign(frozen, read_trained(model, folder), dtype)
    mark_from_checkpoint(model, frozen)
