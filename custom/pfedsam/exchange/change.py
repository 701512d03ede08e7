"""What a site's update changes. LoRA counts by its product B A, because one product has many factors.

A x 10 000 with B / 10 000 is the same product. A change of it is never made: all is computed from the factors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedsam.tensors import Tensors

A, B = ".lora.a.weight", ".lora.b.weight"  # the ends of a LoRA's names: (rank, in) and (out, rank)


@dataclass(frozen=True)
class Layer:
    """One LoRA of one site in a round, in float64: what the site was sent, and what it made of that.

    Attributes:
        sent, now: A, (rank, in), and B, (out, rank).
    """

    sent: tuple[Tensor, Tensor]
    now: tuple[Tensor, Tensor]

    @property
    def left(self) -> Tensor:
        """(out, 2 rank). `left @ right` is the change of the product B A."""
        return torch.cat([self.now[1], -self.sent[1]], dim=1)

    @property
    def right(self) -> Tensor:
        """(2 rank, in)."""
        return torch.cat([self.now[0], self.sent[0]])

    def inner(self, other: "Layer") -> float:
        """The inner product of two changes, without making either: tr((L'^T L) (R R'^T))."""
        return float(((other.left.T @ self.left) * (other.right @ self.right.T)).sum())


@dataclass(frozen=True)
class Change:
    """What a site's update changes: the products of its LoRA by layer, and all other tensors."""

    layers: dict[str, Layer]
    rest: Tensors

    def inner(self, other: "Change") -> float:
        """The inner product of two sites' changes."""
        plain = sum(float((one * other.rest[name]).sum()) for name, one in self.rest.items())
        return plain + sum(layer.inner(other.layers[name]) for name, layer in self.layers.items())

    def sizes(self) -> dict[str, float]:
        """The norms that are bounded: of the products, of both kinds of factors, and of the rest."""
        factors = [[layer.now[n] - layer.sent[n] for layer in self.layers.values()] for n in (0, 1)]
        return {
            "product": math.sqrt(max(0.0, sum(layer.inner(layer) for layer in self.layers.values()))),
            "a": norm(factors[0]),
            "b": norm(factors[1]),
            "rest": norm(self.rest.values()),
        }


def change_of(sent: Tensors, update: Tensors) -> Change:
    """A site's change, from the shared tensors that it was sent and its update."""
    wide = {name: tensor.double() for name, tensor in update.items()}
    stems = [name.removesuffix(A) for name in wide if name.endswith(A) and name.removesuffix(A) + B in wide]
    layers = {}
    for stem in stems:
        before = sent[stem + A].double(), sent[stem + B].double()
        layers[stem] = Layer(before, (before[0] + wide[stem + A], before[1] + wide[stem + B]))
    rest = {name: tensor for name, tensor in wide.items() if not paired(name, layers)}
    return Change(layers, rest)


def paired(name: str, stems: Mapping[str, object] | set[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in stems for end in (A, B))


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all values together."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def cosine(a: Tensors, b: Tensors) -> float:
    """The cosine of two updates, 0 if one is zero. It is rounded, so that the number of threads has no effect."""
    pairs = (a, b), (a, a), (b, b)
    inner, one, other = (sum(float((x[n].double() * y[n].double()).sum()) for n in a) for x, y in pairs)
    return round(inner / math.sqrt(one * other), 6) if one and other else 0.0
