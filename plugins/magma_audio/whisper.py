"""Whisper's encoder (Radford et al. 2022). Axes: b batch, s samples, f frames, m mel bands, n features, e width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from .hf_encoder import Count, HFSpectrogramConfig, HFSpectrogramEncoder, pad_frames


class Whisper(HFSpectrogramEncoder):
    """Whisper's encoder (Radford et al. 2022): hidden states, 50 per second, for the duration of the recording.

    As in its training, the encoder reads 30 seconds: the recording, then silence. The features do not depend on the
    batch. Without `weights` it has the sizes of openai/whisper-small.
    """

    name = "whisper"
    model_types = ("whisper",)
    key_mapping: ClassVar[Mapping[str, str]] = {r"^(model\.)?encoder\.": ""}
    config_overrides: ClassVar[Mapping[str, Any]] = {"encoder_layerdrop": 0.0}
    check_config: ClassVar[Mapping[str, Any]] = {"seconds": 1, "bands": 16, "width": 16, "layers": 1, "heads": 2}

    class Config(HFSpectrogramConfig):
        """Weights and sizes. The config.json of `weights` overrides the sizes; without `weights` they are random."""

        seconds: int = Field(30, ge=1)
        """Length of the window and of the longest recording, in seconds."""
        bands: int = Field(80, ge=8)
        """Mel bands of the spectrogram."""
        width: int = Field(768, ge=4)
        """Width of the hidden states and of the features."""
        layers: int = Field(12, ge=1)
        """Number of transformer layers."""
        heads: int = Field(12, ge=1)
        """Attention heads per layer."""

    config: Config
    trailing_frames: int
    """Frames of an item after the end of its recording. The last one contains only silence."""

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
        """A waveform [s] to frames [f, m], 100 per second. It keeps one frame of silence; `forward` repeats it."""
        found = self.feature_extractor(waveform.numpy(), sampling_rate=self.rate, return_tensors="pt")
        frames: Tensor = found.input_features[0].T
        return frames[: -(-len(waveform) // self.feature_extractor.hop_length) + self.trailing_frames].contiguous()

    def count_features(self, items: Count) -> Count:
        """Half the number of frames; an item of maximum length has no trailing frames."""
        return (items - self.trailing_frames * (items < self.max_items) + 1) // 2

    def patch_model(self, model: nn.Module) -> nn.Module:
        model.embed_positions = FrozenEmbedding(model.embed_positions)
        return model

    def hidden_states(self, x: Tensor, valid: Tensor) -> Tensor:
        """Frames [b, f, m] to hidden states [b, 1500, e]."""
        last = (valid.sum(-1) - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        frames = pad_frames(x, valid, x.gather(1, last), self.max_items)
        values: Tensor = self.tower(frames.transpose(1, 2)).last_hidden_state
        return values


class FrozenEmbedding(nn.Module):
    """Whisper's position embedding, with the same name. It is a buffer, so it is never trained."""

    weight: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.num_embeddings = original.num_embeddings
        self.register_buffer("weight", original.weight.detach())

    def forward(self, positions: Tensor) -> Tensor:
        """Positions [n] to embeddings [n, e]."""
        return self.weight[positions]
