"""Fixed-point words and the random words that hide them."""

import math
import os

import numpy as np
import pytest
import torch

from pfedsam.exchange.masks import (
    ROOM,
    bounded,
    fixed,
    masked_schema,
    mean_of,
    mix,
    pack_words,
    steps_of,
    stream,
    total_of,
    unmasked_fault,
    words_of,
)
from pfedsam.exchange.schema import schema_of
from pfedsam.tensors import Tensors

NORM = 100.0


def update(size: float = 1e-3) -> Tensors:
    return {"b": torch.randn(50, 40) * size, "a": torch.randn(7) * size}


def plainly_hidden(words: np.ndarray) -> bool:
    """Whether the bytes of words are uniform: chi squared of 256 classes, within eight deviations."""
    seen = np.bincount(words.view(np.uint8), minlength=256)
    expected = seen.sum() / 256
    chi = float(((seen - expected) ** 2 / expected).sum())
    return abs(chi - 255) < 8 * math.sqrt(2 * 255)


@pytest.mark.parametrize("norm", [0.001, 0.5, 1.0, 3.0, 100.0, 4096.0, 1e6])
def test_a_sum_at_the_bound_does_not_overflow_and_one_more_bit_would(norm: float) -> None:
    assert ROOM / 2 < norm * steps_of(norm) <= ROOM
    rows = [fixed({"t": torch.tensor([norm, -norm])}, 1 / 1000, norm=norm) for _ in range(1000)]
    mean = mean_of(total_of(rows), 1.0, norm=norm, schema=schema_of({"t": torch.zeros(2)}))["t"]
    assert mean.tolist() == pytest.approx([norm, -norm], abs=1000 / steps_of(norm))
    too_many = [row for row in rows for _ in range(4)]
    assert mean_of(total_of(too_many), 4.0, norm=norm, schema=schema_of({"t": torch.zeros(2)}))["t"][0] < norm / 2


@pytest.mark.parametrize("sites", [3, 6])
def test_the_mean_of_fixed_points_is_off_by_half_a_step_for_each_site_at_most(sites: int) -> None:
    updates = [update(0.1) for _ in range(sites)]
    shares = torch.softmax(torch.randn(sites, dtype=torch.float64), 0).tolist()
    total = total_of(fixed(one, share, norm=NORM) for one, share in zip(updates, shares, strict=True))
    found = mean_of(total, 1.0, norm=NORM, schema=schema_of(updates[0]))
    for name, tensor in found.items():
        exact = sum(share * one[name].double() for one, share in zip(updates, shares, strict=True))
        assert float((tensor.double() - exact).abs().max()) <= sites / 2 / steps_of(NORM) + 1e-8


def test_a_longer_update_is_shortened_as_a_whole_and_a_shorter_one_is_not_touched() -> None:
    long = {"a": torch.tensor([30.0]), "b": torch.tensor([40.0])}
    found, length = bounded(long, 5.0)
    assert length == 50
    assert [float(found[name]) for name in ("a", "b")] == pytest.approx([3.0, 4.0])
    assert bounded(long, 50.0)[0] is long


def test_words_travel_as_tensors_of_the_masked_schema() -> None:
    schema = schema_of(update())
    words = fixed(update(), 0.5, norm=NORM)
    sent = pack_words(words, schema)
    assert schema_of(sent) == masked_schema(schema)
    assert (words_of(sent) == words).all()
    assert sum(tensor.nbytes for tensor in sent.values()) == sum(tensor.nbytes for tensor in update().values())


def test_masks_with_opposite_signs_vanish_in_the_sum() -> None:
    words, seed = fixed(update(), 0.5, norm=NORM), os.urandom(32)
    assert (total_of([mix(words, add=[seed]), mix(words, take=[seed])]) == words + words).all()


def test_a_stream_is_chacha20_of_its_seed() -> None:
    """The first words of the key stream of a zero key, as RFC 8439 gives them (A.1, vector 1)."""
    assert stream(bytes(32), 4).astype("<u4").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e3])
def test_a_masked_update_shows_nothing_of_itself_and_one_without_a_mask_does(size: float) -> None:
    words = fixed(bounded(update(size), NORM)[0], 0.5, norm=NORM)
    hidden = mix(words, add=[os.urandom(32)])
    assert plainly_hidden(hidden)
    assert not plainly_hidden(words)


def test_two_messages_of_a_site_differ_by_random_words_whether_the_updates_are_alike_or_not() -> None:
    one, other = fixed(update(), 0.5, norm=NORM), fixed(update(1.0), 0.5, norm=NORM)
    for first, second in ((one, one), (one, other)):
        apart = mix(first, add=[os.urandom(32)]) - mix(second, add=[os.urandom(32)])
        assert plainly_hidden(apart)
    assert not plainly_hidden(one - other)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e3])
def test_the_fence_sees_an_update_without_its_mask(size: float) -> None:
    words, schema = fixed(bounded(update(size), NORM)[0], 0.5, norm=NORM), schema_of(update())
    assert "look random" in str(unmasked_fault(pack_words(words, schema)))
    for _ in range(50):
        assert unmasked_fault(pack_words(mix(words, add=[os.urandom(32)]), schema)) is None
    assert unmasked_fault({}) is None
