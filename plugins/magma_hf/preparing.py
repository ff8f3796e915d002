"""Chooses how inputs of a tower are prepared: with the processor beside the weights, or by the values of the config."""

from __future__ import annotations

from typing import Any

from magma import PartError

from . import sizes
from .discovery import Found, Trial, discover
from .preparation import Images, Missing, Preparation, Recordings, Series, Videos, quiet
from .processors import default_processor, owners, read_processor
from .samples import Sample, samples
from .towers import Modality, meanings


def build_preparation(trial: Trial, whole: Any, wanted: Modality | None, config: Any) -> tuple[Preparation, Found]:
    """The preparation for a tower, and how the tower is called with what it gives.

    Args:
        trial: The tower.
        whole: The configuration of the whole model.
        wanted: What it has to read. None: anything.
        config: The encoder's config.

    Raises:
        PartError: The tower accepts nothing that could be prepared, with the reasons.
    """
    tower, model = trial.tower, trial.on_meta
    possible = [one for one in meanings(tower.argument, tower.other) if wanted in (None, one)]
    with quiet():
        for modality in possible:
            if config.weights is not None and (made := _with_processor(trial, modality, config)):
                try:
                    return made, discover(trial, iter([made.sample]))
                except Exception:  # it prepares for the whole model, and not for this tower
                    pass
        try:
            found = discover(trial, samples(tower, model, wanted, config.image_size, config.seconds))
        except PartError:
            if "image" in possible and (made := _with_default_processor(trial, whole, config)):
                return made, discover(trial, iter([made.sample]))
            raise
        return _by_config(trial, whole, found, config), found


def _with_default_processor(trial: Trial, whole: Any, config: Any) -> Preparation | None:
    """Images with the processor of the library for this type, for a tower that needs more than pixels."""
    architecture = trial.tower.architecture
    types = (architecture, whole, *owners(architecture))
    processor = default_processor(types, "image", _patch_fields(architecture))
    if processor is None:
        return None
    side = config.image_size
    size = (side, side) if side else sizes.image_size(architecture)
    try:
        return Images(trial.tower, trial.on_meta, processor, size or (sizes.IMAGE_SIDE,) * 2, None)
    except Exception:  # its default values do not fit this tower
        return None


def _with_processor(trial: Trial, modality: Modality, config: Any) -> Preparation | None:
    """Images with the processor beside the weights, if there is one."""
    if modality != "image":
        return None
    processor = read_processor(config.weights, modality, {})
    if processor is None:
        return None
    side = config.image_size
    size = (side, side) if side else sizes.image_size(trial.tower.architecture)
    own = sizes.pair(dict(getattr(processor, "size", None) or {})) if not side else None
    try:
        return Images(trial.tower, trial.on_meta, processor, own or size or (sizes.IMAGE_SIDE,) * 2, None)
    except Exception:  # it prepares for the whole model, and not for this tower
        return None


def _by_config(trial: Trial, whole: Any, found: Found, config: Any) -> Preparation:
    """The preparation that gives items like a sample."""
    tower, model, sample = trial.tower, trial.on_meta, found.sample
    known = (tower.architecture, whole, *owners(tower.architecture))
    processor = None
    if sample.modality != "timeseries":
        if config.weights is not None:
            processor = read_processor(config.weights, sample.modality, {})
        if processor is None:
            processor = default_processor(known, sample.modality, _fields(trial, sample))
    if sample.modality == "image":
        if sample.main.ndim == 3 and sample.main.shape[0] in (1, 3):
            return Images(tower, model, processor, (sample.main.shape[1], sample.main.shape[2]), sample)
        return _of_library(trial, whole, sample, config)
    if sample.modality == "video":
        return Videos(processor, sample)
    if sample.modality == "timeseries":
        return Series(sample)
    return _recordings(trial, processor, sample, config)


def _of_library(trial: Trial, whole: Any, sample: Sample, config: Any) -> Preparation:
    """Images with the library's default processor, if it gives items like the sample."""
    made = _with_default_processor(trial, whole, config)
    if (
        made is not None
        and list(made.sample.values) == list(sample.values)
        and made.sample.main.shape[1:] == sample.main.shape[1:]
    ):
        return made
    return Missing(sample, trial.tower.architecture.model_type)


def _recordings(trial: Trial, extractor: Any, sample: Sample, config: Any) -> Recordings:
    rate = int(getattr(extractor, "sampling_rate", None) or sizes.rate(trial.tower.architecture))
    spectrogram = sample.main.ndim > 1 and 1 not in sample.main.shape[:-1]
    if extractor is None and spectrogram:
        from transformers import WhisperFeatureExtractor

        bands = min(sample.main.shape)
        extractor = WhisperFeatureExtractor(feature_size=bands, sampling_rate=rate)
    seconds = config.seconds
    if sample.axis is None and spectrogram:
        hop = getattr(extractor, "hop_length", None) or rate // 100
        seconds = max(sample.main.shape) * hop / rate
    return Recordings(extractor, sample, rate, seconds, config.crop)


def _fields(trial: Trial, sample: Sample) -> dict[str, Any]:
    """What the config of the tower says about its preparation."""
    architecture = trial.tower.architecture
    fields: dict[str, Any] = {}
    if sample.modality == "audio":
        bands = next(sizes.bands(architecture, trial.on_meta), None)
        if sample.main.ndim > 1 and bands:
            fields |= {"feature_size": bands, "num_mel_bins": bands}
        if isinstance(positions := getattr(architecture, "max_source_positions", None), int):
            fields["chunk_length"] = max(1, positions // 50)
        if sample.axis is None and sample.main.ndim > 1:
            fields["max_length"] = max(sample.main.shape)
    else:
        fields |= _patch_fields(architecture)
    return fields


def _patch_fields(architecture: Any) -> dict[str, Any]:
    """What the config of the tower says about patches and sizes, as processors name it."""
    fields: dict[str, Any] = {}
    for name in ("patch_size", "temporal_patch_size"):
        if isinstance(value := getattr(architecture, name, None), int):
            fields[name] = value
    if isinstance(merge := getattr(architecture, "spatial_merge_size", None), int):
        fields["merge_size"] = merge
    if size := sizes.image_size(architecture):
        fields["size"] = {"height": size[0], "width": size[1]}
    return fields
