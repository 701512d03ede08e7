"""A site's channel gate on the image embedding (FedICRA, arXiv 2304.05635: site-wise channel selection)."""

import torch
from torch import Tensor, nn

NARROW = 16  # width / bottleneck of the gate's two layers; our choice


class ChannelGate(nn.Module):
    """x times a factor of 0.5 to 1.5 a channel: 0.5 + sigmoid(f(mean x + e) + f(max x + e)), (B, C, H, W) -> the same.

    e stands for the site: it is the site's column of the matrix that the paper multiplies by a one-hot vector. As
    every site keeps its own gate, other columns are not needed. The paper's factor is 1 + sigmoid. Ours begins at 1, so
    that training begins at the pretrained model, and a site without a gate uses that model unchanged.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.site = nn.Parameter(torch.randn(channels))
        self.down, self.up = nn.Linear(channels, channels // NARROW), nn.Linear(channels // NARROW, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        scores = self._scores(x.mean((2, 3))) + self._scores(x.amax((2, 3)))
        return x * (0.5 + scores.sigmoid())[..., None, None]

    def _scores(self, pooled: Tensor) -> Tensor:
        found: Tensor = self.up(self.down(pooled + self.site).relu())
        return found
