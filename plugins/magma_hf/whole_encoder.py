"""Everything of a multimodal model of transformers that comes before its language model, as an encoder.

The library's own function gives the embeddings, so that every detail of a family is as in the library.

Axes: b batch, n features, e width of a feature.
"""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from magma_media.waveform import example_recordings
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from magma import CheckInputs, Encoder, Features, InputError, PartConfig, PartError, Weights, error_summary

from . import whole_model
from .whole_folder import write_example
from .whole_inputs import blank, joined_axes, load_processor, looks_readable, open_medium, prepare_media
from .whole_model import TENSORS, Modality

Items = tuple[Tensor, ...]
"""The arguments of the feature function, in the order of `keys`."""


class ProjectorReached(Exception):  # not an error: it carries a result
    """Ends the library's function at the projector, with what the projector is given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class End(nn.Module):
    """In the place of the projector."""

    def forward(self, features: Tensor) -> Tensor:
        """Raises `ProjectorReached`."""
        raise ProjectorReached(features)


class WholeConfig(PartConfig):
    """Where the model is, and where it ends."""

    weights: Weights
    """The folder of this medium in a model that `magma import hf` wrote."""
    projector: str | None = None
    """Path of the library's module before which the encoder ends, because the prefix has it. Default: the encoder
    gives embeddings for the language model."""


class ImageFeaturesConfig(WholeConfig):
    """Where the model is, where it ends, and how large images may be."""

    largest: int = Field(1024, ge=8)
    """Pixels per side of a square image with the maximum number of features. Larger images are accepted if the model
    makes them smaller."""


class AudioFeaturesConfig(WholeConfig):
    """Where the model is, where it ends, and how long recordings may be."""

    seconds: float = Field(30.0, gt=0)
    """Length of the longest recording."""


class WholeFeatures(Encoder):
    """Tower and projector of a multimodal model of transformers."""

    modality: ClassVar[Modality]
    limit: ClassVar[str]
    """The key that limits the size of media."""
    config: WholeConfig

    def __init__(self, config: WholeConfig) -> None:
        """Build the structure on meta. Raises `PartError`."""
        super().__init__(config)
        self.folder = Path(config.weights)
        with torch.device("cpu"):
            if not (self.folder / TENSORS).is_file():
                raise PartError(f"weights: given {config.weights!r}; allowed: a folder that `magma import hf` wrote")
            self.architecture = whole_model.read_configuration(self.folder)
            self._names, self._unused = whole_model.stored_names(self.folder)
            self.processor = load_processor(self.modality, self.folder, self.architecture)
            structure = self._build()
            self.arguments, _ = whole_model.arguments(structure, self.modality)
            self._counts: dict[tuple[Any, ...], int] = {}
            largest = self._prepare(blank(self.modality, self.processor, self._largest_size()))
            axes = joined_axes(self.modality, self.processor, self.arguments)
            self.keys, self._axes = list(axes), list(axes.values())
            self._largest = tuple(largest.values())
            self._dummy = tuple(self._prepare(blank(self.modality, self.processor)).values())
            counter, self.dim = self._make_counter(structure, self._dummy)
            self._counter = [counter]  # in a list: its weights are no weights of this part
            self.length = self._count(self._largest)
        with torch.device("meta"):
            self.tower = self._build()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # As in the library, tables that are not saved (rotary embeddings) keep their precision.
        tables = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        for module, name, table in tables:
            now = module._buffers[name]
            if table is not None and now is not None and now.dtype != table.dtype:
                module._buffers[name] = table.to(now.device)
        return self

    @abstractmethod
    def _largest_size(self) -> float:
        """Side of the largest image, or seconds of the longest recording."""

    def _build(self) -> Any:
        module = whole_model.build(self.architecture, self.modality, self._names)
        if self.config.projector is not None:
            parent, _, name = self.config.projector.rpartition(".")
            setattr(module.get_submodule(parent), name, End())
        return module

    def init_weights(self) -> None:
        """Draw random weights, which a checkpoint replaces."""
        self.tower = self._build().train(self.training)
        self._freeze_unused()

    def load_weights(self) -> None:
        """Load the weights of the folder, in their precision. Raises `PartError`."""
        tower = self._build()
        skipped = self.config.projector
        whole_model.load(tower, self.folder, skipped)
        self.tower = tower.train(self.training)
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Distributed training needs a gradient of everything that is trained."""
        for name, parameter in self.tower.named_parameters():
            if name in self._unused:
                parameter.requires_grad_(False)

    def accepts(self, raw: Any) -> bool:
        """True for the path or the bytes of a file of this modality, and for images and waveforms in memory."""
        return self._is_prepared(raw) or looks_readable(self.modality, raw)

    def _is_prepared(self, raw: Any) -> bool:
        return isinstance(raw, tuple) and len(raw) == len(self.keys) and all(isinstance(x, Tensor) for x in raw)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Items:
        """One medium to the arguments of the library's function. Raises `InputError`."""
        items = raw if self._is_prepared(raw) else self._open(raw, rng)
        if (count := self.num_features(items)) > self.length:
            raise InputError(f"it has {count} features; allowed: at most {self.length}, as `{self.limit}` says")
        return items

    def _open(self, raw: Any, rng: random.Random | None) -> Items:
        medium = open_medium(self.modality, self.processor, raw, self._largest_size(), rng)
        return tuple(self._prepare(medium).values())

    def _prepare(self, medium: Any) -> dict[str, Tensor]:
        return prepare_media(self.modality, self.processor, [medium], self.arguments)

    def dummy_item(self) -> Items:
        """A small blank image, or a short silence."""
        return self._dummy

    def max_size_item(self) -> Items:
        """A large blank image, or a long silence."""
        return self._largest

    def stack(self, items: Sequence[Items]) -> Items:
        """Join media as the processor joins several; other axes are padded. The last tensor has the feature counts."""
        counts = torch.tensor([self.num_features(one) for one in items])
        tensors = zip(*items, strict=True)
        return (*(_join(some, axis) for some, axis in zip(tensors, self._axes, strict=True)), counts)

    def num_features(self, prepared: Items) -> int:
        """Number of features of a medium."""
        return self._count(prepared)

    def _count(self, items: Items) -> int:
        key = tuple((tuple(x.shape), b"" if x.is_floating_point() else x.numpy().tobytes()) for x in items)
        if key not in self._counts:
            self._counts[key] = len(self._run(self._counter[0], items))
        return self._counts[key]

    def _make_counter(self, counter: Any, item: Items) -> tuple[Any, int]:
        """A structure on the CPU that gives as many features, and their width."""
        for change in (whole_model.shorten, lambda module: module):
            module = change(copy.deepcopy(counter))
            try:
                return module, self._run(module, item).shape[-1]
            except Exception as error:  # whatever the library raises if it needs the layers that are missing then
                problem = error
        raise PartError(f"{self.architecture.model_type}: its features cannot be counted: {error_summary(problem)}")

    @torch.no_grad()
    def _run(self, counter: Any, item: Items) -> Tensor:
        """Features [n, e] of one medium, without values."""
        ones = [torch.ones_like(x) if x.is_floating_point() else x for x in item]  # zeros would mean padding
        return self._features(counter, dict(zip(self.keys, ones, strict=True)))

    def _features(self, module: Any, given: Mapping[str, Tensor]) -> Tensor:
        """Features of all media in a batch, [n, e]."""
        try:
            return whole_model.call(module, self.modality, given)
        except ProjectorReached as reached:
            return reached.features.flatten(0, -2)

    def forward(self, x: Items) -> Features:
        """The batch of `stack` to features [b, n, e]."""
        *tensors, counts = x
        found = self._features(self.tower, dict(zip(self.keys, tensors, strict=True)))
        b = len(counts)
        if found.is_meta or counts.is_meta:
            return Features(found.reshape(b, -1, found.shape[-1]))
        sizes = counts.tolist()
        if len(set(sizes)) == 1:
            return Features(found.reshape(b, sizes[0], -1))
        values = nn.utils.rnn.pad_sequence(list(torch.split(found, sizes)), batch_first=True)
        return Features(values, counts.to(values.device))


