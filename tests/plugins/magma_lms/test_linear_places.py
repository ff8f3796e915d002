"""Which linear layers of a block are sites of adapters."""

from __future__ import annotations

import torch
from magma_lms.sites import find_blocks, find_linear_places
from magma_lms.tracing import trace
from torch import Tensor, nn

ROWS, COLUMNS, WIDTH = 2, 5, 8


class Router(nn.Linear):
    """A linear layer that returns several tensors, as the routers of PhiMoE and Llama 4."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(x)
        return scores, scores.argmax(-1)


class Pooled(nn.Linear):
    """A linear layer that computes one position of each row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.router, self.pooled = Router(WIDTH, 3), Pooled(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores, _ = self.router(x)
        out: Tensor = x + self.down(self.up(x)) * scores.softmax(-1)[..., :1] + self.pooled(x[:, :1])
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(Block() for _ in range(2))
        self.decoder.forward = self.run

    def run(self, x: Tensor) -> Tensor:
        for block in self.decoder.get_submodule("blocks").children():
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(x)
        return out


def test_a_layer_that_returns_several_tensors_or_skips_positions_is_no_site() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(ROWS, COLUMNS, WIDTH)
    (decoder,) = trace(model, lambda: model(x)).inner
    blocks = find_blocks(model, decoder)
    assert [block.path for block in blocks] == ["decoder.blocks.0", "decoder.blocks.1"]
    found = find_linear_places(blocks, ROWS, COLUMNS)
    assert {(place.block, place.path) for place in found} == {(i, path) for i in (0, 1) for path in ("up", "down")}
