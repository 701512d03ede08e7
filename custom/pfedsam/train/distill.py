"""Distillation between the branches: L_KD of Figure 1, with arrows both ways (Hinton et al. 2015)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Direction = Literal["none", "global_to_personal", "personal_to_global", "mutual"]


def distillation(student: Tensor, teacher: Tensor, temperature: float, *, exclusive: bool) -> Tensor:
    """T^2 KL(teacher || student), a scalar: the mean over pixels, and over classes of a sigmoid head.

    The teacher gets no gradient. Pixels without a label count too, because a teacher needs no label.
    Hinton et al. 2015, section 2. The stopped gradient is our choice.

    Args:
        student: logits (B, outputs, h, w).
        teacher: logits of the same shape.
        temperature: T.
        exclusive: take a softmax over the channels. Otherwise each channel is a two-point distribution.
    """
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    return temperature**2 * (softmax_kl(s, t) if exclusive else bernoulli_kl(s, t)).mean()


def softmax_kl(s: Tensor, t: Tensor) -> Tensor:
    """KL(softmax t || softmax s) per pixel, (B, h, w)."""
    return (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)


def bernoulli_kl(s: Tensor, t: Tensor) -> Tensor:
    """KL between the two-point distributions of sigmoid t and sigmoid s, (B, outputs, h, w)."""
    p = t.sigmoid()
    return p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))


def teaches(teacher: str, student: str, direction: Direction) -> bool:
    """Whether branch `teacher` teaches branch `student` under `direction`."""
    return direction == "mutual" or direction == f"{teacher}_to_{student}"
