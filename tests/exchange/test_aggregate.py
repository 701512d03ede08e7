import itertools

import pytest
import torch

from pfedsam.exchange.aggregate import weighted_mean


def updates(count: int) -> dict[str, tuple[dict[str, torch.Tensor], int]]:
    return {f"site-{i}": ({"w": torch.randn(7, 5), "b": torch.randn(3)}, 3 * i + 1) for i in range(count)}


def test_the_mean_is_weighted_by_samples() -> None:
    given = updates(3)
    mean = weighted_mean(given)
    total = sum(n for _, n in given.values())
    for name in ("w", "b"):
        slow = sum(t[name] * n / total for t, n in given.values())
        assert torch.allclose(mean[name], slow, atol=1e-6)
        assert mean[name].dtype == torch.float32


def test_every_order_of_arrival_gives_the_same_bits() -> None:
    given = updates(4)
    first = weighted_mean(given)
    for order in itertools.permutations(given):
        again = weighted_mean({site: given[site] for site in order})
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_no_updates_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        weighted_mean({})


def test_nothing_shared_means_nothing() -> None:
    assert weighted_mean({"a": ({}, 3), "b": ({}, 1)}) == {}
