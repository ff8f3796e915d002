"""Takes a multimodal model of transformers apart, and writes a MAGMA folder of its parts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save_file

import magma
from magma import CheckpointError, PartError, error_summary

from . import whole_model
from .whole_inputs import load_processor
from .whole_model import TENSORS, Modality
from .whole_probe import compare

LM_FOLDER = "lm"
READABLE: tuple[Modality, ...] = ("image", "audio")
LIMITS = {"image": "largest", "audio": "seconds"}
"""Keys of the encoders."""


def to_folder(
    source: str | Path,
    out: str | Path,
    limits: Mapping[Modality, float] = MappingProxyType({}),
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Import a model. Returns a report, as lines.

    Args:
        source: A folder in transformers' format, or a hub name.
        out: The folder to write; it must not exist yet.
        limits: Pixels per side of the largest image, seconds of the longest recording. Default: 1024 and 30.
        say: Called with each step.

    Raises:
        PartError: The model cannot be read or taken apart; or the parts do not give the logits of the whole.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already: choose another --out")
    say("reading the whole model")
    whole = read_whole(source)
    media = readable_modalities(whole)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch)
        for modality in media:
            say(f"separating what reads {modality}")
            write_media(folder / modality, whole, modality, source)
        say("separating the language model")
        language_model = magma.assemble({"name": "lm", "lm": {"use": "causal", "weights": str(source)}}, device=None)
        language_model.lm.export(folder / LM_FOLDER)
        del language_model
        recipe = {
            "name": out.name,
            "lm": {"use": "causal", "weights": LM_FOLDER},
            "inputs": {
                modality: {
                    "encoder": {"use": f"hf_{modality}_features", "weights": modality, **_limit(modality, limits)},
                    "prefix": {"use": "identity"},
                    "trainable": False,
                }
                for modality in media
            },
        }
        return _verify_and_save(folder, out, recipe, whole, say)


def _limit(modality: Modality, limits: Mapping[Modality, float]) -> dict[str, float]:
    return {LIMITS[modality]: limits[modality]} if modality in limits else {}


def _verify_and_save(folder: Path, out: Path, recipe: dict[str, Any], whole: Any, say: Callable[[str], None]) -> list[str]:
    (folder / "recipe.toml").touch()
    model = magma.assemble(magma.Recipe.load(recipe, folder=folder), device=None)
    say("comparing the logits of the parts with those of the whole model")
    lines = compare(whole, model)
    names = [path.name for path in folder.iterdir() if path.is_dir()]

    def bring(target: Path) -> None:
        for name in names:
            shutil.move(folder / name, target / name)

    magma.save_tensors(out, recipe, model.state_dict(), model.dtype, bring)
    return lines


def read_whole(source: str | Path) -> Any:
    """The library's whole model in the precision of the files, in eval mode. Raises `PartError`."""
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(source)
        whole, report = whole_model.whole_class(architecture).from_pretrained(
            source, dtype="auto", output_loading_info=True
        )
    except PartError:
        raise
    except Exception as error:  # the library raises errors of many types
        raise PartError(f"{source} cannot be read: {error_summary(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise PartError(f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")
    return whole.eval()


def readable_modalities(whole: Any) -> list[Modality]:
    """What can be read by a feature function of the model. Raises `PartError` if there is nothing."""
    found, reasons = [], []
    for modality in READABLE:
        module = whole_model.feature_module(whole, modality)
        if module is not None:
            found.append(modality)
    if not found:
        raise PartError(f"{whole.config.model_type}: it has no function for the features of images or audio")
    return found


def write_media(folder: Path, whole: Any, modality: Modality, source: str | Path) -> None:
    """Write configuration, processor and tensors of what reads a medium."""
    folder.mkdir()
    module = whole_model.feature_module(whole, modality)
    language_model = whole_model.language_model_names(whole, module)
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in language_model}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / TENSORS)
    whole.config.save_pretrained(folder)
    load_processor(modality, source, whole.config).save_pretrained(folder)
