"""A checkpoint file of the authors' code to a MAGMA folder, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import magma
from magma import CheckpointError, Magma

from .names import BUFFERS, Bottleneck, Sizes, alias, find_sizes

LM = "lm"
NOTES, TABLES = "reference.json", "reference.safetensors"
IMAGE_TOKEN = "<|image|>"
SHARD = "500MB"


def to_folder(
    file: str | Path, out: str | Path, tokenizer: str | None = None, image_size: int | None = None
) -> list[str]:
    """Import a checkpoint; returns what was found and mapped, in lines. Raises `CheckpointError`.

    Tensors are mapped into memory, not read at once. `tokenizer` is a hub name or folder; where it is not given,
    GPT-2's is taken if it can be had, and otherwise the model reads and writes token ids alone.
    """
    file, out = Path(file), Path(out)
    _refuse_existing(out)
    tensors, notes = read(file)
    sizes = find_sizes(tensors, image_size)
    recipe = sizes.recipe()
    dtype = _dtype(tensors)
    model = magma.assemble(recipe, device="meta", dtype=dtype)
    mapped = {name: sizes.reference(name) for name in model.state_dict()}
    notes |= {"bias": _check_tensors(tensors, sizes, set(mapped.values())), "aliases": _check_aliases(tensors)}
    bare = _names_without_adapters(model)
    tables = {key: tensors[f"{sizes.attention(0)}.{key}"] for key in BUFFERS if key != "bias"}
    lines: list[str] = []

    def write_lm(folder: Path) -> None:
        from huggingface_hub import save_torch_state_dict
        from safetensors.torch import save_file

        (folder / LM).mkdir()
        _lm_config(sizes, dtype).save_pretrained(folder / LM)
        state = {bare[name]: _cast(tensors[mapped[name]], dtype) for name in bare}
        if lacking := sizes.vocab - sizes.words:
            words = "transformer.wte.weight"
            state[words] = torch.nn.functional.pad(state[words], (0, 0, 0, lacking))
        save_torch_state_dict(state, folder / LM, max_shard_size=SHARD)
        lines.append(_save_tokenizer(folder / LM, tokenizer, sizes))
        save_file({key: table.clone() for key, table in tables.items()}, folder / TABLES)
        (folder / NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")

    magma.save_tensors(
        out,
        {**recipe, "lm": {**recipe["lm"], "weights": LM}},
        {name: tensors[reference_name] for name, reference_name in mapped.items()},
        dtype,
        write_lm,
        joined=False,  # the authors' code tokenizes each text by itself
    )
    return [*_describe_mapping(mapped), *_describe_sizes(sizes, dtype), *lines]


def to_file(folder: str | Path, out: str | Path) -> list[str]:
    """Export a model as the authors' code reads it: a torch file with a `module` level, or plain safetensors.

    Raises `CheckpointError` for a model that their code cannot hold.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix not in (".pt", ".safetensors"):
        raise CheckpointError(f"given {out}; allowed: a file that ends in .pt or .safetensors")
    _refuse_existing(out)
    aside = out.with_name(f".{out.name}.partial")
    aside.touch()  # at once, where it cannot be written; and with the mode that a new file has
    mode = aside.stat().st_mode
    try:
        state, notes, mapped = _exported(folder)
        if out.suffix == ".pt":
            torch.save({"module": state, **notes.get("top", {})} if notes.get("module", True) else state, aside)
        else:
            from safetensors.torch import save_file

            save_file({name: tensor.clone() for name, tensor in state.items()}, aside)
            aside.chmod(mode)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return list(_describe_mapping({reference_name: ours for ours, reference_name in mapped.items()}))


