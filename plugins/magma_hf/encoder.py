"""Any encoder of transformers: towers for images, videos, audio and time series.

Axes: b batch, n features, e width.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from magma_media.image_file import example_images
from magma_media.waveform import PADDING, example_recordings
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import CheckInputs, Encoder, Features, PartConfig, PartError, Prepared, Weights

from .calling import call, valid_positions
from .discovery import Found, Trial
from .loading import load_tower, override, read_architecture, weights_problems
from .preparing import build_preparation
from .tokens import FeatureKind, Tokens, find_tokens
from .towers import Modality, Tower, find_tower


class HFConfig(PartConfig):
    """The model, the features that are taken from it, and the preparation of its input."""

    weights: Weights | None = None
    """A hub name, or a folder with `config.json` and safetensors: of a tower, or of a whole model with one in it."""
    config: Mapping[str, Any] = Field(default_factory=dict)
    """Without `weights`: the fields of the configuration, with its `model_type`. The weights are random then."""
    layer: int | tuple[int, ...] | None = None
    """Hidden states of this layer: -1 is the last one, -2 the one before, 0 the input of the first layer. Several are
    joined along the channels. Default: the output of the model."""
    features: FeatureKind = "patches"
    """`"patches"`: without class, register and distillation tokens. `"cls"`: only the class token. `"all"`: all
    tokens."""
    image_size: int | None = Field(None, ge=1)
    """Side of an image or a frame in pixels. Default: the model's own."""
    seconds: float = Field(30.0, gt=0)
    """Duration of the longest recording, for models that accept any duration."""
    crop: Literal["none", "start", "random"] = "none"
    """What happens with a recording that is longer: an error, its beginning, or a random part in training and the
    beginning elsewhere."""

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The indices of hidden states; None for the output."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer


class HF(Encoder):
    """Any model of transformers whose main input is an image, a video, a recording or a time series.

    The config.json beside the weights decides which model it is; in a model that reads text too, its tower is taken.
    The model's own processor prepares the input if there is one beside the weights. Parameters that do not contribute
    to the features are not trained.
    """

    name = "hf"
    modality = "image"
    wanted: ClassVar[Modality | None] = None
    """What the model has to read. None: its config decides."""

    class Config(HFConfig):
        """The model, the features that are taken from it, and the preparation of its input."""

        modality: Literal["image", "video", "audio", "timeseries"] | None = None
        """What the model has to read. Default: the first that it can read."""

    config: HFConfig

    def __init__(self, config: HFConfig) -> None:
        """Build the tower on the meta device, where it stays until weights are loaded. Raises `PartError`."""
        super().__init__(config)
        wanted = getattr(config, "modality", None) or self.wanted
        if (config.weights is None) == (not config.config):
            given = "neither" if config.weights is None else "both"
            raise PartError(f"{self.name}: given {given}; allowed: `weights`, or `config` with a model_type")
        with torch.device("cpu"):
            try:
                self.whole = read_architecture(config.weights, config.config)
                tower = find_tower(self.whole, wanted)
                override(tower.architecture)
                found = self._discover(tower, wanted)
                self._tokens = self._find_tokens(found)
            except PartError as error:
                raise PartError(f"{self.name}: {error}") from None
        self.sample, self.runs_on_meta = found.sample, found.runs_on_meta
        self.modality = found.sample.modality  # type: ignore[misc]  # of the tower
        self.dim = found.dim
        self.length = self._tokens.count(found.length, config.features)
        self._known: dict[tuple[int, ...], int] = {self._key(tuple(found.sample.values.values())): self.length}
        self._unused = self._trial.unused(found.sample, lambda x: self._tokens.select(x, config.features))
        with torch.device("meta"):
            self.tower = self.source.build()
        self._freeze_unused()

    def _discover(self, tower: Tower, wanted: Modality | None) -> Found:
        """Find out how the tower, or else its encoder, is called. Raises `PartError` with the reason."""
        problems: list[str] = []
        for one in (lambda: tower, tower.encoder):
            if (source := one()) is None:
                continue
            try:
                self.source, self._trial = source, Trial(source, self.config.layers)
                self._preparation, found = build_preparation(self._trial, self.whole, wanted, self.config)
            except PartError as error:
                problems.append(str(error))
            else:
                return found
        raise PartError("; its encoder: ".join(problems))

    def _find_tokens(self, found: Found) -> Tokens:
        if self.config.features == "all":
            return Tokens()
        try:
            tokens = find_tokens(self._trial.on_meta, found.sample, found.length)
        except ValueError as error:
            raise PartError(f'features: given "{self.config.features}", but {error}; allowed: "all"') from None
        if self.config.features == "cls" and not tokens.has_class:
            raise PartError('features: given "cls", but it has no class token; allowed: "patches", "all"')
        return tokens

    def _is_unused(self, name: str) -> bool:
        return self._trial.is_unused(name, self._unused)

    def _freeze_unused(self) -> None:
        """Exclude from training what no gradient reaches. Features may depend on it, as on masks and fixed codes."""
        fixed = {name for name, p in self._trial.on_meta.named_parameters() if not p.requires_grad}
        for name, parameter in self.tower.named_parameters():
            # Of the fixed ones, the library makes sinusoids trainable when it reads them from a file.
            if name in fixed or (parameter.requires_grad and self._is_unused(name)):
                parameter.requires_grad_(False)

    @classmethod
    def problems(cls, config: HFConfig) -> list[str]:
        """Missing folders and files, and unavailable hub names."""
        return weights_problems(config.weights)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small vision transformer, and images of several shapes."""
        return image_check(folder)

    def init_weights(self) -> None:
        """Draw random weights, as transformers does."""
        self.tower = self.source.build().train(self.training)
        self._freeze_unused()

    def load_weights(self) -> None:
        """Load the weights in the precision of the file. Raises `PartError` for missing tensors and other shapes."""
        if self.config.weights is None:
            self.init_weights()
            return
        try:
            loaded = load_tower(self.config.weights, self.whole, self.source, self._is_unused)
        except PartError as error:
            raise PartError(f"{self.name}.{error}") from error
        self.tower = loaded.train(self.training)
        self._freeze_unused()

    def accepts(self, raw: Any) -> bool:
        """Whether it looks like an input of the tower's modality."""
        return self._preparation.accepts(raw)

    @classmethod
    def augments(cls, config: HFConfig) -> bool:
        """Whether long recordings are cropped at random in training."""
        return config.crop == "random"

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Prepared:
        """One input to the arguments of the tower: a tensor, or a tuple of them. Raises `InputError`."""
        values = self._preparation.prepare(raw, rng)
        return self._item(values)

    def _item(self, values: Mapping[str, Tensor]) -> Prepared:
        found = tuple(values[name] for name in self.sample.values)
        return found[0] if len(found) == 1 else found

    def dummy_item(self) -> Prepared:
        """The sample of zeros, with its masks and grids."""
        return self._item(self.sample.values)

    def num_features(self, prepared: Prepared) -> int:
        """Number of features of this item."""
        return self._count(_as_tuple(prepared))

    def _key(self, item: Sequence[Tensor]) -> tuple[int, ...]:
        """What the number of features depends on."""
        if self.sample.packed:
            return tuple(dict(zip(self.sample.values, item, strict=True))[self.sample.packed].tolist())
        return tuple(item[0].shape)

    def _count(self, item: Sequence[Tensor]) -> int:
        key = self._key(item)
        if key not in self._known:
            found = self._trial.length(self.sample, item)
            self._known[key] = self._tokens.count(found, self.config.features)
        return self._known[key]

    def stack(self, items: Sequence[Prepared]) -> Prepared:
        """Items to a batch [b, ...]; axes of several sizes are padded."""
        value = PADDING if self.sample.mask else 0.0
        columns = [_pad(column, value) for column in zip(*map(_as_tuple, items), strict=True)]
        return columns[0] if len(columns) == 1 else tuple(columns)

    def forward(self, x: Prepared) -> Features:
        """Inputs [b, ...] to features [b, n, e]."""
        batch = _as_tuple(x)
        if batch[0].is_meta and not self.runs_on_meta:
            return Features(batch[0].new_empty(len(batch[0]), self.length, self.dim))
        found = call(self.tower, self.sample, batch, self.config.layers)
        values = torch.cat([values for values, _ in found], dim=2)
        values = self._tokens.select(values, self.config.features)
        if self.sample.mask and not batch[0].is_meta:
            return self._without_padding(values, batch[0])
        return Features(values, found[0][1])

    def _without_padding(self, values: Tensor, x: Tensor) -> Features:
        """Features with the number of each recording, which is read from its padding."""
        assert self.sample.axis is not None
        lengths = valid_positions(x, self.sample.axis).sum(-1).tolist()
        shape = list(self.sample.main.shape)
        counts = []
        for length in lengths:
            shape[self.sample.axis] = length
            counts.append(self._count([torch.zeros(shape)]))
        return Features(values, torch.tensor(counts, device=values.device))


