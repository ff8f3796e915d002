"""Takes a multimodal model of transformers apart, and writes a MAGMA folder of its parts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from magma_prefixes.transformers_names import find_projector
from torch import Tensor, nn

import magma
from magma import (
    CheckpointError,
    FrozenLM,
    Input,
    Magma,
    PartError,
    PartOf,
    Prefix,
    error_summary,
    hub_problem,
    is_folder,
)

from . import import_llava, whole_model
from .whole_encoder import WholeAudio, WholeFeatures, WholeImages
from .whole_folder import write_media
from .whole_frame import Frame, chat_prompt, find_frame, load_full_processor
from .whole_inputs import load_processor
from .whole_model import Modality
from .whole_probe import LogitsDiffer, compare, media_token
from .whole_split import find_projector_path

LM_FOLDER = "lm"
PROMPTS = "prompts.json"
"""For each modality, the texts before and after a medium by which the chat template asks `{question}` about it."""
ENCODERS: Mapping[Modality, type[WholeFeatures]] = {"image": WholeImages, "audio": WholeAudio}


def to_folder(
    source: str | Path,
    out: str | Path,
    limits: Mapping[str, float | None] = MappingProxyType({}),
    say: Callable[[str], None] = lambda _: None,
    tower: str | None = None,
) -> list[str]:
    """Import a model. Returns a report, as lines.

    Args:
        source: A folder in transformers' format or of LLaVA's own code, or a hub name.
        out: The folder to write; it must not exist yet.
        limits: Pixels per side of the largest image, seconds of the longest recording. Default: 1024 and 30.
        say: Called with each step.
        tower: Hub name or folder of the vision tower of a checkpoint of LLaVA's own code. Default: the one it names.

    Raises:
        CheckpointError: `out` exists.
        PartError: The model cannot be read or taken apart; or the parts do not give the logits of the whole.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    source = _local(source)
    if (original := import_llava.original_configuration(source)) is not None:
        return import_llava.to_folder(source, original, out, tower, say)
    say("reading the whole model")
    whole = read_whole(source)
    media = readable_modalities(whole)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch)
        say("separating the language model")
        lm = magma.assemble({"name": "lm", "lm": {"use": "causal", "weights": str(source)}}, device=None).lm
        lm.export(folder / LM_FOLDER)
        processor = load_full_processor(source)
        tables: dict[str, Any] = {}
        inputs: dict[str, Input] = {}
        chats: dict[str, tuple[str, str] | None] = {}
        lines: list[str] = []
        problems: list[PartError] = []
        for modality in media:
            say(f"separating what reads {modality}, and comparing logits")
            try:
                media_processor = load_processor(modality, source, whole.config)
                write_media(folder / modality, whole, modality, media_processor)
                frame = Frame()
                if processor is not None:
                    token = media_token(whole.config, modality)
                    frame = find_frame(processor, modality, token, media_processor)
                    chats[modality] = chat_prompt(processor, modality, token)
                tables[modality], inputs[modality], report = find_parts(folder, whole, lm, modality, frame, limits)
            except PartError as error:
                problems.append(error)
                chats.pop(modality, None)
                shutil.rmtree(folder / modality, ignore_errors=True)
                report = [f"{modality}: not imported: {error}"]
            lines += report
        if not inputs:
            raise problems[0]
        model = Magma(lm, inputs)
        _write_prompts(folder, processor, chats)
        written = [path.name for path in folder.iterdir()]

        def bring(target: Path) -> None:
            for name in written:
                shutil.move(folder / name, target / name)

        recipe = {"name": out.name, "lm": {"use": "causal", "weights": LM_FOLDER}, "inputs": tables}
        magma.save_tensors(out, recipe, model.state_dict(), model.dtype, bring)
    return lines


def _local(source: str | Path) -> Path:
    """The folder of a model, which is downloaded if it is a hub name. Raises `PartError`."""
    if is_folder(str(source)):
        folder = Path(source)
        if not (folder / "config.json").is_file():
            raise PartError(f"given {str(source)!r}; allowed: a folder with config.json and weights, or a hub name")
        return folder
    from huggingface_hub import snapshot_download

    name = str(source)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as missing:  # the hub's client raises many kinds
        if problem := hub_problem(name):
            raise PartError(f"{name} is not available: {problem}") from missing
    return Path(snapshot_download(name, ignore_patterns=["*.gguf", "*.h5", "*.msgpack", "*.onnx"]))


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
    found = [modality for modality in ENCODERS if whole_model.can_read(whole, modality)]
    if not found:
        raise PartError(f"{whole.config.model_type}: it has no function for the features of images or audio")
    return found


