"""DICOM files written for the tests: a classic series, and its segmentation."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

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


def change(path: Path, **tags: object) -> Path:
    """The file at `path` with other tags; None drops one."""
    data = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            del data[tag]
        else:
            setattr(data, tag, value)
    data.save_as(path)
    return path


def enhanced(
    folder: Path, values: NDArray[np.generic], *, shuffled: bool = False, shift: float = 0, gap: float = 2.5
) -> Path:
    """An enhanced MR file of `values` (H, W, N) that states its geometry in functional groups alone.

    Args:
        shuffled: frames are stored in another order than they lie in.
        shift: of each slice along its plane towards posterior, in mm, as of a tilted gantry.
    """
    (path,) = write_series(folder, values[:, :, :1], tags={"SOPClassUID": EnhancedMRImageStorage})
    data = pydicom.dcmread(path)
    order = np.random.default_rng(1).permutation(values.shape[2]) if shuffled else np.arange(values.shape[2])
    data.NumberOfFrames = values.shape[2]
    data.PixelData = np.moveaxis(values, 2, 0)[order].tobytes()
    shared = Dataset()
    shared.PixelMeasuresSequence = [_of(PixelSpacing=data.PixelSpacing, SliceThickness=2.5)]
    shared.PlaneOrientationSequence = [_of(ImageOrientationPatient=data.ImageOrientationPatient)]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = [
        _of(PlanePositionSequence=[_of(ImagePositionPatient=[10.0, -20 + k * shift, 30 + k * gap])]) for k in order
    ]
    del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing, data.SliceThickness
    data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    data.save_as(path)
    return path


def a_frame_each(files: list[Path], slopes: list[float], intercept: float) -> list[Path]:
    """The files of a series as enhanced ones of one frame: place and rescaling are in functional groups alone."""
    for file, slope in zip(files, slopes, strict=True):
        data = pydicom.dcmread(file)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
        data.NumberOfFrames = 1
        own = _of(
            PlanePositionSequence=[_of(ImagePositionPatient=data.ImagePositionPatient)],
            PlaneOrientationSequence=[_of(ImageOrientationPatient=data.ImageOrientationPatient)],
            PixelMeasuresSequence=[_of(PixelSpacing=data.PixelSpacing, SliceThickness=data.SliceThickness)],
            PixelValueTransformationSequence=[_of(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")],
        )
        data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [Dataset()], [own]
        del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing, data.SliceThickness
        data.save_as(file)
    return files


def _of(**tags: object) -> Dataset:
    data = Dataset()
    for tag, value in tags.items():
        setattr(data, tag, value)
    return data


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
