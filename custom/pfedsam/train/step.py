"""The step: the method's losses, their gradient, the optimisers. A GPU can record it once and then replay it."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.errors import UserFault
from pfedsam.model.moe import let_go
from pfedsam.model.partition import Part
from pfedsam.model.segmenter import Branches
from pfedsam.train.precision import autocast, fitting

Losses = dict[str, Tensor]
LossOf = Callable[[Branches, Batch, Config], Losses]
Hook = Callable[[Branches, Config], None]
Optimisers = dict[Part, torch.optim.Optimizer]


def untouched(_model: Branches, _config: Config) -> None:
    """A hook that changes nothing."""


def step(
    model: Branches,
    batch: Batch,
    optimisers: Collection[torch.optim.Optimizer],
    loss_of: LossOf,
    config: Config,
    *,
    gradient: Hook = untouched,
    stepped: Hook = untouched,
) -> Losses:
    """The losses, detached, after one step of all optimisers on the sum of the method's losses.

    A parameter that the losses do not reach, such as an expert that no image chose, gets a zero gradient. This is our
    choice: AdamW then treats it as on a GPU, where all experts run (`model.moe.mix`).

    Args:
        batch: may be on any device.
        gradient: called between the gradient and the optimisers. It may change gradients in place.
        stepped: called after the optimisers.
    """
    losses = descend(model, batch, optimisers, loss_of, config)
    gradient(model, config)
    for optimiser in optimisers:
        optimiser.step()
    stepped(model, config)
    return losses


def descend(
    model: Branches,
    batch: Batch,
    optimisers: Collection[torch.optim.Optimizer],
    loss_of: LossOf,
    config: Config,
) -> Losses:
    """The losses, detached, and their sum's gradient in the parameters of all optimisers. Nothing else has moved."""
    device = next(model.parameters()).device
    batch = replace(batch, image=batch.image.to(device), label=batch.label.to(device))
    with autocast(device, config.train.precision):
        losses = loss_of(model, batch, config)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    let_go(model)
    for weight in (p for p in weights_of(optimisers) if p.grad is None):
        weight.grad = torch.zeros_like(weight)
    return {name: value.detach() for name, value in losses.items()}


def weights_of(optimisers: Collection[torch.optim.Optimizer]) -> list[Tensor]:
    """The parameters of all optimisers, in their order."""
    return [p for optimiser in optimisers for group in optimiser.param_groups for p in group["params"]]


@dataclass(frozen=True)
class Recording:
    """A step as a CUDA graph. The graph reads `batch` and writes `losses`, always in the same memory."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    losses: Losses

    def replay(self, batch: Batch) -> Losses:
        """The losses after a step on `batch`, which must have the recorded batch's shape."""
        self.batch.image.copy_(batch.image)
        self.batch.label.copy_(batch.label)
        self.graph.replay()
        return self.losses


class Steps:
    """The steps of one round at one site, recorded if `train.record` is true.

    A step on a few small images is thousands of kernels of microseconds each. A GPU waits for the CPU to launch them
    one by one. A CUDA graph launches all of them at once, those of the method's hooks too. The first step of full size
    runs directly and creates the optimisers' state. The second is recorded. A batch of another size always runs
    directly. If the trained parts change (`Method.phase`), recording starts again. It is off by default: no GPU has
    measured its gain yet.
    """

    def __init__(
        self, model: Branches, loss_of: LossOf, config: Config, gradient: Hook = untouched, stepped: Hook = untouched
    ) -> None:
        self._model, self._loss_of, self._config = model, loss_of, config
        self._gradient, self._stepped = gradient, stepped
        self._device = next(model.parameters()).device
        self.records = config.train.record and self._device.type == "cuda"
        self._active: frozenset[Part] = frozenset()
        self._recording: Recording | None = None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within the context, recorded steps run on their own stream: a recording cannot use the default one."""
        if not self.records:
            yield
            return
        own, outer = _own_stream(self._device), torch.cuda.current_stream(self._device)
        own.wait_stream(outer)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            outer.wait_stream(own)

    def __call__(self, batch: Batch | None, optimisers: Optimisers) -> Losses:
        """The losses after one step of the optimisers. They are valid until the next step."""
        if batch is None:
            return {}
        if not self.records or len(batch.image) != self._config.train.batch_size:
            return self._run(batch, optimisers)
        if optimisers.keys() != self._active:
            self._active, self._recording = frozenset(optimisers), None
            return self._run(batch, optimisers)
        if self._recording is None:
            self._recording = self._record(batch, optimisers)
        return self._recording.replay(batch)

    def _run(self, batch: Batch, optimisers: Optimisers) -> Losses:
        hooks = {"gradient": self._gradient, "stepped": self._stepped}
        with fitting(len(batch.image)):
            return step(self._model, batch, optimisers.values(), self._loss_of, self._config, **hooks)

    def _record(self, batch: Batch, optimisers: Optimisers) -> Recording:
        held = replace(batch, image=batch.image.to(self._device), label=batch.label.to(self._device))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                losses = self._run(held, optimisers)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a recording that failed fails once more
            if isinstance(cause, UserFault):
                raise cause from None
            raise UserFault(
                expected=f"a step of {self._config.method} that can be recorded: it never reads a value from the GPU",
                came=str(cause).splitlines()[0],
                do="start again with train.record false, or remove .item(), nonzero() and the like from the losses",
            ) from error
        return Recording(graph, held, losses)


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all rounds of a process: memory freed on a stream is reused only on that stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
