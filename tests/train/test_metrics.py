import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import distance

from pfedsam.record.measures import TOLERANCE
from pfedsam.record.scores import CaseScore, coarse, summary
from pfedsam.train.metrics import score


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


def outline(mask: np.ndarray) -> np.ndarray:
    """Indices of the voxels of the mask with a neighbour outside it, side by side; beyond the image is outside."""
    padded = np.pad(mask, 1)
    axes = range(mask.ndim)
    inner = np.logical_and.reduce([np.roll(padded, step, axis) for axis in axes for step in (1, -1)])
    return np.argwhere(padded & ~inner) - 1


def by_definition(found: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float, float]:
    """HD95, ASSD and surface Dice from the distances between all pairs of outline voxels."""
    pairs = distance.cdist(outline(found) * spacing, outline(truth) * spacing)
    there, back = pairs.min(1), pairs.min(0)
    both = np.concatenate([there, back])
    return max(np.percentile(there, 95), np.percentile(back, 95)), both.mean(), (both <= TOLERANCE).mean()


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random islands, some of which touch the border."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5) > 0


def box(shape: tuple[int, ...], *spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


SHAPES = {
    "random": (blob((40, 50), 0), blob((40, 50), 1), (1.0, 1.0)),
    "random, rows further apart than columns": (blob((40, 50), 2), blob((40, 50), 3), (2.5, 0.5)),
    "random volume": (blob((20, 24, 9), 4), blob((20, 24, 9), 5), (1.0, 1.0, 1.0)),
    "random volume of thick slices": (blob((20, 24, 9), 6), blob((20, 24, 9), 7), (0.7, 1.3, 5.0)),
    "single pixels": (box((9, 20), (3, 4), (4, 5)), box((9, 20), (8, 9), (16, 17)), (2.0, 1.0)),
    "at the border": (box((20, 20), (0, 5), (0, 20)), box((20, 20), (0, 7), (0, 20)), (1.0, 1.0)),
    "the whole image": (box((20, 20), (0, 20), (0, 20)), box((20, 20), (5, 9), (5, 9)), (1.0, 1.0)),
    "a far island": (
        box((30, 60), (2, 12), (2, 12)) | box((30, 60), (25, 26), (50, 53)),
        box((30, 60), (2, 12), (2, 12)),
        (1.0, 1.0),
    ),
    "a slice of a volume": (
        box((8, 8, 3), (0, 8), (0, 8), (0, 3)),
        box((8, 8, 3), (0, 8), (0, 8), (1, 2)),
        (1.0, 1.0, 3.0),
    ),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_distances_are_those_between_all_pairs_of_outline_voxels(
    shapes: tuple[np.ndarray, np.ndarray, tuple[float, ...]],
) -> None:
    found, truth, spacing = shapes
    (got,) = score(torch.from_numpy(found)[None], torch.from_numpy(truth)[None], spacing, unit="mm")
    assert (got.hd95, got.assd, got.surface_dice) == pytest.approx(by_definition(found, truth, spacing), rel=1e-5)


def test_distances_of_shapes_that_can_be_measured_by_hand() -> None:
    """Two columns of pixels 3 apart, the slices 5 mm: all distances are 3 pixels of 2 mm; one slice off is 5 mm."""
    left, right = box((4, 9), (0, 4), (2, 3)), box((4, 9), (0, 4), (5, 6))
    (got,) = score(torch.from_numpy(left)[None], torch.from_numpy(right)[None], (7.0, 2.0), unit="mm")
    assert (got.hd95, got.assd, got.surface_dice) == (6.0, 6.0, 0.0)
    low, high = (box((6, 6, 4), (2, 3), (2, 3), (k, k + 1)) for k in (1, 2))
    (got,) = score(torch.from_numpy(low)[None], torch.from_numpy(high)[None], (1.0, 1.0, 5.0), unit="mm")
    assert (got.hd95, got.assd) == (5.0, 5.0)


def test_hd95_is_the_larger_of_the_two_directed_percentiles() -> None:
    """An island that is 4 % of all outline pixels, but 8 % of one mask's: pooled, it would not count."""
    found, truth, spacing = SHAPES["a far island"]
    (got,) = score(torch.from_numpy(found)[None], torch.from_numpy(truth)[None], spacing)
    assert got.hd95 > 30
    (swapped,) = score(torch.from_numpy(truth)[None], torch.from_numpy(found)[None], spacing)
    assert swapped.hd95 == got.hd95


def test_where_nothing_was_found_there_is_no_distance_and_the_detection_rate_falls() -> None:
    nothing = torch.zeros(1, 24, 24, dtype=torch.bool)
    missed, near = (score(found, square(4), (0.5, 0.5), unit="mm")[0] for found in (nothing, square(5)))
    assert (missed.dice, missed.surface_dice, missed.hd95, missed.assd) == (0.0, 0.0, None, None)
    row = summary([missed, near])
    assert (row["detected"], row["hd95"], row["assd"]) == (0.5, near.hd95, near.assd)
    assert row["surface_dice"] == near.surface_dice / 2
    assert row["dice"] == near.dice / 2


def test_without_a_spacing_no_distance_is_measured() -> None:
    row = summary(score(square(4), square(6)))
    assert row.keys() == {"dice", "iou", "detected", "scored", "empty", "false_alarms"}


def test_millimetres_and_pixels_have_no_mean_in_common() -> None:
    one, other = (score(square(4), square(6), (2.0, 2.0), unit=unit)[0] for unit in ("mm", "px"))
    assert summary([one, one])["unit"] == "mm"
    row = summary([one, other])
    assert (row["unit"], row["hd95"], row["assd"], row["surface_dice"]) == ("mixed", None, None, None)
    assert row["dice"] == one.dice
    assert {unit: of["hd95"] for unit, of in row["by_unit"].items()} == {"mm": one.hd95, "px": other.hd95}


def test_a_volume_is_one_case() -> None:
    volume = torch.stack([square(4), square(4)], dim=-1)
    assert len(score(volume, volume, (1, 1, 3))) == 1


def test_classes_weigh_alike_however_many_cases_they_have() -> None:
    cases = [CaseScore(1, 1.0, 1.0, 0.0, 0.0, True)] * 3 + [CaseScore(2, 0.0, 0.0, 9.0, 9.0, False)]
    assert summary(cases)["dice"] == 0.5


def test_a_row_leaves_with_four_digits_and_its_distances_with_two() -> None:
    row = {"dice": 2197 / 16384, "iou": None, "scored": 3, "unit": "mixed", "by_unit": {"mm": {"hd95": 2 / 3}}}
    left = {**row, "dice": 0.1341, "by_unit": {"mm": {"hd95": 0.67}}}
    assert coarse({"val": {"global": row}, "before": None}) == {"val": {"global": left}, "before": None}
