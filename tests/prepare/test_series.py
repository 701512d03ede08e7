"""DICOM files put together as they were taken, and named where an exporter or a de-identification broke them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from data.dicoms import change, enhanced, write_seg, write_series
from prepare.corpus import lesion, nifti, scan

from pfedsam.data.dicom import files_of, read_series
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import read_segmentation
from pfedsam.prepare.discover import discover
from pfedsam.prepare.site import Wish, prepare

ONE = {"Tumour": 1}
IMAGE = scan(1).astype(np.uint16)


def tilted(folder: Path, *, drift: float = 0.0) -> list[Path]:
    """A series whose slices are shifted along their plane, the more the further up; in order."""
    for k, file in enumerate(files_of_written(folder)):
        change(file, ImagePositionPatient=[10 + 0.3 * (k % 2) * drift, -20 + 0.8 * k, 30 + 2.5 * k])
    return files_of(folder)


def files_of_written(folder: Path) -> list[Path]:
    write_series(folder, IMAGE)
    return files_of(folder)


@pytest.mark.parametrize("drift", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_a_segmentation_of_a_tilted_series_is_read_frame_by_frame(tmp_path: Path, kind: str, drift: float) -> None:
    files = tilted(tmp_path / "s", drift=drift)
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"], kind=kind)
    assert np.array_equal(read_segmentation(path, read_series(files), files, classes=ONE), lesion(1))


def test_a_segmentation_of_a_tilted_series_without_references_is_read_by_place(tmp_path: Path) -> None:
    files = tilted(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"])
    data = pydicom.dcmread(path)
    for frame in data.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    data.save_as(path)
    assert np.array_equal(read_segmentation(path, read_series(files), files, classes=ONE), lesion(1))


def test_a_frame_that_names_another_slice_than_the_one_at_its_place_is_a_fault(tmp_path: Path) -> None:
    files = files_of_written(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"])
    data = pydicom.dcmread(path)
    source = data.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = pydicom.dcmread(files[4]).SOPInstanceUID
    data.save_as(path)
    with pytest.raises(UserFault, match="at the position of the slice that it names"):
        read_segmentation(path, read_series(files), files, classes=ONE)


def test_a_segmentation_of_an_enhanced_file_lies_on_its_frames(tmp_path: Path) -> None:
    image = enhanced(tmp_path, IMAGE, shuffled=True, shift=0.8)
    stored = pydicom.dcmread(image).PerFrameFunctionalGroupsSequence
    order = [round((f.PlanePositionSequence[0].ImagePositionPatient[2] - 30) / 2.5) for f in stored]
    path = write_seg(tmp_path / "seg.dcm", [image], lesion(1)[:, :, order], ["Tumour"])
    assert np.array_equal(read_segmentation(path, read_series([image]), [image], classes=ONE), lesion(1))


def test_several_enhanced_files_of_one_series_are_a_case_each(tmp_path: Path) -> None:
    for name in "abc":
        path = enhanced(tmp_path / name, scan(ord(name)).astype(np.uint16))
        change(path, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2").rename(tmp_path / f"{name}.dcm")
        (tmp_path / name).rmdir()
        write_seg(tmp_path / f"{name}_drawn.dcm", [tmp_path / f"{name}.dcm"], lesion(ord(name)), ["Tumour"])
    found = discover([tmp_path], None)
    assert [(case.name, len(case.image)) for case in found.cases] == [("a.dcm", 1), ("b.dcm", 1), ("c.dcm", 1)]
    assert found.dropped == []


def why(folder: Path) -> dict[str, tuple[str, str]]:
    return {d.file: (d.why, d.do) for d in discover([folder], None).dropped}


def test_a_series_without_a_mask_is_called_a_series(tmp_path: Path) -> None:
    write_series(tmp_path / "images/p1", IMAGE)
    assert why(tmp_path)["images/p1"][0] == "a DICOM series without a mask of its name"


def test_what_the_remedy_for_a_series_uid_per_slice_says_makes_it_a_case(tmp_path: Path) -> None:
    files = [
        change(file, SeriesInstanceUID=f"1.2.3.{k + 1}")
        for k, file in enumerate(write_series(tmp_path / "images/p1", IMAGE))
    ]
    nifti(tmp_path / "masks/p1.nii", lesion(1))
    assert discover([tmp_path], None).cases == []
    uid = pydicom.uid.generate_uid()
    for file in files:
        data = pydicom.dcmread(file)
        data.SeriesInstanceUID = uid
        data.save_as(file)
    assert [case.name for case in discover([tmp_path], None).cases] == ["images/p1"]


def test_a_series_uid_for_each_slice_is_named_as_such(tmp_path: Path) -> None:
    for k, file in enumerate(write_series(tmp_path / "images/p1", IMAGE)):
        change(file, SeriesInstanceUID=f"1.2.3.{k + 1}")
    nifti(tmp_path / "masks/p1.nii", lesion(1))
    slices = [told for name, told in why(tmp_path).items() if name.startswith("images")]
    assert len(slices) == 5
    assert all(
        "5 series of one slice in one folder" in told[0] and "one SeriesInstanceUID" in told[1] for told in slices
    )


def test_a_segmentation_of_an_absent_series_is_not_paired_with_another_in_its_frame_of_reference(
    tmp_path: Path,
) -> None:
    """Drawn on T2, which is not there, it was paired with T1 of the same patient."""
    frame = pydicom.uid.generate_uid()
    for kind in ("t1", "t2"):
        write_series(tmp_path / kind, IMAGE, tags={"FrameOfReferenceUID": frame})
    path = write_seg(tmp_path / "t1/drawn.dcm", files_of(tmp_path / "t2"), lesion(1), ["Tumour"])
    found = discover([tmp_path / "t1"], None)
    assert found.cases == []
    assert ("drawn.dcm", "a DICOM-SEG whose series is not in the folder") in [(d.file, d.why) for d in found.dropped]
    data = pydicom.dcmread(path)
    del data.ReferencedSeriesSequence
    data.save_as(path)
    assert len(discover([tmp_path / "t1"], None).cases) == 1


def test_a_series_that_shares_its_instances_with_another_is_named_with_it(tmp_path: Path) -> None:
    for name in "ab":
        for k, file in enumerate(write_series(tmp_path / f"images/{name}", scan(ord(name)).astype(np.uint16))):
            change(file, SOPInstanceUID=f"1.2.3.{k + 1}")
        nifti(tmp_path / f"masks/{name}.nii", lesion(1))
    found = discover([tmp_path], None)
    told = {d.file: d.why for d in found.dropped}
    assert found.cases == []
    assert all("1.2.3." in told[f"images/{name}"] and "in 2 different files" in told[f"images/{name}"] for name in "ab")


def test_a_copy_of_a_series_is_no_second_case(tmp_path: Path) -> None:
    files = files_of_written(tmp_path / "a/s")
    write_seg(tmp_path / "a/seg.dcm", files, lesion(1), ["Tumour"])
    (tmp_path / "b").mkdir()
    for file in files:
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    found = discover([tmp_path], None)
    assert (len(found.cases), found.dropped) == (1, [])


def test_a_series_uid_that_two_patients_share_makes_two_series(tmp_path: Path) -> None:
    for name in "ab":
        for file in write_series(tmp_path / name, IMAGE, patient=name):
            change(file, SeriesInstanceUID="1.2.3")
        write_seg(tmp_path / f"{name}.seg.dcm", files_of(tmp_path / name), lesion(1), ["Tumour"])
    assert sorted(case.patient for case in discover([tmp_path], None).cases) == ["a", "b"]


def test_parts_of_a_series_with_a_folder_each_are_series_of_their_own_where_they_make_no_volume(tmp_path: Path) -> None:
    for folder, places in {"thin": (0, 5, 10, 15, 20), "thick": (30, 40, 50, 60, 70)}.items():
        for file, z in zip(write_series(tmp_path / folder, IMAGE), places, strict=True):
            change(file, SeriesInstanceUID="1.2.3", ImagePositionPatient=[10, -20, z])
        write_seg(tmp_path / f"{folder}.seg.dcm", files_of(tmp_path / folder), lesion(1), ["Tumour"])
    assert sorted(case.name for case in discover([tmp_path], None).cases) == ["thick", "thin"]


@pytest.mark.parametrize("masked", [True, False])
def test_a_clip_is_named_as_a_clip_with_a_mask_and_without(tmp_path: Path, masked: bool) -> None:
    (file,) = write_series(tmp_path / "images", IMAGE[:, :, :1])
    pixels = 3 * pydicom.dcmread(file).PixelData
    tags = {"NumberOfFrames": 3, "PixelData": pixels, "ImagePositionPatient": None, "ImageOrientationPatient": None}
    change(file, **tags).rename(tmp_path / "images/p1.dcm")
    if masked:
        write_series(tmp_path / "masks", lesion(1)[:, :, 1:2])[0].rename(tmp_path / "masks/p1.dcm")
    with pytest.raises(UserFault, match=r"a clip of 3 frames .*\n.*: save its frames as pictures"):
        prepare([tmp_path], None, Wish())


def test_a_mask_in_a_plain_dicom_file_keeps_its_numbers(tmp_path: Path) -> None:
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    for i in range(3):
        for role, values in (("images", scan(i)[..., :1].astype(np.uint16)), ("masks", 255 * lesion(i)[..., 1:2])):
            shown = {"PhotometricInterpretation": "MONOCHROME1"} if role == "masks" else {}
            (file,) = write_series(tmp_path / f"in/{role}/{i}", values, patient=f"p{i}", tags={**flat, **shown})
            file.rename(tmp_path / f"in/{role}/p{i}.dcm")
    report = prepare([tmp_path / "in"], None, Wish())
    assert (report["cases"], [row["pixels"] for row in report["labels"]]) == (3, [3 * (480 - 35), 3 * 35])


def test_a_series_that_is_left_over_in_a_folder_with_others_is_named_by_its_first_file(tmp_path: Path) -> None:
    files = write_series(tmp_path / "study", IMAGE)
    write_seg(tmp_path / "seg.dcm", files_of(tmp_path / "study"), lesion(1), ["Tumour"])
    assert [file.rename(file.with_name(f"a{file.name}")) for file in files]
    write_series(tmp_path / "other", IMAGE, tags={"SeriesInstanceUID": "1.2.9"})
    for k, file in enumerate(sorted((tmp_path / "other").iterdir())):
        file.rename(tmp_path / f"study/b{k}.dcm")
    write_series(tmp_path / "third", IMAGE, tags={"SeriesInstanceUID": "1.2.10"})
    for k, file in enumerate(sorted((tmp_path / "third").iterdir())):
        file.rename(tmp_path / f"study/c{k}.dcm")
    left = sorted(one.file for one in discover([tmp_path], None).dropped)
    assert left == ["study (the series of b0.dcm)", "study (the series of c0.dcm)"]
