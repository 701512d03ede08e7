"""The server's mean: w_{t+1} = w_t + sum_k (n_k / n) update_k (Figure 1, "Server")."""

from collections.abc import Callable

from torch import Tensor

from pfedsam.files import Tensors


def weighted_mean(
    updates: dict[str, tuple[Tensors, int]], opened: Callable[[Tensors], Tensors] = lambda wire: wire
) -> Tensors:
    """The sample-weighted mean of the sites' updates, bit-equal whatever order they came in.

    Sites are summed in the order of their names, in float64, and rounded once.

    Args:
        updates: per site its tensors and its number of training slices; all with the same names.
        opened: makes the tensors out of what is held of a site; asked for one site at a time, so that
            the updates of many sites can be held as they came.

    Raises:
        ValueError: no updates.
    """
    if not updates:
        raise ValueError("expected at least one update, came none")
    total = sum(samples for _, samples in updates.values())
    sums: dict[str, Tensor] = {}
    tensors: Tensors = {}
    for _, (held, samples) in sorted(updates.items()):
        tensors = opened(held)
        for name, tensor in tensors.items():
            term = tensor.double().mul_(samples / total)
            sums[name] = sums[name].add_(term) if name in sums else term
    return {name: value.to(tensors[name].dtype) for name, value in sums.items()}
