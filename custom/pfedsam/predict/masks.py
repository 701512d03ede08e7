"""From a volume to the labels and probabilities that a model finds on its slices."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedsam.config import Scale
from pfedsam.data.dataset import fit, unfit
from pfedsam.data.geometry import Volume, check_cut, oriented, restored
from pfedsam.data.reader import EIGHT_BIT, levels, rgb, spread, unit
from pfedsam.export.model import Predictor
from pfedsam.train.evaluate import decide, label_map


@dataclass(frozen=True)
class Way:
    """How slices are taken and shown to the model.

    Attributes:
        branch: "global" or "personal".
        plane: as for `data.volume.oriented`; None: the plane that the model was trained on (`data.plane`).
        scale: intensities to 0..1, as `data.scale` in training.
        batch: slices at a time.
        probabilities: whether these are kept; (classes, H, W, N) in memory.
    """

    branch: str
    plane: str | None = None
    scale: Scale = "uint8"
    batch: int = 8
    probabilities: bool = False


@dataclass(frozen=True)
class Found:
    """What a model finds, its axes as the source stores them.

    Attributes:
        labels: (H, W, N) of class numbers, 0 the background; where classes overlap, the likeliest.
        masks: (classes, H, W, N) of bool.
        probabilities: (classes, H, W, N) float32, or None.
    """

    labels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32] | None


def segment(model: Predictor, volume: Volume, way: Way) -> Found:
    """The masks of one volume or picture, every slice as the final test of its training would find it.

    Raises:
        UserFault: values that are not finite or do not fit `scale`, a single slice of another plane, or a branch that
            the model file does not hold.
    """
    volume.require_finite("the image")
    plane = way.plane or model.config.data.plane
    laid = oriented(volume, plane)
    check_cut(laid.affine, laid.values.shape[:3], plane, "the image")
    found = [_slice(maps, model.config.model.exclusive, way) for maps in _maps(model, laid, way)]
    masks, labels, probabilities = zip(*found, strict=True)

    def back(maps: tuple[Tensor, ...]) -> NDArray[np.generic]:
        """Slices, (..., H, W) each, as the source stores them."""
        whole = np.stack([m.numpy() for m in maps], axis=-1)
        if whole.ndim == 3:
            return restored(whole, volume.affine, plane)
        return np.stack([restored(one, volume.affine, plane) for one in whole])

    return Found(
        back(labels).astype(np.uint8),
        back(masks).astype(bool),
        back(probabilities).astype(np.float32) if way.probabilities else None,
    )


def _maps(model: Predictor, volume: Volume, way: Way) -> Iterator[Tensor]:
    """Logits of each slice at its own size, (outputs, H, W)."""
    count, shape = volume.values.shape[2], volume.values.shape[:2]
    ends = EIGHT_BIT if way.scale == "uint8" else levels(_picture(volume, i) for i in spread(count))
    for start in range(0, count, way.batch):
        shown = [
            fit(_scaled(_picture(volume, i), ends), model.size) for i in range(start, min(start + way.batch, count))
        ]
        for maps in model.logits(torch.stack(shown), way.branch):
            yield unfit(maps, (shape[0], shape[1]), model.size)


def _slice(maps: Tensor, exclusive: bool, way: Way) -> tuple[Tensor, Tensor, Tensor]:
    likely = maps.softmax(0)[1:] if exclusive else maps.sigmoid()
    kept = likely if way.probabilities else likely[:, :0, :0]
    return decide(maps, exclusive=exclusive), label_map(maps, exclusive=exclusive), kept


def _picture(volume: Volume, index: int) -> NDArray[np.float32]:
    return rgb(np.ascontiguousarray(volume.values[:, :, index]))


def _scaled(picture: NDArray[np.float32], ends: tuple[float, float]) -> Tensor:
    return torch.from_numpy(unit(picture, ends, "the image")).permute(2, 0, 1).contiguous()
