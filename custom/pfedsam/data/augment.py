"""Training-time changes of an image and its mask, by MONAI; seeded, and off where `train.augment` is false."""

from typing import Any

import monai.data
import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandScaleIntensityd, RandShiftIntensityd
from torch import Tensor

from pfedsam.data.dataset import Augment

BOTH = ("image", "mask")


def augmentation(seed: int) -> Augment:
    """Flips, small rotation, shift and zoom, small changes of brightness and contrast.

    Strengths are our choice: lesions look the same mirrored, scanners differ mildly within a site.
    """
    monai.data.set_track_meta(False)
    change: Any = Compose(
        [
            RandFlipd(BOTH, prob=0.5, spatial_axis=0),
            RandFlipd(BOTH, prob=0.5, spatial_axis=1),
            RandAffined(
                BOTH,
                prob=0.5,
                rotate_range=0.2,
                scale_range=(0.1, 0.1),
                translate_range=(8, 8),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandScaleIntensityd("image", factors=0.15, prob=0.5),
            RandShiftIntensityd("image", offsets=0.05, prob=0.5),
        ]
    ).set_random_state(seed=seed)

    def apply(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out = change({"image": image, "mask": mask[None].float()})
        return torch.as_tensor(out["image"]).clamp(0, 1), torch.as_tensor(out["mask"])[0].round().long()

    return apply
