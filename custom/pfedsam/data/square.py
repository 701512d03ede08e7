"""A slice as the model's square input, and its logits as a mask, for training, test, predict, ONNX and bundle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedsam.config import Pixels
from pfedsam.data import reader
from pfedsam.data.values import IGNORED

FAINT = 0.1  # the weight of an unlabelled pixel beside a labelled one, where labels are sparse; our choice
THRESHOLD = 0.5  # on probabilities, never on logits
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # segment_anything build_sam.py, RGB of 0..255


def shown(pixels: reader.Pixels, ends: reader.Ends, name: str) -> Tensor:
    """A picture (H, W, 3) as (3, H, W) in 0..1, from values between `ends`. It raises as `reader.unit` does."""
    return torch.from_numpy(reader.unit(pixels, ends, name)).permute(2, 0, 1).contiguous()


class Normalise(nn.Module):
    """RGB in 0..1, (..., 3, H, W), as the backbone expects it: by SAM's mean and deviation, or unchanged ("unit")."""

    def __init__(self, pixels: Pixels = "sam") -> None:
        super().__init__()
        mean, std = (MEAN, STD) if pixels == "sam" else ((0.0,) * 3, (255.0,) * 3)
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(3, 1, 1) / 255) for values in (mean, std))

    def forward(self, image: Tensor) -> Tensor:
        """(image - mean) / std."""
        return (image - self.mean) / self.std


def spread(pixels: Pixels) -> float:
    """The deviation by which `Normalise` divides, the mean over the colours: a number, which no GPU has to be sent."""
    return sum(STD) / len(STD) / 255 if pixels == "sam" else 1.0


def fit(image: Tensor, size: int) -> Tensor:
    """(C, H, W) to (C, size, size): the longest side becomes `size`, the rest at the right and below is black."""
    height, width = scaled(image.shape[-2:], size)
    if (height, width) != tuple(image.shape[-2:]):
        image = _smooth(image[None], (height, width))[0]
    return F.pad(image, (0, size - width, 0, size - height))


def fit_labels(labels: Tensor, size: int, *, sparse: bool = False) -> Tensor:
    """`fit` for (H, W) of class numbers. They go where `fit` puts the image's pixels. For `sparse` see `shrink`."""
    height, width = scaled(labels.shape, size)
    return F.pad(_relabelled(labels[None], (height, width), sparse)[0], (0, size - width, 0, size - height))


def unfit(maps: Tensor, shape: tuple[int, int], size: int) -> Tensor:
    """The inverse of `fit` for (C, h, h) maps of any side: (C, *shape), bilinear."""
    height, width = scaled(shape, size)
    maps = F.interpolate(maps[None], size=(size, size), mode="bilinear", align_corners=False)
    return F.interpolate(maps[..., :height, :width], size=shape, mode="bilinear", align_corners=False)[0]


def scaled(shape: tuple[int, ...] | torch.Size, size: int) -> tuple[int, int]:
    """(H, W) with the longest side at `size`."""
    factor = size / max(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def shrink(masks: Tensor, size: int, *, sparse: bool = False) -> Tensor:
    """(B, S, S) class numbers at side `size`.

    Args:
        sparse: most pixels have no label. A thin line then keeps its class, although most around it has none.
    """
    return _relabelled(masks, (size, size), sparse)


def _relabelled(masks: Tensor, shape: tuple[int, int], sparse: bool) -> Tensor:
    """(B, H, W) class numbers at another size. Each pixel gets the class with the largest weight in it."""
    if tuple(masks.shape[-2:]) == shape:
        return masks.long()
    numbers: Tensor = torch.unique(masks.long())
    weights = _smooth((masks[:, None] == numbers.view(-1, 1, 1)).float(), shape)
    if sparse:
        weights[:, numbers == IGNORED] *= FAINT
    return numbers[weights.argmax(1)]


def _smooth(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=shape, mode="bilinear", align_corners=False, antialias=True)


def decide(maps: Tensor, *, exclusive: bool) -> Tensor:
    """(classes, H, W) of bool from (outputs, H, W) logits: the most likely class, or each class by its threshold."""
    if exclusive:
        return label_map(maps, exclusive=True) == torch.arange(1, len(maps))[:, None, None]
    return maps.sigmoid() > THRESHOLD


def label_map(maps: Tensor, *, exclusive: bool) -> Tensor:
    """(H, W) uint8 class numbers, 0 for background, from (outputs, H, W) logits. The best overlapping class wins."""
    best = maps.argmax(0)  # of logits: two sigmoids may both be rounded to 1
    if exclusive:
        return best.to(torch.uint8)
    return ((best + 1) * (maps.sigmoid() > THRESHOLD).any(0)).to(torch.uint8)


def probabilities(maps: Tensor, *, exclusive: bool) -> Tensor:
    """(classes, H, W) in 0..1, without background, from (outputs, H, W) logits."""
    return maps.softmax(0)[1:] if exclusive else maps.sigmoid()
