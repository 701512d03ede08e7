"""The plane belongs to the job: training, the final test and predict see a volume's slices laid out alike."""

from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from conftest import tiny
from pfedsam.data import reader
from pfedsam.data.datalist import Row
from pfedsam.data.dataset import Dataset, open_site
from pfedsam.data.geometry import oriented, placeless
from pfedsam.data.planes import CHOICES, PLANES, STORED
from pfedsam.data.volume import read_nifti
from pfedsam.errors import UserFault
from pfedsam.prepare.site import Wish, prepare

LAYOUTS = [("R", "A", "S"), ("L", "P", "S"), ("P", "I", "R"), ("S", "L", "A"), ("I", "P", "L")]
SIDES = (1.0, 2.0, 3.0)


def affine(codes: tuple[str, str, str]) -> np.ndarray:
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return np.diag([*SIDES, 1.0]) @ inv_ornt_aff(change, (9, 9, 9))


def volume(path: Path, values: np.ndarray, codes: tuple[str, str, str] = ("R", "A", "S")) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine(codes)), path)
    return path


def as_stored(path: Path, codes: tuple[str, str, str], of: Path) -> Path:
    """The volume at `of`, its voxels kept in their place, stored with other axes."""
    file = nibabel.load(of)
    nibabel.save(file.as_reoriented(ornt_transform(nibabel.io_orientation(file.affine), axcodes2ornt(codes))), path)
    return path


@pytest.mark.parametrize(("codes", "plane"), list(product(LAYOUTS, CHOICES)))
def test_a_slice_is_read_as_the_whole_volume_would_be_laid_out(
    tmp_path: Path, codes: tuple[str, str, str], plane: str
) -> None:
    values = np.random.default_rng(0).integers(0, 99, (3, 4, 5)).astype(np.int16)
    path = volume(tmp_path / "x.nii", values, codes)
    whole, head = oriented(read_nifti(path), plane), reader.header(path, plane)
    assert (*head.shape, head.slices) == whole.values.shape
    assert np.allclose(head.affine, whole.affine)
    for i in range(head.slices):
        assert np.array_equal(reader.read_image(path, i, plane)[..., 0], whole.values[:, :, i])
        assert np.array_equal(reader.read_mask(path, i, 99, plane=plane), whole.values[:, :, i])


def opened(root: Path, names: list[str], plane: str = "axial") -> list[Dataset]:
    config = tiny(data={"plane": plane, "scale": "percentile"})
    rows = [Row(f"{name}.nii", f"{name}-mask.nii", "train", name) for name in names]
    return [Dataset(root, [row], config, split="train") for row in rows]


def pairs(root: Path) -> list[str]:
    """One patient's volume and mask, stored in each layout; the mask of the last with axes of its own."""
    values = np.random.default_rng(1).integers(0, 255, (20, 24, 6)).astype(np.uint8)
    mask = np.zeros((20, 24, 6), np.uint8)
    mask[2:5, 3:20, 1:4] = 1
    first, drawn = volume(root / "ras.nii", values), volume(root / "ras-mask.nii", mask)
    for i, codes in enumerate(LAYOUTS):
        as_stored(root / f"v{i}.nii", codes, first)
        as_stored(root / f"v{i}-mask.nii", codes, drawn)
    as_stored(root / "mixed.nii", LAYOUTS[1], first)
    as_stored(root / "mixed-mask.nii", LAYOUTS[2], drawn)
    return [*(f"v{i}" for i in range(len(LAYOUTS))), "mixed"]


@pytest.mark.parametrize("plane", PLANES)
def test_training_sees_the_same_slices_however_a_volume_is_stored(tmp_path: Path, plane: str) -> None:
    """As stored the model once learned from transposed, mirrored slices, and predict showed it upright ones."""
    first, *others = opened(tmp_path, pairs(tmp_path), plane)
    upright = oriented(read_nifti(tmp_path / "ras.nii"), plane)
    assert [s.shape for s in first.slices] == [upright.values.shape[:2]] * upright.values.shape[2]
    shown = first.picture(1)[0]
    told = torch.from_numpy(upright.values[:, :, 1].astype(np.float32))
    assert torch.corrcoef(torch.stack([shown.flatten(), told.flatten()]))[0, 1] > 0.99
    for other in others:
        assert len(other) == len(first)
        for i in range(len(first)):
            assert torch.equal(other.picture(i), first.picture(i))
            assert torch.equal(other.labels(i), first.labels(i))
            assert other.slices[i].spacing == pytest.approx(first.slices[i].spacing)


