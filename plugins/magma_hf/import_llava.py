"""Reads a checkpoint of the code of LLaVA (Liu et al. 2023), whose projector is `model.mm_projector`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from magma_prefixes.transformers_names import find_llava_projector
from safetensors.torch import save_file
from torch import Tensor

import magma
from magma import CheckpointError, PartError, find_local_folder

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OTHERS = (*TOKENIZER, "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json")
LANGUAGE_MODELS = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""`model_type` in config.json to that of the language model."""
PROJECTOR, TOWER = "mm_projector.", "vision_tower."
MAX_SHARD_SIZE = "5GB"


def original_configuration(folder: Path) -> dict[str, Any] | None:
    """The fields of config.json if LLaVA's own code wrote it, else None."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "mm_vision_tower" in found and "vision_config" not in found else None


def to_folder(
    folder: Path,
    config: Mapping[str, Any],
    out: Path,
    tower: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Import a checkpoint of LLaVA's code. Returns a report, as lines.

    Args:
        folder: The checkpoint.
        config: What `original_configuration` read.
        out: The folder to write.
        tower: Hub name or folder of the vision tower. Default: `mm_vision_tower` of the configuration.
        say: Called with each step.

    Raises:
        PartError: The checkpoint cannot be taken apart; the message says why.
    """
    language_model = _language_model(config)
    kind = str(config.get("mm_projector_type") or "linear")
    projector = find_llava_projector(kind)
    if projector is None:
        raise PartError(
            f"{folder}: mm_projector_type: given {kind!r}; allowed: linear, mlp2x_gelu (any number of layers)"
        )
    if config.get("mm_patch_merge_type", "flat") != "flat" or config.get("image_aspect_ratio") == "anyres":
        raise PartError(
            f"{folder}: it reads an image as several tiles, which this import does not do. Allowed: the same model in "
            "transformers' format"
        )
    if config.get("mm_use_im_start_end"):
        raise PartError(f"{folder}: mm_use_im_start_end: given true; allowed: false")
    say("reading the tensors")
    tensors = _read(folder)
    source = tower or str(config["mm_vision_tower"])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        here = Path(scratch)
        say("writing the language model")
        _write_language_model(here / "lm", folder, language_model, tensors)
        inside = {name.partition(f"{TOWER}{TOWER}")[2]: t for name, t in tensors.items() if f".{TOWER}" in name}
        if inside:
            say("writing the vision tower, which was trained too")
            _write_tower(here / "image", source, inside)
            source = "image"
        recipe = {
            "name": out.name,
            "lm": {"use": "causal", "weights": "lm"},
            "inputs": {
                "image": {
                    "encoder": {
                        "use": "hf_vision",
                        "weights": source,
                        "layer": int(config.get("mm_vision_select_layer", -2)),
                        "features": _features(config),
                    },
                    "prefix": {"use": projector.use, **projector.options},
                    "trainable": False,
                }
            },
        }
        model = magma.assemble(magma.Recipe.load(recipe, folder=here), device=None)
        prefix = model.input_modules()["image"].prefix
        found = projector.tensors(tensors)
        try:
            prefix.load_state_dict(found, assign=True)
        except RuntimeError as error:
            raise PartError(f"{folder}: the projector does not fit: {error}") from error
        written = [path.name for path in here.iterdir()]

        def bring(target: Path) -> None:
            for name in written:
                shutil.move(here / name, target / name)

        magma.save_tensors(out, recipe, model.state_dict(), model.dtype, bring)
    return [f"image: encoder hf_vision ({source}), prefix {projector.use}, {len(found)} tensors of mm_projector"]


def _features(config: Mapping[str, Any]) -> str:
    return "all" if config.get("mm_vision_select_feature", "patch") == "cls_patch" else "patches"


def _language_model(config: Mapping[str, Any]) -> Any:
    """The configuration of the language model. Raises `PartError`."""
    from transformers import AutoConfig

    family = str(config.get("model_type"))
    if family not in LANGUAGE_MODELS:
        allowed = ", ".join(LANGUAGE_MODELS)
        raise PartError(f"config.json: model_type: given {family!r}; allowed for LLaVA's own format: {allowed}")
    others = ("mm_", "tune_mm", "freeze_mm", "use_mm", "image_", "unfreeze_mm")
    skipped = ("model_type", "architectures", "auto_map", "transformers_version", "tokenizer_padding_side")
    fields = {key: value for key, value in config.items() if not key.startswith(others) and key not in skipped}
    return AutoConfig.for_model(LANGUAGE_MODELS[family], **fields)


def _read(folder: Path) -> dict[str, Tensor]:
    """All tensors, memory-mapped. Raises `PartError`."""
    files = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise PartError(f"{folder} has no {' or '.join(WEIGHTS)}")
    try:
        return {name: tensor for file in files for name, tensor in magma.read_tensors(file)[0].items()}
    except CheckpointError as error:
        raise PartError(str(error)) from error


def _write_language_model(target: Path, folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> None:
    from huggingface_hub import save_torch_state_dict
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    target.mkdir()
    own = {name: t for name, t in tensors.items() if PROJECTOR not in name and TOWER not in name}
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.save_pretrained(target)
    save_torch_state_dict(own, target, max_shard_size=MAX_SHARD_SIZE)
    for name in OTHERS:
        if (folder / name).is_file():
            shutil.copy(folder / name, target / name)


def _write_tower(target: Path, source: str, tensors: Mapping[str, Tensor]) -> None:
    """Write the trained tower with the configuration and the processor of the one it started from."""
    from transformers import AutoConfig

    target.mkdir()
    if (start := find_local_folder(source, "config.json")) is None:
        raise PartError(
            f"the vision tower {source} is not on this machine: download it, or give its folder with --tower"
        )
    config = AutoConfig.from_pretrained(start)
    getattr(config, "vision_config", config).save_pretrained(target)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, target / "model.safetensors")
    if (start / "preprocessor_config.json").is_file():
        shutil.copy(start / "preprocessor_config.json", target)
