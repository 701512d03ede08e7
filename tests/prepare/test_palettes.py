"""Numbers whose colours differ from mask to mask were numbered anew in each file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare.corpus import lesion, picture, scan

from pfedsam.errors import UserFault
from pfedsam.prepare.site import Wish, prepare

RED, GREEN, GREY = (128, 0, 0), (0, 128, 0), (1, 1, 1)


def site(folder: Path, colours: list[tuple[int, int, int]]) -> Path:
    """A case for each colour, which is that of number 1."""
    for i, colour in enumerate(colours):
        picture(folder / f"images/p{i}.png", scan(i, (12, 12)).astype(np.uint8))
        mask = Image.fromarray(lesion(i, (12, 12, 3))[..., 1])
        mask.putpalette([0, 0, 0, *colour])
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / f"masks/p{i}.png")
    return folder


def test_the_one_mask_whose_number_has_another_colour_is_left_out_and_named(tmp_path: Path) -> None:
    report = prepare([site(tmp_path / "in", [RED, RED, GREEN, RED, RED, RED])], None, Wish())
    assert [d["file"] for d in report["dropped"]] == ["images/p2.png"]
    assert "number 1 as red, green, blue (0, 128, 0) in p2.png, and (128, 0, 0)" in report["dropped"][0]["why"]


def test_masks_whose_palettes_contradict_each_other_are_asked_about_and_labels_answer(tmp_path: Path) -> None:
    home = site(tmp_path / "in", [RED, GREEN, RED, GREEN])
    with pytest.raises(UserFault, match=r"2 mask\(s\) differ.*--labels, such as 1=1"):
        prepare([home], None, Wish())
    assert prepare([home], None, Wish(table={"1": 1}))["cases"] == 4


RIM, CUP = (128, 128, 128), (255, 255, 255)


def test_greys_that_a_program_numbered_anew_in_a_mask_without_one_of_them_are_not_swapped(tmp_path: Path) -> None:
    """Of 0, 128 and 255 the highest is number 2; where 128 is absent, it is number 1."""
    with pytest.raises(UserFault, match=r"number 1 as .*\(255, 255, 255\) in p5.png, and \(128, 128, 128\)"):
        prepare([site(tmp_path / "many", [RIM, RIM, RIM, RIM, RIM, CUP, CUP, CUP])], None, Wish())
    report = prepare([site(tmp_path / "one", [RIM, RIM, RIM, RIM, RIM, CUP])], None, Wish())
    assert [d["file"] for d in report["dropped"]] == ["images/p5.png"]


def test_a_grey_that_is_the_number_itself_says_nothing_about_classes(tmp_path: Path) -> None:
    home = site(tmp_path / "in", [GREY, (255, 255, 255), GREY, (255, 255, 255)])
    assert prepare([home], None, Wish())["cases"] == 4
