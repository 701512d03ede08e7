"""What the experts of a branch do on the images that go through it, in a few numbers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pfedsam.model.lora import Adapted, adapted, added
from pfedsam.model.moe import LocalMoE, route


@dataclass
class Watch:
    """What was seen.

    Attributes:
        gates: by L-MoE, the gates of each pass, (images, M). With routing by window a window counts as an image.
        weights: likewise, the weights with which the experts went into the sum.
        norms: of each place and pass, the norm of what the experts add, and of what the shared adapter adds, (2,).

    All stay on the model's device until they are asked for: a GPU would wait at each.
    """

    gates: dict[int, list[Tensor]] = field(default_factory=dict)
    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    norms: list[Tensor] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """The numbers for a record, means over the L-MoEs. Empty if there is no L-MoE, or nothing went through it.

        `share` is the experts' part of the two norms' sum, 0 to 1. `entropy` is that of an image's gates: 1 if all
        experts are equally good, 0 if there is only one. `varies` is what the choice depends on the image: the entropy
        of the mean gates less the mean entropy, 0 if every image gets the same gates. Both are parts of log M.
        `experts` are each expert's part of all weights.
        """
        if not self.norms:
            return {}
        norms = torch.stack(self.norms).tolist()
        found: dict[str, Any] = {"share": sum(own for own, _ in norms) / max(sum(map(sum, norms)), 1e-12)}
        gates, weights = ([torch.cat(each).cpu() for each in of.values()] for of in (self.gates, self.weights))
        if gates:
            whole = [entropy(each.mean(0, keepdim=True)) for each in gates]
            single = [entropy(each) for each in gates]
            used = torch.stack([each.sum(0) / each.sum().clamp_min(1e-12) for each in weights]).mean(0)
            found |= {"entropy": fmean(single), "varies": max(0.0, fmean(whole) - fmean(single))}
            found["experts"] = [round(part, 4) for part in used.tolist()]
        return found


def entropy(gates: Tensor) -> float:
    """The mean entropy of rows of gates, (images, M), as a part of log M: 0 to 1. 0 for one expert."""
    if gates.shape[1] < 2:
        return 0.0
    return min(1.0, float(torch.special.entr(gates).sum(-1).mean()) / math.log(gates.shape[1]))  # rounding may exceed 1


@contextmanager
def watching(branch: nn.Module) -> Iterator[Watch]:
    """Within the context, what goes through `branch`'s experts is noted. It must run by itself, in evaluation."""
    watch = Watch()
    places = [place for place in adapted(branch) if has_experts(place)]
    handles = [place.register_forward_hook(_note_norms(watch)) for place in places]
    for moe in [m for place in places for m in place.modules() if isinstance(m, LocalMoE)]:
        handles.append(moe.gate.register_forward_hook(_note_gates(watch, moe)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def has_experts(place: Adapted) -> bool:
    """Whether a place has an L-MoE, in the shared bottleneck or in one of its own."""
    return place.own is not None or place.lora.mix is not None


@contextmanager
def without_experts(branch: nn.Module) -> Iterator[None]:
    """Within the context `branch` has no L-MoE, only its LoRA."""
    held = [(place, place.own, place.lora.mix) for place in adapted(branch)]
    for place, _, _ in held:
        place.own = place.lora.mix = None
    try:
        yield
    finally:
        for place, own, mix in held:
            place.own, place.lora.mix = own, mix


def _note_norms(watch: Watch) -> Any:
    def note(place: Adapted, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
        shared, experts = added(place, inputs[0])
        watch.norms.append(torch.stack([experts.float().norm(), shared.float().norm()]))

    return note


def _note_gates(watch: Watch, moe: LocalMoE) -> Any:
    def note(_gate: nn.Module, _inputs: tuple[Tensor, ...], scores: tuple[Tensor, Tensor, Tensor | None]) -> None:
        gates, chosen = route(scores[1].detach(), moe.top_k)
        watch.gates.setdefault(id(moe), []).append(gates)
        watch.weights.setdefault(id(moe), []).append(moe.weigh(gates, chosen))

    return note
