"""Random changes of an image and its mask in training, by MONAI: seeded, and off if `train.augment` is false."""

from typing import Any

import monai.data
import torch
from monai.transforms import Compose, RandAffined, RandFlipd, RandScaleIntensityd, RandShiftIntensityd
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Augment, View
from pfedsam.files import seed_of

SHIFT = 1 / 16  # of the image's side, at most, in each direction


def augmentation(seed: int, config: Config) -> Augment:
    """Flips, small rotation, shift and zoom, small changes of brightness and contrast.

    A view depends only on `seed`, its slice and its number. In any order the same view has the same content, so
    that the model's output on it can be cached.

    The strengths are our choice. Lesions look the same when mirrored (except by `train.flips`), and scanners differ
    little within a site. Pixels that a shift or rotation brings in are black, and background.
    """
    monai.data.set_track_meta(False)
    change = changes(config)

    def apply(image: Tensor, mask: Tensor, view: View) -> tuple[Tensor, Tensor]:
        change.set_random_state(seed=seed_of(f"{seed}/{view.slice}/{view.number}"))
        out = change({"image": image, "mask": mask[None].float()})
        return torch.as_tensor(out["image"]).clamp(0, 1), torch.as_tensor(out["mask"])[0].round().long()

    return apply


def changes(config: Config, keys: tuple[str, str] = ("image", "mask")) -> Any:
    """The changes themselves, as one transform of MONAI's; `keys` name image, (3, S, S), and mask, (1, S, S)."""
    flips, shift = config.train.flips, SHIFT * config.model.image_size
    return Compose(
        [
            RandFlipd(keys, prob=0.5 * (flips in ("both", "vertical")), spatial_axis=0),  # rows
            RandFlipd(keys, prob=0.5 * (flips in ("both", "horizontal")), spatial_axis=1),  # columns
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=0.2,
                scale_range=(0.1, 0.1),
                translate_range=(shift, shift),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandScaleIntensityd(keys[0], factors=0.15, prob=0.5),
            RandShiftIntensityd(keys[0], offsets=0.05, prob=0.5),
        ]
    )
