"""Conversion of a checkpoint of the authors' code to a MAGMA folder, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import magma
from magma import CheckpointError, Magma

from .names import BUFFERS, Bottleneck, Sizes, find_alias, find_sizes

LM_FOLDER = "lm"
NOTES_FILE, BUFFERS_FILE = "reference.json", "reference.safetensors"
IMAGE_TOKEN = "<|image|>"
MAX_SHARD_SIZE = "500MB"


def to_folder(
    file: str | Path, out: str | Path, tokenizer: str | None = None, image_size: int | None = None
) -> list[str]:
    """Import a checkpoint. Returns a report of sizes and mapped tensors, as lines. Raises `CheckpointError`.

    Tensors are memory-mapped, not read at once. `tokenizer` is a hub name or a folder. Default: GPT-2's tokenizer if it
    is available; otherwise the model can only read and write token ids.
    """
    file, out = Path(file), Path(out)
    _refuse_existing(out)
    tensors, notes = read(file)
    sizes = find_sizes(tensors, image_size)
    recipe = sizes.recipe()
    dtype = _find_dtype(tensors)
    model = magma.assemble(recipe, device="meta", dtype=dtype)
    mapped = {name: sizes.reference(name) for name in model.state_dict()}
    notes |= {"bias": _check_tensors(tensors, sizes, set(mapped.values())), "aliases": _check_aliases(tensors)}
    bare = _names_without_adapters(model)
    tables = {key: tensors[f"{sizes.attention(0)}.{key}"] for key in BUFFERS if key != "bias"}
    lines: list[str] = []

    def write_lm(folder: Path) -> None:
        from huggingface_hub import save_torch_state_dict
        from safetensors.torch import save_file

        (folder / LM_FOLDER).mkdir()
        _lm_config(sizes, dtype).save_pretrained(folder / LM_FOLDER)
        state = {bare[name]: _cast(tensors[mapped[name]], dtype) for name in bare}
        if lacking := sizes.vocab - sizes.words:
            words = "transformer.wte.weight"
            state[words] = torch.nn.functional.pad(state[words], (0, 0, 0, lacking))
        save_torch_state_dict(state, folder / LM_FOLDER, max_shard_size=MAX_SHARD_SIZE)
        lines.append(_save_tokenizer(folder / LM_FOLDER, tokenizer, sizes))
        save_file({key: table.clone() for key, table in tables.items()}, folder / BUFFERS_FILE)
        (folder / NOTES_FILE).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")

    magma.save_tensors(
        out,
        {**recipe, "lm": {**recipe["lm"], "weights": LM_FOLDER}},
        {name: tensors[reference_name] for name, reference_name in mapped.items()},
        dtype,
        write_lm,
        joined=False,  # the authors' code tokenizes each segment separately
    )
    return [*_describe_mapping(mapped), *_describe_sizes(sizes, dtype), *lines]


def to_file(folder: str | Path, out: str | Path) -> list[str]:
    """Export a model in the authors' format: a torch file with the key `module`, or plain safetensors.

    Raises `CheckpointError` for a model that the authors' code does not support.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix not in (".pt", ".safetensors"):
        raise CheckpointError(f"given {out}; allowed: a file that ends in .pt or .safetensors")
    _refuse_existing(out)
    mapped: dict[str, str] = {}

    def write(partial: Path) -> None:
        state, notes, names = _export_tensors(folder)
        mapped.update(names)
        if out.suffix == ".pt":
            torch.save({"module": state, **notes.get("top", {})} if notes.get("module", True) else state, partial)
        else:
            from safetensors.torch import save_file

            save_file({name: tensor.clone() for name, tensor in state.items()}, partial)

    magma.atomic_write(out, write)
    return list(_describe_mapping({reference_name: name for name, reference_name in mapped.items()}))


def _export_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """The tensors under the authors' names, the notes of the import, and the map from MAGMA's names to theirs."""
    model = magma.load(folder)
    sizes = _find_sizes_of_model(model)
    notes = json.loads((folder / NOTES_FILE).read_text(encoding="utf-8")) if (folder / NOTES_FILE).is_file() else {}
    tables = _load_stored_buffers(folder) or sizes.tables(model.dtype)
    mapped = {name: sizes.reference(name) for name in model.state_dict()}
    state = {mapped[name]: tensor for name, tensor in model.state_dict().items()}
    mask = torch.ones(sizes.context, sizes.context).tril().to(getattr(torch, notes.get("bias", "bool")))[None, None]
    for layer in range(sizes.layers):
        state |= {f"{sizes.attention(layer)}.{key}": table for key, table in {**tables, "bias": mask}.items()}
    if notes.get("aliases", True):
        state |= {other: state[name] for name in list(state) if (other := find_alias(name))}
    return state, notes, mapped


