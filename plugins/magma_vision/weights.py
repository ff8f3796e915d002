"""Weights of image encoders in files: of the user, or of an installed package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from magma import CheckpointError, PartError, error_summary, find_in_package, is_in_package, read_tensors

TENSOR_FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_file(source: str) -> bool:
    """Whether the source names a file, which may be missing, and not weights of a library."""
    return is_in_package(source) or Path(source).is_file()


def weights_file(source: str) -> Path:
    """The file of `"package:NAME"`, or the file itself. Raises `PartError` if the package has no such file."""
    return find_in_package(source, TENSOR_FILES, "files of tensors") if is_in_package(source) else Path(source)


def find_file_problems(source: str, allowed: str) -> list[str]:
    """Why a file of weights cannot be read, one line each; `allowed` is the end of the error message."""
    try:
        path = weights_file(source)
    except PartError as error:
        return [f"weights: {error}"]
    return [] if path.is_file() else [f"weights: given {source!r}; allowed: {allowed}"]


def find_order_problems(source: str) -> list[str]:
    """Why the tensors of a file cannot be matched by their order: safetensors are sorted by type and name."""
    if weights_file(source).suffix.lower() != ".safetensors":
        return []
    return [
        f'match_weights_by: given "order" with {source!r}, but safetensors do not keep the order of tensors; '
        'allowed: a file of torch (.pth, .pt, .bin), or "name"'
    ]


def read_state(source: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, in order; executes no code from it. Raises `PartError`."""
    try:
        found, _ = read_tensors(str(weights_file(source)), "state_dict")
    except CheckpointError as error:
        raise PartError(str(error)) from error
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def rename_in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of another implementation under the names of this one: the first is the first, and so on.

    Args:
        state: The tensors of a file, in order.
        wanted: The whole network's tensors, in order; only shapes are used.
        where: The file, for errors.

    Raises:
        PartError: Numbers, shapes or the last parts of names (weight, bias, running_mean) differ.
    """
    if len(state) != len(wanted):
        raise PartError(f'{where}: {len(state)} tensors; allowed with match_weights_by = "order": {len(wanted)}')
    for (name, tensor), (target, like) in zip(state.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape or name.rpartition(".")[2] != target.rpartition(".")[2]:
            raise PartError(
                f"{where}: {name} has the shape {list(tensor.shape)}, and {target}, which is at its place in this "
                f'network, {list(like.shape)}; allowed with match_weights_by = "order": the same network, whose '
                "tensors have the same order, shapes and last parts of names"
            )
    return dict(zip(wanted, state.values(), strict=True))


def describe_failed_download(weights: str, error: Exception) -> str:
    """The error message for weights that a library could not download."""
    return f"{weights} cannot be downloaded: {error_summary(error).rstrip('.')}. Allowed, too: a file of them"
