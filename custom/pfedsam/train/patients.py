"""DP-SGD (Abadi et al. 2016) with the patient as the unit: training that hides whether a patient took part.

Shared and private parameters get one clipped, noised gradient. If the private part were trained without noise, its
distillation would carry single patients into the shared part.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, Batch, Dataset, View
from pfedsam.exchange.privacy import Noise, sampling_rate
from pfedsam.model.segmenter import Branches
from pfedsam.train.step import Hook, Losses, LossOf, Optimisers, descend, untouched, weights_of


def patients_of(data: Dataset) -> list[list[int]]:
    """The slices of each patient of a split, in the order of the patients' numbers. No number: the image is one."""
    found: dict[str, list[int]] = {}
    for i, one in enumerate(data.slices):
        found.setdefault(one.group or f"/{one.image}", []).append(i)
    return [found[name] for name in sorted(found)]


@dataclass(frozen=True)
class Hidden:
    """A round that hides its patients: the noise, and the views of each step.

    Each patient is in a step with the same chance, apart from all others (Poisson sampling), with one slice. So a step
    has `train.batch_size` patients in the mean, sometimes none.
    """

    noise: Noise
    config: Config

    def views(self, data: Dataset, round_: int, steps: int) -> Iterator[list[View]]:
        """The views of each step. The augmentation changes once an epoch, as without privacy."""
        train, patients = self.config.train, patients_of(data)
        rate = sampling_rate(self.config, len(patients))
        an_epoch = max(1, steps // train.epochs)
        for step in range(steps):
            epoch = round_ * train.epochs + step // an_epoch
            number = epoch % (train.views or epoch + 1) if train.augment else PLAIN
            drawn = zip(patients, self.noise.uniform(len(patients)), self.noise.uniform(len(patients)), strict=True)
            yield [View(own[int(which * len(own))], number) for own, chance, which in drawn if chance < rate]

    def steps(
        self, model: Branches, loss_of: LossOf, data: Dataset, gradient: Hook, stepped: Hook = untouched
    ) -> "HiddenSteps":
        """The steps of a round on that training split."""
        patients = len(patients_of(data))
        return HiddenSteps(model, loss_of, self, sampling_rate(self.config, patients) * patients, gradient, stepped)


@dataclass(frozen=True)
class HiddenSteps:
    """The steps of one round on noised gradients.

    Attributes:
        expected: the mean number of patients in a step.
    """

    model: Branches
    loss_of: LossOf
    hidden: Hidden
    expected: float
    gradient: Hook = untouched
    stepped: Hook = untouched
    records: bool = False

    def stream(self) -> AbstractContextManager[None]:
        """Nothing is recorded."""
        return nullcontext()

    def __call__(self, batch: Batch | None, optimisers: Optimisers) -> Losses:
        """The mean losses before one step of the optimisers. None: no patient was drawn, and only noise is added."""
        config, every = self.hidden.config, weights_of(optimisers.values())
        sums = [torch.zeros_like(weight) for weight in every]
        losses: Losses = {}
        count = 0 if batch is None else len(batch.image)
        for i in range(count):
            assert batch is not None
            one = replace(batch, image=batch.image[i : i + 1], label=batch.label[i : i + 1])
            told = descend(self.model, one, optimisers.values(), self.loss_of, config)
            losses = {name: losses.get(name, 0.0) + value / count for name, value in told.items()}
            own = [weight.grad for weight in every if weight.grad is not None]  # all have one
            size = float(torch.stack([gradient.double().norm() for gradient in own]).norm())
            if math.isfinite(size):  # else the failed step would say that this patient was in it
                for total, part in zip(sums, own, strict=True):
                    total.add_(part, alpha=min(1.0, config.privacy.clip / size) if size else 1.0)
        deviation = config.privacy.noise * config.privacy.clip
        for weight, total in zip(every, sums, strict=True):
            weight.grad = total.add_(self.hidden.noise.normal(total), alpha=deviation).div_(self.expected)
        self.gradient(self.model, config)
        for optimiser in optimisers.values():
            optimiser.step()
        self.stepped(self.model, config)
        return losses
