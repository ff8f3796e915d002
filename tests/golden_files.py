"""The golden files: what the published code computes, and the model of each from parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magma_reference.names import Bottleneck, Sizes
from safetensors import safe_open
from torch import Tensor

import magma
from magma import Magma

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
USE = {"normal": "sequential", "parallel": "parallel", "scaled_parallel": "parallel"}
TEXT = 12  # positions of the caption that out/logits goes over


@dataclass(frozen=True)
class Golden:
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Golden:
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            facts = {k: v if k == "name" else json.loads(v) for k, v in file.metadata().items()}
            return cls({key: file.get_tensor(key) for key in file.keys()}, facts)  # noqa: SIM118

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def sizes(self) -> Sizes:
        """As the file's own facts say, nothing found out."""
        f = self.facts
        return Sizes(
            layers=f["n_layer"],
            dim=f["d"],
            heads=f["heads"],
            rotary=f["rotary"],
            context=f["ctx"],
            vocab=f["vocab"],
            words=f["eos_token_id"] + 2,
            width=f["clip_width"],
            stages=tuple(f["clip_layers"]),
            image_size=f["clip_res"],
            layernorm=True,
            adapters={
                place: Bottleneck(
                    USE[a["adapter_type"]],
                    a["downsample_factor"],
                    a.get("add_layernorm", False),
                    a["adapter_type"] == "scaled_parallel",
                )
                for place, a in f["adapter_config"].items()
            },
        )

    def from_parts(self) -> Magma:
        sizes = self.sizes()
        model = magma.assemble(sizes.recipe()).eval()
        assert model.lm.eos == self.facts["eos_token_id"]
        state = self.group("state/")
        model.load_state_dict({name: state[sizes.reference(name)] for name in model.state_dict()}, strict=True)
        return model
