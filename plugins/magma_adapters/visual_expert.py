"""Projections of media positions beside those of text (CogVLM, Wang et al. 2023, section 2.1).

Axes: b batch, t tokens, d width of a linear layer's input, d' width of its output, s media positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import Adapter, Context, PartConfig, PartError, Site


class VisualExpert(Adapter):
    """At a linear layer: media positions have a projection that is learned, text positions the frozen one.

    At all linear layers of a block, these are equations 2 to 4. The learned projection starts as a copy of the frozen
    one, so that training starts with the language model itself. Of several experts at one layer, the last one that was
    added counts for a position that they have in common.
    """

    name = "visual_expert"
    input_fields = ("inputs",)
    uses_context = True
    passes_input_through = True

    class Config(PartConfig):
        """Which positions have the learned projection."""

        inputs: tuple[str, ...] | None = Field(None, min_length=1)
        """Only the positions of these inputs. Default: those of all inputs."""

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.linear is None:
            raise PartError(f'"{self.name}" acts at linear layers: given {site.path}; allowed: linears, or one of them')
        assert site.weight.ndim == 2  # it raises an error if the weight cannot be copied
        bias = site.bias is not None
        self.expert = nn.Linear(site.in_features, site.out_features, bias, device="meta", dtype=site.weight.dtype)

    def load_weights(self) -> None:
        """Copy the frozen projection."""
        self.expert.weight = nn.Parameter(self.site.weight.detach().clone(memory_format=torch.contiguous_format))
        if self.site.bias is not None:
            self.expert.bias = nn.Parameter(self.site.bias.detach().clone())

    def init_weights(self) -> None:
        """Allocate the projection: a checkpoint has its weights."""
        self.expert.to_empty(device="cpu")

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        """[b, t, d] to [b, t, d']."""
        y = sublayer(x)
        positions = context.media_positions(self.config.inputs)
        experts: Tensor = self.expert(x.flatten(0, 1).index_select(0, positions))  # [s, d']
        if not (len(positions) or experts.requires_grad):
            return y
        return y.flatten(0, 1).index_copy(0, positions, experts).view_as(y)
