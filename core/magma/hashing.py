"""SHA-256 of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{plain.dtype} {list(plain.shape)} ".encode())
    if plain.numel():
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 by name, in the order of the names."""
    return {name: tensor_sha256(tensors[name]) for name in sorted(tensors)}


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for many tensors."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
