"""Rules of the server that hold although a site lies: bounded weights, bounded norms, and means that outvote a few.

LoRA is judged by its product B A, because one product has many factors: A x 10 000 with B / 10 000 is the same. The
sites' updates are small, so all of this takes milliseconds beside the training of a round.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.server import Contribution, ServerState, moved, weighted
from pfedsam.files import Tensors

A, B = ".lora.a.weight", ".lora.b.weight"  # the ends of a LoRA's names: (rank, in) and (out, rank)
MAJORITY = 3  # sites from which on one of them can be outvoted
Given = Mapping[str, Contribution]


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
    rest = {name: tensor for name, tensor in wide.items() if not _paired(name, layers)}
    return Change(layers, rest)


def fair(given: Given, most: float) -> Given:
    """The contributions, none with a weight of more than `most` equal shares. From three sites on.

    A weight above that becomes that. The others keep their proportions. Two sites cannot outvote each other.

    Args:
        most: in parts of 1 / n, at least 1.
    """
    bound = most / len(given) if given else 1.0
    if len(given) < MAJORITY or bound >= 1:
        return given
    samples = {site: float(one.samples) for site, one in given.items()}
    capped: set[str] = set()
    while True:  # each turn caps at least one site more
        free = sum(n for site, n in samples.items() if site not in capped)
        left = 1 - bound * len(capped)
        over = {s for s, n in samples.items() if s not in capped and free and n / free * left > bound * (1 + 1e-9)}
        if not over:
            break
        capped |= over
    each = free / left * bound if left > 0 and free else 1.0
    return {site: replace(one, samples=each if site in capped else one.samples) for site, one in given.items()}


def clipped(state: ServerState, given: Given) -> Given:
    """The contributions, none with an update longer than the round's median. From three sites on.

    LoRA's update is scaled as a whole by the least of three ratios: of the product's norm and of both factors' norms
    to their medians. The rest has a ratio of its own. The bound is our choice; norm bounding is of Sun et al. 2019.
    """
    if len(given) < MAJORITY:
        return given
    sizes = {site: change_of(state.model_of(site), one.update).sizes() for site, one in given.items()}
    bounds = {kind: median(size[kind] for size in sizes.values()) for kind in ("product", "a", "b", "rest")}
    return {site: _shortened(one, sizes[site], bounds) for site, one in given.items()}


def _shortened(one: Contribution, size: dict[str, float], bounds: dict[str, float]) -> Contribution:
    ratio = {kind: bounds[kind] / size[kind] if size[kind] > bounds[kind] else 1.0 for kind in size}
    lora = min(ratio["product"], ratio["a"], ratio["b"])
    if lora == ratio["rest"] == 1.0:
        return one
    return replace(one, opened=lambda: _scaled(one.opened(), lora, ratio["rest"]))


def _scaled(update: Tensors, lora: float, rest: float) -> Tensors:
    pairs = {name.removesuffix(end) for end in (A, B) for name in update if name.endswith(end)}
    whole = {stem for stem in pairs if stem + A in update and stem + B in update}
    return {name: tensor * (lora if _paired(name, whole) else rest) for name, tensor in update.items()}


def product_mean(state: ServerState, given: Given, _config: Config) -> ServerState:
    """The sample-weighted mean of the products B A, at LoRA's rank by SVD, and of the rest.

    The mean of factors is not the factors of the mean: mean(B) mean(A) differs from mean(B A).
    """
    return _of_products(state, _changes(state, given), {site: float(one.samples) for site, one in given.items()})


def krum(state: ServerState, given: Given, config: Config) -> ServerState:
    """Multi-Krum (Blanchard et al. 2017): the mean of the n - f sites that are closest to n - f - 2 others."""
    f, n = config.server.hostile, len(given)
    _require(given, 2 * f + 3, config)
    changes = _changes(state, given)
    inner = _gram(changes)
    gaps = (inner.diag()[:, None] + inner.diag() - 2 * inner).fill_diagonal_(math.inf)
    scores = gaps.sort().values[:, : n - f - 2].sum(1).tolist()
    chosen = sorted(zip(scores, changes, strict=True))[: n - f]
    return _of_products(state, changes, {site: float(given[site].samples) for _, site in chosen})


def geometric(state: ServerState, given: Given, config: Config) -> ServerState:
    """The geometric median of the sites' changes by Weiszfeld's steps (Pillutla et al. 2019, RFA)."""
    _require(given, 2 * config.server.hostile + 1, config)
    changes = _changes(state, given)
    inner = _gram(changes)
    samples = torch.tensor([float(given[site].samples) for site in changes], dtype=torch.float64)
    usual = float(inner.diag().median())
    weights = samples * (inner.diag() <= usual)  # begins with the shorter half, else one of 1e37 takes long to leave
    weights = weights / weights.sum()
    least = max(1e-6 * math.sqrt(usual), 1e-30)  # a site at the median itself has no distance
    for _ in range(100):
        apart = (inner.diag() - 2 * inner @ weights + weights @ inner @ weights).clamp_min(0).sqrt()
        weights = samples / apart.clamp_min(least)
        weights = weights / weights.sum()
    return _of_products(state, changes, dict(zip(changes, weights.tolist(), strict=True)))


def trimmed(state: ServerState, given: Given, config: Config) -> ServerState:
    """The mean of each value without its f highest and f lowest (Yin et al. 2018)."""
    f = config.server.hostile
    _require(given, 2 * f + 1, config)
    return _by_value(state, given, lambda values: values.sort(0).values[f : len(values) - f].mean(0))


def middle(state: ServerState, given: Given, config: Config) -> ServerState:
    """The median of each value (Yin et al. 2018), of an even number the mean of the two in the middle."""
    _require(given, 2 * config.server.hostile + 1, config)
    return _by_value(state, given, lambda values: values.quantile(0.5, dim=0))


RULES: dict[str, Callable[[ServerState, Given, Config], ServerState]] = {
    "product": product_mean,
    "krum": krum,
    "geometric": geometric,
    "trimmed": trimmed,
    "median": middle,
}


def _require(given: Given, least: int, config: Config) -> None:
    if len(given) < least:
        raise UserFault(
            expected=f"at least {least} sites for server.rule {config.server.rule} against {config.server.hostile}"
            " hostile (server.hostile)",
            came=f"{len(given)}",
            do="wait for more sites, or choose server.rule clipped",
        )


def _changes(state: ServerState, given: Given) -> dict[str, Change]:
    """The sites' changes, in the order of their names."""
    return {site: change_of(state.model_of(site), one.update) for site, one in sorted(given.items())}