def _exported(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """A model's tensors by their names, what an import noted of its file, and our names to theirs."""
    model = magma.load(folder)
    sizes = _sizes_of(model)
    notes = json.loads((folder / NOTES).read_text(encoding="utf-8")) if (folder / NOTES).is_file() else {}
    tables = _stored_tables(folder) or sizes.tables(model.dtype)
    mapped = {name: sizes.reference(name) for name in model.state_dict()}
    state = {mapped[name]: tensor for name, tensor in model.state_dict().items()}
    mask = torch.ones(sizes.context, sizes.context).tril().to(getattr(torch, notes.get("bias", "bool")))[None, None]
    for layer in range(sizes.layers):
        state |= {f"{sizes.attention(layer)}.{key}": table for key, table in {**tables, "bias": mask}.items()}
    if notes.get("aliases", True):
        state |= {other: state[name] for name in list(state) if (other := alias(name))}
    return state, notes, mapped


# The file


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, mapped into memory, and what else its top level says."""
    found, top = magma.read_tensors(file, "module")
    values = {k: v for k, v in top.items() if isinstance(v, str | int | float | bool | None)}
    return found, {"module": bool(top), "top": values}


# Checks


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The precision of the weights: the widest there is."""
    found = [t.dtype for n, t in tensors.items() if t.is_floating_point() and n.rpartition(".")[2] not in BUFFERS[1:]]
    dtype = torch.float16 if torch.float16 in found else found[0]
    for other in found:
        dtype = torch.promote_types(dtype, other)
    return dtype


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_tensors(tensors: Mapping[str, Tensor], sizes: Sizes, weights: set[str]) -> str:
    """Every tensor is explained, none is missing, tables are what they should be; the causal masks' dtype."""
    buffers = {f"{sizes.attention(layer)}.{key}" for layer in range(sizes.layers) for key in BUFFERS}
    known = weights | buffers
    names = tensors.keys()
    if strange := sorted(names - known - {other for name in known if (other := alias(name))}):
        raise CheckpointError(f"{len(strange)} tensors are none that the authors' code has: {', '.join(strange[:8])}")
    if missing := sorted(known - names):
        raise CheckpointError(f"{len(missing)} tensors are missing: {', '.join(missing[:8])}")
    for name in weights:
        if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise CheckpointError(f"{name} holds NaN or infinity")
    expected = sizes.tables(torch.float32)
    first = sizes.attention(0)
    mask = tensors[f"{first}.bias"]
    wanted = torch.ones(sizes.context, sizes.context, dtype=torch.bool).tril()[None, None]
    if (
        mask.dtype not in (torch.bool, torch.uint8)
        or mask.shape != wanted.shape
        or not torch.equal(mask.bool(), wanted)
    ):
        raise CheckpointError(f"{first}.bias is no causal mask of {sizes.context} positions")
    for layer in range(sizes.layers):
        for key in BUFFERS:
            name = f"{sizes.attention(layer)}.{key}"
            if not _equal(tensors[name], tensors[f"{first}.{key}"]):
                raise CheckpointError(f"{name} differs from that of the first block")
    for key in ("sin", "cos"):
        table = tensors[f"{first}.{key}"]
        if table.shape != expected[key].shape or not torch.allclose(table.float(), expected[key], atol=2e-3):
            raise CheckpointError(f"{first}.{key} is not the table of rotary embeddings of {sizes.rotary} dimensions")
    return str(mask.dtype).removeprefix("torch.")


def _check_aliases(tensors: Mapping[str, Tensor]) -> bool:
    """Second names hold what the first ones do; whether there are any."""
    present = [(name, other) for name in tensors if (other := alias(name)) in tensors]
    for name, other in present:
        assert other is not None
        if not _equal(tensors[name], tensors[other]):
            raise CheckpointError(f"{other} differs from {name}, of which it is a second name")
    return bool(present)


def _equal(one: Tensor, other: Tensor) -> bool:
    shared = one.dtype == other.dtype and one.shape == other.shape and one.data_ptr() == other.data_ptr()
    return shared or (one.dtype == other.dtype and torch.equal(one, other))


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out} exists already: choose another --out")


# The language model's folder


