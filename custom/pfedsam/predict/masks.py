"""The labels and probabilities that a model finds on the slices of a volume."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfedsam.config import Scale
from pfedsam.data.geometry import Volume, check_cut, check_placed, oriented, restored
from pfedsam.data.reader import ends_of, judged, rgb
from pfedsam.data.square import decide, label_map, probabilities, shown
from pfedsam.data.values import require_finite
from pfedsam.errors import UserFault
from pfedsam.inference.predictor import Predictor

SCALES = get_args(Scale)


@dataclass(frozen=True)
class Way:
    """How slices are cut and given to the model.

    Attributes:
        branch: "global" or "personal".
        plane: as in `data.volume.oriented`; None: the model's training plane (`data.plane`).
        scale: how intensities become 0..1, as `data.scale` in training.
        batch: number of slices at a time.
        probabilities: whether to keep them; they take (classes, H, W, N) of memory.
    """

    branch: str
    plane: str | None = None
    scale: Scale = "uint8"
    batch: int = 8
    probabilities: bool = False

    def __post_init__(self) -> None:
        """Raises UserFault where `scale` is none that there is, or `batch` is below 1."""
        if self.scale not in SCALES:
            raise UserFault(expected=f"a scale: {' or '.join(SCALES)}", came=str(self.scale), do="choose one of them")
        if self.batch < 1:
            raise UserFault(expected="a batch of 1 slice or more", came=str(self.batch), do="correct it")


def usual_way(model: Predictor, **chosen: Any) -> Way:
    """As `model` was trained and tested: its last branch (personal, where it has it) and its scale.

    Args:
        chosen: fields of `Way` that are to be others; None leaves one as it is.
    """
    usual = {"branch": model.branches[-1], "scale": model.config.data.scale}
    return Way(**(usual | {name: value for name, value in chosen.items() if value is not None}))


@dataclass(frozen=True)
class Prediction:
    """What a model finds, with the axes of the source.

    Attributes:
        labels: (H, W, N) of class numbers, 0 for background; if classes overlap, the most likely one.
        masks: (classes, H, W, N) of bool.
        probabilities: (classes, H, W, N) float32, or None.
    """

    labels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32] | None


def segment(model: Predictor, volume: Volume, way: Way) -> Prediction:
    """The masks of one volume or picture. Each slice is treated as in the final test of the training.

    Raises:
        UserFault: values are not finite or do not fit `scale`, a single slice has another plane, the plane needs a
            position that the file does not state, or the model file lacks the branch.
    """
    require_finite(volume.values, "the image")
    plane = way.plane or model.config.data.plane
    check_placed(volume.guessed, plane, "the image")
    laid = oriented(volume, plane)
    check_cut(laid.affine, laid.values.shape[:3], plane, "the image")
    kept = [_kept(maps, model.config.model.exclusive, way) for maps in _logits(model, laid, way)]
    masks, labels, likely = zip(*kept, strict=True)

    def back(maps: tuple[Tensor, ...]) -> NDArray[np.generic]:
        """Slices of (..., H, W) each, with the axes of the source."""
        stacked = np.stack([m.numpy() for m in maps], axis=-1)
        if stacked.ndim == 3:
            return restored(stacked, volume.affine, plane)
        return np.stack([restored(one, volume.affine, plane) for one in stacked])

    return Prediction(
        back(labels).astype(np.uint8),
        back(masks).astype(bool),
        back(likely).astype(np.float32) if way.probabilities else None,
    )


def _logits(model: Predictor, volume: Volume, way: Way) -> Iterator[Tensor]:
    """Logits of each slice at its own size, (outputs, H, W)."""
    count = volume.values.shape[2]
    ends = ends_of((_picture(volume, i) for i in judged(count, way.scale)), way.scale, "the image")
    for start in range(0, count, way.batch):
        pictures = [shown(_picture(volume, i), ends, "the image") for i in range(count)[start : start + way.batch]]
        yield from model.logits_at_size(torch.stack(pictures), way.branch)


def _kept(maps: Tensor, exclusive: bool, way: Way) -> tuple[Tensor, Tensor, Tensor]:
    likely = probabilities(maps, exclusive=exclusive) if way.probabilities else maps[:0]
    return decide(maps, exclusive=exclusive), label_map(maps, exclusive=exclusive), likely


def _picture(volume: Volume, index: int) -> NDArray[np.float32]:
    return rgb(np.ascontiguousarray(volume.values[:, :, index]))
