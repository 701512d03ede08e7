"""DICOM-SEG: on the right voxels, in the right series, under the right numbers."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from data.dicoms import SAGITTAL, write_seg, write_series
from prepare.corpus import lesion, scan

from pfedsam.data.dicom import files_of, read_series
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import class_numbers, read_segmentation
from pfedsam.prepare.discover import discover

ONE = {"Tumour": 1}


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL])
def test_labels_lie_on_the_voxels_they_were_drawn_on(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16), orientation=orientation)
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"])
    assert np.array_equal(read_segmentation(path, read_series(files), files, classes=ONE), lesion(1))


def test_a_segmentation_of_one_slice_is_laid_there(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files[2:3], lesion(1)[..., 2:3], ["Tumour"])
    found = read_segmentation(path, read_series(files), files, classes=ONE)
    assert np.array_equal(found[..., 2], lesion(1)[..., 2])
    assert found.any((0, 1)).tolist() == [False, False, True, False, False]


def test_an_image_without_a_place_is_met_by_reference(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1, (24, 20, 1)).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1)[..., 1:2], ["Tumour"])
    data = pydicom.dcmread(files[0])
    del data.ImagePositionPatient, data.ImageOrientationPatient
    data.save_as(files[0])
    found = read_segmentation(path, read_series(files), files, classes=ONE)
    assert np.array_equal(found, lesion(1)[..., 1:2])


def test_another_grid_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    write_series(tmp_path / "t", scan(1).astype(np.uint16), gap=3.1)
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files_of(tmp_path / "t"), lesion(1), ["Tumour"])
    with pytest.raises(UserFault, match="another grid"):
        read_segmentation(path, read_series(files), files, classes=ONE)


def test_segments_on_one_voxel_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"])
    file = highdicom.seg.segread(path)
    described = [
        highdicom.seg.SegmentDescription(
            i + 1, name, s.SegmentedPropertyCategoryCodeSequence[0], s.SegmentedPropertyTypeCodeSequence[0], "MANUAL"
        )
        for s in file.SegmentSequence
        for i, name in enumerate(("Tumour", "Oedema"))
    ]
    both = np.stack([np.moveaxis(lesion(1), 2, 0)] * 2, -1)
    sources = [pydicom.dcmread(f) for f in files]
    about = ("1.2.3", 2, "1.2.4", 1, "test", "test", "1", "1")
    highdicom.seg.Segmentation(sources, both, "BINARY", described, *about).save_as(path)
    with pytest.raises(UserFault, match="overlap"):
        read_segmentation(path, read_series(files), files, classes={"Tumour": 1, "Oedema": 2})


def test_classes_follow_the_labels_whatever_number_a_file_gives_them(tmp_path: Path) -> None:
    for name, order in (("a", ["Tumour", "Oedema"]), ("b", ["Oedema", "Tumour"])):
        write_series(tmp_path / name / "s", scan(1).astype(np.uint16), patient=name)
        labels = lesion(1) + (np.roll(lesion(1), 6, 0) > lesion(1)) * np.uint8(2)
        write_seg(tmp_path / name / "seg.dcm", files_of(tmp_path / name / "s"), labels, order)
    found = discover([tmp_path], None)
    assert found.segments == {"Oedema": 1, "Tumour": 2}
    one, other = (
        read_segmentation(c.mask, read_series(c.image), files_of(c.image[0].parent), classes=found.segments)
        for c in found.cases
    )
    assert np.array_equal(one == 1, other == 2)
    assert one.any()


def test_the_order_of_classes_is_by_number_then_name() -> None:
    assert class_numbers([{1: "b", 2: "a"}, {3: "c", 1: "a"}]) == {"a": 1, "b": 2, "c": 3}


def test_two_segmentations_of_one_series_are_left_to_the_user(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    for name in "ab":
        write_seg(tmp_path / f"{name}.dcm", files_of(tmp_path / "s"), lesion(1), ["Tumour"])
    found = discover([tmp_path], None)
    assert found.cases == []
    assert sorted(d.file for d in found.dropped) == ["a.dcm", "b.dcm", "s"]


def test_a_series_whose_last_slice_is_lost_is_not_taken_for_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    write_seg(tmp_path / "seg.dcm", files, np.ones_like(lesion(1)), ["Tumour"])
    files[-1].unlink()
    found = discover([tmp_path], None)
    assert found.cases == []
    assert any("drawn on 1 slice(s) of its series (s)" in d.why for d in found.dropped)


def test_mixed_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name in "ab":
        write_series(tmp_path / name, scan(ord(name)).astype(np.uint16), patient=name)
        write_seg(tmp_path / f"all/{name}.dcm", files_of(tmp_path / name), lesion(ord(name)), ["Tumour"])
        for file in (tmp_path / name).iterdir():
            file.rename(tmp_path / "all" / f"{name}{file.name}")
    found = discover([tmp_path], None)
    assert len(found.cases) == 2
    assert found.dropped == []
    for case in found.cases:
        assert {file.name[0] for file in case.image} == {case.mask.name[0]}


def test_a_nifti_mask_finds_the_series_of_its_name(tmp_path: Path) -> None:
    import nibabel

    write_series(tmp_path / "images/p7", scan(1).astype(np.uint16))
    volume = read_series(files_of(tmp_path / "images/p7"))
    (tmp_path / "masks").mkdir()
    nibabel.save(nibabel.Nifti1Image(lesion(1), volume.affine), tmp_path / "masks/p7.nii.gz")
    found = discover([tmp_path], None)
    assert [(c.name, c.mask.name) for c in found.cases] == [("images/p7", "p7.nii.gz")]