def _names_without_adapters(model: Magma) -> dict[str, str]:
    """Names in the model to names in the language model's own library, adapters left out."""
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
    """GPT-2's tokenizer with its image token, beside the weights; a line that says how it went."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    gpt2 = 50_257
    if wanted is None and sizes.words < gpt2 + 1:
        return f"tokenizer: none; the model has {sizes.words} words, not GPT-2's, and reads and writes token ids alone"
    source = wanted or "gpt2"
    logging.set_verbosity_error()
    try:
        if wanted is None and (problem := magma.hub_problem(source, "tokenizer.json")):
            raise OSError(problem)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the hub's client raises many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if wanted is not None:
            raise CheckpointError(
                f"--tokenizer {wanted} cannot be had: {reason}; allowed: a hub name, or a folder with a tokenizer"
            ) from error
        return (
            f"tokenizer: none, {source} cannot be had ({reason}); the model reads and writes token ids alone until "
            "one is put beside its weights, or it is imported again with --tokenizer"
        )
    tokenizer.add_special_tokens({"cls_token": IMAGE_TOKEN})
    if len(tokenizer) != sizes.words:
        raise CheckpointError(
            f"--tokenizer {source} has {len(tokenizer)} tokens with {IMAGE_TOKEN}; allowed: {sizes.words}, a word "
            "embedding for each"
        )
    tokenizer.save_pretrained(folder)
    return f"tokenizer: {source} with {IMAGE_TOKEN}"


# Export


def _sizes_of(model: Magma) -> Sizes:
    """A model of ours as their code would configure it, or why it cannot."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"the authors' format cannot hold this model: {what}")

    if model.lm.name != "gptj":
        raise refuse(f'its language model is "{model.lm.name}", not "gptj"')
    if model.head is not None:
        raise refuse("it has a head")
    if list(model.input_modules()) != ["image"]:
        raise refuse(f"its inputs are {', '.join(model.input_modules()) or 'none'}, not one called image")
    input_module = model.input_modules()["image"]
    network = input_module.encoder.state_dict()
    if input_module.encoder.name != "clip" or "network.layer1.0.conv1.weight" not in network:
        raise refuse("its encoder is none of CLIP's ResNets")
    if input_module.prefix.name != "linear":
        raise refuse(f'its prefix is "{input_module.prefix.name}", not "linear"')
    architecture: Any = model.lm.get_submodule("model").config
    adapters = {}
    for place, made in model.lm.adapters.items():
        config: Any = made[0].config
        learned = config.scale == "learned"
        if made[0].name not in ("sequential", "parallel") or (learned and made[0].name == "sequential"):
            raise refuse(f'its adapters are "{made[0].name}"{" with a learned scale" if learned else ""}')
        adapters[place] = Bottleneck(made[0].name, config.downsample, config.layernorm, learned)
    stages = [len({n.split(".")[2] for n in network if n.startswith(f"network.layer{k}.")}) for k in (1, 2, 3, 4)]
    return Sizes(
        layers=architecture.n_layer,
        dim=model.lm.dim,
        heads=architecture.n_head,
        rotary=architecture.rotary_dim,
        context=model.lm.context,
        vocab=model.lm.vocab,
        words=model.lm.num_embeddings,
        stages=(stages[0], stages[1], stages[2], stages[3]),
        width=len(network["network.layer1.0.conv1.weight"]),
        image_size=input_module.encoder.dummy_item().shape[-1],
        layernorm="finish.1.weight" in input_module.prefix.state_dict(),
        adapters={str(place): adapter for place, adapter in adapters.items()},
    )


def _stored_tables(folder: Path) -> dict[str, Tensor] | None:
    from safetensors.torch import load_file

    return load_file(folder / TABLES) if (folder / TABLES).is_file() else None


# What a person is told


def _describe_mapping(mapped: Mapping[str, str]) -> Iterator[str]:
    """One line for all names that differ in a block's number, or that end alike."""
    patterns: dict[tuple[str, str], int] = {}
    for ours, reference_name in mapped.items():
        left, right = (re.sub(r"\.h\.\d+\.", ".h.*.", name).split(".") for name in (reference_name, ours))
        while left[-1] == right[-1]:
            left, right = left[:-1], right[:-1]
        key = ".".join(left), ".".join(right)
        patterns[key] = patterns.get(key, 0) + 1
    for (reference_name, ours), count in patterns.items():
        yield f"{reference_name}.** -> {ours}.**  ({count} tensor{'s' if count > 1 else ''})"


def _describe_sizes(sizes: Sizes, dtype: torch.dtype) -> Iterator[str]:
    yield (
        f"language model: {sizes.layers} layers, width {sizes.dim}, {sizes.heads} heads, rotary {sizes.rotary}, "
        f"context {sizes.context}, {sizes.words} words, head of {sizes.vocab}"
    )
    yield f"encoder: CLIP ResNet, stages {sizes.stages}, width {sizes.width}, images of {sizes.image_size} pixels" + (
        " (a guess: the file does not say; --image-size sets it)" if sizes.guessed else ""
    )
    for place, adapter in sizes.adapters.items():
        yield (
            f"adapters.{place}: {adapter.use}, downsample {adapter.downsample}"
            + (", LayerNorm" if adapter.layernorm else "")
            + (", learned scale" if adapter.learned else "")
        )
    yield f"precision: {str(dtype).removeprefix('torch.')}"
