"""Masks as files of the source's own format and place: picture, NIfTI, DICOM-SEG."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid

import pfedsam
from pfedsam.data.dicom import read_series
from pfedsam.data.volume import Volume, read_nifti, read_picture
from pfedsam.errors import UserFault
from pfedsam.predict.items import Item
from pfedsam.predict.masks import Found

logging.getLogger("highdicom").setLevel(logging.ERROR)  # its warning at an empty mask is no news

TISSUE = CodedConcept("85756007", "SCT", "Tissue")
LEARNED = CodedConcept("123109", "DCM", "Artificial Intelligence")
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe-Ito


@dataclass(frozen=True)
class Format:
    """How one kind of item is read, and its masks written.

    Attributes:
        read: the item's files as a volume.
        target: the mask's file, from the output folder's and the item's name.
        write: labels, and probabilities where kept, to the target (and beside it).
    """

    read: Callable[[Item], Volume]
    target: Callable[[Path, Item], Path]
    write: Callable[[Path, Item, Found, list[str]], list[Path]]


def write_picture(path: Path, item: Item, found: Found, names: list[str]) -> list[Path]:
    """A picture of class numbers with a palette, so that a viewer shows colours; probabilities as 16-bit PNG."""
    image = Image.fromarray(found.labels[..., 0])
    image.putpalette([int(c[i : i + 2], 16) for c in COLOURS for i in (1, 3, 5)])
    written = [_replace(path, image.save)]
    if found.probabilities is not None:
        for i, maps in enumerate(found.probabilities):
            deep = Image.fromarray(np.rint(maps[..., 0] * 65535).astype(np.uint16))
            written.append(_replace(_beside(path, i, ".png"), deep.save))
    return written


def write_nifti(path: Path, item: Item, found: Found, names: list[str]) -> list[Path]:
    """Class numbers with the source's shape, affine and codes; probabilities as float32 files, one a class."""
    source: Any = nibabel.load(item.files[0])
    maps = {path: found.labels}
    if found.probabilities is not None:
        maps |= {_beside(path, i, _nifti_end(path)): p for i, p in enumerate(found.probabilities)}
    return [_replace(where, _like(source, values).to_filename) for where, values in maps.items()]


def write_dicom(path: Path, item: Item, found: Found, names: list[str]) -> list[Path]:
    """A DICOM segmentation that refers to the series, a segment a class; probabilities as a fractional one.

    Raises:
        UserFault: the series lacks what a segmentation must refer to.
    """
    written = [_replace(path, _segmentation(item, found.masks, names, fractional=False).save_as)]
    if found.probabilities is not None:
        likely = _segmentation(item, found.probabilities, names, fractional=True)
        written.append(_replace(path.with_name(path.name.replace(".seg.", ".prob.seg.")), likely.save_as))
    return written


FORMATS = {
    "picture": Format(lambda i: read_picture(i.files[0]), lambda out, i: out / _picture_name(i), write_picture),
    "nifti": Format(
        lambda i: read_nifti(i.files[0]), lambda out, i: out / f"{i.name}{_nifti_end(i.files[0])}", write_nifti
    ),
    "dicom": Format(lambda i: read_series(i.files), lambda out, i: out / f"{i.name}.seg.dcm", write_dicom),
}


def _picture_name(item: Item) -> str:
    """JPEG would smear class numbers: it becomes PNG."""
    ending = item.files[0].suffix.lower()
    return f"{item.name}{'.png' if ending in ('.jpg', '.jpeg') else ending}"


def _nifti_end(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"


def _beside(path: Path, channel: int, ending: str) -> Path:
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return path.with_name(f"{stem}.prob-{channel + 1}{ending}")


def _like(source: Any, values: NDArray[Any]) -> Any:
    header = source.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"], header["aux_file"] = b"pfedsam", b""
    header.extensions.clear()  # they may tell of the patient, and of the image, not of the mask
    return type(source)(values.reshape(source.shape), source.affine, header)


def _segmentation(item: Item, maps: NDArray[Any], names: list[str], *, fractional: bool) -> Any:
    """A highdicom segmentation of (classes, H, W, N) maps."""
    planes = np.moveaxis(maps, (3, 0), (0, 3))
    sources = [pydicom.dcmread(file) for file in item.files]
    try:
        return highdicom.seg.Segmentation(
            sources,
            _framed(item, planes),
            "FRACTIONAL" if fractional else "BINARY",
            [_segment(i + 1, name) for i, name in enumerate(names)],
            series_instance_uid=generate_uid(),
            series_number=int(sources[0].get("SeriesNumber") or 1) + 1000,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="pfedsam",
            manufacturer_model_name="pfedsam",
            software_versions=pfedsam.__version__,
            device_serial_number="0",
            series_description="pfedsam probabilities" if fractional else "pfedsam segmentation",
            content_label="SEGMENTATION",
        )
    except (AttributeError, ValueError, TypeError) as error:
        raise UserFault(
            expected=f"a series in {item.files[0].parent} that a DICOM segmentation can refer to",
            came=" ".join(str(error).split()),
            do="export it with all its tags, or convert it to NIfTI",
        ) from None


def _framed(item: Item, planes: NDArray[Any]) -> Any:
    """(N, H, W, classes) planes; of a multi-frame file with their place, as its frames have an order of their own."""
    if len(item.files) > 1 or planes.shape[0] == 1:
        return planes if planes.dtype == np.float32 else planes.astype(np.uint8)
    place = highdicom.imread(item.files[0]).get_volume()
    return place.with_array(planes if planes.dtype == np.float32 else planes.astype(np.uint8))


def _segment(number: int, name: str) -> Any:
    how = highdicom.AlgorithmIdentificationSequence("pfedsam", LEARNED, pfedsam.__version__)
    return highdicom.seg.SegmentDescription(number, name, TISSUE, TISSUE, "AUTOMATIC", how)


def _replace(path: Path, save: Callable[[str], object]) -> Path:
    """`path` whole or not at all: written beside it, then renamed.

    Raises:
        UserFault: the disk is full or forbids writing.
    """
    beside = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(str(beside))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserFault(
            expected=f"to write {path}", came=error.strerror or str(error), do="free space or mend the folder's rights"
        ) from None
    return path
