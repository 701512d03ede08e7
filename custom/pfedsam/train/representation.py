"""What an encoder sees in an image as a whole: its embedding's mean over places, of length 1."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Dataset, View
from pfedsam.model.encoder import Encoder
from pfedsam.model.partition import Kind, kinds
from pfedsam.tensors import Tensors
from pfedsam.train.precision import autocast


def represented(embedding: Tensor) -> Tensor:
    """The representation (B, C) of images with that embedding (B, C, h, w)."""
    return F.normalize(embedding.float().mean((2, 3)), dim=1)


def without_adapters(encoder: Encoder) -> Tensors:
    """The encoder's parameters with which its adapters add nothing: B is zero."""
    kind = kinds(encoder)
    return {name: torch.zeros_like(p) for name, p in encoder.named_parameters() if kind[name] is Kind.LORA_B}


@torch.no_grad()
def representations(
    encode: Callable[[Tensor], Tensor], data: Dataset, slices: Iterable[int], *, config: Config, device: torch.device
) -> Tensor:
    """The representations (n, C) of slices without augmentation. `encode` gives an image's embedding."""
    images = (data.batch([View(i)]).image.to(device) for i in slices)
    with autocast(device, config.train.precision):
        return torch.cat([represented(encode(image)) for image in images])