def test_as_stored_a_mask_that_is_laid_out_otherwise_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path)
    assert len(opened(tmp_path, ["v0"], STORED)[0]) == 6
    with pytest.raises(UserFault, match="mixed-mask"):
        opened(tmp_path, ["mixed"], STORED)


@pytest.mark.parametrize("plane", PLANES)
def test_a_file_without_a_place_is_read_in_the_plane_as_it_lies(tmp_path: Path, plane: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, placeless((1.0, 2.0, 3.0), plane)), tmp_path / "x.nii")
    head = reader.header(tmp_path / "x.nii", plane)
    assert (*head.shape, head.slices) == values.shape
    assert head.spacing == (1.0, 2.0, 3.0)
    assert np.array_equal(reader.read_image(tmp_path / "x.nii", 1, plane)[..., 0], values[:, :, 1])


@pytest.mark.parametrize("plane", [*PLANES, STORED])
def test_what_prepare_laid_out_training_in_that_plane_reads_as_it_lies(tmp_path: Path, plane: str) -> None:
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 999, (5, 6, 7)).astype(np.int16)
        (tmp_path / "in/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/masks").mkdir(parents=True, exist_ok=True)
        volume(tmp_path / f"in/images/p{i}.nii", values, LAYOUTS[i])
        volume(tmp_path / f"in/masks/p{i}.nii", (values > 500).astype(np.uint8), LAYOUTS[i])
    prepare([tmp_path / "in"], tmp_path / "out", Wish(plane=plane))
    for path in (tmp_path / "out/images").iterdir():
        stored = nibabel.load(path).get_fdata()
        assert np.array_equal(reader.read_image(path, 2, plane)[..., 0], stored[:, :, 2])


def sagittal(path: Path, values: np.ndarray) -> Path:
    """A volume whose slices are sagittal: 1 mm pixels, 3 mm from one to the next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, placeless((1.0, 1.0, 3.0), "sagittal")), path)
    return path


def sagittal_site(folder: Path, slices: int) -> Path:
    """Three patients' pairs."""
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 999, (8, 9, slices)).astype(np.int16)
        sagittal(folder / f"images/p{i}.nii", values)
        sagittal(folder / f"masks/p{i}.nii", (values > 500).astype(np.uint8))
    return folder


@pytest.mark.parametrize(("plane", "told"), [("axial", 1), ("sagittal", 0)])
def test_a_site_is_told_that_the_job_cuts_its_volumes_across(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plane: str, told: int
) -> None:
    prepare([sagittal_site(tmp_path / "in", 4)], tmp_path / "out", Wish(plane="sagittal"))
    config = tiny(data={"plane": plane, "scale": "percentile"})
    open_site(tmp_path / "out", "h", config)
    text = f"[h] 3 of 3 volumes have coarser steps within the {plane} slices than across them"
    assert caplog.text.count(text) == told


def test_a_single_slice_is_not_cut_across(tmp_path: Path) -> None:
    home = sagittal_site(tmp_path / "in", 1)
    for use in (lambda: reader.header(home / "images/p0.nii", "axial"), lambda: prepare([home], None, Wish())):
        with pytest.raises(
            UserFault, match=r"(?s)a single sagittal slice, which axial cuts into pieces of 9 x 1 pixels.*sagittal"
        ):
            use()
    assert reader.header(home / "images/p0.nii", "sagittal").shape == (8, 9)
    assert prepare([home], None, Wish(plane="sagittal"))["slices"] == 3


def test_training_sends_a_flat_nifti_to_prepare_and_a_series_of_volumes_apart(tmp_path: Path) -> None:
    for shape, remedy in (
        ((5, 6), "run pfedsam prepare"),
        ((5, 6, 7, 1), "run pfedsam prepare"),
        ((5, 6, 7, 2), "split"),
    ):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "x.nii")
        with pytest.raises(UserFault, match=remedy):
            reader.header(tmp_path / "x.nii", "axial")
