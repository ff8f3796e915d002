"""`magma export peft`: LoRA and (IA)^3 adapters as a folder that peft loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import magma
from magma import Adapter, Magma, PartError

from .ia3 import IA3
from .lora import LoRA
from .peft_format import CONFIG, ROOT, TENSORS, LowRank, refuse_existing, scales_input, tensors_of


def to_folder(folder: Path, out: Path, adapters_only: bool = False, lm: str | None = None) -> list[str]:
    """Write the adapters of a checkpoint. Returns a report, as lines.

    Args:
        folder: A checkpoint, or the folder of a run.
        out: The folder to write.
        adapters_only: Leave out inputs and the head. Otherwise a model that has some is refused.
        lm: New place of a language model that has moved.

    Raises:
        InputError: `out` exists.
        PartError: The model has something that peft cannot express.
    """
    from safetensors.torch import save_file

    refuse_existing(out)
    config, tensors = export(magma.load(folder, lm=lm), adapters_only)
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    out.mkdir(parents=True)
    magma.atomic_write(out / TENSORS, lambda partial: save_file(plain, partial, metadata={"format": "pt"}))
    magma.atomic_write(out / CONFIG, json.dumps(config, indent=1) + "\n")
    layers = len(config["target_modules"])
    return [f"{config['peft_type']}: {layers} layers, {sum(tensor.numel() for tensor in plain.values()):,} parameters"]


def export(model: Magma, adapters_only: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The contents of the two files of peft: configuration, and tensors by name. Raises `PartError`."""
    if (model.inputs or model.head is not None) and not adapters_only:
        beside = [f"inputs.{name}" for name in model.inputs] + (["head"] if model.head is not None else [])
        raise PartError(
            f"given a model with {', '.join(beside)}; allowed in peft's format: adapters of the language model. "
            "--adapters-only leaves out the rest"
        )
    adapters: dict[str, LowRank] = {}
    for table, adapter in list(_all_adapters(model)):  # other kinds are reported first
        path = model.lm.exported_path(adapter.site)
        if path in adapters:
            raise PartError(f"adapters.{table}: given a second adapter of {path}; allowed in peft's format: one")
        adapters[path] = adapter
    common = {
        "base_model_name_or_path": model.lm.config.model_dump().get("weights"),
        "target_modules": list(adapters),
        "fan_in_fan_out": any(adapter.site.transposed for adapter in adapters.values()),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    config = {**common, **_lora_config(adapters), **_ia3_config(adapters)}
    tensors = {
        f"{ROOT}{path}.{name}": tensor
        for path, adapter in adapters.items()
        for name, tensor in tensors_of(adapter).items()
    }
    return config, tensors


def _all_adapters(model: Magma) -> Iterator[tuple[str, LowRank]]:
    """Every adapter with its table. Raises `PartError` if one is neither LoRA nor (IA)^3, or if there are both."""
    allowed = f'adapters "{LoRA.name}", or adapters "{IA3.name}"'
    kinds = {}
    for table, adapters in model.lm.adapters.items():
        for adapter in adapters:
            if not isinstance(adapter, LoRA | IA3):
                raise PartError(f'adapters.{table}: given "{adapter.name}"; allowed in peft\'s format: {allowed}')
            if adapter.only_with:
                raise PartError(
                    f"adapters.{table}.only_with: given {list(adapter.only_with)}; allowed in peft's format: adapters "
                    "that act on every prompt"
                )
            kinds[type(adapter)] = table
            yield table, adapter
    if len(kinds) != 1:
        given = " and ".join(f'"{kind.name}" (adapters.{table})' for kind, table in kinds.items())
        raise PartError(f"given {given or 'no adapters'}; allowed in peft's format: {allowed}")


def _lora_config(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The keys of LoRA. Rank and alpha may differ between layers."""
    found = {path: adapter.config for path, adapter in adapters.items() if isinstance(adapter, LoRA)}
    if not found:
        return {}
    first = next(iter(found.values()))
    shared = ("dropout", "rslora", "dora")
    for key in shared:
        values = {config.model_dump()[key] for config in found.values()}
        if len(values) > 1:
            raise PartError(f"{key} of the adapters: given {sorted(values)}; allowed in peft's format: one value")
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {path: config.rank for path, config in found.items() if config.rank != first.rank},
        "alpha_pattern": {path: config.alpha for path, config in found.items() if config.alpha != first.alpha},
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "use_dora": first.dora,
        "bias": "none",
        "init_lora_weights": True,
    }


def _ia3_config(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The keys of (IA)^3."""
    found = {path: adapter for path, adapter in adapters.items() if isinstance(adapter, IA3)}
    inputs = [path for path, adapter in found.items() if scales_input(adapter)]
    return {"peft_type": "IA3", "feedforward_modules": inputs, "init_ia3_weights": True} if found else {}
