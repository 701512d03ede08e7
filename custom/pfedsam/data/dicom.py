"""Reading a DICOM series: classic (a file a slice) by pydicom, enhanced (all frames in a file) by highdicom."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array

from pfedsam.data.geometry import Affine, Volume, spacing_of
from pfedsam.data.readable import readable
from pfedsam.errors import UserFault

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts towards left and posterior
UNEVEN = 0.1  # a gap this much off the others, as a share of it, means that slices are missing


def read_dicom(path: Path) -> Volume:
    """The one series in a folder, or a file's image: intensities rescaled, MONOCHROME1 turned to bright is high.

    Slices lie along the normal of their plane by ImagePositionPatient; compressed files need the pydicom plugin
    of their kind.

    Raises:
        UserFault: no DICOM image, several series, slices missing or twice, a file that can't be read.
    """
    return read_series(files_of(path))


def files_of(path: Path) -> list[Path]:
    """The slices' files of the one series in folder `path`, in the order of its volume; a file is its own series.

    Raises:
        UserFault: none, or several series.
    """
    if path.is_file():
        return [path]
    headers = {file: head for file in sorted(path.iterdir()) if (head := header(file)) is not None and "Rows" in head}
    series = {str(head.get("SeriesInstanceUID", "")) for head in headers.values()}
    if len(series) != 1:
        raise UserFault(
            expected=f"one DICOM series in {path}",
            came=f"{len(series)} series in {len(headers)} files" if series else "no DICOM image",
            do="give the folder of one series",
        )
    return in_order(headers)


def header(path: Path) -> Any | None:
    """A DICOM file's data set without its pixels; None where the file is no DICOM or can't be read."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True) if path.is_file() else None
    except Exception:  # whatever it is, it is no DICOM that could be used
        return None


def read_series(files: Sequence[Path]) -> Volume:
    """The volume of one series' files, in any order; see `read_dicom`."""
    with readable(files[0]):
        first = pydicom.dcmread(files[0], stop_before_pixels=True)
        if _frames(first) > 1 and len(files) == 1:
            return _enhanced(files[0])
        heads = {file: head for file in files if (head := header(file)) is not None}
        _check_alike(heads, files)
        ordered = in_order(heads)
        affine = _affine([heads[file] for file in ordered], ordered)
        values = np.stack([_pixels(file) for file in ordered], axis=2)
        return Volume(values, affine, _flat_spacing(first) if affine is None else spacing_of(affine))


def placed(head: Any) -> bool:
    """Whether an image says where it lies in the patient; an X-ray does not."""
    return "ImagePositionPatient" in head or "PerFrameFunctionalGroupsSequence" in head


def in_order(heads: dict[Path, Any]) -> list[Path]:
    """The files along the normal of their plane, by ImagePositionPatient; one file twice counts once.

    Raises:
        UserFault: several files, and one does not say where it lies.
    """
    once = list({str(head.get("SOPInstanceUID", file)): file for file, head in heads.items()}.values())
    if len(once) == 1:
        return once
    for file in once:
        if not {"ImagePositionPatient", "ImageOrientationPatient"} <= set(heads[file].dir()):
            raise UserFault(
                expected=f"a position and an orientation in each slice of a series, so in {file}",
                came="no ImagePositionPatient or ImageOrientationPatient",
                do="export the series again with its geometry",
            )
    normal = _normal(heads[once[0]])
    return sorted(once, key=lambda file: float(normal @ _floats(heads[file].ImagePositionPatient)))


def _check_alike(heads: dict[Path, Any], files: Iterable[Path]) -> None:
    for file in files:
        if file not in heads:
            raise UserFault(expected=f"a readable DICOM file at {file}", came="none", do="export the series again")
    if several := next((file for file, head in heads.items() if _frames(head) > 1), None):
        raise UserFault(
            expected=f"one frame in each of a series' {len(heads)} files, or all frames in one file",
            came=f"{_frames(heads[several])} frames in {several}",
            do="put that file into a folder of its own, or leave it out",
        )
    kinds = {_kind(head): file for file, head in heads.items()}
    if len(kinds) > 1:
        raise UserFault(
            expected="slices of one size, spacing and direction in a series",
            came=f"{len(kinds)} kinds, such as {' and '.join(sorted(f.name for f in kinds.values())[:2])}",
            do="put each kind into a folder of its own (localisers are often the odd ones)",
        )


def _frames(head: Any) -> int:
    return int(head.get("NumberOfFrames") or 1)


def _kind(head: Any) -> tuple[Any, ...]:
    lengths = [round(float(x), 3) for tag in ("PixelSpacing", "ImageOrientationPatient") for x in head.get(tag) or ()]
    return (head.get("Rows"), head.get("Columns"), head.get("SamplesPerPixel"), *lengths)


