"""`[init] checkpoint` and the beginning of a stage: a new model starts from a checkpoint, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import keep, read_stored, read_trained, stored_in
from ..errors import CheckpointError
from ..manifest import CHECKPOINT, NEW, OWN, Manifest, dtype_of, origins, read_manifest, tensor_sha256
from ..model import Magma


def start_from(
    model: Magma, folder: Path, dtype: torch.dtype, say: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """Give the parts of a newly assembled model the weights that a checkpoint holds of them; `origins` of each part.

    A part may be frozen now and trained there, or the reverse. A part that was frozen there keeps its own weights.
    The model is in the precision of its parts' files, as `assemble` without a device leaves it; what the checkpoint
    holds comes in `dtype`. Raises `CheckpointError` where own weights are not those of the checkpoint's run, and where
    its tensors do not fit.
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
    _put(stored, values, dtype)
    keep(model, stored)
    return found


def _put(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Values in the run's precision, whatever that of a part's own file."""
    for name, target in targets.items():
        value = values[name]
        target.data = value.to(target.device, dtype if value.is_floating_point() else value.dtype)


def summary(found: Mapping[str, str]) -> str:
    """Where parts start, in a line: "checkpoint: adapters.mlp; own weights: lm"."""
    groups = {kind: [path for path, origin in found.items() if origin == kind] for kind in (CHECKPOINT, OWN, NEW)}
    return "; ".join(f"{kind}: {', '.join(paths)}" for kind, paths in groups.items() if paths)


def _own(tensors: Mapping[str, Tensor], manifest: Manifest) -> dict[str, Tensor]:
    """Those of a part that a checkpoint holds which training did not change."""
    return {name: t for name, t in tensors.items() if name in manifest.frozen and name not in manifest.trained}


def _check_own(folder: Path, manifest: Manifest, own: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise `CheckpointError` unless own weights, by path, are those that the checkpoint's run had, in its precision.

    Names are not compared: those in the language model change with the adapters around them.
    """
    dtype = dtype_of(manifest)
    lines = ""
    for path, tensors in own.items():
        names = [name for name in manifest.frozen if name.startswith(f"{path}.") and name not in manifest.trained]
        there = Counter(manifest.frozen[name] for name in names)
        here = Counter(tensor_sha256(t.to(dtype) if t.is_floating_point() else t) for t in tensors.values())
        if count := max((here - there).total(), (there - here).total()):
            lines += f"\n  - {path}: {count} of {len(names)} tensors are others"
    if lines:
        raise CheckpointError(
            f"{folder}: parts that were frozen in its run start from their own weights, and these are not the ones of "
            f"that run:{lines}\nGive these parts the weights, the sizes and the seed that they had there"
        )


def restore_frozen(model: Magma, folder: Path, dtype: torch.dtype) -> None:
    """Before a run resumes: frozen parts whose weights its checkpoint holds, in `dtype`."""
    stored = stored_in(model, read_manifest(folder))
    frozen = {name: stored[name] for name in stored.keys() - model.trained_tensors().keys()}
    if not frozen:
        return
    _put(frozen, read_trained(model, folder), dtype)
    keep(model, frozen)