# The file


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, memory-mapped, and the other values of its top level."""
    found, top = magma.read_tensors(file, "module")
    values = {k: v for k, v in top.items() if isinstance(v, str | int | float | bool | None)}
    return found, {"module": bool(top), "top": values}


# Checks


def _find_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The precision of the weights: the widest one in the file."""
    found = [t.dtype for n, t in tensors.items() if t.is_floating_point() and n.rpartition(".")[2] not in BUFFERS[1:]]
    dtype = torch.float16 if torch.float16 in found else found[0]
    for other in found:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_tensors(tensors: Mapping[str, Tensor], sizes: Sizes, weights: set[str]) -> str:
    """Raise `CheckpointError` for unknown, missing or wrong tensors. Returns the dtype of the causal masks."""
    buffers = {f"{sizes.attention(layer)}.{key}" for layer in range(sizes.layers) for key in BUFFERS}
    known = weights | buffers
    names = tensors.keys()
    if unknown := sorted(names - known - {other for name in known if (other := find_alias(name))}):
        raise CheckpointError(f"{len(unknown)} tensors are unknown to the authors' code: {', '.join(unknown[:8])}")
    if missing := sorted(known - names):
        raise CheckpointError(f"{len(missing)} tensors are missing: {', '.join(missing[:8])}")
    for name in weights:
        if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise CheckpointError(f"{name} contains NaN or infinity")
    expected = sizes.tables(torch.float32)
    first = sizes.attention(0)
    mask = tensors[f"{first}.bias"]
    wanted = torch.ones(sizes.context, sizes.context, dtype=torch.bool).tril()[None, None]
    if (
        mask.dtype not in (torch.bool, torch.uint8)
        or mask.shape != wanted.shape
        or not torch.equal(mask.bool(), wanted)
    ):
        raise CheckpointError(f"{first}.bias is not a causal mask of {sizes.context} positions")
    for layer in range(sizes.layers):
        for key in BUFFERS:
            name = f"{sizes.attention(layer)}.{key}"
            if not _same_tensor(tensors[name], tensors[f"{first}.{key}"]):
                raise CheckpointError(f"{name} differs from the one of the first block")
    for key in ("sin", "cos"):
        table = tensors[f"{first}.{key}"]
        if table.shape != expected[key].shape or not torch.allclose(table.float(), expected[key], atol=2e-3):
            raise CheckpointError(f"{first}.{key} is not the table of rotary embeddings of {sizes.rotary} dimensions")
    return str(mask.dtype).removeprefix("torch.")