def _join(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors that are joined along one axis, with zeros at the end of the others."""
    sizes = [max(sizes) for sizes in zip(*(x.shape for x in tensors), strict=True)]
    padded = []
    for x in tensors:
        missing = [0 if i == axis else size - own for i, (size, own) in enumerate(zip(sizes, x.shape, strict=True))]
        padded.append(F.pad(x, [n for amount in missing[::-1] for n in (0, amount)]) if any(missing) else x)
    return torch.cat(padded, dim=axis)


class WholeImages(WholeFeatures):
    """Images to embeddings, as a multimodal model of transformers computes them."""

    name = "hf_image_features"
    modality = "image"
    limit = "largest"
    Config = ImageFeaturesConfig
    config: ImageFeaturesConfig

    def _largest_size(self) -> float:
        return self.config.largest

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small LLaVA, and images of several shapes."""
        write_example(folder / "image", "image")
        config = {"weights": str(folder / "image"), "largest": 32}
        Image.new("RGB", (40, 30), "teal").save(folder / "wide.png")
        (folder / "text.png").write_text("no image")
        good = (folder / "wide.png", Image.new("RGB", (20, 50), "orange"))
        return CheckInputs(config, good, (folder / "none.png", folder / "text.png"))


class WholeAudio(WholeFeatures):
    """Recordings to embeddings, as a multimodal model of transformers computes them."""

    name = "hf_audio_features"
    modality = "audio"
    limit = "seconds"
    Config = AudioFeaturesConfig
    config: AudioFeaturesConfig

    def _largest_size(self) -> float:
        return self.config.seconds

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small Voxtral, and short recordings."""
        write_example(folder / "audio", "audio")
        return CheckInputs({"weights": str(folder / "audio"), "seconds": 1.0}, *example_recordings(folder, 0.5))
