"""Published audio models of the transformers library as encoders: Whisper, wav2vec 2.0, AST and CLAP.

Axes: b batch, s samples, f frames, m mel bands, n features, e width. Counts of samples, frames and features are ints
or tensors [b] of them.
"""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from magma import CheckInputs, Features, PartError, Weights, find_local_folder, hub_has, is_folder, source_problems

from .waveform import PADDING, AudioConfig, AudioEncoder, example_recordings

Count = TypeVar("Count", int, Tensor)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
FEATURE_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
ALLOWED = "Allowed: a hub name, or a folder in transformers' format (config.json, *.safetensors)"


class HFAudioConfig(AudioConfig):
    """Sizes count where there is no config.json at hand; without `weights` these are random."""

    weights: Weights | None = None
    """A hub name, or a folder with config.json and safetensors."""


class HFAudioEncoder(AudioEncoder):
    """What the four share: an audio tower of transformers behind that library's own preparation.

    A config.json beside the weights decides the sizes, and a preprocessor_config.json there the preparation. Of a whole
    model's weights (an encoder and a decoder, a tower for sound and one for text) those of the audio tower are loaded.
    """

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` in config.json."""
    key_mapping: ClassVar[Mapping[str, str]] = {}
    """Patterns of names in a whole model's file to what stands there in the tower's own."""
    config_overrides: ClassVar[Mapping[str, Any]] = {}
    """Fields of the library's configuration that no file decides: every batch runs the same modules."""
    check_config: ClassVar[Mapping[str, Any]]
    """The fields of a small one, for its `check_inputs`."""
    min_items: int
    """The shortest item: samples or frames."""
    max_items: int
    """The longest item."""
    config: HFAudioConfig

    def __init__(self, config: HFAudioConfig) -> None:
        """The tower stays on meta, where its output's shape is read, until it gets weights."""
        from huggingface_hub.errors import StrictDataclassError

        super().__init__(config)
        with torch.device("cpu"):  # modules of the libraries make tensors when they are first imported
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
            raise PartError(f"{self.name}: no tower of these sizes can be built: {error_summary(error)}") from error

    @staticmethod
    @abstractmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        """transformers' classes: configuration, tower, feature extractor."""

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """The config's sizes as fields of the library's configuration."""

    @abstractmethod
    def extractor_defaults(self) -> dict[str, Any]:
        """Fields of the library's feature extractor, where no file has them."""

    @abstractmethod
    def set_limits(self) -> None:
        """Set `seconds`, `min_items`, `max_items` and what else follows from `architecture` and `feature_extractor`."""

    @abstractmethod
    def extract_features(self, waveform: Tensor) -> Tensor:
        """[s] at the encoder's rate to an item."""

    @abstractmethod
    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """[b, ...] to [b, n, e] or more behind it; `valid` [b, f] or [b, s] says what is no `PADDING`."""

    def count_features(self, items: Count) -> Count | None:
        """How many features items of this many frames or samples have; None: all have `length`."""
        return None

    def patch_model(self, tower: nn.Module) -> nn.Module:
        """The library's tower with what has to be put right in it."""
        return tower

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A second at most."""
        return CheckInputs(cls.check_config, *example_recordings(folder, 0.5))

    @classmethod
    def problems(cls, config: HFAudioConfig) -> list[str]:
        """A folder that is not there or lacks files, a hub name that cannot be had."""
        source = config.weights
        if source is None:
            return []
        return [f"weights: {problem}" for problem in source_problems(source, ("config.json",), WEIGHTS)]

    def _config_json(self) -> dict[str, Any] | None:
        """The audio tower's fields of config.json; None where there is none at hand, and none to be had.

        Raises `PartError` for a folder without one, and for another kind of model.
        """
        source = self.config.weights
        where = source and _locate(source, "config.json")
        if source is None or (where is None and not is_folder(source)):
            return None
        if where is None:
            raise PartError(self._describe_missing_files("config.json"))
        whole, _ = self._load(self.transformers_classes()[0].get_config_dict, where)
        if (kind := whole.get("model_type")) not in self.model_types:
            allowed = " or ".join(f'"{name}"' for name in self.model_types)
            raise PartError(f'{self.name}.weights: {source} holds a model of type "{kind}"; allowed: {allowed}')
        found = dict(whole.get("audio_config", whole))
        for key in ("dtype", "torch_dtype"):  # the tensors themselves say it
            found.pop(key, None)
        return found

    def _load_feature_extractor(self) -> Any:
        kind = self.transformers_classes()[2]
        where = self.config.weights and _locate(self.config.weights, *FEATURE_EXTRACTOR_FILES)
        return self._load(kind.from_pretrained, where) if where else kind(**self.extractor_defaults())

    def _build_model(self) -> nn.Module:
        return self.patch_model(self.transformers_classes()[1](copy.deepcopy(self.architecture)))

    def init_weights(self) -> None:
        """Random ones, as the library draws them."""
        self.tower = self._build_model().train(self.training)

    def load_weights(self) -> None:
        """The tower's tensors in the file's own precision. Raises `PartError` where one is missing or left over."""
        source = self.config.weights
        if source is None:
            self.init_weights()
            return
        where = _locate(source, *WEIGHTS)
        if where is None:
            raise PartError(self._describe_missing_files(*WEIGHTS))
        tower, report = self._load(
            self.transformers_classes()[1].from_pretrained,
            where,
            config=copy.deepcopy(self.architecture),
            dtype="auto",
            key_mapping=dict(self.key_mapping) or None,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
        self._check(tower, report)
        self.tower = self.patch_model(tower).train(self.training)

    def _check(self, tower: Any, report: Mapping[str, Any]) -> None:
        """Raise `PartError` unless the file had every tensor of the tower, each of its shape, and no more of it."""
        inside = {name.partition(".")[0] for name in tower.state_dict()}
        left = [name.removeprefix(f"{tower.base_model_prefix}.") for name in report["unexpected_keys"]]
        problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
        problems += [f"{n} is not part of it" for n in sorted(left) if n.partition(".")[0] in inside]
        problems += [
            f"{name} is {list(given)}, the tower's is {list(wanted)}"
            for name, given, wanted in sorted(report["mismatched_keys"])
        ]
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:8])
            raise PartError(
                f"{self.name}.weights: {self.config.weights}: {len(problems)} tensors do not fit the tower:\n{shown}"
            )

    def _describe_missing_files(self, *any_of: str) -> str:
        problems = self.problems(self.config) or [f"weights: {self.config.weights} has no {' or '.join(any_of)}"]
        return f"{self.name}.{problems[0]}. {ALLOWED}"

    def _load(self, load: Callable[..., Any], where: str, **how: Any) -> Any:
        try:
            with _silence_transformers():
                return load(where, **how)
        except Exception as error:  # safetensors', torch's unpickler's, the hub's client's, the library's own
            given = f"given {self.config.weights!r}, which cannot be read"
            raise PartError(f"{self.name}.weights: {given}: {error_summary(error).rstrip('.')}. {ALLOWED}") from error

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to [s], or to frames [f, m], as the library's feature extractor does it. `rng` is for `crop`."""
        return self.extract_features(self.load_mono(raw, rng))

    def dummy_item(self) -> Tensor:
        """The shortest item, of zeros."""
        return self._zeros(self.min_items)

    def max_size_item(self) -> Tensor:
        """The longest item, of zeros."""
        return self._zeros(self.max_items)

    def _zeros(self, items: int) -> Tensor:
        return torch.zeros(items, self.architecture.num_mel_bins)

    def num_features(self, prepared: Tensor) -> int:
        """Features of what was heard, none of the padding."""
        return self.count_features(len(prepared)) or self.length

    def forward(self, x: Tensor) -> Features:
        """[b, s] or [b, f, m] to features [b, n, e] of the longest recording."""
        valid = (x if x.ndim == 2 else x[..., 0]) != PADDING
        return Features(
            self.hidden_states(x, valid)[:, : self.count_features(x.shape[1])], self.count_features(valid.sum(-1))
        )


def pad_frames(x: Tensor, valid: Tensor, value: Tensor, frames: int) -> Tensor:
    """[b, f, m] to [b, frames, m], with `value` [b or 1, 1, m or 1] where nothing is `valid`."""
    b, f, m = x.shape
    return torch.cat([torch.where(valid[..., None], x, value), value.expand(b, frames - f, m)], dim=1)


def _locate(source: str, *any_of: str) -> str | None:
    """What to read a file from: a folder or the cache's, else the name, where the hub has it; None: it is not there."""
    if found := find_local_folder(source, *any_of):
        return str(found)
    return source if not is_folder(source) and hub_has(source, *any_of) else None


def error_summary(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """The library reports every tensor of the other towers; what matters is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
