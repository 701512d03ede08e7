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


@pytest.mark.parametrize(("unit", "said"), [("mm", False), ("meter", True)])
def test_voxels_that_no_scanner_has_are_pointed_at(tmp_path: Path, unit: str, said: bool) -> None:
    for i in range(3):
        for folder in ("images", "labels"):
            path = nifti(tmp_path / f"in/{folder}/p{i}.nii", (scan(i, (9, 8, 3)) > 700).astype(np.uint8))
            image = nibabel.load(path)
            image.header.set_xyzt_units(unit)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    assert ("voxels of more than 100 mm" in notes(tmp_path / "in")) == said
