from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from pfedsam.data import reader
from pfedsam.errors import UserFault


def nifti(path: Path, volume: np.ndarray, spacing: tuple[float, ...] = (0.5, 0.7, 3.0)) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing[:3], 1.0])), path)
    return path


def picture(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_a_volume_is_read_slice_by_slice_with_its_spacing(tmp_path: Path) -> None:
    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    path = nifti(tmp_path / "v.nii.gz", volume)
    head = reader.header(path)
    assert (head.shape, head.slices) == ((4, 5), 6)
    assert head.spacing == pytest.approx((0.5, 0.7, 3.0))
    assert np.array_equal(reader.read_image(path, 2)[..., 1], volume[:, :, 2])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
def test_every_picture_mode_comes_as_three_channels(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        path = picture(tmp_path / "x.png", np.full((4, 6), 40_000, np.uint16))
    else:
        path = picture(tmp_path / "x.png", np.full((4, 6, 3), 90, np.uint8), mode)
    assert reader.read_image(path).shape == (4, 6, 3)


def test_a_mask_keeps_its_class_numbers(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    assert np.array_equal(reader.read_mask(picture(tmp_path / "m.png", labels), 0, 2), labels)


def broken(folder: Path, kind: str) -> Path:
    if kind == "zero bytes":
        (folder / "x.png").write_bytes(b"")
        return folder / "x.png"
    if kind == "truncated":
        path = picture(folder / "x.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
        path.write_bytes(path.read_bytes()[:2000])
        return path
    if kind == "truncated volume":
        path = nifti(folder / "x.nii.gz", np.random.default_rng(0).normal(size=(32, 32, 9)).astype(np.float32))
        path.write_bytes(path.read_bytes()[:4000])
        return path
    if kind == "NaN":
        return nifti(folder / "x.nii", np.full((4, 4, 2), np.nan, np.float32))
    if kind == "4-D":
        return nifti(folder / "x.nii", np.zeros((4, 4, 2, 2), np.float32))
    (folder / "x.doc").write_bytes(b"hello")
    return folder / "x.doc"


def read_all(path: Path) -> None:
    for i in range(reader.header(path).slices):
        reader.read_image(path, i)


@pytest.mark.parametrize("kind", ["zero bytes", "truncated", "truncated volume", "NaN", "4-D", "unknown format"])
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(UserFault) as fault:
        read_all(path)
    assert str(path) in str(fault.value)


@pytest.mark.parametrize("labels", [np.full((2, 2), 255, np.uint8), np.full((2, 2), 2, np.uint8)])
def test_a_label_out_of_range_is_told_with_the_file(tmp_path: Path, labels: np.ndarray) -> None:
    path = picture(tmp_path / "m.png", labels)
    with pytest.raises(UserFault, match=r"labels 0\.\.1") as fault:
        reader.read_mask(path, 0, 1)
    assert str(path) in str(fault.value)


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="one channel"):
        reader.read_mask(picture(tmp_path / "m.png", np.zeros((2, 2, 3), np.uint8)), 0, 1)