def _gram(changes: Mapping[str, Change]) -> Tensor:
    """The inner products of the changes, (n, n), in float64."""
    rows = [[one.inner(other) for other in changes.values()] for one in changes.values()]
    return torch.tensor(rows, dtype=torch.float64)


def _of_products(state: ServerState, changes: Mapping[str, Change], weights: Mapping[str, float]) -> ServerState:
    """The weighted mean of the products and of the rest, over the sites that have a weight."""
    total = sum(weights.values())
    shares = {site: weight / total for site, weight in sorted(weights.items())}
    rest = weighted(shares, lambda site: changes[site].rest)
    step = {name: tensor.to(state.shared[name].dtype) for name, tensor in rest.items()}
    for stem in next(iter(changes.values())).layers:
        left = torch.cat([changes[site].layers[stem].now[1] * share for site, share in shares.items()], dim=1)
        right = torch.cat([changes[site].layers[stem].now[0] for site in shares])
        step |= _step_to(state.shared, stem, *_at_rank(left, right, len(state.shared[stem + A])))
    return moved(state, step)


def _by_value(state: ServerState, given: Given, rule: Callable[[Tensor], Tensor]) -> ServerState:
    """The rule over the sites' values: of each product B A, which then gets LoRA's rank again, and of the rest."""
    changes = _changes(state, given)
    first = next(iter(changes.values()))
    step = {}
    for name, like in first.rest.items():
        values = torch.stack([change.rest[name] for change in changes.values()])
        step[name] = rule(values).to(state.shared[name].dtype).reshape(like.shape)
    for stem in first.layers:
        products = torch.stack([change.layers[stem].now[1] @ change.layers[stem].now[0] for change in changes.values()])
        out, rank = rule(products), len(state.shared[stem + A])
        step |= _step_to(state.shared, stem, *_at_rank(out, torch.eye(out.shape[1], dtype=out.dtype), rank))
    return moved(state, step)


def _at_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A, (rank, in), and B, (out, rank), whose product is the nearest to `left @ right`. Both have equal norms."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    root = s[:rank].sqrt()
    pad = rank - len(root)
    a = (q_right @ v[:rank].T * root).T
    b = q_left @ u[:, :rank] * root
    return torch.nn.functional.pad(a, (0, 0, 0, pad)), torch.nn.functional.pad(b, (0, pad))


def _step_to(shared: Tensors, stem: str, a: Tensor, b: Tensor) -> Tensors:
    """The step from a layer's factors to new ones. A product of zero keeps A: two zeros would have no gradient."""
    if not b.any():
        a = shared[stem + A].double()
    return {
        stem + end: (new - shared[stem + end].double()).to(shared[stem + end].dtype) for end, new in ((A, a), (B, b))
    }


def _paired(name: str, stems: Mapping[str, object] | set[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in stems for end in (A, B))


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all values together."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
