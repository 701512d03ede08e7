"""Pseudo-labels: what two teachers are sure of and agree on, where nobody labelled."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pfedsam.config import Pixels
from pfedsam.data.dataset import Batch, Dataset, View
from pfedsam.data.square import MEAN, spread
from pfedsam.data.values import IGNORED
from pfedsam.model.segmenter import Segmenter
from pfedsam.tensors import Tensors
from pfedsam.train.losses import resize, segmentation_loss
from pfedsam.train.precision import autocast


@torch.no_grad()
def average_of(student: Segmenter, kept: Tensors) -> Tensors:
    """The moving average of a student's trained parameters, as it was kept; where nothing was, the student's own."""
    live = {name: p for name, p in student.named_parameters() if p.requires_grad}
    return {name: kept.get(name, p.detach()).clone().to(p.device) for name, p in live.items()}


@torch.no_grad()
def move(average: Tensors, student: Segmenter, decay: float, steps: Tensor | None = None) -> None:
    """Move the average a little, by 1 - `decay`, towards the student, in place.

    Args:
        steps: how often it was moved, a scalar that is counted up. After n steps it then moves by 1 / n or more, so
            that it soon leaves an untrained start behind (Tarvainen and Valpola 2017, Mean Teacher). None: it began at
            a trained model.
    """
    live = dict(student.named_parameters())
    share = 1 - decay if steps is None else (1 / steps.add_(1)).clamp_min(1 - decay)
    for name, tensor in average.items():
        tensor.lerp_(live[name], share)


@torch.no_grad()
def taught(student: Segmenter, parameters: Tensors, batch: Batch) -> Tensor:
    """A teacher's logits (B, outputs, L, L): the student's structure with other trained parameters. No gradient."""
    logits: Tensor = functional_call(student, parameters, (batch.image,))
    return resize(logits.float(), batch.label.shape[-1])


def pseudo_loss(logits: Tensor, target: Tensor, known: Tensor, batch: Batch, *, exclusive: bool) -> Tensor:
    """The mean cross-entropy of the pseudo-labels of pixels without a label, a scalar. 0 if there is none.

    Args:
        logits: the student's, (B, outputs, h, h).
        target, known: as `agreed` returns them.
    """
    known = known * (batch.label == IGNORED)[:, None]
    found = resize(logits.float(), batch.label.shape[-1])
    if exclusive:
        surprise = F.cross_entropy(found, target[:, 0], reduction="none")[:, None]
    else:
        surprise = F.binary_cross_entropy_with_logits(found, target, reduction="none")
    return (surprise * known).sum() / known.sum().clamp_min(1)


def agreed(one: Tensor, other: Tensor, sure: float, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """The pseudo-labels of two teachers' logits (B, outputs, L, L), and where both are sure and agree, 0 or 1.

    Both have the logits' shape. With `exclusive` they have one channel, and the labels are channel numbers.
    """
    if exclusive:
        (p, a), (q, b) = (logits.softmax(1).max(1, keepdim=True) for logits in (one, other))
        return a, ((a == b) & (p >= sure) & (q >= sure)).float()
    p, q = one.sigmoid(), other.sigmoid()
    both, neither = (p >= sure) & (q >= sure), (p <= 1 - sure) & (q <= 1 - sure)
    return both.float(), (both | neither).float()


def perturbed(image: Tensor, pixels: Pixels) -> Tensor:
    """Images (B, 3, S, S) with another contrast and brightness, and noise. The strengths are our choice.

    They are of images normalised as for SAM. They come from torch's generator, which each round seeds.
    """
    middle, width = (0.0, 1.0) if pixels == "sam" else (sum(MEAN) / len(MEAN) / 255, spread("sam"))
    change = 0.6 * torch.rand(2, len(image), 1, 1, 1, device=image.device) - 0.3  # of contrast, and of brightness
    away = (image - middle) / width
    return (away * (1 + change[0]) + change[1] + 0.1 * torch.randn_like(image)) * width + middle


@torch.no_grad()
def mean_loss(logits_of: Callable[[Batch], Tensor], data: Dataset, slices: list[int], device: torch.device) -> Tensor:
    """The mean supervised loss of a model on slices without augmentation, a scalar on the CPU. 0 without slices."""
    total, config = torch.zeros(()), data.config.train
    for start in range(0, len(slices), config.batch_size):
        part = slices[start : start + config.batch_size]
        batch = data.batch([View(i) for i in part])
        batch = replace(batch, image=batch.image.to(device), label=batch.label.to(device))
        with autocast(device, config.precision):
            total += segmentation_loss(logits_of(batch), batch, config).cpu() * len(part) / len(slices)
    return total
