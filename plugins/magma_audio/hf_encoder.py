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
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

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


class Whisper(Tower):
    """Whisper's encoder (Radford et al. 2022): hidden states, 50 a second, of the part that a recording fills.

    The encoder reads 30 seconds, silence behind the recording, as it was trained: what is in a batch changes nothing.
    Without `weights` it has the sizes of openai/whisper-small.
    """

    name = "whisper"
    types = ("whisper",)
    renamed: ClassVar[Mapping[str, str]] = {r"^(model\.)?encoder\.": ""}
    steady: ClassVar[Mapping[str, Any]] = {"encoder_layerdrop": 0.0}
    small: ClassVar[Mapping[str, Any]] = {"seconds": 1, "bands": 16, "width": 16, "layers": 1, "heads": 2}

    class Config(TowerConfig):
        """Sizes count where there is no config.json at hand; without `weights` these are random."""

        seconds: int = Field(30, ge=1)
        """What the encoder reads, and the longest recording."""
        bands: int = Field(80, ge=8)
        width: int = Field(768, ge=4)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

    config: Config
    behind: int
    """Frames of an item behind its recording's end: the last of them hears nothing of it, and so do all that follow."""

    @staticmethod
    def library() -> tuple[Any, Any, Any]:
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperConfig, WhisperEncoder, WhisperFeatureExtractor

    def sizes(self) -> dict[str, Any]:
        return {
            "max_source_positions": 50 * self.config.seconds,
            "num_mel_bins": self.config.bands,
            "d_model": self.config.width,
            "encoder_layers": self.config.layers,
            "encoder_attention_heads": self.config.heads,
            "encoder_ffn_dim": 4 * self.config.width,
        }

    def hearing(self) -> dict[str, Any]:
        found = self.architecture
        return {"feature_size": found.num_mel_bins, "chunk_length": found.max_source_positions // 50}

    def measure(self) -> None:
        self.seconds, self.most = self.ears.chunk_length, self.ears.nb_max_frames
        self.behind = 1 + -(-(self.ears.n_fft // 2) // self.ears.hop_length)
        self.least = 1 + self.behind

    def extract(self, waveform: Tensor) -> Tensor:
        """[s] to frames [f, m], 100 a second; those that hear silence alone are left to `forward`, but for one."""
        found = self.ears(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        frames: Tensor = found.input_features[0].T
        return frames[: -(-len(waveform) // self.ears.hop_length) + self.behind].contiguous()

    def counted(self, items: Count) -> Count:
        """Half the frames; an item that fills the window is all recording."""
        return (items - self.behind * (items < self.most) + 1) // 2

    def ours(self, tower: nn.Module) -> nn.Module:
        tower.embed_positions = Table(tower.embed_positions)
        return tower

    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, f, m] to [b, 1500, e]."""
        last = (real.sum(-1) - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        frames = _filled(x, real, x.gather(1, last), self.most)
        values: Tensor = self.tower(frames.transpose(1, 2)).last_hidden_state
        return values


class Table(nn.Module):
    """Whisper's embedding of positions, under its name: nothing trains it, and a checkpoint holds it as it was."""

    weight: Tensor

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.num_embeddings = theirs.num_embeddings
        self.register_buffer("weight", theirs.weight.detach())

    def forward(self, positions: Tensor) -> Tensor:
        """[n] to [n, e]."""
        return self.weight[positions]


class Wav2Vec2(Tower):
    """wav2vec 2.0 (Baevski et al. 2020): last hidden states, 49 a second, of recordings of any length up to `seconds`.

    Padding is heard by nobody, neither by the convolutions' normalisation nor by attention: a recording's features are
    those that the library gives it alone. Without `weights` it has the sizes of facebook/wav2vec2-base.
    """

    name = "wav2vec2"
    types = ("wav2vec2",)
    steady: ClassVar[Mapping[str, Any]] = {
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,  # with it goes a parameter that nothing else reads
        "mask_feature_prob": 0.0,
        "add_adapter": False,
    }
    small: ClassVar[Mapping[str, Any]] = {"seconds": 0.6, "channels": 16, "width": 32, "layers": 1, "heads": 2}

    class Config(TowerConfig):
        """Sizes other than `seconds` count where there is no config.json at hand."""

        seconds: float = Field(30.0, gt=0)
        """The longest recording."""
        channels: int = Field(512, ge=1)
        """Of the seven convolutions."""
        width: int = Field(768, ge=16)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

    config: Config

    @staticmethod
    def library() -> tuple[Any, Any, Any]:
        from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

        return Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2FeatureExtractor

    def sizes(self) -> dict[str, Any]:
        return {
            "conv_dim": [self.config.channels] * 7,
            "hidden_size": self.config.width,
            "num_hidden_layers": self.config.layers,
            "num_attention_heads": self.config.heads,
            "intermediate_size": 4 * self.config.width,
        }

    def hearing(self) -> dict[str, Any]:
        return {}

    def measure(self) -> None:
        self.seconds = self.config.seconds
        self.least = 1
        for kernel, stride in reversed(self._convolutions()):
            self.least = (self.least - 1) * stride + kernel
        self.most = max(self.least, self.longest(self.rate))

    def _convolutions(self) -> list[tuple[int, int]]:
        return list(zip(self.architecture.conv_kernel, self.architecture.conv_stride, strict=True))

    def _zeros(self, items: int) -> Tensor:
        return torch.zeros(items)

    def extract(self, waveform: Tensor) -> Tensor:
        """[s] to mean 0 and variance 1; one that is shorter than a feature's reach gets zeros behind."""
        heard: Tensor = self.ears(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt").input_values[0]
        return F.pad(heard, (0, max(0, self.least - len(heard))))

    def counted(self, items: Count) -> Count:
        """What the convolutions leave."""
        for kernel, stride in self._convolutions():
            items = (items - kernel) // stride + 1
        return items

    def ours(self, tower: nn.Module) -> nn.Module:
        tower.feature_extractor = Convolutions(tower.feature_extractor)
        return tower

    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, s] to [b, n, e]."""
        mask = None if x.is_meta else real.long()  # the library looks at its values
        values: Tensor = self.tower(x, attention_mask=mask).last_hidden_state
        return values


class Convolutions(nn.Module):
    """wav2vec 2.0's convolutions, under their names, for recordings that `PADDING` follows.

    None of them looks beyond its input's ends, so that a feature of the recording reads the recording alone; but a
    normalisation over time would count the padding.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.conv_layers = theirs.conv_layers
        self.over_time = isinstance(getattr(theirs.conv_layers[0], "layer_norm", None), nn.GroupNorm)
        if self.over_time:
            theirs.conv_layers[0].layer_norm = TimeNorm(theirs.conv_layers[0].layer_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s] to [b, c, n], c channels."""
        real = x != PADDING
        h = x.masked_fill(~real, 0)[:, None]
        first: Any = self.conv_layers[0]
        if self.over_time:
            (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
            h = first.activation(first.layer_norm(first.conv(h), (real.sum(-1) - kernel) // stride + 1))
        else:
            h = first(h)
        for layer in self.conv_layers[1:]:
            h = layer(h)
        out: Tensor = h
        return out


class TimeNorm(nn.Module):
    """A GroupNorm of one channel a group, under its names: mean 0 and variance 1 over the real steps."""

    def __init__(self, theirs: nn.GroupNorm) -> None:
        super().__init__()
        assert theirs.num_groups == theirs.num_channels, "each channel on its own"
        self.weight, self.bias, self.eps = theirs.weight, theirs.bias, theirs.eps

    def forward(self, h: Tensor, steps: Tensor) -> Tensor:
        """[b, c, n], of which `steps` [b] are real; in float32, as torch's own."""
        real = (torch.arange(h.shape[-1], device=h.device) < steps[:, None])[:, None]
        count = steps[:, None, None]
        wide = h.float()
        centred = (wide - (wide * real).sum(-1, keepdim=True) / count) * real
        scale = (centred.square().sum(-1, keepdim=True) / count + self.eps).rsqrt() * self.weight[:, None]
        out: Tensor = (centred * scale + self.bias[:, None]).to(h.dtype)
        return out


class Ast(Tower):
    """Audio Spectrogram Transformer (Gong et al. 2021): hidden states of the patches, without the two special tokens.

    Patches stand in the order of time, those of one moment from low to high: a short recording has the first of them.
    The tower reads the whole window, the library's padding behind the recording. Without `weights` it has the sizes of
    MIT/ast-finetuned-audioset-10-10-0.4593.
    """

    name = "ast"
    types = ("audio-spectrogram-transformer",)
    small: ClassVar[Mapping[str, Any]] = {"frames": 64, "bands": 32, "width": 16, "layers": 1, "heads": 2}

    class Config(TowerConfig):
        """Sizes count where there is no config.json at hand; without `weights` these are random."""

        frames: int = Field(1024, ge=16)
        """Of the window, 100 a second; the longest recording has as many."""
        bands: int = Field(128, ge=16)
        width: int = Field(768, ge=4)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

    config: Config
    high: int
    """Patches of one moment."""
    moments: int
    """Of the window."""
    stride: int
    """Frames from moment to moment."""

    @staticmethod
    def library() -> tuple[Any, Any, Any]:
        from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

        return ASTConfig, ASTModel, ASTFeatureExtractor

    def sizes(self) -> dict[str, Any]:
        return {
            "max_length": self.config.frames,
            "num_mel_bins": self.config.bands,
            "hidden_size": self.config.width,
            "num_hidden_layers": self.config.layers,
            "num_attention_heads": self.config.heads,
            "intermediate_size": 4 * self.config.width,
        }

    def hearing(self) -> dict[str, Any]:
        return {"num_mel_bins": self.architecture.num_mel_bins, "max_length": self.architecture.max_length}

    def measure(self) -> None:
        self.least, self.most = 1, self.ears.max_length
        self.window, self.hop = self.rate // 40, self.rate // 100  # Kaldi's 25 and 10 ms
        self.seconds = (self.window + self.hop * (self.most - 1)) / self.rate
        found = self.architecture
        self.stride = found.time_stride
        self.high = (found.num_mel_bins - found.patch_size) // found.frequency_stride + 1
        self.moments = (found.max_length - found.patch_size) // self.stride + 1

    def extract(self, waveform: Tensor) -> Tensor:
        """[s] to frames [f, m], normalised; one that is shorter than a frame gets zeros behind."""
        whole = F.pad(waveform, (0, max(0, self.window - len(waveform))))
        frames: Tensor = self.ears(whole.numpy(), sampling_rate=self.rate, return_tensors="pt").input_values[0]
        return frames[: 1 + (len(whole) - self.window) // self.hop].clone()

    def counted(self, items: Count) -> Count:
        """Patches that begin before the recording ends."""
        begun = (items - 1) // self.stride + 1
        return self.high * (begun - (begun - self.moments) * (begun > self.moments))  # as many as there are at most

    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, f, m] to [b, n, e]."""
        silence = float(self.ears.normalize(np.zeros(1, np.float32))[0]) if self.ears.do_normalize else 0.0
        frames = _filled(x, real, x.new_full((1, 1, 1), silence), self.most)
        patches: Tensor = self.tower(frames).last_hidden_state[:, 2:]
        b, n, e = patches.shape
        return patches.reshape(b, self.high, self.moments, e).transpose(1, 2).reshape(b, n, e)


class Clap(Tower):
    """CLAP's audio tower (Wu et al. 2023), unfused: the grid of its last stage, row by row, before the pooling.

    A recording that is shorter than the window is repeated until it fills it, so that all features are real. Without
    `weights` it has the sizes of laion/clap-htsat-unfused.
    """

    name = "clap"
    types = ("clap", "clap_audio_model")
    renamed: ClassVar[Mapping[str, str]] = {r"^(clap\.)?audio_model\.": ""}
    small: ClassVar[Mapping[str, Any]] = {
        "seconds": 1,
        "side": 128,
        "width": 8,
        "layers": (1, 1, 1),
        "heads": (1, 1, 1),
    }

    class Config(TowerConfig):
        """Sizes count where there is no config.json at hand; without `weights` these are random."""

        seconds: int = Field(10, ge=1)
        """The window, and the longest recording."""
        side: int = Field(256, ge=64)
        """Of the square that the spectrogram is folded into, a multiple of its 64 bands; a patch's is 4."""
        width: int = Field(96, ge=4)
        """Of the first stage; each further one has twice as much."""
        layers: tuple[int, ...] = (2, 2, 6, 2)
        """Of each stage."""
        heads: tuple[int, ...] = (4, 8, 16, 32)
        window: int = Field(8, ge=1)
        """Patches of a side within which attention looks: no more than the last stage has."""

        @model_validator(mode="after")
        def _stages_agree(self) -> Self:
            if not self.layers or len(self.layers) != len(self.heads):
                raise ValueError("`layers` and `heads` of as many stages, one at least")
            return self

    config: Config

    @staticmethod
    def library() -> tuple[Any, Any, Any]:
        from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

        return ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

    def sizes(self) -> dict[str, Any]:
        return {
            "spec_size": self.config.side,
            "patch_embeds_hidden_size": self.config.width,
            "hidden_size": self.config.width * 2 ** (len(self.config.layers) - 1),
            "depths": list(self.config.layers),
            "num_attention_heads": list(self.config.heads),
            "window_size": self.config.window,
        }

    def hearing(self) -> dict[str, Any]:
        seconds = self.config.seconds
        return {"feature_size": self.architecture.num_mel_bins, "max_length_s": seconds, "truncation": "rand_trunc"}

    def measure(self) -> None:
        if self.architecture.enable_fusion:
            raise PartError(f"clap.weights: {self.config.weights} holds a fused model; allowed: an unfused one")
        self.seconds = self.ears.max_length_s
        self.least = self.most = self.ears.nb_max_samples // self.ears.hop_length + 1

    def extract(self, waveform: Tensor) -> Tensor:
        """[s] to frames [f, m] in decibels. Nothing is cut, so that nothing is random."""
        found = self.ears(waveform.numpy(), truncation="rand_trunc", sampling_rate=self.rate, return_tensors="pt")
        frames: Tensor = found.input_features[0, 0]
        return frames.float()

    def hidden(self, x: Tensor, real: Tensor) -> Tensor:
        """[b, f, m] to [b, n, e]."""
        grid: Tensor = self.tower(x[:, None]).last_hidden_state
        return grid.flatten(2).transpose(1, 2)


# For every tower


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