def find_parts(
    folder: Path, whole: Any, lm: FrozenLM, modality: Modality, frame: Frame, limits: Mapping[str, float | None]
) -> tuple[dict[str, Any], Input, list[str]]:
    """The table of an input, the input, and a report.

    Of the ways to divide a model into encoder and prefix, the first one that gives its logits is taken: a prefix of
    this project, the library's projector, no prefix.

    Raises:
        PartError: None of them gives the logits.
    """
    limit = limits.get(modality)
    encoder_keys = {"weights": modality, **({} if limit is None else {ENCODERS[modality].limit: limit})}
    problems: list[PartError] = []
    for end, prefix, tensors in ways(folder, whole, lm, modality, encoder_keys):
        try:
            encoder = _build_encoder(folder, modality, {**encoder_keys, **end})
            built = _build_prefix(folder, prefix, encoder, lm)
            if tensors is not None:
                built.load_state_dict(dict(tensors), assign=True)
            table, built = _framed(prefix, built, frame, encoder, lm)
            model = Magma(lm, {modality: Input(encoder, built, trainable=False)}).eval()
            found = compare(whole, model, frame)
        except PartError as error:
            problems.append(error)
            continue
        except RuntimeError as error:  # tensors of another shape
            problems.append(PartError(str(error)))
            continue
        tables = {"encoder": {"use": encoder.name, **encoder_keys, **end}, "prefix": table, "trainable": False}
        report = f"{modality}: encoder {encoder.name}, prefix {prefix['use']}{frame.describe()}"
        return tables, model.input_modules()[modality], [report, *(f"  {line}" for line in found)]
    raise next((one for one in problems if isinstance(one, LogitsDiffer)), problems[-1])


Way = tuple[dict[str, Any], dict[str, Any], Mapping[str, Tensor] | None]
"""Keys of an encoder that say where it ends, the table of a prefix, and its tensors if no folder has them."""


def ways(folder: Path, whole: Any, lm: FrozenLM, modality: Modality, encoder_keys: Mapping[str, Any]) -> Iterator[Way]:
    """The ways to divide a model into encoder and prefix, in the order of preference."""
    complete = _build_encoder(folder, modality, encoder_keys)
    given = dict(zip(complete.keys, complete.dummy_item(), strict=True))
    path = find_projector_path(complete.tower, modality, given)
    known = find_projector(whole.config)
    state = whole.base_model.state_dict() | whole.state_dict()
    if known is not None and complete.dim != lm.embedding_dim:  # the projector is called after the feature function
        yield {}, {"use": known.use, **known.options}, known.tensors(state)
    if path is not None:
        if known is not None and all(name.startswith(path) for names in known.names.values() for name in names):
            yield {"projector": path}, {"use": known.use, **known.options}, known.tensors(state)
        projector = {"use": "hf_projector", "weights": modality, "path": path, "modality": modality}
        yield {"projector": path}, projector, None
    yield {}, {"use": "identity"}, None


def _build_encoder(folder: Path, modality: Modality, keys: Mapping[str, Any]) -> WholeFeatures:
    return ENCODERS[modality].build(**{**keys, "weights": str(folder / modality)}).eval()


def _build_prefix(folder: Path, table: Mapping[str, Any], encoder: WholeFeatures, lm: FrozenLM) -> Prefix:
    here = {"weights": str(folder / table["weights"])} if "weights" in table else {}
    prefix = PartOf[Prefix].model_validate({**table, **here}).build(encoder.dim, encoder.length, lm.embedding_dim)
    prefix.nested = False
    prefix.load_all_weights()
    return prefix


def _framed(
    table: dict[str, Any], prefix: Prefix, frame: Frame, encoder: WholeFeatures, lm: FrozenLM
) -> tuple[dict[str, Any], Prefix]:
    """The table and the prefix with the word embeddings of the tokens around a medium."""
    if not (frame.before or frame.after):
        return table, prefix
    keys = {"use": "framed", "before": len(frame.before), "after": len(frame.after)}
    outer: Any = (
        PartOf[Prefix]
        .model_validate({**keys, "of": {"use": "linear"}})
        .build(encoder.dim, encoder.length, lm.embedding_dim)
    )
    outer.nested, prefix.nested = False, True
    outer.of, outer.length = prefix, prefix.length + len(frame.before) + len(frame.after)
    for name, ids in (("before", frame.before), ("after", frame.after)):
        setattr(outer, name, nn.Parameter(lm.embed(torch.tensor(ids, dtype=torch.long)[None])[0].detach().clone()))
    return {**keys, "of": table}, outer


def _write_prompts(folder: Path, processor: Any, chats: Mapping[str, Sequence[str] | None]) -> None:
    """Write the chat template beside the tokenizer, and what it makes of a question."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, str):
        (folder / LM_FOLDER / "chat_template.jinja").write_text(template, encoding="utf-8")
    found = {modality: texts for modality, texts in chats.items() if texts is not None}
    if found:
        (folder / PROMPTS).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
