"""A hospital's folder as it comes: good pairs, and every kind of broken file between them."""

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from data.dicoms import several_frames, write_seg, write_series
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data.dicom import files_of

SHAPE = (24, 20, 5)


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def lesion(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    row, column = np.random.default_rng(seed).integers(2, 10, 2)
    mask[row : row + 7, column : column + 5, 1:3] = 1
    return mask


def nifti(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.9, 3, 1]) if affine is None else affine), path)
    return path


def picture(path: Path, values: NDArray[np.generic], mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def nifti_site(folder: Path, count: int) -> Path:
    """Good pairs p00, p01 ... in images/ and labels/."""
    for i in range(count):
        nifti(folder / f"images/p{i:02d}.nii.gz", scan(i))
        nifti(folder / f"labels/p{i:02d}_seg.nii.gz", lesion(i))
    return folder


def dicom_site(folder: Path, count: int) -> Path:
    """Good series with a DICOM-SEG each, a folder a patient."""
    for i in range(count):
        home = folder / f"study{i}"
        write_series(home / "t2", scan(i).astype(np.uint16), patient=f"ID-{i}")
        write_seg(home / "drawn.dcm", files_of(home / "t2"), lesion(i), ["Tumour"])
    return folder


def _damaged(folder: Path, name: str, image: NDArray[np.generic] | None = None, mask: object = None) -> None:
    nifti(folder / f"images/{name}.nii.gz", scan(1) if image is None else image)
    nifti(folder / f"labels/{name}.nii.gz", lesion(1) if mask is None else mask)


def _truncated(folder: Path) -> None:
    _damaged(folder, "bad")
    path = folder / "images/bad.nii.gz"
    path.write_bytes(path.read_bytes()[:700])


def _wrong_affine(folder: Path) -> None:
    _damaged(folder, "bad")
    nifti(folder / "labels/bad.nii.gz", lesion(1), np.diag([0.8, 0.9, 7, 1.0]))


def _nan(folder: Path) -> None:
    values = scan(1).astype(np.float32)
    values[3, 4, 2] = np.nan
    _damaged(folder, "bad", values)


def _empty(folder: Path) -> None:
    _damaged(folder, "bad")
    (folder / "labels/bad.nii.gz").write_bytes(b"")


def _loop(folder: Path) -> None:
    os.symlink(folder / "images/bad.nii.gz", folder / "images/bad.nii.gz")


def _folder_loop(folder: Path) -> None:
    os.symlink(folder, folder / "images/bad")


def _folder_like_a_file(folder: Path) -> None:
    (folder / "images/bad.nii.gz").mkdir()


def _no_image(folder: Path) -> None:
    nifti(folder / "labels/bad.nii.gz", lesion(1))


def _no_mask(folder: Path) -> None:
    nifti(folder / "images/bad.nii.gz", scan(1))


def _two_images(folder: Path) -> None:
    _damaged(folder, "bad")
    nifti(folder / "images/bad.nii", scan(2))


def _ignored_255(folder: Path) -> None:
    mask = lesion(1)
    mask[0, 0] = 255
    _damaged(folder, "bad", mask=mask)


def _colours(folder: Path) -> None:
    picture(folder / "images/bad.png", scan(1, (9, 9, 3)).astype(np.uint8))
    picture(folder / "masks/bad.png", scan(2, (9, 9, 3)).astype(np.uint8))


def _text(folder: Path) -> None:
    (folder / "images/bad.png").write_text("not a picture")
    picture(folder / "masks/bad.png", lesion(1, (9, 9, 3))[..., 0])


def _not_dicom(folder: Path) -> None:
    (folder / "bad.dcm").write_text("not DICOM")


def _no_position(folder: Path) -> None:
    files = write_series(folder / "bad", scan(1).astype(np.uint16))
    write_seg(folder / "of_bad.dcm", files_of(folder / "bad"), lesion(1), ["Tumour"])
    import pydicom

    data = pydicom.dcmread(files[2])
    del data.ImagePositionPatient
    data.save_as(files[2])


def _no_series(folder: Path) -> None:
    write_series(folder / "bad", scan(1).astype(np.uint16), tags={"SeriesInstanceUID": None})


def _no_pixels(folder: Path) -> None:
    write_series(folder / "bad", scan(1).astype(np.uint16), tags={"Rows": None, "PixelData": None})


def _lost_segmentation(folder: Path) -> None:
    write_series(folder / "other", scan(1).astype(np.uint16))
    write_seg(folder / "bad.dcm", files_of(folder / "other"), lesion(1), ["Tumour"])
    for file in (folder / "other").iterdir():
        file.unlink()


def _slice_missing(folder: Path) -> None:
    files = write_series(folder / "bad", scan(1).astype(np.uint16))
    write_seg(folder / "of_bad.dcm", files_of(folder / "bad"), lesion(1), ["Tumour"])
    files[2].unlink()


def _several_frames(folder: Path) -> None:
    files = write_series(folder / "bad", scan(1).astype(np.uint16))
    write_seg(folder / "of_bad.dcm", files_of(folder / "bad"), lesion(1), ["Tumour"])
    several_frames(files, 2)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {  # what is done to the folder, and what the report must say
    "truncated": (_truncated, r"readable file"),
    "four dimensions": (lambda f: _damaged(f, "bad", scan(1, (6, 6, 4, 3))), r"3-D volume .* shape \(6, 6, 4, 3\)"),
    "NaN": (_nan, r"NaN or infinite in 1 of 2400 values"),
    "label 255 beside 1": (_ignored_255, r"values 0, 1 in the mask .* came also 255"),
    "mask of another size": (lambda f: _damaged(f, "bad", mask=lesion(1, (24, 20, 4))), r"image's size, 20 x 24 x 5"),
    "wrong affine": (_wrong_affine, r"up to 16\.0 mm away"),
    "negative label": (lambda f: _damaged(f, "bad", mask=-lesion(1).astype(np.int16)), r"negative values"),
    "fractions": (lambda f: _damaged(f, "bad", mask=lesion(1) * np.float32(0.5)), r"fractions"),
    "zero bytes": (_empty, r"empty \(0 bytes\)"),
    "link to itself": (_loop, r"broken link"),
    "link to a folder above": (_folder_loop, r"link to a folder"),
    "folder like a file": (_folder_like_a_file, r"folder with a name like a file"),
    "mask alone": (_no_image, r"mask without an image"),
    "image alone": (_no_mask, r"image without a mask"),
    "two of one name": (_two_images, r"2 images and 1 masks have the same name"),
    "coloured mask": (_colours, r"colours"),
    "text as picture": (_text, r"readable file .*came a text"),
    "text as DICOM": (_not_dicom, r"not readable as DICOM"),
    "DICOM without position": (_no_position, r"without ImagePositionPatient"),
    "DICOM without series": (_no_series, r"no SeriesInstanceUID"),
    "DICOM without image": (_no_pixels, r"without an image"),
    "segmentation of nothing": (_lost_segmentation, r"DICOM-SEG whose series is not in the folder"),
    "slice missing": (_slice_missing, r"drawn on 1 slice\(s\) of its series"),
    "several frames in a file of a series": (_several_frames, r"came 3 frames in .*_2\.dcm"),
    "another kind of file": (lambda f: (f / "bad.docx").write_text("notes") and None, r"cannot be read here"),
}
