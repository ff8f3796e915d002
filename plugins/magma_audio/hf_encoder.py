"""Base class of the audio encoders of transformers: Whisper, wav2vec 2.0, AST and CLAP.

Axes: b batch, s samples, f frames, m mel bands, n features, e width. Numbers of samples, frames and features are ints
or tensors [b].
"""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from magma_media.transformers_files import ALLOWED, WEIGHTS, locate, silence_transformers
from magma_media.waveform import PADDING, AudioConfig, AudioEncoder, example_recordings
from torch import Tensor, nn

from magma import (
    CheckInputs,
    Features,
    PartError,
    Weights,
    error_summary,
    is_folder,
    source_problems,
)

from .spec_augment import SpecAugmentConfig, mask_spectrogram

Count = TypeVar("Count", int, Tensor)
FEATURE_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


class HFAudioConfig(AudioConfig):
    """Weights and sizes. The config.json of `weights` overrides the sizes; without `weights` they are random."""

    weights: Weights | None = None
    """A hub name, or a folder with `config.json` and safetensors. Its `config.json` then decides the sizes below.
    Default: random weights of these sizes."""


class HFSpectrogramConfig(SpecAugmentConfig, HFAudioConfig):
    """Weights, sizes and masks of encoders that read spectrograms."""


class HFAudioEncoder(AudioEncoder):
    """An audio encoder of transformers, with the feature extractor of that library.

    The config.json beside the weights determines the sizes, the preprocessor_config.json the feature extractor. If the
    file has a whole model (encoder and decoder, or audio and text encoder), only the audio encoder is loaded.
    """

    model_types: ClassVar[tuple[str, ...]]
    """Allowed values of `model_type` in config.json."""
    key_mapping: ClassVar[Mapping[str, str]] = {}
    """Patterns of names in the file of a whole model, to names in the audio encoder."""
    config_overrides: ClassVar[Mapping[str, Any]] = {}
    """Fields of the transformers configuration that override the file, so that every batch runs the same modules."""
    check_config: ClassVar[Mapping[str, Any]]
    """Config of a small encoder for the conformance checks."""
    min_items: int
    """Minimum length of a prepared item, in samples or frames."""
    max_items: int
    """Maximum length of a prepared item."""
    config: HFAudioConfig

    def __init__(self, config: HFAudioConfig) -> None:
        """Build the encoder on the meta device, where it stays until weights are loaded. Raises `PartError`."""
        from huggingface_hub.errors import StrictDataclassError

        super().__init__(config)
        with torch.device("cpu"):  # modules of the libraries create tensors at import
            found = self._config_json()
        try:
            with torch.device("cpu"):
                fields = self.config_fields() if found is None else found
                self.architecture = self.transformers_classes()[0].from_dict({**fields, **self.config_overrides})
                self.feature_extractor = self._load_feature_extractor()
                self.rate = self.feature_extractor.sampling_rate
                self.set_limits()
            with torch.device("meta"), torch.no_grad():
                self.tower = self._build_model()
                _, self.length, self.dim = self(self.stack([self.max_size_item()])).values.shape
        except (StrictDataclassError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise PartError(
                f"{self.name}: an encoder with these sizes cannot be built: {error_summary(error)}"
            ) from error

    @staticmethod
    @abstractmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        """The classes of transformers: configuration, model, feature extractor."""

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """The sizes of the config as fields of the transformers configuration."""

    @abstractmethod
    def extractor_defaults(self) -> dict[str, Any]:
        """Fields of the feature extractor, used if there is no file for it."""

    @abstractmethod
    def set_limits(self) -> None:
        """Set `seconds`, `min_items`, `max_items` and others from `architecture` and `feature_extractor`."""

    @abstractmethod
    def extract_features(self, waveform: Tensor) -> Tensor:
        """A waveform [s] at the encoder's sample rate to a prepared item."""

    @abstractmethod
    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """Items [b, ...] to at least n hidden states [b, n, e]; `valid` [b, f] or [b, s] is False for `PADDING`."""

    def count_features(self, items: Count) -> Count | None:
        """Number of features of items of this many frames or samples; None: always `length`."""
        return None

    def patch_model(self, model: nn.Module) -> nn.Module:
        """Modify the model of transformers if necessary. Returns it."""
        return model

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small configuration, and recordings of at most one second."""
        return CheckInputs(cls.check_config, *example_recordings(folder, 0.5))

    @classmethod
    def problems(cls, config: HFAudioConfig) -> list[str]:
        """Missing folders and files, and unavailable hub names."""
        source = config.weights
        if source is None:
            return []
        return [f"weights: {problem}" for problem in source_problems(source, ("config.json",), WEIGHTS)]

    def _config_json(self) -> dict[str, Any] | None:
        """The fields of config.json for the audio encoder; None if it is neither on this machine nor on the hub.

        Raises `PartError` for a folder without config.json, and for another type of model.
        """
        source = self.config.weights
        where = source and locate(source, "config.json")
        if source is None or (where is None and not is_folder(source)):
            return None
        if where is None:
            raise PartError(self._describe_missing_files("config.json"))
        whole, _ = self._load(self.transformers_classes()[0].get_config_dict, where)
        if (kind := whole.get("model_type")) not in self.model_types:
            allowed = " or ".join(f'"{name}"' for name in self.model_types)
            raise PartError(f'{self.name}.weights: {source} is a model of type "{kind}"; allowed: {allowed}')
        found = dict(whole.get("audio_config", whole))
        for key in ("dtype", "torch_dtype"):  # the tensors have their own dtype
            found.pop(key, None)
        return found

    def _load_feature_extractor(self) -> Any:
        kind = self.transformers_classes()[2]
        where = self.config.weights and locate(self.config.weights, *FEATURE_EXTRACTOR_FILES)
        return self._load(kind.from_pretrained, where) if where else kind(**self.extractor_defaults())

    def _build_model(self) -> nn.Module:
        return self.patch_model(self.transformers_classes()[1](copy.deepcopy(self.architecture)))

    def init_weights(self) -> None:
        """Draw random weights, as transformers does."""
        self.tower = self._build_model().train(self.training)

    def load_weights(self) -> None:
        """Load the weights in the precision of the file. Raises `PartError` for missing or unexpected tensors."""
        source = self.config.weights
        if source is None:
            self.init_weights()
            return
        where = locate(source, *WEIGHTS)
        if where is None:
            raise PartError(self._describe_missing_files(*WEIGHTS))
        model, report = self._load(
            self.transformers_classes()[1].from_pretrained,
            where,
            config=copy.deepcopy(self.architecture),
            dtype="auto",
            key_mapping=dict(self.key_mapping) or None,
            ignore_mismatched_sizes=True,  # they are reported below
            output_loading_info=True,
        )
        self._check_report(model, report)
        self.tower = self.patch_model(model).train(self.training)

    def _check_report(self, model: Any, report: Mapping[str, Any]) -> None:
        """Raise `PartError` for missing or unexpected tensors of the encoder, and for wrong shapes."""
        inside = {name.partition(".")[0] for name in model.state_dict()}
        unexpected = [name.removeprefix(f"{model.base_model_prefix}.") for name in report["unexpected_keys"]]
        problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
        problems += [f"{n} is not part of it" for n in sorted(unexpected) if n.partition(".")[0] in inside]
        problems += [
            f"{name} has the shape {list(given)}, in the encoder {list(wanted)}"
            for name, given, wanted in sorted(report["mismatched_keys"])
        ]
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:8])
            raise PartError(
                f"{self.name}.weights: {self.config.weights}: {len(problems)} tensors do not fit the encoder:\n{shown}"
            )

    def _describe_missing_files(self, *any_of: str) -> str:
        problems = self.problems(self.config) or [f"weights: {self.config.weights} has no {' or '.join(any_of)}"]
        return f"{self.name}.{problems[0]}. {ALLOWED}"

    def _load(self, load: Callable[..., Any], where: str, **options: Any) -> Any:
        try:
            with silence_transformers():
                return load(where, **options)
        except Exception as error:  # of safetensors, torch, the hub's client or transformers
            given = f"given {self.config.weights!r}, which cannot be read"
            raise PartError(f"{self.name}.weights: {given}: {error_summary(error).rstrip('.')}. {ALLOWED}") from error

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to [s] or frames [f, m], with the feature extractor. Raises `InputError`.

        `rng` is for `crop` and `augment`.
        """
        item = self.extract_features(self.load_mono(raw, rng))
        return item if rng is None else self.augment(item, rng)

    def augment(self, item: Tensor, rng: random.Random) -> Tensor:
        """A prepared item, changed at random for training. Default: unchanged."""
        return item

    def dummy_item(self) -> Tensor:
        """An item of zeros with minimum length."""
        return self._make_zeros(self.min_items)

    def max_size_item(self) -> Tensor:
        """An item of zeros with maximum length."""
        return self._make_zeros(self.max_items)

    def _make_zeros(self, items: int) -> Tensor:
        return torch.zeros(items, self.architecture.num_mel_bins)

    def num_features(self, prepared: Tensor) -> int:
        """Number of features of the recording, without padding."""
        return self.count_features(len(prepared)) or self.length

    def forward(self, x: Tensor) -> Features:
        """Items [b, s] or [b, f, m] to features [b, n, e] with their lengths."""
        valid = (x if x.ndim == 2 else x[..., 0]) != PADDING
        return Features(
            self.hidden_states(x, valid)[:, : self.count_features(x.shape[1])], self.count_features(valid.sum(-1))
        )


class HFSpectrogramEncoder(HFAudioEncoder):
    """An audio encoder of transformers that reads a spectrogram."""

    config: HFSpectrogramConfig
    trailing_frames = 0
    """Frames of an item after the end of its recording."""

    @classmethod
    def augments(cls, config: Any) -> bool:
        """Whether recordings are cropped at random in training, or spectrograms are masked."""
        return super().augments(config) or config.masks is not None

    def augment(self, item: Tensor, rng: random.Random) -> Tensor:
        """Frames [f, m] with the masks of `spec_augment`, which have the mean value of the recording."""
        masks = self.config.masks
        if masks is None:
            return item
        heard = item[: len(item) - self.trailing_frames] if len(item) < self.max_items else item
        masked = mask_spectrogram(heard, masks, rng, float(heard.mean()))
        return torch.cat([masked, item[len(heard) :]])


def pad_frames(x: Tensor, valid: Tensor, value: Tensor, frames: int) -> Tensor:
    """Frames [b, f, m] to [b, frames, m], with `value` [b or 1, 1, m or 1] for those that are not `valid`."""
    b, f, m = x.shape
    return torch.cat([torch.where(valid[..., None], x, value), value.expand(b, frames - f, m)], dim=1)