def _as_tuple(x: Prepared) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _pad(column: Sequence[Tensor], value: float) -> Tensor:
    if len({x.shape for x in column}) == 1:
        return torch.stack(list(column))
    if len({x.shape[1:] for x in column}) == 1:
        return pad_sequence(list(column), batch_first=True, padding_value=value)
    shape = [max(sizes) for sizes in zip(*(x.shape for x in column), strict=True)]
    out = column[0].new_full((len(column), *shape), value)
    for row, x in zip(out, column, strict=True):
        row[tuple(slice(size) for size in x.shape)] = x
    return out


class HFVision(HF):
    """As `hf`, for models that read images."""

    name = "hf_vision"
    wanted = "image"

    class Config(HFConfig):
        """The model, the features that are taken from it, and the preparation of its input."""


class HFAudio(HF):
    """As `hf`, for models that read recordings."""

    name = "hf_audio"
    wanted = "audio"

    class Config(HFConfig):
        """The model, the features that are taken from it, and the preparation of its input."""

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small wav2vec 2.0, and short recordings."""
        sizes = {"conv_dim": [16] * 7, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        convolutions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "intermediate_size": 64}
        config = {"model_type": "wav2vec2", "feat_extract_norm": "layer", **sizes, **convolutions}
        return CheckInputs({"config": config, "seconds": 0.6}, *example_recordings(folder, 0.5))


class HFVideo(HF):
    """As `hf`, for models that read videos."""

    name = "hf_video"
    wanted = "video"

    class Config(HFConfig):
        """The model, the features that are taken from it, and the preparation of its input."""

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small VideoMAE, and videos of several lengths."""
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = {"model_type": "videomae", "image_size": 32, "patch_size": 8, "num_frames": 4, **sizes}
        frames = np.arange(5 * 24 * 40 * 3, dtype=np.uint32).reshape(5, 24, 40, 3)
        good = ((frames // 7 % 256).astype(np.uint8), [Image.new("RGB", (40, 30), (i * 50, 9, 90)) for i in range(3)])
        (folder / "text.gif").write_text("no video")
        return CheckInputs({"config": config}, good, (folder / "none.gif", folder / "text.gif", []))


def image_check(folder: Path) -> CheckInputs:
    """A small vision transformer, and images of several shapes."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = {"model_type": "dinov2_with_registers", "image_size": 32, "patch_size": 8, **sizes}
    return CheckInputs({"config": config}, *example_images(folder))
