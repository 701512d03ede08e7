"""Shares of a secret."""

import os
from itertools import combinations

import pytest

from pfedsam.exchange.shamir import PRIME, join, split

SECRET = bytes(range(32))


@pytest.mark.parametrize(("count", "least"), [(3, 2), (4, 3), (5, 3), (6, 4)])
def test_any_least_shares_give_the_secret_and_fewer_do_not(count: int, least: int) -> None:
    shares = dict(enumerate(split(SECRET, count, least=least, draw=os.urandom), 1))
    for size in range(1, count + 1):
        for places in combinations(shares, size):
            found = join({place: shares[place] for place in places})
            assert (found == SECRET) == (size >= least)


def test_one_share_fewer_fits_every_secret_alike() -> None:
    """Whatever the secret is, there is one share at the last place with which the known ones give it."""
    known = split(SECRET, 3, least=2, draw=os.urandom)[0]
    for guess in (bytes(32), SECRET, bytes([255]) * 32):
        slope = (int.from_bytes(known) - int.from_bytes(guess)) % PRIME
        other = (int.from_bytes(guess) + 2 * slope) % PRIME
        assert join({1: known, 2: other.to_bytes(66)}) == guess


def test_a_changed_share_does_not_give_the_secret() -> None:
    shares = dict(enumerate(split(SECRET, 3, least=2, draw=os.urandom), 1))
    wrong = (int.from_bytes(shares[2]) + 1) % PRIME
    assert join({1: shares[1], 2: wrong.to_bytes(66)}) != SECRET
