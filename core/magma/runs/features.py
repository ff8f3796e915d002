"""Features and embeddings of many media in files: shards of safetensors and an index.

Axes: m media of a shard, n features, e encoder width, k prefix length, d width of word embeddings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.collator import Collator
from ..embedding import EmbeddedMedia, embed_each_batch, without_padding
from ..errors import InputError
from ..feature_cache.identity import encoder_identity
from ..feature_cache.media import key_of_source
from ..hashing import combined_sha256, hash_tensors
from ..interfaces import DataSource
from ..io import atomic_write, folder_lock
from ..manifest import file_sha256
from ..model import Magma
from ..values import Features, Media

INDEX = "index.json"
FORMAT = 1


class NamedMedium(NamedTuple):
    """A medium with its name in the index."""

    name: str
    medium: Media


class WrittenFeatures(NamedTuple):
    """What `write_features` did."""

    media: int
    shards: int
    kept: int
    """Shards that were there already."""
    skipped: list[str]
    """Why media were left out."""


def media_in_folder(model: Magma, place: Path, name: str) -> Iterator[NamedMedium]:
    """The files below a folder that an input accepts, in the order of their paths; or one file.

    Raises:
        InputError: There is no such file.
    """
    encoder = model.input_modules()[name].encoder
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    found = [path for path in files if encoder.accepts(path)]
    if not found:
        raise InputError(
            f"{place}: none of its {len(files)} files is one that the input {name} accepts; allowed: media files, or "
            "rows of data with --use NAME, the data source that reads them"
        )
    for path in found:
        yield NamedMedium(str(path.relative_to(place)) if place.is_dir() else path.name, Media(name, path))


def media_of_sources(sources: Iterable[DataSource], name: str) -> Iterator[NamedMedium]:
    """The media of one input in all examples of data sources, in the order of their first epoch.

    Raises:
        InputError: A row cannot be read.
    """
    for source in sources:
        for example, _ in source.iterate():
            if example.problem is not None:
                raise InputError(example.problem)
            media = [one for one in example.segments if isinstance(one, Media) and one.name == name]
            for i, one in enumerate(media):
                yield NamedMedium(example.name if len(media) == 1 else f"{example.name}, medium {i}", one)


@torch.no_grad()
def write_features(
    model: Magma,
    media: Iterable[NamedMedium],
    out: Path,
    *,
    name: str,
    shard_size: int = 1000,
    batch_size: int = 32,
    skip_unreadable: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> WrittenFeatures:
    """Write the features and the embeddings of media.

    A shard `NUMBER.safetensors` has `features` [m, n, e] and `embeddings` [m, k, d], padded with zeros, and their
    lengths [m]; `NUMBER.json` has the names of its media. `index.json` is written last. Shards that are there already,
    undamaged, and from the same media and weights are kept.

    Args:
        model: The model.
        media: Media of one input.
        out: The folder.
        name: The input.
        shard_size: Media of a shard.
        batch_size: How many are computed at once.
        skip_unreadable: Leave out media that cannot be read. Otherwise they are an error.
        say: Called with each shard, for progress messages.

    Raises:
        InputError: A medium cannot be read, there is none, or another process writes the folder.
    """
    collator = model.collator()
    facts = _describe(model, name, shard_size, batch_size)
    rest, shards, kept, skipped = iter(media), list[dict[str, Any]](), 0, list[str]()
    with folder_lock(out), model.eval_mode():
        for number in itertools.count():
            if not (some := list(itertools.islice(rest, shard_size))):
                break
            path = out / f"{number:05}.safetensors"
            wanted = {"model": facts["model"], "given": [[one.name, key_of_source(one.medium.value)] for one in some]}
            found = _finished(path, wanted)
            if found is None:
                say(f"writing {path}")
                found = _write_shard(model, collator, some, path, batch_size, skip_unreadable)
                atomic_write(path.with_suffix(".json"), json.dumps({**wanted, **found}, indent=1) + "\n")
            else:
                kept += 1
            skipped += found["skipped"]
            shards.append({"file": path.name, "media": len(found["media"]), "sha256": found["sha256"]})
        if not shards:
            raise InputError(f"there is no medium of the input {name}")
        _remove_others(out, len(shards))
        count = sum(shard["media"] for shard in shards)
        atomic_write(out / INDEX, json.dumps({**facts, "media": count, "shards": shards}, indent=1) + "\n")
    return WrittenFeatures(count, len(shards), kept, skipped)


def _describe(model: Magma, name: str, shard_size: int, batch_size: int) -> dict[str, Any]:
    """What the index says about the model and the settings. `model` changes if any feature could."""
    one = model.input_modules()[name]
    prefix = combined_sha256(hash_tensors(one.prefix.state_dict()))
    settings = [encoder_identity(one.encoder, model.device), one.prefix.name, prefix, shard_size, batch_size]
    return {
        "format": FORMAT,
        "input": name,
        "encoder": one.encoder.name,
        "prefix": one.prefix.name,
        "width": {"features": one.encoder.dim, "embeddings": model.lm.embedding_dim},
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": combined_sha256({str(i): str(value) for i, value in enumerate(settings)}),
    }


def _finished(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What is known about a shard that is complete and has these media; None if it has to be written."""
    try:
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in wanted.items())
        return found if same and file_sha256(path) == found["sha256"] and len(found["media"]) >= 0 else None
    except Exception:  # a damaged file raises many kinds of errors; the shard is written again
        return None


def _write_shard(
    model: Magma, collator: Collator, some: Sequence[NamedMedium], path: Path, batch_size: int, skip: bool
) -> dict[str, Any]:
    skipped: dict[int, str] = {}

    def leave_out(number: int, error: InputError) -> None:
        if not skip:
            raise error
        skipped[number] = f"{some[number].name}: {error}"

    media = [one.medium for one in some]
    inputs, where = model.input_modules(), (model.device, model.dtype)
    embedded = list(embed_each_batch(collator, inputs, media, batch_size, *where, leave_out))
    atomic_write(path, lambda partial: save_file(_tensors(embedded), partial))
    kept = [one.name for i, one in enumerate(some) if i not in skipped]
    return {"media": kept, "skipped": list(skipped.values()), "sha256": file_sha256(path)}


def _tensors(embedded: Sequence[EmbeddedMedia]) -> dict[str, Tensor]:
    """The tensors of a shard; none if it has no media."""
    if not embedded:
        return {}
    features, feature_lengths = _join([one.features for one in embedded])
    embeddings, embedding_lengths = _join([one.embeddings for one in embedded])
    return {
        "features": features,
        "feature_lengths": feature_lengths,
        "embeddings": embeddings,
        "embedding_lengths": embedding_lengths,
    }


def _join(batches: Sequence[Features]) -> tuple[Tensor, Tensor]:
    """Values and lengths of batches, on the CPU, padded with zeros."""
    longest = max(values.shape[1] for values, _ in batches)
    padded = [
        torch.nn.functional.pad(without_padding(one).cpu(), (0, 0, 0, longest - one.values.shape[1])) for one in batches
    ]
    lengths = [
        torch.full((len(values),), values.shape[1]) if found is None else found.cpu().long()
        for values, found in batches
    ]
    return torch.cat(padded).contiguous(), torch.cat(lengths)


def _remove_others(out: Path, count: int) -> None:
    """Remove the shards of an earlier, longer set of media."""
    for path in [*out.glob("[0-9]*.safetensors"), *out.glob("[0-9]*.json")]:
        if path.stem.isdigit() and int(path.stem) >= count:
            path.unlink()
