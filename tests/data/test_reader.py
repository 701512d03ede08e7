import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from pfedsam.data import reader
from pfedsam.data.volume import read_picture
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


def test_unlabelled_pixels_come_back_as_255_and_are_no_class(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [9, 0]], np.uint8)
    path = picture(tmp_path / "m.png", labels)
    assert reader.read_mask(path, 0, 1, ignore=9).tolist() == [[0, 1], [255, 0]]
    with pytest.raises(UserFault, match=r"labels 0\.\.1, or 255 for unlabelled .*values from 0 to 9"):
        reader.read_mask(path, 0, 1, ignore=255)


@pytest.mark.parametrize(("stored", "read"), [(2.9994, 3), (-0.0004, 0), (2.998, None), (np.nan, None)])
def test_a_class_number_that_a_slope_moved_by_a_thousandth_is_rounded(
    tmp_path: Path, stored: float, read: int | None
) -> None:
    path = nifti(tmp_path / "m.nii", np.full((2, 2, 1), stored, np.float32))
    if read is None:
        with pytest.raises(UserFault, match="fractions, or NaN"):
            reader.read_mask(path, 0, 3)
    else:
        assert reader.read_mask(path, 0, 3).tolist() == [[read, read], [read, read]]


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
    if kind == "damaged header":
        path = nifti(folder / "x.nii", np.zeros((4, 4, 2), np.uint8))
        path.write_bytes(path.read_bytes()[:70] + b"\xff\x7f" + path.read_bytes()[72:])  # no such type of voxels
        return path
    if kind == "negative dimensions":
        path = nifti(folder / "x.nii", np.zeros((4, 4, 2), np.uint8))
        path.write_bytes(path.read_bytes()[:46] + b"\xfe\xff" + path.read_bytes()[48:])
        return path
    if kind == "volume cut short":
        path = nifti(folder / "x.nii", np.zeros((32, 32, 9), np.float32))
        path.write_bytes(path.read_bytes()[:4000])
        return path
    if kind == "spoilt compression":
        path = nifti(folder / "x.nii.gz", np.random.default_rng(0).normal(size=(32, 32, 9)).astype(np.float32))
        raw = bytearray(path.read_bytes())
        raw[40:9000] = bytes(8960)
        path.write_bytes(raw)
        return path
    if kind == "a bomb":
        path = picture(folder / "x.png", np.zeros((4, 4), np.uint8))
        raw = bytearray(path.read_bytes())
        raw[16:24] = struct.pack(">II", 30_000, 30_000)
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
        path.write_bytes(raw)
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


BROKEN = ("zero bytes", "truncated", "truncated volume", "NaN", "4-D", "unknown format", "damaged header")
BROKEN += ("negative dimensions", "volume cut short", "spoilt compression", "a bomb")


@pytest.mark.parametrize("kind", BROKEN)
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


def turned(path: Path, orientation: int, pixels: np.ndarray) -> Path:
    """A picture whose EXIF says how it is to be turned; a PNG `late` says it behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    if path.name.startswith("late"):
        Image.fromarray(pixels).save(path)
        raw, chunk = path.read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(raw[:-12] + whole + raw[-12:])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "late.png", "x.jpg", "x.tif"])
def test_training_turns_a_picture_and_its_mask_upright_as_prepare_and_predict_do(
    tmp_path: Path, name: str, orientation: int
) -> None:
    pixels = np.repeat(np.repeat([[1, 0, 0], [1, 2, 0]], 8, 0), 8, 1).astype(np.uint8)
    path = turned(tmp_path / name, orientation, pixels)
    upright = read_picture(path).values[..., 0]
    assert reader.header(path).shape == upright.shape == ((16, 24) if orientation < 5 else (24, 16))
    assert np.array_equal(reader.read_image(path)[..., 0], upright)
    if not name.endswith("jpg"):
        assert np.array_equal(reader.read_mask(path, 0, 2), upright)


def test_a_thousand_pictures_are_opened_without_decoding_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [turned(tmp_path / f"x.{end}", 6, np.zeros((16, 24), np.uint8)) for end in ("png", "jpg", "tif")]
    paths.append(picture(tmp_path / "plain.png", np.zeros((24, 16), np.uint8)))

    def load(_: object) -> None:
        raise AssertionError("decoded")

    for kind in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(kind, "load", load)
    assert [reader.header(path).shape for path in paths] == [(24, 16)] * 4


def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 24), 7, np.uint8)).save(tmp_path / "x.jpg", exif=b"Exif\0\0no such thing")
    assert reader.header(tmp_path / "x.jpg").shape == reader.read_image(tmp_path / "x.jpg").shape[:2] == (16, 24)


def test_a_palette_means_colours_in_an_image_and_numbers_in_a_mask(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([0, 0, 0, 250, 0, 0, 0, 240, 0])
    image.save(tmp_path / "p.png")
    assert reader.read_image(tmp_path / "p.png")[0].tolist() == [[0, 0, 0], [250, 0, 0]]
    assert reader.read_mask(tmp_path / "p.png", 0, 2).tolist() == [[0, 1], [2, 1]]


def test_a_file_of_several_pages_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 6), i, np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserFault, match=r"one picture in .*x\.tif; came 3 pages"):
        reader.header(tmp_path / "x.tif")


def test_a_camera_s_jpeg_with_a_preview_in_it_is_one_picture(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (90, 200)]
    views[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "x.jpg") as file:
        assert file.n_frames == 2
    assert reader.read_image(tmp_path / "x.jpg").mean() == pytest.approx(90, abs=2)
    assert read_picture(tmp_path / "x.jpg").values.mean() == pytest.approx(90, abs=2)