def _check_aliases(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are aliases. Raises `CheckpointError` if one differs from its tensor."""
    present = [(name, other) for name in tensors if (other := find_alias(name)) in tensors]
    for name, other in present:
        assert other is not None
        if not _same_tensor(tensors[name], tensors[other]):
            raise CheckpointError(f"{other} differs from {name}, although the two are names of one tensor")
    return bool(present)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    shared = one.dtype == other.dtype and one.shape == other.shape and one.data_ptr() == other.data_ptr()
    return shared or (one.dtype == other.dtype and torch.equal(one, other))


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out} exists already: choose another --out")


# The language model's folder


def _names_without_adapters(model: Magma) -> dict[str, str]:
    """Names in the model to names in transformers, without adapters."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    model.lm.remove_adapters()
    state = model.lm.state_dict(keep_vars=True)
    return {names[id(tensor)]: name.removeprefix("model.") for name, tensor in state.items()}


def _lm_config(sizes: Sizes, dtype: torch.dtype) -> Any:
    from transformers import GPTJConfig

    return GPTJConfig(
        vocab_size=sizes.vocab,
        n_positions=sizes.context,
        n_embd=sizes.dim,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        rotary_dim=sizes.rotary,
        bos_token_id=sizes.words - 2,
        eos_token_id=sizes.words - 2,
        tie_word_embeddings=False,
        dtype=dtype,
        architectures=["GPTJForCausalLM"],
    )


def _save_tokenizer(folder: Path, wanted: str | None, sizes: Sizes) -> str:
    """Save GPT-2's tokenizer with its image token beside the weights. Returns a line for the report."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    gpt2 = 50_257
    if wanted is None and sizes.words < gpt2 + 1:
        return f"tokenizer: none; the model has {sizes.words} words, fewer than GPT-2, and only handles token ids"
    source = wanted or "gpt2"
    logging.set_verbosity_error()
    try:
        if wanted is None and (problem := magma.hub_problem(source, "tokenizer.json")):
            raise OSError(problem)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the hub's client raises many kinds
        reason = magma.error_summary(error)
        if wanted is not None:
            raise CheckpointError(
                f"--tokenizer {wanted} is not available: {reason}; allowed: a hub name, or a folder with a tokenizer"
            ) from error
        return (
            f"tokenizer: none, because {source} is not available ({reason}); the model only handles token ids. "
            "For text, put a tokenizer beside its weights, or import it again with --tokenizer"
        )
    tokenizer.add_special_tokens({"cls_token": IMAGE_TOKEN})
    if len(tokenizer) != sizes.words:
        raise CheckpointError(
            f"--tokenizer {source} has {len(tokenizer)} tokens with {IMAGE_TOKEN}; allowed: {sizes.words}, the "
            "number of word embeddings"
        )
    tokenizer.save_pretrained(folder)
    return f"tokenizer: {source} with {IMAGE_TOKEN}"


# Export


def _find_sizes_of_model(model: Magma) -> Sizes:
    """The sizes of a model. Raises `CheckpointError` for a model that the authors' code does not support."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"the authors' format does not support this model: {what}")

    if model.lm.name != "gptj":
        raise refuse(f'its language model is "{model.lm.name}", not "gptj"')
    if model.head is not None:
        raise refuse("it has a head")
    if list(model.input_modules()) != ["image"]:
        raise refuse(f"its inputs are {', '.join(model.input_modules()) or 'none'}, not image only")
    image_input = model.input_modules()["image"]
    network = image_input.encoder.state_dict()
    if image_input.encoder.name != "clip" or "network.layer1.0.conv1.weight" not in network:
        raise refuse("its encoder is not a CLIP ResNet")
    if image_input.prefix.name != "linear":
        raise refuse(f'its prefix is "{image_input.prefix.name}", not "linear"')
    architecture: Any = model.lm.get_submodule("model").config
    adapters = {}
    for place, made in model.lm.adapters.items():
        sites = [site.path for site in model.lm.adapter_sites[place]]
        if place not in ("attention", "mlp") or sites != [place] * architecture.n_layer:
            raise refuse(f"it has adapters at {', '.join(dict.fromkeys(sites))} in {len(sites)} places")
        name, config = made[0].name, cast(Any, made[0].config)
        if name not in ("sequential", "parallel"):
            raise refuse(f'its adapters are "{name}"')
        learned = config.scale == "learned"
        if learned and name == "sequential":
            raise refuse(f'its adapters are "{name}" with a learned scale')
        adapters[place] = Bottleneck(name, config.downsample, config.layernorm, learned)
    stages = [len({n.split(".")[2] for n in network if n.startswith(f"network.layer{k}.")}) for k in (1, 2, 3, 4)]
    return Sizes(
        layers=architecture.n_layer,
        dim=model.lm.dim,
        heads=architecture.n_head,
        rotary=architecture.rotary_dim,
        context=architecture.n_positions,
        vocab=model.lm.vocab,
        words=model.lm.num_embeddings,
        stages=(stages[0], stages[1], stages[2], stages[3]),
        width=len(network["network.layer1.0.conv1.weight"]),
        image_size=image_input.encoder.dummy_item().shape[-1],
        layernorm="finish.1.weight" in image_input.prefix.state_dict(),
        adapters={str(place): adapter for place, adapter in adapters.items()},
    )


def _load_stored_buffers(folder: Path) -> dict[str, Tensor] | None:
    from safetensors.torch import load_file

    return load_file(folder / BUFFERS_FILE) if (folder / BUFFERS_FILE).is_file() else None


# Report


def _describe_mapping(mapped: Mapping[str, str]) -> Iterator[str]:
    """One line for each group of names that differ only in the number of the block or in the last components."""
    patterns: dict[tuple[str, str], int] = {}
    for magma_name, reference_name in mapped.items():
        left, right = (re.sub(r"\.h\.\d+\.", ".h.*.", name).split(".") for name in (reference_name, magma_name))
        while left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        key = ".".join(left), ".".join(right)
        patterns[key] = patterns.get(key, 0) + 1
    for (reference_name, magma_name), count in patterns.items():
        yield f"{reference_name}.** -> {magma_name}.**  ({count} tensor{'s' if count > 1 else ''})"


def _describe_sizes(sizes: Sizes, dtype: torch.dtype) -> Iterator[str]:
    yield (
        f"language model: {sizes.layers} layers, width {sizes.dim}, {sizes.heads} heads, rotary {sizes.rotary}, "
        f"context {sizes.context}, {sizes.words} word embeddings, {sizes.vocab} rows of the head"
    )
    yield f"encoder: CLIP ResNet, stages {sizes.stages}, width {sizes.width}, images of {sizes.image_size} pixels" + (
        " (a guess: the file does not contain it; --image-size sets it)" if sizes.guessed else ""
    )
    for place, adapter in sizes.adapters.items():
        yield (
            f"adapters.{place}: {adapter.use}, downsample {adapter.downsample}"
            + (", LayerNorm" if adapter.layernorm else "")
            + (", learned scale" if adapter.learned else "")
        )
    yield f"precision: {str(dtype).removeprefix('torch.')}"
