"""Reads the configuration, the weights and the tokenizer of a causal language model of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from magma import PartError, find_local_folder

from .bundled.configurations import planned_configuration
from .gguf import parsed_once, without_quantizer
from .quantization import fix_quantized_modules, quantization_config
from .text_models import is_composite, separate_text_model, text_architecture, text_model_class, whole_model_class
from .weights import TOKENIZER_FILES, Source, has_safetensors, load_pretrained, locate


def read_architecture(source: Source) -> Any:
    """The transformers configuration of a language model; for a checkpoint of several modalities, of its text model.

    A plan of a published model may get the configuration from this package, see `bundled/configurations.py`.

    Raises:
        PartError: It cannot be read, needs code that the recipe does not allow, or has no text model that can be
            separated.
    """
    from transformers import AutoConfig

    assert source.weights is not None
    if (planned := planned_configuration(source.weights, **source.hub("weights"))) is not None:
        architecture = AutoConfig.from_pretrained(planned)
    else:
        _check_remote_code(source)
        architecture = load_pretrained("weights", source, AutoConfig.from_pretrained)
    return text_architecture(architecture) if _has_text_model(source, architecture) else architecture


def import_model_class(source: Source, architecture: Any) -> None:
    """Import the library's module of a model. Raises `PartError` if it has no causal model for this configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if source.remote_code and type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    if text_model_class(architecture) is None:
        raise PartError(
            f'lm: given a model of type "{architecture.model_type}"; transformers has no causal language model of it'
        )


def build_model(source: Source, architecture: Any) -> Any:
    """A causal language model of transformers with random weights in float32. Raises what the library raises."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    architecture = copy.deepcopy(architecture)
    if not source.remote_code and type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return text_model_class(architecture)._from_config(architecture, dtype=torch.float32)
    return AutoModelForCausalLM.from_config(architecture, dtype=torch.float32, trust_remote_code=source.remote_code)


def load_model(source: Source, architecture: Any) -> Any:
    """Read the weights, in the precision of the file or quantized.

    safetensors are memory-mapped, and read shard by shard when they are used. Files of torch are read with
    `weights_only`. Weights of a GGUF file are dequantized.

    Args:
        source: Where they are; `weights` is set.
        architecture: The configuration of `read_architecture`.

    Returns:
        The model in eval mode.

    Raises:
        PartError: The files cannot be read, or their tensors are not those of this model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    assert source.weights is not None
    logging.disable_progress_bar()  # the caller reports progress
    where, gguf_file = locate(source.weights)
    options: dict[str, Any] = {}
    if source.quantize is not None:
        options["quantization_config"] = quantization_config(source.quantize, gguf_file)
    if gguf_file is not None:
        return _load_gguf(source, architecture)
    hub = source.hub("weights")
    options["use_safetensors"] = has_safetensors(source.weights, **hub)
    whole = None
    if find_local_folder(where, "config.json", **hub):  # `gptj` may have none
        whole = load_pretrained("weights", source, AutoConfig.from_pretrained)
    if whole is not None and _has_text_model(source, whole):
        loaded, report = _load(source, whole_model_class(whole).from_pretrained, whole, **options)
        model = separate_text_model(loaded, architecture, report["missing_keys"])
    else:
        model, report = _load(source, AutoModelForCausalLM.from_pretrained, architecture, **options)
        _check_tensors(source, report)
    return model


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of transformers: that of `tokenizer`, or the one beside the weights. Raises `PartError`."""
    from transformers import AutoTokenizer

    name = source.name("tokenizer")
    if name is None:
        raise PartError("lm: a model with random weights has no tokenizer; set lm.tokenizer to a hub name or a folder")
    folder, gguf_file = locate(name)
    if not gguf_file and Path(folder).is_dir() and not any(Path(folder, file).is_file() for file in TOKENIZER_FILES):
        raise PartError(
            f"lm: {folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}), so it can only read and write token "
            "ids; for text, put a tokenizer there, or set lm.tokenizer to a hub name or a folder"
        )
    return load_pretrained("tokenizer", source, AutoTokenizer.from_pretrained)


def _check_remote_code(source: Source) -> None:
    """Raise `PartError` if the model exists only as code beside the weights, which the recipe does not allow to run."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    assert source.weights is not None
    if source.remote_code or locate(source.weights).gguf_file is not None:
        return
    fields, _ = load_pretrained("weights", source, PreTrainedConfig.get_config_dict)
    if "auto_map" in fields and fields.get("model_type") not in CONFIG_MAPPING:
        raise PartError(
            f"lm.remote_code: {source.weights} is a model that transformers does not have; it comes as Python code "
            "beside the weights, which is not run. Allowed: lm.remote_code = true, if you trust that code"
        )


def _has_text_model(source: Source, architecture: Any) -> bool:
    remote: Mapping[str, Any] = getattr(architecture, "auto_map", {}) if source.remote_code else {}
    return "AutoModelForCausalLM" not in remote and is_composite(architecture)


def _load(source: Source, load: Callable[..., Any], architecture: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The library's model, and its report of tensors that are missing or left over."""
    model, report = load_pretrained(
        "weights", source, load, config=copy.deepcopy(architecture), dtype="auto", output_loading_info=True, **options
    )
    fix_quantized_modules(model)
    return model, report


def _load_gguf(source: Source, architecture: Any) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    unpacked = GgufConfig(dequantize=True)
    load = AutoModelForCausalLM.from_pretrained
    with parsed_once():
        loaded, report = _load(source, load, architecture, quantization_config=unpacked)
    _check_tensors(source, report)
    with torch.device("meta"):
        plain = build_model(source, architecture)
    return without_quantizer(loaded, plain)


def _check_tensors(source: Source, report: dict[str, Any]) -> None:
    # Old files may have unused buffers. An unused weight belongs to a block that this model lacks: an error.
    unexpected = {name for name in report["unexpected_keys"] if name.endswith(".weight")}
    if wrong := sorted(report["missing_keys"] | unexpected):
        raise PartError(
            f"lm.weights: given {source.weights!r}, whose tensors do not fit this model: {len(wrong)} are missing "
            f"or unexpected, the first is {wrong[0]}"
        )
