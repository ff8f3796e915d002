"""`magma import peft`: a folder of peft with LoRA or (IA)^3 adapters as a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import magma
from magma import CheckpointError, FrozenLM, InputError, Magma, Site

from .ia3 import IA3
from .lora import LoRA
from .peft_format import CONFIG, ROOT, SUFFIXES, TENSORS, LowRank, refuse_existing, tensors_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_USED = {"r", "lora_alpha", "alpha_pattern", "lora_dropout", "use_rslora", "use_dora"}
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("init_ia3_weights", "eva_config", "rank_pattern"),  # ranks are those of the tensors
    # which layers have adapters, as the tensors say
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern"),
}
_UNCHANGED_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the frozen weights as they are."""


@dataclass(frozen=True)
class Layer:
    """The adapter of one layer."""

    site: Site
    use: str
    """The name of the part."""
    fields: tuple[tuple[str, Any], ...]
    """Keys of the part."""


def to_checkpoint(
    folder: Path, out: Path, lm: str | None = None, precision: Literal["fp32", "bf16", "fp16"] = "fp32"
) -> list[str]:
    """Write a checkpoint of the language model with these adapters. Returns a report, as lines.

    Args:
        folder: A folder of peft.
        out: The folder to write.
        lm: Hub name or folder of the language model. Default: `base_model_name_or_path` of the configuration.
        precision: Precision of the checkpoint.

    Raises:
        InputError: `out` exists, or the language model is unknown.
        CheckpointError: The files are damaged, do not fit the language model, or have something else than these
            adapters.
    """
    refuse_existing(out)
    config = _read_config(folder / CONFIG)
    tensors = _by_layer(folder / TENSORS, magma.read_tensors(folder / TENSORS)[0])
    weights = lm or config.get("base_model_name_or_path")
    if not isinstance(weights, str):
        raise InputError(f"{folder / CONFIG} has no base_model_name_or_path: name the language model with --lm")
    recipe: dict[str, Any] = {"name": out.name, "lm": {"use": "causal", "weights": weights}}
    lm_part = magma.assemble(recipe, device="meta").lm
    sites = {lm_part.exported_path(site): site for site in lm_part.sites() if site.linear is not None}
    layers = []
    for path, found in tensors.items():
        if path not in sites:
            raise CheckpointError(f"{folder / TENSORS}: the language model {weights} has no linear layer {path}")
        layers.append(_layer(sites[path], path, found, config))
    recipe["adapters"] = _tables(layers, lm_part)
    model = magma.assemble(recipe, dtype=DTYPES[precision])
    _fill(model, tensors, folder / TENSORS)
    magma.save(model, out)
    return [_describe(name, table) for name, table in recipe["adapters"].items()]


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, if it has nothing but what LoRA and (IA)^3 adapters here can express."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {magma.error_summary(error)}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(f"{path}: peft_type: given {kind!r}; allowed: 'LORA', 'IA3'")
    if (start := config.get("init_lora_weights", True)) not in _UNCHANGED_BASE:
        raise CheckpointError(
            f"{path}: init_lora_weights: given {start!r}, which changes the frozen weights; allowed: "
            f"{', '.join(map(repr, _UNCHANGED_BASE))}"
        )
    for key in config.keys() - _USED - _WITHOUT_EFFECT - {"init_lora_weights"}:
        if config[key] not in (None, False, "none", [], {}):
            raise CheckpointError(f"{path}: {key}: given {config[key]!r}; allowed: not used")
    return dict(config)


def _by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer, by the layer's path and peft's name of the parameter."""
    pattern = re.compile(rf"{re.escape(ROOT)}(.+)\.({'|'.join(map(re.escape, SUFFIXES.values()))})")
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := pattern.fullmatch(name)) is None:
            raise CheckpointError(f"{path}: {name} is no tensor of a LoRA or (IA)^3 adapter of a linear layer")
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise CheckpointError(f"{path} has no tensors")
    return found


def _layer(site: Site, path: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Layer:
    """The adapter of a layer, by its tensors and the configuration."""
    if (vector := tensors.get(SUFFIXES["ia3_l"])) is not None:
        return Layer(site, IA3.name, (("scales", "input" if vector.shape == (1, site.in_features) else "output"),))
    if (down := tensors.get(SUFFIXES["lora_A"])) is None:
        raise CheckpointError(f"{path}: given {', '.join(sorted(tensors))}; allowed: {', '.join(SUFFIXES.values())}")
    patterns = config.get("alpha_pattern") or {}
    alpha = next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", path)), config.get("lora_alpha"))
    fields = {
        "rank": len(down),
        "alpha": alpha,
        "dropout": config.get("lora_dropout") or 0.0,
        "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
    }
    return Layer(site, LoRA.name, tuple(fields.items()))


def _tables(layers: Iterable[Layer], lm: FrozenLM) -> dict[str, dict[str, Any]]:
    """The recipe's tables: one if all linear layers have equal adapters, otherwise one for each path and size."""
    groups: dict[tuple[str, str, tuple[tuple[str, Any], ...]], set[int]] = {}
    for layer in layers:
        groups.setdefault((layer.site.path, layer.use, layer.fields), set()).add(layer.site.block)
    blocks: dict[str, set[int]] = {}
    for site in lm.sites():
        if site.linear is not None:
            blocks.setdefault(site.path, set()).add(site.block)
    if {path: found for (path, *_), found in groups.items()} == blocks and len({key[1:] for key in groups}) == 1:
        _, use, fields = next(iter(groups))
        return {use: {"use": use, "at": "linears", **dict(fields)}}
    tables: dict[str, dict[str, Any]] = {}
    for (path, use, fields), found in groups.items():
        name = first = f"{use}_{re.sub(r'[^A-Za-z0-9_]', '_', path)}"
        while name in tables:  # the same path with another size
            name = f"{first}_{len(tables)}"
        placement = {} if found == blocks[path] else {"blocks": sorted(found)}
        tables[name] = {"use": use, "at": path, **placement, **dict(fields)}
    return tables


@torch.no_grad()
def _fill(model: Magma, tensors: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Copy the tensors into the adapters. Raises `CheckpointError` for other names or shapes."""
    for adapter in model.lm.all_adapters():
        assert isinstance(adapter, LowRank)
        layer = model.lm.exported_path(adapter.site)
        wanted = tensors_of(adapter)
        shapes, found = ({name: list(t.shape) for name, t in some.items()} for some in (wanted, tensors[layer]))
        if shapes != found:
            raise CheckpointError(f"{path}: tensors of {layer}: given {found}; allowed: {shapes}")
        for name, tensor in tensors[layer].items():
            wanted[name].copy_(tensor)


def _describe(name: str, table: Mapping[str, Any]) -> str:
    where = f" in blocks {table['blocks']}" if "blocks" in table else ""
    keys = ", ".join(f"{key} = {value}" for key, value in table.items() if key not in ("use", "at", "blocks"))
    return f"adapters.{name}: {table['use']} at {table['at']}{where}: {keys}"
