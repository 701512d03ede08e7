"""Pictures of masks: which cases, what is kept of them, and what is drawn."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.errors import UserFault
from pfedsam.record.pictures import SIDE, Gallery, Picture, packed, picked_cases, read_gallery
from pfedsam.record.scores import CaseScore, dice_by_case
from pfedsam.report.look import FOUND, chart
from pfedsam.report.overlays import drawn


def scored(cls: int, dice: float | None) -> CaseScore:
    return CaseScore(cls, dice, dice, 1.0, 1.0, found=True)


def gallery_of(found: torch.Tensor) -> Gallery:
    image = torch.zeros(3, *found.shape[1:], dtype=torch.uint8)
    picture = Picture("worst", image, torch.zeros_like(found), {"global": found})
    return Gallery("a site", [f"class {i + 1}" for i in range(len(found))], [picture])


def test_a_case_s_dice_is_the_mean_over_its_classes() -> None:
    rows = [scored(1, 0.9), scored(2, 0.1), scored(1, 0.6), scored(2, None), scored(1, None), scored(2, None)]
    assert dice_by_case(rows, 3) == [pytest.approx(0.5), 0.6, None]
    assert picked_cases(dice_by_case(rows, 3)) == {"best, personal Dice 0.60": 1, "worst, personal Dice 0.50": 0}


def test_what_a_site_keeps_for_its_pictures_comes_back_and_no_larger_than_a_screen_needs(tmp_path: Path) -> None:
    found = torch.rand(2, 96, 2 * SIDE) > 0.5
    path = tmp_path / "pictures.safetensors"
    path.write_bytes(packed(gallery_of(found)))
    there = read_gallery(path)
    assert (there.title, there.classes, there.pictures[0].label) == ("a site", ["class 1", "class 2"], "worst")
    assert torch.equal(there.pictures[0].found["global"], found[:, ::2, ::2])
    assert there.pictures[0].image.shape == (3, 48, SIDE)


def test_a_damaged_file_of_pictures_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "pictures.safetensors"
    path.write_bytes(packed(gallery_of(torch.ones(1, 8, 8, dtype=torch.bool)))[:-1])
    with pytest.raises(UserFault, match="remove the file"):
        read_gallery(path)


def orange(found: torch.Tensor) -> int:
    """How many pixels the found outlines take."""
    colour = np.array([int(FOUND[i : i + 2], 16) for i in (1, 3, 5)])
    with Image.open(io.BytesIO(drawn(gallery_of(found)))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(-1) < 40).sum())


@pytest.mark.parametrize("name", ["liver $^$", "a $b_c$ tumour", "\\frac", "$"])
def test_any_name_of_a_class_and_a_site_is_drawn_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *args: told.append(args[1]))
    found = torch.ones(2, 8, 8, dtype=torch.bool)
    picture = Picture(name, torch.zeros(3, 8, 8, dtype=torch.uint8), found, {"global": found})
    assert drawn(Gallery(name, [name, "other"], [picture]))
    chart("key", lambda axes: axes.plot([1, 2], label=name))
    assert told == []


def test_each_class_has_its_outline() -> None:
    """Of two halves that touch, the line between them is drawn, which a whole does not have."""
    halves = torch.zeros(2, 64, 64, dtype=torch.bool)
    halves[0, 16:48, 16:32] = halves[1, 16:48, 32:48] = True
    assert orange(halves) > 1.1 * orange(halves.any(0, keepdim=True)) > 0
