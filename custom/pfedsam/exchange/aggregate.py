"""The server's mean: w_{t+1} = w_t + sum_k (n_k / n) update_k (Figure 1, "Server")."""

import torch

from pfedsam.exchange.schema import Tensors


def weighted_mean(updates: dict[str, tuple[Tensors, int]]) -> Tensors:
    """The sample-weighted mean of the sites' updates, bit-equal whatever order they came in.

    Sites are summed in the order of their names, in float64, and rounded once.

    Args:
        updates: per site its tensors and its number of training slices; all with the same names.

    Raises:
        ValueError: no updates.
    """
    if not updates:
        raise ValueError("expected at least one update, came none")
    total = sum(samples for _, samples in updates.values())
    sites = sorted(updates)
    first = updates[sites[0]][0]
    mean = {}
    for name, like in first.items():
        terms = (updates[site][0][name].double() * (updates[site][1] / total) for site in sites)
        mean[name] = sum(terms, torch.zeros_like(like, dtype=torch.float64)).to(like.dtype)
    return mean
