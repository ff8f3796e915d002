"""CLAP's audio encoder (Wu et al. 2023). Axes: b batch, s samples, f frames, m mel bands, n features, e width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from magma import PartError

from .hf_encoder import HFSpectrogramConfig, HFSpectrogramEncoder


class Clap(HFSpectrogramEncoder):
    """CLAP's audio encoder (Wu et al. 2023), unfused: the grid of its last stage, row by row, before the pooling.

    A recording that is shorter than the window is repeated until it fills the window, so there is no padding. Without
    `weights` it has the sizes of laion/clap-htsat-unfused.
    """

    name = "clap"
    model_types = ("clap", "clap_audio_model")
    key_mapping: ClassVar[Mapping[str, str]] = {r"^(clap\.)?audio_model\.": ""}
    check_config: ClassVar[Mapping[str, Any]] = {
        "seconds": 1,
        "side": 128,
        "width": 8,
        "layers": (1, 1, 1),
        "heads": (1, 1, 1),
    }

    class Config(HFSpectrogramConfig):
        """Weights and sizes. The config.json of `weights` overrides the sizes; without `weights` they are random."""

        seconds: int = Field(10, ge=1)
        """Length of the window and of the longest recording, in seconds."""
        side: int = Field(256, ge=64)
        """Side of the square that the spectrogram is folded into; a multiple of its 64 bands. A patch has a side of
        4."""
        width: int = Field(96, ge=4)
        """Width of the first stage; each further stage is twice as wide."""
        layers: tuple[int, ...] = (2, 2, 6, 2)
        """Layers of each stage."""
        heads: tuple[int, ...] = (4, 8, 16, 32)
        """Attention heads of each stage."""
        window: int = Field(8, ge=1)
        """Side of the attention window in patches; at most the side of the last stage."""

        @model_validator(mode="after")
        def _stages_agree(self) -> Self:
            if not self.layers or len(self.layers) != len(self.heads):
                raise ValueError("`layers` and `heads` with one entry for each stage, at least one")
            return self

    config: Config

    @staticmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

        return ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

    def config_fields(self) -> dict[str, Any]:
        return {
            "spec_size": self.config.side,
            "patch_embeds_hidden_size": self.config.width,
            "hidden_size": self.config.width * 2 ** (len(self.config.layers) - 1),
            "depths": list(self.config.layers),
            "num_attention_heads": list(self.config.heads),
            "window_size": self.config.window,
        }

    def extractor_defaults(self) -> dict[str, Any]:
        seconds = self.config.seconds
        return {"feature_size": self.architecture.num_mel_bins, "max_length_s": seconds, "truncation": "rand_trunc"}

    def set_limits(self) -> None:
        if self.architecture.enable_fusion:
            raise PartError(f"clap.weights: {self.config.weights} is a fused model; allowed: an unfused one")
        self.seconds = self.feature_extractor.max_length_s
        self.min_items = self.max_items = self.feature_extractor.nb_max_samples // self.feature_extractor.hop_length + 1

    def extract_features(self, waveform: Tensor) -> Tensor:
        """A waveform [s] to frames [f, m] in decibels. It is never longer than the window, so no random part is cut."""
        found = self.feature_extractor(
            waveform.numpy(), truncation="rand_trunc", sampling_rate=self.rate, return_tensors="pt"
        )
        frames: Tensor = found.input_features[0, 0]
        return frames.float()

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """Frames [b, f, m] to hidden states [b, n, e]."""
        grid: Tensor = self.tower(x[:, None]).last_hidden_state
        return grid.flatten(2).transpose(1, 2)
