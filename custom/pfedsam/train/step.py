"""The step: the method's losses, their gradient, the optimisers; on a GPU, if asked, recorded and then replayed."""

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
from pfedsam.train.precision import autocast

Losses = dict[str, Tensor]
LossOf = Callable[[Branches, Batch, Config], Losses]
Gradient = Callable[[Branches, Config], None]
Optimisers = dict[Part, torch.optim.Optimizer]


def untouched(_model: Branches, _config: Config) -> None:
    """The gradient as it is."""


def step(
    model: Branches,
    batch: Batch,
    optimisers: Collection[torch.optim.Optimizer],
    loss_of: LossOf,
    config: Config,
    *,
    gradient: Gradient = untouched,
) -> Losses:
    """One step of all optimisers on the sum of the method's losses; returns the losses, without a gradient.

    Args:
        gradient: called between the gradient and the optimisers; may change gradients in place.

    What is optimised and was not reached, as an expert that no image chose, has a gradient of zero, not none: AdamW
    then does with it what it does on a GPU, where all experts are run (`model.moe.mix`); our choice.
    """
    device = next(model.parameters()).device
    batch = replace(batch, image=batch.image.to(device), label=batch.label.to(device))
    with autocast(device, config.train.precision):
        losses = loss_of(model, batch, config)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    let_go(model)
    for optimiser in optimisers:
        for weight in (p for group in optimiser.param_groups for p in group["params"] if p.grad is None):
            weight.grad = torch.zeros_like(weight)
    gradient(model, config)
    for optimiser in optimisers:
        optimiser.step()
    return {name: value.detach() for name, value in losses.items()}


@dataclass(frozen=True)
class Recording:
    """A step as a CUDA graph: `replay` puts a batch where the graph reads, and tells what it then writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    losses: Losses

    def replay(self, batch: Batch) -> Losses:
        """The step on `batch`, of the recorded one's shape."""
        self.batch.image.copy_(batch.image)
        self.batch.label.copy_(batch.label)
        self.graph.replay()
        return self.losses


class Steps:
    """The steps of one round at one site, `train.record` heeded: off by default, as no GPU has yet measured its gain.

    A step on a few small images is thousands of kernels of microseconds each, and a GPU waits for the CPU that launches
    them one by one; a CUDA graph launches all of them at once. The first step of full size is run as it stands, which
    makes the optimisers' state; the second is recorded. A batch of another size is always run as it stands, and where
    other parts are trained than before (`Method.phase`) recording begins anew.
    """

    def __init__(self, model: Branches, loss_of: LossOf, config: Config, gradient: Gradient = untouched) -> None:
        self._model, self._loss_of, self._config, self._gradient = model, loss_of, config, gradient
        self._device = next(model.parameters()).device
        self._records = config.train.record and self._device.type == "cuda"
        self._active: frozenset[Part] = frozenset()
        self._recording: Recording | None = None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within, steps run on a stream of their own: what is recorded must not meet the default one."""
        if not self._records:
            yield
            return
        own, outer = _own_stream(self._device), torch.cuda.current_stream(self._device)
        own.wait_stream(outer)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            outer.wait_stream(own)

    def __call__(self, batch: Batch, optimisers: Optimisers) -> Losses:
        """One step of the optimisers; the losses as they are until the next step."""
        if not self._records or len(batch.image) != self._config.train.batch_size:
            return self._run(batch, optimisers)
        if optimisers.keys() != self._active:
            self._active, self._recording = frozenset(optimisers), None
            return self._run(batch, optimisers)
        if self._recording is None:
            self._recording = self._record(batch, optimisers)
        return self._recording.replay(batch)

    def _run(self, batch: Batch, optimisers: Optimisers) -> Losses:
        return step(self._model, batch, optimisers.values(), self._loss_of, self._config, gradient=self._gradient)

    def _record(self, batch: Batch, optimisers: Optimisers) -> Recording:
        held = replace(batch, image=batch.image.to(self._device), label=batch.label.to(self._device))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                losses = self._run(held, optimisers)
        except RuntimeError as error:
            cause = error.__context__ or error  # ending a recording that failed fails once more
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                raise cause from None
            raise UserFault(
                expected=f"a step of {self._config.method} that can be recorded: it never asks the GPU for a value",
                came=str(cause).splitlines()[0],
                do="start anew with train.record false, or leave .item(), nonzero() and the like out of the losses",
            ) from error
        return Recording(graph, held, losses)


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all rounds of a process: memory that was freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
