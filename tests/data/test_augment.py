"""What augmentation may do to an image, and what it may not."""

import pytest
import torch

from conftest import tiny
from pfedsam.data.augment import SHIFT, augmentation
from pfedsam.data.dataset import View


def corner(size: int, **train: object) -> list[tuple[bool, bool]]:
    """In which half (below, right) views of an image with a bright upper left corner have it."""
    image = torch.zeros(3, size, size)
    image[:, : size // 4, : size // 4] = 1.0
    change = augmentation(1, tiny(model={"image_size": size}, train=train))
    views = [change(image, image[0].long(), View(0, number))[0][0] for number in range(40)]
    quarters = [
        (v[size // 2 :].sum() > v[: size // 2].sum(), v[:, size // 2 :].sum() > v[:, : size // 2].sum()) for v in views
    ]
    return [(bool(below), bool(right)) for below, right in quarters]


@pytest.mark.parametrize(
    ("flips", "seen"),
    [
        ("none", {(False, False)}),
        ("horizontal", {(False, False), (False, True)}),
        ("vertical", {(False, False), (True, False)}),
        ("both", {(False, False), (False, True), (True, False), (True, True)}),
    ],
)
def test_a_horizontal_flip_mirrors_left_and_right_and_each_can_be_left_out(flips: str, seen: set) -> None:
    assert set(corner(64, flips=flips)) == seen


@pytest.mark.parametrize("size", [64, 256])
def test_an_image_is_shifted_by_a_share_of_its_side_at_most(size: int) -> None:
    """Of all views the mask's centre goes at most 1/16 of the side each way, and about that far at every size."""
    mask = torch.zeros(size, size, dtype=torch.long)
    middle = slice(size * 3 // 8, size * 5 // 8)
    mask[middle, middle] = 1
    change = augmentation(1, tiny(model={"image_size": size}))
    moved = []
    for number in range(60):
        _, found = change(torch.zeros(3, size, size), mask, View(0, number))
        centre = torch.nonzero(found).float().mean(0) / size - 0.5
        moved.append(centre.abs().max().item())
    assert 0.045 < max(moved) < 1 / 16 + 0.02


def test_at_128_pixels_the_shift_is_eight_of_them() -> None:
    assert 128 * SHIFT == 8
