"""A gzip file read from anywhere gives its bytes, and does not start over."""

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfedsam.data import inflated
from pfedsam.data.inflated import Inflated

DATA = np.random.default_rng(0).integers(0, 9, 40_000).astype(np.uint8).tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflated, "STEP", 3000)
    monkeypatch.setattr(inflated, "CHUNK", 100)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.usefixtures("small")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 41_000), st.integers(0, 5000)), min_size=1, max_size=5))
def test_any_part_in_any_order_is_what_gzip_gives(tmp_path: Path, parts: int, reads: list[tuple[int, int]]) -> None:
    cuts = np.linspace(0, len(DATA), parts + 1).astype(int)
    path = tmp_path / "x.gz"
    path.write_bytes(b"".join(gzip.compress(DATA[a:b]) for a, b in pairwise(cuts)) + bytes(300))
    file = Inflated(path)
    for place, size in reads:
        file.seek(place)
        assert file.read(size) == DATA[place : place + size]
        assert file.tell() == min(place + size, max(place, len(DATA)))


@pytest.mark.usefixtures("small")
def test_a_read_begins_at_the_nearest_state_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(DATA))
    file = Inflated(path)
    assert file.read() == DATA
    done = []
    feed = inflated._State.feed
    monkeypatch.setattr(inflated._State, "feed", lambda self, data: done.append(feed(self, data)) or done[-1])
    file.seek(39_000)
    assert file.read(100) == DATA[39_000:39_100]
    assert sum(map(len, done)) < 5000
