"""The benchmarks' slow reference: it must be the same model, or the ratios say nothing."""

import pytest
from stock import random_state
from training_step import ROWS, Case, batch, ours, stock


def test_our_step_takes_the_same_steps_as_sam_as_published() -> None:
    case = Case("vit_b", 64, random_state(64))
    batches = [batch(64, 2, seed) for seed in range(3)]
    slow, fast = stock(case), ours(case, ROWS["plain, float32"])
    reference = [slow(b) for b in batches]
    assert [fast(b) for b in batches] == pytest.approx(reference, rel=1e-4)
    assert reference[0] != reference[2]
