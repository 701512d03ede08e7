"""Each kind of file that can't be read has the remedy of its own fault."""

import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from data.test_reader import picture, tiff
from PIL import Image

from pfedsam.data import reader
from pfedsam.data.readable import readable
from pfedsam.data.volume import read_volume
from pfedsam.errors import UserFault


def nifti(kind: type = nibabel.Nifti1Image) -> bytes:
    return bytes(kind(np.zeros((4, 4, 2), np.uint8), np.eye(4)).to_bytes())


def png(folder: Path) -> bytes:
    return picture(folder / "source.png", np.zeros((4, 4), np.uint8)).read_bytes()


def gif(folder: Path) -> bytes:
    Image.new("L", (4, 4)).save(folder / "source.gif")
    return (folder / "source.gif").read_bytes()


CASES = {
    "gzip as .nii": ("a.nii", lambda _: gzip.compress(nifti()), "gzip", r"name it \.nii\.gz"),
    "NIfTI as .nii.gz": ("a.nii.gz", lambda _: nifti(), "without compression", r"name it \.nii$"),
    "NIfTI-2 as .nii.gz": ("a.nii.gz", lambda _: nifti(nibabel.Nifti2Image), "without comp", r"name it \.nii$"),
    "NIfTI as .png": ("a.png", lambda _: nifti(), "NIfTI", r"name it \.nii$"),
    "a picture as .nii": ("a.nii", png, "PNG", r"name it \.png$"),
    "a picture as .nii.gz": ("a.nii.gz", lambda f: gzip.compress(png(f)), "PNG", r"unpack it .* name it \.png$"),
    "gzip as .png": ("a.png", lambda f: gzip.compress(png(f)), "gzip", "unpack it"),
    "DICOM as .png": ("a.png", lambda _: bytes(128) + b"DICM" + bytes(99), "DICOM", r"name it \.dcm"),
    "GIF as .png": ("a.png", gif, "GIF", "save it as PNG"),
    "a web page": ("a.png", lambda _: b"<!DOCTYPE html><html>", "web page", "download"),
    "a text": ("a.png", lambda _: "see Müller's mail".encode(), "a text", "the file itself"),
    "a pointer": ("a.nii.gz", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
    "a zip": ("a.nii.gz", lambda _: b"PK\x03\x04" + bytes(99), "zip", "unpack it"),
    "nothing": ("a.png", lambda _: b"", "empty", "copy it again"),
    "a short PNG": ("a.png", lambda f: png(f)[:40], "damaged", "copy or export it again"),
    "a short .nii.gz": ("a.nii.gz", lambda _: gzip.compress(nifti())[:60], "damaged", "copy or export it again"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_remedy_fits_the_fault(tmp_path: Path, case: str) -> None:
    name, data, came, do = CASES[case]
    (tmp_path / name).write_bytes(data(tmp_path))
    for use in (read_volume, reader.read_image):
        with pytest.raises(UserFault) as fault:
            use(tmp_path / name)
        assert name in fault.value.expected
        assert came in fault.value.came
        assert re.search(do, fault.value.do), fault.value.do


def test_a_name_that_is_too_long_is_no_damage(tmp_path: Path) -> None:
    (image := tmp_path / "a.png").write_bytes(png(tmp_path))
    with pytest.raises(UserFault, match=r"a name that is too long.*give it a shorter name"), readable(image):
        (tmp_path / ("a" * 300)).write_bytes(b"")


def test_a_tiff_of_64_bits_says_how_to_save_it(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", np.zeros((4, 4), np.float64))
    with pytest.raises(UserFault, match=r"1 channel\(s\) of 64 bits floating point.*8 or 16 bits"):
        read_volume(path)


def test_a_picture_beyond_the_limit_says_the_limit_and_one_below_it_is_read_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "x.png", np.zeros((30, 50), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reader.read_image(path).shape == (30, 50, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(UserFault, match=r"at most 50 million pixels.*cut it into tiles"):
        reader.read_image(path)
    assert not recwarn.list
