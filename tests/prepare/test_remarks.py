"""What a person should look at is said: nothing in the files shows whether it is right."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prepare.corpus import nifti, picture, scan

from pfedsam.data import reader
from pfedsam.errors import UserFault
from pfedsam.prepare.convert import UPRIGHT
from pfedsam.prepare.labels import parse_table
from pfedsam.prepare.page import _grey
from pfedsam.prepare.site import Wish, prepare

SHAPE = (12, 12)


def drawn() -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 2:7] = 1
    return mask


def site(folder: Path, mask: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], exif: int = 1) -> Path:
    for i in range(4):
        picture(folder / f"images/p{i}.png", scan(i, SHAPE).astype(np.uint8))
        tags = Image.Exif()
        tags[0x112] = exif
        Image.open(folder / f"images/p{i}.png").save(folder / f"images/p{i}.png", exif=tags)
        picture(folder / f"masks/p{i}.png", mask(drawn()))
    return folder


def objects(folder: Path, ends: tuple[int, ...], lacking: int = 0) -> Path:
    """Pictures with objects numbered from 1 to each of the `ends`, without the number `lacking`."""
    for i, end in enumerate(ends):
        mask = np.zeros((20, 20), np.uint8)
        for number in range(1, end + 1):
            mask[2 * number : 2 * number + 2, 3:6] = number if number != lacking else 0
        picture(folder / f"images/p{i}.png", scan(i, (20, 20)).astype(np.uint8))
        picture(folder / f"masks/p{i}.png", mask)
    return folder


def notes(folder: Path, table: dict[str, int] | None = None) -> str:
    return "\n".join(prepare([folder], None, Wish(table=table))["notes"])


@pytest.mark.parametrize("values", [(255, 0), (1, 2)])
def test_masks_that_are_all_mostly_of_a_class_are_pointed_at(tmp_path: Path, values: tuple[int, int]) -> None:
    home = site(tmp_path / "in", lambda mask: np.where(mask, values[1], values[0]).astype(np.uint8))
    assert "are background and class exchanged? If so, use --labels" in notes(home)


def test_what_the_remark_advises_turns_them_round(tmp_path: Path) -> None:
    home = site(tmp_path / "in", lambda mask: (1 - mask) * 255)
    prepare([home], tmp_path / "out", Wish(table={"0": 1, "255": 0}))
    assert np.array_equal(reader.read_mask(tmp_path / "out/masks/case-0001.png", 0, 1), drawn())
    assert "exchanged" not in notes(home, {"0": 1, "255": 0})


def test_class_numbers_that_no_mask_shows_are_named_with_the_way_to_close_the_gap(tmp_path: Path) -> None:
    home = site(tmp_path / "in", lambda mask: mask * 10)
    assert "No mask shows class 1, 2, 3, 4, 5" in notes(home)
    assert "without gaps" in notes(home)
    assert notes(home, {"10": 1}) == ""


@pytest.mark.parametrize(("exif", "said"), [(1, False), (3, True), (6, True)])
def test_images_that_exif_turns_without_their_masks_are_named(tmp_path: Path, exif: int, said: bool) -> None:
    assert ("turned upright as their EXIF says" in notes(site(tmp_path / "in", lambda mask: mask, exif))) == said


def test_an_image_that_exif_turns_to_another_size_than_its_mask_gets_a_remedy_that_keeps_the_drawing(
    tmp_path: Path,
) -> None:
    tags = Image.Exif()
    tags[0x112] = 6
    for i in range(3):
        image = picture(tmp_path / f"images/p{i}.png", scan(i, (9, 12)).astype(np.uint8))
        Image.open(image).save(image, exif=tags)
        picture(tmp_path / f"masks/p{i}.png", np.ones((9, 12), np.uint8))
    with pytest.raises(UserFault, match="a mask of its image's size, 12 x 9") as caught:
        prepare([tmp_path], None, Wish())
    page = (Path(__file__).parents[2] / "docs/faq.md").read_text().replace("\n", " ")
    assert caught.value.do.startswith(UPRIGHT)
    assert UPRIGHT in page


@pytest.mark.parametrize(("unit", "said"), [("mm", False), ("meter", True)])
def test_voxels_that_no_scanner_has_are_pointed_at(tmp_path: Path, unit: str, said: bool) -> None:
    for i in range(3):
        for folder in ("images", "labels"):
            path = nifti(tmp_path / f"in/{folder}/p{i}.nii", (scan(i, (9, 8, 3)) > 700).astype(np.uint8))
            image = nibabel.load(path)
            image.header.set_xyzt_units(unit)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    assert ("voxels of more than 100 mm" in notes(tmp_path / "in")) == said


def test_numbers_that_may_count_objects_are_doubted_and_the_remedy_makes_them_one_class(tmp_path: Path) -> None:
    home = objects(tmp_path / "in", (2, 3, 8, 5, 0, 4))
    assert "may be numbers of objects" in notes(home)
    assert "use --labels '*=1'" in notes(home)
    report = prepare([home], None, Wish(table=parse_table("*=1")))
    assert (report["classes"], report["labels"][1]["cases"]) == (1, 5)
    assert "numbers of objects" not in "\n".join(report["notes"])


@pytest.mark.parametrize(
    ("ends", "lacking"),
    [((3, 2, 1, 3), 0), ((5, 5, 5, 5), 0), ((5, 4, 3, 5), 2), ((5, 0, 5, 5), 0)],
    ids=["three", "all end alike", "a gap", "all that show something end alike"],
)
def test_numbers_that_are_classes_are_not_taken_for_objects(
    tmp_path: Path, ends: tuple[int, ...], lacking: int
) -> None:
    assert "numbers of objects" not in notes(objects(tmp_path / "in", ends, lacking))


def test_classes_that_the_user_says_are_not_taken_for_objects(tmp_path: Path) -> None:
    home = objects(tmp_path / "in", (2, 3, 5, 4))
    assert "numbers of objects" in notes(home)
    assert "numbers of objects" not in notes(home, {str(n): n for n in range(1, 6)})


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_a_thumbnail_shows_an_image_of_small_or_large_values_in_full_contrast(size: float) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.abs(_grey(values * size).astype(int) - _grey(values)).max() <= 1
    assert _grey(np.full((8, 8), size, np.float32)).max() == 0
