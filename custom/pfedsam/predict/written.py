"""Writes masks in the source's format and geometry: as picture, NIfTI or DICOM-SEG."""

import os
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pfedsam.data import nifti, picture
from pfedsam.data.dicom import dicom_header
from pfedsam.data.readable import readable
from pfedsam.errors import UserFault, reason
from pfedsam.names import beside
from pfedsam.predict.anonymous import is_anonymous
from pfedsam.predict.masks import Prediction
from pfedsam.predict.scans import Scan
from pfedsam.predict.segmentation import Classes, segmentation
from pfedsam.umask import file_mode

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe-Ito
PALETTE = [  # always 256 entries: with fewer, Pillow writes too few bits per pixel; the background is black
    int(colour[i : i + 2], 16) for colour in (COLOURS[0], *islice(cycle(COLOURS[1:]), 255)) for i in (1, 3, 5)
]
SEG = ".seg.dcm"
Save = Callable[[str], object]  # writes to a path


def target(out: Path, scan: Scan) -> Path:
    """The file of a scan's mask, in the scan's format, below folder `out`."""
    return out / f"{scan.name}{_ending(scan)}"


def _ending(scan: Scan) -> str:
    if scan.kind == "dicom":
        return SEG
    if scan.kind == "nifti":
        return ".nii.gz" if scan.files[0].name.lower().endswith(".gz") else ".nii"
    ending = scan.files[0].suffix.lower()
    return ".png" if ending in (".jpg", ".jpeg") else ending  # JPEG would change class numbers


def files_of(out: Path, scan: Scan, classes: int, *, probabilities: bool) -> list[Path]:
    """All files of one scan, the mask first. Probabilities are one file per class, except in DICOM."""
    if not probabilities:
        return [target(out, scan)]
    ending = ".png" if scan.kind == "picture" else _ending(scan)
    kinds = [".prob"] if scan.kind == "dicom" else [f".prob-{i + 1}" for i in range(classes)]
    return [target(out, scan), *(out / f"{scan.name}{kind}{ending}" for kind in kinds)]


def write(out: Path, scan: Scan, found: Prediction, classes: Classes, *, again: bool) -> list[Path]:
    """Write the scan's missing files, or all of them; returns what was written.

    Raises:
        UserFault: the disk is full or not writable, or a series lacks tags to which a segmentation must refer.
    """
    files = files_of(out, scan, len(classes.names), probabilities=found.probabilities is not None)
    pairs = zip(files, SAVERS[scan.kind](scan, found, classes), strict=True)
    return [_replace(path, save) for path, save in pairs if again or not path.exists()]


def existing(path: Path, scan: Scan, *, anonymous: bool) -> str:
    """What is wrong with the mask at `path` as this scan's, in words; empty if nothing is.

    It is wrong if it has another size or place, because the image was replaced under its name. A DICOM segmentation is
    wrong if it was drawn on other images, or only on some of them, or if it has the patient where it should not, or
    the other way round. Of an anonymous one only the number of images is known.

    Raises:
        UserFault: it is unreadable.
    """
    if scan.kind == "dicom":
        return _other_series(path, scan, anonymous=anonymous)
    with readable(path):
        return "" if _covers(path, scan) else "one of another size or place than its image has now"


def _covers(path: Path, scan: Scan) -> bool:
    """Whether a mask in a picture or in NIfTI is as large as its image, and at the same place."""
    if scan.kind == "picture":
        return picture.shape(path) == picture.shape(scan.files[0])
    mask, image = nifti.opened(path), nifti.opened(scan.files[0])
    return bool(mask.shape == image.shape and np.allclose(mask.affine, image.affine, rtol=1e-4, atol=1e-3))


def _other_series(path: Path, scan: Scan, *, anonymous: bool) -> str:
    """`existing` of a DICOM scan."""
    head = dicom_header(path)
    if head is None:
        return ""
    if is_anonymous(head) != anonymous:
        return "one that names its patient" if anonymous else "an anonymous one"
    referred = {
        str(image.ReferencedSOPInstanceUID)
        for series in head.get("ReferencedSeriesSequence", [])
        for image in series.get("ReferencedInstanceSequence", [])
    }
    heads = [dicom_header(file) for file in scan.files] if referred else []
    images = {str(own.get("SOPInstanceUID")) for own in heads if own is not None}
    fits = len(referred) == len(images) if anonymous else referred == images
    return "" if fits or not referred else "one of another series, or of another number of slices"


def picture_savers(scan: Scan, found: Prediction, classes: Classes) -> list[Save]:
    """A picture of class numbers with a palette, which viewers show as colours; probabilities as 16-bit PNG."""
    image = Image.fromarray(found.labels[..., 0])
    image.putpalette(PALETTE)
    likely = () if found.probabilities is None else found.probabilities
    return [image.save, *(Image.fromarray(np.rint(m[..., 0] * 65535).astype(np.uint16)).save for m in likely)]


def nifti_savers(scan: Scan, found: Prediction, classes: Classes) -> list[Save]:
    """Class numbers with the source's shape, affine and codes; probabilities as one float32 file per class."""
    source: Any = nibabel.load(scan.files[0])
    likely = () if found.probabilities is None else found.probabilities
    return [_like(source, values).to_filename for values in (found.labels, *likely)]


def dicom_savers(scan: Scan, found: Prediction, classes: Classes) -> list[Save]:
    """A DICOM segmentation of the series with one segment per class; probabilities as a fractional one."""

    def save(maps: NDArray[Any], where: str) -> None:
        segmentation(scan, maps, classes, fractional=maps.dtype == np.float32).save_as(where)

    kinds = (found.masks,) if found.probabilities is None else (found.masks, found.probabilities)
    return [partial(save, maps) for maps in kinds]


# writes each file of a scan, the mask's first; then those of probabilities, if kept
SAVERS = {"picture": picture_savers, "nifti": nifti_savers, "dicom": dicom_savers}


def _like(source: Any, values: NDArray[Any]) -> Any:
    """An image with the geometry of `source`, without the header's texts, which may identify the patient."""
    head = source.header.copy()
    for name, (kind, *_) in head.structarr.dtype.fields.items():
        if kind.kind == "S" and name != "magic":
            head[name] = b""
    head.set_intent("none")  # the source's intent describes the image, not the mask
    head.set_data_dtype(values.dtype)
    head.set_slope_inter(1, 0)
    head["cal_min"] = head["cal_max"] = 0
    head["descrip"] = b"pfedsam"
    head.extensions.clear()
    return type(source)(values.reshape(source.shape), source.affine, head)


def _replace(path: Path, save: Save) -> Path:
    """Write `path` completely or not at all: beside it first, then renamed.

    Raises:
        UserFault: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path, ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix) as new:
            new.touch(file_mode())
            save(str(new))
            os.replace(new, path)
    except OSError as error:
        raise UserFault(
            expected=f"to write {path}",
            came=reason(error),
            do="free space, or correct the folder's permissions",
        ) from None
    return path