def _affine(heads: list[Any], files: list[Path]) -> Affine | None:
    """From (row, column, slice) to RAS mm; None for an image without geometry, such as an X-ray."""
    first = heads[0]
    if "ImagePositionPatient" not in first or "ImageOrientationPatient" not in first:
        return None
    spacing = _flat_spacing(first)
    along_row, along_column = _floats(first.ImageOrientationPatient).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_column * spacing[0], along_row * spacing[1]
    affine[:3, 2], affine[:3, 3] = _step(heads, files), _floats(first.ImagePositionPatient)
    return np.asarray(LPS_TO_RAS @ affine)


def _step(heads: list[Any], files: list[Path]) -> NDArray[np.float64]:
    """From a slice to the next, mm.

    Raises:
        UserFault: two slices at one place, or uneven gaps.
    """
    places = np.stack([_floats(head.ImagePositionPatient) for head in heads])
    if len(places) == 1:
        return _normal(heads[0]) * float(heads[0].get("SpacingBetweenSlices") or heads[0].get("SliceThickness") or 1)
    gaps = np.diff(places @ _normal(heads[0]))
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        where = files[int(gaps.argmin()) + 1].name
        raise UserFault(
            expected=f"one slice at each position of the series in {files[0].parent}",
            came=f"two at the position of {where}",
            do="split the series by time, echo or b-value into folders of their own",
        )
    if np.abs(gaps - usual).max() > UNEVEN * usual:
        where = files[int(np.abs(gaps - usual).argmax())].name
        raise UserFault(
            expected=f"slices {usual:.3g} mm apart in the series in {files[0].parent}",
            came=f"a gap of {gaps[np.abs(gaps - usual).argmax()]:.3g} mm after {where}",
            do="export the whole series again: slices are missing",
        )
    return np.asarray((places[-1] - places[0]) / (len(places) - 1))


def _pixels(file: Path) -> NDArray[Any]:
    """(H, W), or (H, W, 3) of colours."""
    with readable(file):
        data = pydicom.dcmread(file)
        _check_plugin(file, data.file_meta.TransferSyntaxUID)
        stored = pixel_array(data)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            wide = apply_color_lut(stored, data)
            return np.asarray(wide if wide.dtype == np.uint8 else (wide >> 8).astype(np.uint8))
        return _intensities(stored, data)


def _intensities(stored: NDArray[Any], data: Any) -> NDArray[Any]:
    """Bright is high; whole numbers as stored or as the file's table has them, float32 where it rescales."""
    dark = data.PhotometricInterpretation == "MONOCHROME1"
    if data.get("ModalityLUTSequence"):
        looked_up = apply_modality_lut(stored.astype(np.int32), data)  # as int32 any length of table can be counted
        return np.asarray(np.iinfo(looked_up.dtype).max - looked_up if dark else looked_up)
    values = _inverted(stored, data) if dark else stored
    slope, shift = _number(data, "RescaleSlope", 1), _number(data, "RescaleIntercept", 0)
    return values if (slope, shift) == (1, 0) else (values.astype(np.float64) * slope + shift).astype(np.float32)


def _number(data: Any, tag: str, absent: float) -> float:
    """A tag's number; an empty tag is an absent one."""
    value = data.get(tag)
    return absent if value in (None, "") else float(value)


def _check_plugin(file: Path, syntax: Any) -> None:
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise UserFault(
            expected=f"a pydicom plugin for the compression of {file}",
            came=f"none for {syntax.name}",
            do="pip install python-gdcm, or export the series without compression",
        )


def _inverted(stored: NDArray[Any], data: Any) -> NDArray[Any]:
    """Bright is high, within the range of the stored bits: alike for every slice of a series."""
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    ends = -1 if signed else 2**bits - 1  # lowest plus highest value
    return np.asarray(ends - stored.astype(np.int32)).astype(stored.dtype)


def _enhanced(file: Path) -> Volume:
    values, affine = slices_last(highdicom.imread(file).get_volume(dtype=np.float32))
    return Volume(values, affine, spacing_of(affine))


def slices_last(volume: Any) -> tuple[NDArray[Any], Affine]:
    """highdicom's volume, which counts slices first, as (H, W, N, ...) and its affine to RAS mm."""
    affine = (LPS_TO_RAS @ np.asarray(volume.affine))[:, [1, 2, 0, 3]]
    return np.moveaxis(np.asarray(volume.array), 0, 2), affine


def _flat_spacing(head: Any) -> tuple[float, float, float]:
    row, column = _floats(head.get("PixelSpacing") or head.get("ImagerPixelSpacing") or (1, 1))
    return float(row), float(column), 1.0


def _normal(head: Any) -> NDArray[np.float64]:
    along_row, along_column = _floats(head.ImageOrientationPatient).reshape(2, 3)
    return np.cross(along_row, along_column)


def _floats(values: Any) -> NDArray[np.float64]:
    return np.array([float(x) for x in values])
