"""The loop around the step: one round at one site."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pfedsam.config import Config, TrainConfig
from pfedsam.data.augment import augmentation
from pfedsam.data.dataset import PLAIN, Augment, Batch, Dataset, View
from pfedsam.model.moe import statistics
from pfedsam.model.partition import DECODER, Part, Partition, kinds, tensors_of
from pfedsam.model.segmenter import Branches
from pfedsam.train.patients import Hidden, patients_of
from pfedsam.train.step import Hook, Losses, LossOf, Optimisers, Steps, untouched

T = TypeVar("T")
Source = Callable[[Dataset, list[View], Augment | None], Batch]
Phase = Callable[[int, int], frozenset[Part]]


def always(_done: int, _steps: int) -> frozenset[Part]:
    """Every step trains the shared and the private part."""
    return frozenset({Part.SHARED, Part.PRIVATE})


@dataclass(frozen=True)
class Progress:
    """How far a round is: step of steps, and the losses' sums so far by name."""

    step: int
    steps: int
    sums: Losses

    @property
    def losses(self) -> dict[str, float]:
        """The mean losses so far. On a GPU, reading them waits for it."""
        return {name: value.item() / self.step for name, value in self.sums.items()}


@dataclass(frozen=True)
class RoundReport:
    """Facts of a round of training: mean losses by name, seconds, slices seen, steps taken, and if it stopped early."""

    losses: dict[str, float]
    seconds: float
    seen: int
    steps: int
    stopped: bool


