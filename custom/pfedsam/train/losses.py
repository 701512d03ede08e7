"""The supervised loss of one branch (L_CE in Figure 1), by class kind, plus Dice."""

from typing import cast

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from pfedsam.config import TrainConfig
from pfedsam.data.dataset import Batch


def segmentation_loss(logits: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """L_seg, a scalar: cross-entropy of the head's kind, plus `dice_weight` times soft Dice loss.

    Args:
        logits: (B, outputs, h, w); brought to the label's size bilinearly.
        batch: its labels; classes that its site does not annotate are left out.
    """
    label = batch.label
    logits = resize(logits.float(), label.shape[-1])
    target = one_hot(label, logits.shape[1], background=config.loss == "ce")
    logits, target = annotated(logits, batch), annotated(target, batch)
    loss = F.cross_entropy(logits, label) if config.loss == "ce" else binary(logits, target, config.pos_weight)
    return loss + config.dice_weight * dice(logits, target, config) if config.dice_weight else loss


def annotated(channels: Tensor, batch: Batch) -> Tensor:
    """Of (B, outputs, h, w) the classes that the batch's site annotates.

    Channel by channel: a list as index would have a GPU wait for it, and a step could not be recorded (`train.step`).
    """
    return channels if batch.annotated is None else torch.stack([channels[:, i] for i in batch.annotated], 1)


def binary(logits: Tensor, target: Tensor, pos_weight: float) -> Tensor:
    """Mean binary cross-entropy per pixel and class, positives weighted (FedFMS: 2)."""
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=logits.new_full((), pos_weight))


def dice(logits: Tensor, target: Tensor, config: TrainConfig) -> Tensor:
    """MONAI's soft Dice loss over the batch, background left out."""
    exclusive = config.loss == "ce"
    loss = DiceLoss(sigmoid=not exclusive, softmax=exclusive, include_background=not exclusive, batch=True)
    return cast(Tensor, loss(logits, target))


def one_hot(label: Tensor, channels: int, *, background: bool) -> Tensor:
    """(B, L, L) class numbers to (B, channels, L, L); channel 0 is class 1 unless `background`."""
    classes = torch.arange(channels, device=label.device) + (0 if background else 1)
    return (label[:, None] == classes.view(1, -1, 1, 1)).float()


def resize(logits: Tensor, side: int) -> Tensor:
    """Logits at `side` x `side`, bilinear."""
    if logits.shape[-1] == side:
        return logits
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
