"""DICOM files written for the tests: a classic series, and its segmentation."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)


def write_series(
    folder: Path,
    values: NDArray[np.generic],
    *,
    patient: str = "PAT-1",
    orientation: tuple[float, ...] = AXIAL,
    gap: float = 2.5,
    tags: dict[str, object] | None = None,
) -> list[Path]:
    """A file a slice of `values` (H, W, N) or (H, W, N, 3), shuffled by name; tags changes or, by None, drops."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    files = []
    for k in range(values.shape[2]):
        data = _slice(np.ascontiguousarray(values[:, :, k]), study, series, frame)
        data.PatientID, data.PatientName, data.InstanceNumber = patient, f"Doe^{patient}", k + 1
        data.ImageOrientationPatient = list(orientation)
        data.ImagePositionPatient = [float(x) for x in np.array([10, -20, 30]) + k * gap * normal]
        for tag, value in (tags or {}).items():
            if value is None:
                del data[tag]
            else:
                setattr(data, tag, value)
        files.append(folder / f"{(k * 7) % values.shape[2]:03d}_{k}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def several_frames(files: list[Path], which: int) -> list[Path]:
    """The files of a series, one of them now with three frames."""
    data = pydicom.dcmread(files[which])
    data.NumberOfFrames, data.PixelData = 3, 3 * data.PixelData
    data.save_as(files[which])
    return files


def write_seg(
    path: Path,
    sources: list[Path],
    labels: NDArray[np.uint8],
    names: list[str],
    *,
    kind: str = "BINARY",
    numbers: list[int] | None = None,
) -> Path:
    """A DICOM-SEG of `labels` (H, W, N) over the series' files in the order of its slices.

    Class i + 1 of `labels` is the segment names[i], numbered numbers[i]; a LABELMAP gets a segment 0, Background.
    """
    code = CodedConcept("108369006", "SCT", "Neoplasm")
    algorithm = highdicom.AlgorithmIdentificationSequence("test", code, "1")
    described = [
        highdicom.seg.SegmentDescription(number, name, code, code, "AUTOMATIC", algorithm)
        for number, name in zip(numbers or range(1, len(names) + 1), names, strict=True)
    ]
    planes = np.stack([np.moveaxis(labels == i + 1, 2, 0) for i in range(len(names))], axis=-1).astype(np.uint8)
    if kind == "LABELMAP":
        planes = (planes * np.array(numbers or range(1, len(names) + 1), np.uint8)).max(-1)
    segmentation = highdicom.seg.Segmentation(
        [pydicom.dcmread(source) for source in sources],
        planes,
        kind,
        described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.save_as(path)
    return path


def _slice(pixels: NDArray[np.generic], study: str, series: str, frame: str) -> FileDataset:
    meta = FileMetaDataset()
    colour = pixels.ndim == 3
    meta.MediaStorageSOPClassUID = MRImageStorage if not colour else CTImageStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
    data.Modality, data.SeriesNumber, data.StudyID, data.AccessionNumber = "MR", 1, "1", ""
    data.StudyDate = data.StudyTime = data.PatientBirthDate = data.PatientSex = data.ReferringPhysicianName = ""
    data.PixelSpacing, data.SliceThickness, data.PositionReferenceIndicator = [0.5, 0.75], 2.5, ""
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    return data
