"""The supervised loss of one branch (L_CE in Figure 1), by class kind, plus Dice."""

from typing import cast

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from pfedsam.config import TrainConfig
from pfedsam.data.dataset import Batch
from pfedsam.data.values import IGNORED


def segmentation_loss(logits: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """L_seg, a scalar: cross-entropy of the head's kind, plus `dice_weight` times soft Dice loss (our choice).

    Args:
        logits: (B, outputs, h, w), resized to the label's size bilinearly.
        batch: gives the labels. Classes that its site does not annotate are left out, and pixels without a label.
    """
    label, exclusive = batch.label, config.loss == "ce"
    logits = resize(logits.float(), label.shape[-1])
    target = one_hot(label, logits.shape[1], background=exclusive)
    logits, target, known = annotated(logits, batch), annotated(target, batch), labelled(batch)
    loss = exclusive_entropy(logits, label, known) if exclusive else binary(logits, target, config.pos_weight, known)
    return loss + config.dice_weight * dice(logits, target, config, known) if config.dice_weight else loss


def labelled(batch: Batch) -> Tensor | None:
    """(B, 1, L, L): 1 if the pixel has a label, else 0. None if all pixels have one."""
    return (batch.label != IGNORED)[:, None].float() if batch.ignores else None


def annotated(channels: Tensor, batch: Batch) -> Tensor:
    """The channels of (B, outputs, h, w) whose classes the batch's site annotates.

    It takes them one by one. With a list as index a GPU would wait, and a step could not be recorded (`train.step`).
    """
    return channels if batch.annotated is None else torch.stack([channels[:, i] for i in batch.annotated], 1)


def exclusive_entropy(logits: Tensor, label: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the `known` pixels, a scalar (None: all pixels). 0 if none is known."""
    if known is None:
        return F.cross_entropy(logits, label)
    return F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum") / known.sum().clamp_min(1)


def binary(logits: Tensor, target: Tensor, pos_weight: float, known: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of the `known` pixels and classes, with weighted positives (FedFMS: 2)."""
    weight = logits.new_full((), pos_weight)
    if known is None:
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    total = F.binary_cross_entropy_with_logits(logits, target, known, pos_weight=weight, reduction="sum")
    return total / (known.sum() * logits.shape[1]).clamp_min(1)


def dice(logits: Tensor, target: Tensor, config: TrainConfig, known: Tensor | None = None) -> Tensor:
    """MONAI's soft Dice loss (Milletari et al. 2016) over the batch's `known` pixels, a scalar, without background."""
    exclusive = config.loss == "ce"
    found = logits.softmax(1) if exclusive else logits.sigmoid()
    if known is not None:
        found, target = found * known, target * known
    return cast(Tensor, DiceLoss(include_background=not exclusive, batch=True)(found, target))


def one_hot(label: Tensor, channels: int, *, background: bool) -> Tensor:
    """(B, channels, L, L) of 0 and 1 from class numbers (B, L, L). Channel 0 is class 1 unless `background`."""
    classes = torch.arange(channels, device=label.device) + (0 if background else 1)
    return (label[:, None] == classes.view(1, -1, 1, 1)).float()


def resize(logits: Tensor, side: int) -> Tensor:
    """Logits (B, outputs, h, h), resized bilinearly to `side` x `side`."""
    if logits.shape[-1] == side:
        return logits
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