def train_round(
    model: Branches,
    part: Partition,
    data: Dataset,
    loss_of: LossOf,
    config: Config,
    *,
    when: tuple[int, int, int],
    phase: Phase = always,
    gradient: Hook = untouched,
    stepped: Hook = untouched,
    hidden: Hidden | None = None,
    augmented: Callable[[Augment | None], Augment | None] = lambda augment: augment,
    source: Source = Dataset.batch,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> RoundReport:
    """Train the shared and the private part of `model` in place for one round.

    The two parts have separate optimisers, which start again each round. This is our choice: a
    restarted site then continues exactly like one that never stopped.

    Args:
        loss_of: the method's losses. Their sum is minimised.
        when: (seed, round, rounds). Order, augmentation and noise follow from seed and round.
        phase: gives the parts to train in the next step, from the number of steps done and of all steps.
        gradient: called in each step between the gradient and the optimisers.
        stepped: called in each step after the optimisers.
        hidden: hides the patients, by their sampling and by noise in each step. None: no privacy.
        augmented: makes the round's augmentation from the job's (None: off).
        source: makes a batch from views. The default reads the data set, `Prefix.batch` caches.
        progress: called after each step.
        stop: called before each step. True ends the round early.
    """
    seed, round_, rounds = when
    torch.manual_seed(_mix(seed, round_))
    trained = make_optimisers(model, part, config.train)
    steps = steps_of(len(data), config.train)
    own_steps = {which: sum(which in phase(done, steps) for done in range(steps)) for which in trained}
    rising = {which: min(config.train.warmup, own // 2) for which, own in own_steps.items()}
    now, began, seen = Progress(0, steps, {}), time.monotonic(), 0
    model.train()
    augment = augmented(augmentation(seed, config) if config.train.augment else None)
    hooks = gradient, stepped
    take = hidden.steps(model, loss_of, data, *hooks) if hidden else Steps(model, loss_of, config, *hooks)
    with take.stream():
        order = hidden.views(data, round_, steps) if hidden else views_of(data, config.train, seed, round_, steps)
        for batch in (ahead if take.records else map)(lambda views: _made(source, data, views, augment), order):
            if stop():
                break
            done = now.step
            active = {which: optimiser for which, optimiser in trained.items() if which in phase(done, steps)}
            for which, optimiser in active.items():
                set_rate(optimiser, rate(config.train, round_ * steps + done, rounds * steps), rising[which])
            now = Progress(done + 1, steps, _added(now.sums, take(batch, active)))
            seen += len(batch.image) if batch else 0
            progress(now)
        losses = now.losses
    return RoundReport(losses, time.monotonic() - began, seen, now.step, now.step < steps)


def _made(source: Source, data: Dataset, views: list[View], augment: Augment | None) -> Batch | None:
    """The batch of a step. None if no patient was drawn for it."""
    return source(data, views, augment) if views else None


def ahead(made: Callable[[list[View]], T], order: Iterator[list[View]]) -> Iterator[T]:
    """The batch of each list of views in `order`. While one is used, another thread reads and augments the next.

    A view's content is seeded, so the batches are the same. If one cannot be read, its error is raised in its turn.
    Only a recorded step uses it. On two CPU cores it gained nothing, because the step itself needs them.
    """
    with ThreadPoolExecutor(1, "read") as reader:
        coming = [reader.submit(made, views) for views in itertools.islice(order, 1)]
        while coming:
            batch = coming.pop().result()
            coming = [reader.submit(made, views) for views in itertools.islice(order, 1)]
            yield batch


def rate(config: TrainConfig, done: int, total: int) -> float:
    """The factor on the learning rate after `done` of the whole job's `total` steps.

    It is 1, or falls to 0 along half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts).
    """
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(done / max(total, 1), 1.0)))


def rise(done: int, rising: int) -> float:
    """The factor on the learning rate after an optimiser's `done` steps in a round: from 1 / rising up to 1.

    Our choice: AdamW's first steps are as long as the whole rate, whatever the gradient, and each round begins so.
    """
    return min(1.0, (done + 1) / max(rising, 1))


def steps_of(slices: float, config: TrainConfig) -> int:
    """The number of a round's steps at a site with that many training slices."""
    full = config.epochs * math.ceil(slices / config.batch_size)
    return full if config.max_steps is None else min(full, config.max_steps)


def views_of(data: Dataset, config: TrainConfig, seed: int, round_: int, steps: int) -> Iterator[list[View]]:
    """The views of each step of a round. Each epoch has a new order and takes the next view of every slice."""
    generator = torch.Generator().manual_seed(_mix(seed, round_))
    for epoch in itertools.count(round_ * config.epochs):
        number = epoch % (config.views or epoch + 1) if config.augment else PLAIN
        for slices in data.order(generator):
            if steps == 0:
                return
            steps -= 1
            yield [View(i, number) for i in slices]


def sharing(phase: Phase, steps: int) -> list[int]:
    """Those of a round's steps that train the shared part, or all if none does: then the update is zero."""
    return [step for step in range(steps) if Part.SHARED in phase(step, steps)] or list(range(steps))


def slices_seen(data: Dataset, config: Config, seed: int, round_: int, phase: Phase = always) -> set[int]:
    """The slices that a round's `sharing` steps see. Beside slices with a label, those without do not count.

    If the round hides its patients, chance draws them anew each step, and all count. To refuse a round because of its
    draw would tell the draw. A hospital's fence demands a small budget there (`SitePolicy.require_privacy`).
    """
    slices = set(data.labelled()) or set(range(len(data)))
    if config.privacy.unit != "patient":
        steps = steps_of(len(data), config.train)
        views = list(views_of(data, config.train, seed, round_, steps))
        slices &= {view.slice for step in sharing(phase, steps) for view in views[step]}
    return slices


def patients_seen(data: Dataset, slices: set[int]) -> int:
    """The number of patients of the slices."""
    return sum(not slices.isdisjoint(own) for own in patients_of(data))


def make_optimisers(model: Branches, part: Partition, config: TrainConfig) -> Optimisers:
    """One AdamW (Loshchilov and Hutter 2019) for the shared part and one for the private part, if it has parameters.

    Two optimisers follow from "decoupled" in the paper's abstract. That both step on each batch is our choice.
    """
    private_rate = config.lr if config.lr_private is None else config.lr_private
    recorded = config.record and next(model.parameters()).is_cuda
    options: dict[str, Any] = {"fused": True, "capturable": recorded}
    return {
        which: torch.optim.AdamW(groups, weight_decay=config.weight_decay, betas=(0.9, 0.999), **options)
        for which, lr in {Part.SHARED: config.lr, Part.PRIVATE: private_rate}.items()
        if (groups := _groups(model, part, which, lr, config.lr_decoder))
    }


def _groups(model: Branches, part: Partition, which: Part, lr: float, lr_decoder: float | None) -> list[dict[str, Any]]:
    """One part's parameters by rate: the decoder's and the others'. An empty group is left out, and `statistics`."""
    kind, followed = kinds(model), statistics(model)
    tensors = {name: t for name, t in tensors_of(model, part, which).items() if id(t) not in followed}
    own = {name for name in tensors if lr_decoder is not None and kind[name] in DECODER}
    groups: list[dict[str, Any]] = [
        {"params": [t for name, t in tensors.items() if name not in own], "lr": lr},
        {"params": [t for name, t in tensors.items() if name in own], "lr": lr_decoder},
    ]
    return [group for group in groups if group["params"]]


def set_rate(optimiser: torch.optim.Optimizer, factor: float, rising: int) -> None:
    """Set the rate of the optimiser's next step: `factor` times `rise`. Each group counts its steps.

    If the step is recorded, the rate is a tensor that stays in place, because the recording reads it there.
    """
    for group in optimiser.param_groups:
        taken = group.setdefault("taken", 0)
        value = group.setdefault("initial_lr", group["lr"]) * (factor * rise(taken, rising))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = group["params"][0].new_full((), value) if group["capturable"] else value
        group["taken"] = taken + 1


def _added(sums: Losses, losses: Losses) -> Losses:
    """The new sums, in double precision and on the losses' device, so that nothing waits for a GPU."""
    return sums | {name: sums.get(name, 0.0) + value.double() for name, value in losses.items()}


def _mix(seed: int, round_: int) -> int:
    return seed * 1_000_003 + round_ * 7919 + 17
