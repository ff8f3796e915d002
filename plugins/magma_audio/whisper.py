"""Whisper's encoder (Radford et al. 2022). Axes: b batch, s samples, f frames, m mel bands, n features, e width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from .hf_encoder import Count, HFAudioConfig, HFAudioEncoder, pad_frames


class Whisper(HFAudioEncoder):
    """Whisper's encoder (Radford et al. 2022): hidden states, 50 a second, of the part that a recording fills.

    The encoder reads 30 seconds, silence behind the recording, as it was trained: what is in a batch changes nothing.
    Without `weights` it has the sizes of openai/whisper-small.
    """

    name = "whisper"
    model_types = ("whisper",)
    key_mapping: ClassVar[Mapping[str, str]] = {r"^(model\.)?encoder\.": ""}
    config_overrides: ClassVar[Mapping[str, Any]] = {"encoder_layerdrop": 0.0}
    check_config: ClassVar[Mapping[str, Any]] = {"seconds": 1, "bands": 16, "width": 16, "layers": 1, "heads": 2}

    class Config(HFAudioConfig):
        """Sizes count where there is no config.json at hand; without `weights` these are random."""

        seconds: int = Field(30, ge=1)
        """What the encoder reads, and the longest recording."""
        bands: int = Field(80, ge=8)
        width: int = Field(768, ge=4)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)

    config: Config
    trailing_frames: int
    """Frames of an item behind its recording's end: the last of them hears nothing of it, and so do all that follow."""

    @staticmethod
    def transformers_classes() -> tuple[Any, Any, Any]:
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperConfig, WhisperEncoder, WhisperFeatureExtractor

    def config_fields(self) -> dict[str, Any]:
        return {
            "max_source_positions": 50 * self.config.seconds,
            "num_mel_bins": self.config.bands,
            "d_model": self.config.width,
            "encoder_layers": self.config.layers,
            "encoder_attention_heads": self.config.heads,
            "encoder_ffn_dim": 4 * self.config.width,
        }

    def extractor_defaults(self) -> dict[str, Any]:
        found = self.architecture
        return {"feature_size": found.num_mel_bins, "chunk_length": found.max_source_positions // 50}

    def set_limits(self) -> None:
        self.seconds, self.max_items = self.feature_extractor.chunk_length, self.feature_extractor.nb_max_frames
        self.trailing_frames = 1 + -(-(self.feature_extractor.n_fft // 2) // self.feature_extractor.hop_length)
        self.min_items = 1 + self.trailing_frames

    def extract_features(self, waveform: Tensor) -> Tensor:
        """[s] to frames [f, m], 100 a second; those that hear silence alone are left to `forward`, but for one."""
        found = self.feature_extractor(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        frames: Tensor = found.input_features[0].T
        return frames[: -(-len(waveform) // self.feature_extractor.hop_length) + self.trailing_frames].contiguous()

    def count_features(self, items: Count) -> Count:
        """Half the frames; an item that fills the window is all recording."""
        return (items - self.trailing_frames * (items < self.max_items) + 1) // 2

    def patch_model(self, tower: nn.Module) -> nn.Module:
        tower.embed_positions = FrozenEmbedding(tower.embed_positions)
        return tower

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """[b, f, m] to [b, 1500, e]."""
        last = (valid.sum(-1) - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        frames = pad_frames(x, valid, x.gather(1, last), self.max_items)
        values: Tensor = self.tower(frames.transpose(1, 2)).last_hidden_state
        return values


class FrozenEmbedding(nn.Module):
    """Whisper's embedding of positions, under its name: nothing trains it, and a checkpoint holds it as it was."""

    weight: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.num_embeddings = original.num_embeddings
        self.register_buffer("weight", original.weight.detach())

    def forward(self, positions: Tensor) -> Tensor:
        """[n] to [n, e]."""
        return self.weight[positions]
