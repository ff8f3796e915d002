"""What decides the features of a medium besides the medium: weights, configuration, code, libraries and numerics.

Everything that could change a single bit is part of the identity. Too much of it costs a computation; too little would
give the features of another encoder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    entry_points,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ..hashing import combined_sha256, hash_tensors, tensor_sha256
from ..interfaces import Encoder, Module

_FORMAT = 1
"""Raised when entries of earlier versions of this package must not be used."""
_OWN = "magma"
OWN_DISTRIBUTION = "magma-multimodal"
_NOT_CODE = ("torch", "builtins", "abc", "typing", "collections", _OWN)
"""Top-level packages whose version stands for their code."""
_INTERNAL = ("forward", "config", "frozen", "nested", *vars(nn.Module()))
_DEPTH = 12


def encoder_identity(encoder: Encoder, device: torch.device) -> str:
    """SHA-256 of everything that decides the features that an encoder computes on a device."""
    facts = {
        "format": _FORMAT,
        "tensors": combined_sha256(hash_tensors(_tensors(encoder))),
        "parts": {
            name: [_class(part), part.config.model_dump(mode="json")] for name, part in encoder.all_parts().items()
        },
        "state": [[name, _class(module), _describe(_attributes(module))] for name, module in encoder.named_modules()],
        "code": _code(encoder),
        "numerics": numerics(device),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_version(encoder: Encoder) -> tuple[Any, ...]:
    """Differs if a tensor of the encoder was replaced or changed in place; cheap, for one process."""
    return tuple(
        (t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device, tuple(t.shape))
        for t in _tensors(encoder).values()
    )


def numerics(device: torch.device) -> dict[str, Any]:
    """The settings and the hardware that decide how torch rounds."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    autocast = torch.is_autocast_enabled(device.type)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "autocast": str(torch.get_autocast_dtype(device.type)) if autocast else "",
    }
    if device.type == "cpu":
        kernels = torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled
        return {**found, "cpu": [platform.machine(), *kernels, torch.get_num_threads()]}
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device), torch.version.cuda, cudnn.version()  # type: ignore[no-untyped-call]  # torch's
        flags = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        return {**found, "cuda": [*kind, *flags]}
    return found


def _tensors(encoder: nn.Module) -> dict[str, Tensor]:
    return {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}


# Configuration and state


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither tensors nor modules; private ones of parts only."""
    skipped = ("ds_",) if isinstance(module, Module) else ("_", "ds_")
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith(skipped) and key not in _INTERNAL and not isinstance(value, Tensor | nn.Module)
    }


def _describe(value: Any, depth: int = 0) -> Any:
    """A value as JSON that differs if it differs. Objects count by their public attributes."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value.hex()
    if depth > _DEPTH:
        return _class(value)
    deeper: Callable[[Any], Any] = functools.partial(_describe, depth=depth + 1)
    if isinstance(value, Mapping):
        return {"map": sorted(([deeper(key), deeper(one)] for key, one in value.items()), key=json.dumps)}
    if isinstance(value, Set):
        return {"set": sorted(map(deeper, value), key=json.dumps)}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_class(value), *map(deeper, value)]
    return _describe_object(value, deeper)


def _describe_object(value: Any, deeper: Callable[[Any], Any]) -> Any:
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Tensor):
        return "meta" if value.is_meta else tensor_sha256(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseModel):
        return [_class(value), deeper(value.model_dump(mode="json"))]
    if isinstance(value, functools.partial):
        return ["partial", deeper(value.func), deeper(value.args), deeper(value.keywords)]
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, nn.Module):  # a module is described with the encoder's own ones
        return _class(value)
    own = getattr(value, "__dict__", {})
    public = {key: one for key, one in own.items() if not key.startswith("_")}
    # Enumerations, torch.dtype and the like have a repr that says everything; that of other objects has an address.
    return [_class(value), deeper(public)] if public or " at 0x" in repr(value) else [_class(value), repr(value)]


# Code


def _code(encoder: Encoder) -> dict[str, Any]:
    """Source and versions of the packages of the encoder's parts, and of the libraries of its modules."""
    classes = {one for part in encoder.all_parts().values() for one in type(part).__mro__}
    packages = {one.__module__.partition(".")[0] for one in classes} - {*_NOT_CODE}
    libraries = {type(module).__module__.partition(".")[0] for module in encoder.modules()} - packages
    return {
        "source": {name: _source_sha256(name) for name in sorted(packages)},
        "versions": {name: _versions(name) for name in sorted({*packages, *libraries, _OWN})},
    }


@functools.cache
def _source_sha256(package: str) -> str:
    """SHA-256 of the Python files of a top-level module or package."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return ""
    path = Path(file)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    found = hashlib.sha256()
    for one in files:
        found.update(f"{one.relative_to(path.parent)} {hashlib.sha256(one.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


@functools.cache
def _versions(package: str) -> dict[str, str]:
    """Versions of the distribution of a top-level package and of the distributions that it requires."""
    return {name: found for owner in _owners().get(package, []) for name, found in _with_requirements(owner)}


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Distributions by top-level package. Those of editable plugins are known by their entry points only."""
    plugins = {p.value.partition(":")[0].partition(".")[0]: [p.dist.name] for p in _points() if p.dist}
    return {**packages_distributions(), **plugins, _OWN: [OWN_DISTRIBUTION]}


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=_OWN)


def _with_requirements(distribution: str) -> Iterator[tuple[str, str]]:
    lines = [distribution, *(requires(distribution) or ())]
    for name in dict.fromkeys(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in lines):
        with suppress(PackageNotFoundError):  # of an extra that is not installed
            yield name, version(name)
