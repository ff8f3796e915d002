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

from magma import Features, PartError, Trial, Weights, at_hand, hub_has, is_folder, source_problems

from .waveform import PADDING, AudioConfig, AudioEncoder, recordings_for_trial

Count = TypeVar("Count", int, Tensor)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
EARS = ("preprocessor_config.json", "processor_config.json")
ALLOWED = "Allowed: a hub name, or a folder in transformers' format (config.json, *.safetensors)"


class TowerConfig(AudioConfig):
    """Sizes count where there is no config.json at hand; without `weights` these are random."""

    weights: Weights | None = None
    """A hub name, or a folder with config.json and safetensors."""


class Tower(AudioEncoder):
    """What the four share: an audio tower of transformers behind that library's own preparation.

    A config.json beside the weights decides the sizes, and a preprocessor_config.json there the preparation. Of a whole
    model's weights (an encoder and a decoder, a tower for sound and one for text) those of the audio tower are loaded.
    """

    types: ClassVar[tuple[str, ...]]
    """`model_type` in config.json."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Patterns of names in a whole model's file to what stands there in the tower's own."""
    steady: ClassVar[Mapping[str, Any]] = {}
    """Fields of the library's configuration that no file decides: every batch runs the same modules."""
    small: ClassVar[Mapping[str, Any]]
    """The fields of a small one, for its `trial`."""
    least: int
    """The shortest item: samples or frames."""
    most: int
    """The longest item."""
    config: TowerConfig

    def __init__(self, config: TowerConfig) -> None:
        """The tower stays on meta, where its output's shape is read, until it gets weights."""
        from huggingface_hub.errors import StrictDataclassError

        super().__init__(config)
        with torch.device("cpu"):  # modules of the libraries make tensors when they are first imported
            found = self._config_json()
        try:
            with torch.device("cpu"):
                fields = self.sizes() if found is None else found
                self.architecture = self.library()[0].from_dict({**fields, **self.steady})
                self.ears = self._ears()
                self.rate = self.ears.sampling_rate
                self.measure()
            with torch.device("meta"), torch.no_grad():
                self.tower = self._built()
                _, self.length, self.dim = self(self.stack([self.largest()])).values.shape
        except (StrictDataclassError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise PartError(f"{self.name}: no tower of these sizes can be built: {_first_line(error)}") from error

    @staticmethod
    @abstractmethod
    def library() -> tuple[Any, Any, Any]:
        """transformers' classes: configuration, tower, feature extractor."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The config's sizes as fields of the library's configuration."""

    @abstractmethod
    def hearing(self) -> dict[str, Any]:
        """Fields of the library's feature extractor, where no file has them."""

    @abstractmethod
    def measure(self) -> None:
        """Set `seconds`, `least`, `most` and what else follows from `architecture` and `ears`."""

    @abstractmethod
    def extract(self, waveform: Tensor) -> Tensor:
        """[s] at the encoder's rate to an item."""

    @abstractmethod
    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, ...] to [b, n, e] or more behind it; `real` [b, f] or [b, s] says what is no `PADDING`."""

    def counted(self, items: Count) -> Count | None:
        """How many features items of this many frames or samples have; None: all have `length`."""
        return None

    def ours(self, tower: nn.Module) -> nn.Module:
        """The library's tower with what has to be put right in it."""
        return tower

    @classmethod
    def trial(cls, folder: Path) -> Trial:
        """A second at most."""
        return Trial(cls.small, *recordings_for_trial(folder, 0.5))

    @classmethod
    def problems(cls, config: TowerConfig) -> list[str]:
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
        where = source and _place(source, "config.json")
        if source is None or (where is None and not is_folder(source)):
            return None
        if where is None:
            raise PartError(self._absent("config.json"))
        whole, _ = self._read(self.library()[0].get_config_dict, where)
        if (kind := whole.get("model_type")) not in self.types:
            allowed = " or ".join(f'"{name}"' for name in self.types)
            raise PartError(f'{self.name}.weights: {source} holds a model of type "{kind}"; allowed: {allowed}')
        found = dict(whole.get("audio_config", whole))
        for key in ("dtype", "torch_dtype"):  # the tensors themselves say it
            found.pop(key, None)
        return found

    def _ears(self) -> Any:
        kind = self.library()[2]
        where = self.config.weights and _place(self.config.weights, *EARS)
        return self._read(kind.from_pretrained, where) if where else kind(**self.hearing())

    def _built(self) -> nn.Module:
        return self.ours(self.library()[1](copy.deepcopy(self.architecture)))

    def init_weights(self) -> None:
        """Random ones, as the library draws them."""
        self.tower = self._built().train(self.training)

    def load_weights(self) -> None:
        """The tower's tensors in the file's own precision. Raises `PartError` where one is missing or left over."""
        source = self.config.weights
        if source is None:
            self.init_weights()
            return
        where = _place(source, *WEIGHTS)
        if where is None:
            raise PartError(self._absent(*WEIGHTS))
        tower, report = self._read(
            self.library()[1].from_pretrained,
            where,
            config=copy.deepcopy(self.architecture),
            dtype="auto",
            key_mapping=dict(self.renamed) or None,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
        self._check(tower, report)
        self.tower = self.ours(tower).train(self.training)

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

    def _absent(self, *any_of: str) -> str:
        problems = self.problems(self.config) or [f"weights: {self.config.weights} has no {' or '.join(any_of)}"]
        return f"{self.name}.{problems[0]}. {ALLOWED}"

    def _read(self, load: Callable[..., Any], where: str, **how: Any) -> Any:
        try:
            with _quiet():
                return load(where, **how)
        except Exception as error:  # safetensors', torch's unpickler's, the hub's client's, the library's own
            given = f"given {self.config.weights!r}, which cannot be read"
            raise PartError(f"{self.name}.weights: {given}: {_first_line(error).rstrip('.')}. {ALLOWED}") from error

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """A recording to [s], or to frames [f, m], as the library's feature extractor does it. `rng` is for `crop`."""
        return self.extract(self.hear(raw, rng))

    def blank(self) -> Tensor:
        """The shortest item, of zeros."""
        return self._zeros(self.least)

    def largest(self) -> Tensor:
        """The longest item, of zeros."""
        return self._zeros(self.most)

    def _zeros(self, items: int) -> Tensor:
        return torch.zeros(items, self.architecture.num_mel_bins)

    def size(self, prepared: Tensor) -> int:
        """Features of what was heard, none of the padding."""
        return self.counted(len(prepared)) or self.length

    def forward(self, x: Tensor) -> Features:
        """[b, s] or [b, f, m] to features [b, n, e] of the longest recording."""
        real = (x if x.ndim == 2 else x[..., 0]) != PADDING
        return Features(self.hidden(x, real)[:, : self.counted(x.shape[1])], self.counted(real.sum(-1)))


def _filled(x: Tensor, real: Tensor, value: Tensor, frames: int) -> Tensor:
    """[b, f, m] to [b, frames, m], with `value` [b or 1, 1, m or 1] where nothing is `real`."""
    b, f, m = x.shape
    return torch.cat([torch.where(real[..., None], x, value), value.expand(b, frames - f, m)], dim=1)


def _place(source: str, *any_of: str) -> str | None:
    """What to read a file from: a folder or the cache's, else the name, where the hub has it; None: it is not there."""
    if found := at_hand(source, *any_of):
        return str(found)
    return source if not is_folder(source) and hub_has(source, *any_of) else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library reports every tensor of the other towers; what matters is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
