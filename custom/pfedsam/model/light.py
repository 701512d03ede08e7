"""A light model beside SAM: MONAI's BasicUNet, trained from scratch. It needs no pretrained weights."""

from typing import cast

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from pfedsam.model.encoder import Encoder
from pfedsam.model.segmenter import Segmenter

DEPTH = (1, 1, 2, 4, 8, 1)  # each level's channels, in widths


class LightNet(nn.Module):
    """Logits (B, outputs, S, S) from normalised images (B, 3, S, S). Its type gives all its parameters one kind.

    Args:
        outputs: number of logit channels.
        width: channels of the first level. 16 make half a million values.
    """

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        features = cast(tuple[int, int, int, int, int, int], tuple(width * times for times in DEPTH))
        self.net = BasicUNet(spatial_dims=2, in_channels=3, out_channels=outputs, features=features)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, outputs, S, S)."""
        return cast(Tensor, self.net(image))


def light(outputs: int, width: int, seed: int) -> Segmenter:
    """A branch of a `LightNet` alone, its weights drawn from `seed`. Its "embedding" is the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LightNet(outputs, width)
    return Segmenter(Encoder([nn.Identity()], channels=3, patch=1), net)
