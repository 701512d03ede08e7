import math

import pytest
import torch
from scipy import ndimage

from pfedsam.train.metrics import CaseScore, score, summary


def square(row: int, side: int = 6) -> torch.Tensor:
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[0, row : row + side, 8 : 8 + side] = True
    return mask


def test_dice_and_iou_are_their_definitions() -> None:
    found, truth = square(4), square(6)
    (got,) = score(found, truth, (1.0, 1.0))
    both = (found & truth).sum().item()
    assert got.dice == pytest.approx(2 * both / (found.sum() + truth.sum()).item())
    assert got.iou == pytest.approx(both / (found | truth).sum().item())


def test_distances_are_in_millimetres() -> None:
    near, far = (score(square(4), square(6), spacing)[0] for spacing in ((1.0, 1.0), (2.5, 2.5)))
    assert far.hd95 == pytest.approx(2.5 * near.hd95)
    assert far.assd == pytest.approx(2.5 * near.assd)


def test_assd_is_the_mean_over_both_surfaces() -> None:
    found, truth = square(4), square(7)
    edges = [m[0].numpy() & ~ndimage.binary_erosion(m[0].numpy()) for m in (found, truth)]
    to = [ndimage.distance_transform_edt(~e) for e in edges]
    slow = [*to[1][edges[0]], *to[0][edges[1]]]
    assert score(found, truth, (1.0, 1.0))[0].assd == pytest.approx(sum(slow) / len(slow), rel=1e-4)


def test_an_empty_reference_is_counted_never_scored() -> None:
    nothing = torch.zeros(1, 24, 24, dtype=torch.bool)
    scores = [
        *score(nothing, nothing, (1, 1)),
        *score(square(4), nothing, (1, 1)),
        *score(square(4), square(4), (1, 1)),
    ]
    row = summary(scores)
    assert row["dice"] == 1.0
    assert (row["scored"], row["empty"], row["false_alarms"]) == (1, 2, 1)


def test_finding_nothing_costs_the_diagonal() -> None:
    (got,) = score(torch.zeros(1, 24, 24, dtype=torch.bool), square(4), (0.5, 0.5))
    assert got.dice == 0
    assert got.hd95 == got.assd == pytest.approx(math.hypot(12, 12))


def test_a_volume_is_one_case() -> None:
    volume = torch.stack([square(4), square(4)], dim=-1)
    assert len(score(volume, volume, (1, 1, 3))) == 1


def test_classes_weigh_alike_however_many_cases_they_have() -> None:
    cases = [CaseScore(1, 1.0, 1.0, 0.0, 0.0, True)] * 3 + [CaseScore(2, 0.0, 0.0, 9.0, 9.0, False)]
    assert summary(cases)["dice"] == 0.5
