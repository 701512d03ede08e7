"""Rules of the server that hold although a site lies: means that outvote a few.

LoRA is judged by its product B A (`exchange.change`). The sites' updates are small, so all of this takes milliseconds
beside the training of a round.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pfedsam.config import Config, ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.change import A, B, Change, change_of
from pfedsam.exchange.server import Given, ServerState, moved, weighted
from pfedsam.tensors import Tensors


def product_mean(state: ServerState, given: Given, _config: Config) -> ServerState:
    """The sample-weighted mean of the products B A, at LoRA's rank by SVD, and of the rest.

    The mean of factors is not the factors of the mean: mean(B) mean(A) differs from mean(B A).
    """
    return _of_products(state, _changes(state, given), {site: float(one.samples) for site, one in given.items()})


def krum(state: ServerState, given: Given, config: Config) -> ServerState:
    """Multi-Krum (Blanchard et al. 2017): the mean of the n - f sites that are closest to n - f - 2 others."""
    f, n = config.server.hostile, len(given)
    require_voters(n, config.server)
    changes = _changes(state, given)
    inner = _gram(changes)
    gaps = (inner.diag()[:, None] + inner.diag() - 2 * inner).fill_diagonal_(math.inf)
    scores = gaps.sort().values[:, : n - f - 2].sum(1).tolist()
    chosen = sorted(zip(scores, changes, strict=True))[: n - f]
    return _of_products(state, changes, {site: float(given[site].samples) for _, site in chosen})


def geometric(state: ServerState, given: Given, config: Config) -> ServerState:
    """The geometric median of the sites' changes by Weiszfeld's steps (Pillutla et al. 2019, RFA).

    Every site counts alike, our choice: a site with half of the samples would be the median.
    """
    require_voters(len(given), config.server)
    changes = _changes(state, given)
    inner = _gram(changes)
    usual = float(inner.diag().median())
    weights = (inner.diag() <= usual).double()  # begins with the shorter half, else one of 1e37 takes long to leave
    weights = weights / weights.sum()
    least = max(1e-6 * math.sqrt(usual), 1e-30)  # a site at the median itself has no distance
    for _ in range(100):
        apart = (inner.diag() - 2 * inner @ weights + weights @ inner @ weights).clamp_min(0).sqrt()
        weights = 1 / apart.clamp_min(least)
        weights = weights / weights.sum()
    return _of_products(state, changes, dict(zip(changes, weights.tolist(), strict=True)))


def trimmed(state: ServerState, given: Given, config: Config) -> ServerState:
    """The mean of each value without its f highest and f lowest (Yin et al. 2018)."""
    f = config.server.hostile
    require_voters(len(given), config.server)
    return _by_value(state, given, lambda values: values.sort(0).values[f : len(values) - f].mean(0))


def middle(state: ServerState, given: Given, config: Config) -> ServerState:
    """The median of each value (Yin et al. 2018), of an even number the mean of the two in the middle."""
    require_voters(len(given), config.server)
    return _by_value(state, given, lambda values: values.quantile(0.5, dim=0))


RULES: dict[str, Callable[[ServerState, Given, Config], ServerState]] = {
    "product": product_mean,
    "krum": krum,
    "geometric": geometric,
    "trimmed": trimmed,
    "median": middle,
}
# Those that ask how many sites are hostile, and how many they need beyond two for each hostile one.
OUTVOTE = {"krum": 3, "geometric": 1, "trimmed": 1, "median": 1}


def least_sites(server: ServerConfig) -> int:
    """The fewest sites in a round that `server.rule` can work with."""
    return 2 * server.hostile + OUTVOTE[server.rule] if server.rule in OUTVOTE else 1


def require_voters(count: int, server: ServerConfig) -> None:
    """Raise UserFault if a round has too few sites for `server.rule`."""
    if count < (least := least_sites(server)):
        raise UserFault(
            expected=f"at least {least} sites for server.rule {server.rule} in a round,"
            f" against {server.hostile} hostile (server.hostile)",
            came=f"{count}",
            do="let more sites take part, or choose server.rule clipped",
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


def _turned(a: Tensor, b: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the same product and lengths whose A is the nearest to the last one (orthogonal Procrustes)."""
    u, _, v = torch.linalg.svd(a @ last.T)
    turn = u @ v
    return turn.T @ a, b @ turn


def _step_to(shared: Tensors, stem: str, a: Tensor, b: Tensor) -> Tensors:
    """The step from a layer's factors to new ones, which are turned to where the last ones were.

    One product has many factors. Those nearest to the last A keep what the sites' optimisers and private parts know of
    its rows, and let a site tell the next model from another one. A product of zero keeps A: two zeros would have no
    gradient.
    """
    last = shared[stem + A].double()
    a, b = _turned(a, b, last) if b.any() else (last, b)
    return {
        stem + end: (new - shared[stem + end].double()).to(shared[stem + end].dtype) for end, new in ((A, a), (B, b))
    }
