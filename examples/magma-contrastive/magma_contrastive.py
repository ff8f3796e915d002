"""A linear prefix with a contrastive loss: its embeddings are near their own caption (InfoNCE, as in CLIP).

Axes: b media, n features and as many embeddings, e encoder width, d language-model width.
"""

import math

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import magma


class ContrastiveLinear(magma.Prefix):
    """A linear map of each feature. A loss makes the embeddings similar to their own caption, not to other ones."""

    name = "contrastive_linear"
    auxiliary_losses = ("contrast",)

    class Config(magma.PartConfig):
        temperature: float = Field(0.07, gt=0)
        """Initial temperature of the loss. It is learned."""

    def __init__(self, config, encoder_dim, encoder_length, dim):
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.projection = nn.Linear(encoder_dim, dim)
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(config.temperature)))

    def num_embeddings(self, features):
        return features

    def forward(self, features):
        return magma.Features(self.projection(features.values), features.lengths)  # [b, n, e] to [b, n, d]

    def auxiliary_loss(self, context):
        values, lengths = context.embeddings[context.input]
        if lengths is not None:  # padding does not count
            values = values * (torch.arange(values.shape[1], device=values.device) < lengths[:, None])[..., None]
        media = F.normalize(values.sum(1).float(), dim=-1)  # [b, d]
        captions = F.normalize(context.caption_embeddings().float(), dim=-1)
        scale = self.log_scale.float().exp().clamp(max=100)
        logits = scale * media @ captions.T  # [b, b], as in figure 3 of the paper on CLIP
        own = torch.arange(len(logits), device=logits.device)
        return {"contrast": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}


@magma.hookimpl
def magma_parts():
    return [ContrastiveLinear]
