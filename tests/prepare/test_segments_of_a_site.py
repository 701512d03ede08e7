"""DICOM segments of a whole site: beside masks of plain numbers, over each other, and in several files."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from data.dicoms import write_seg, write_series
from numpy.typing import NDArray
from prepare.corpus import nifti, scan

from pfedsam.data import reader
from pfedsam.data.dicom import files_of, read_series
from pfedsam.errors import UserFault
from pfedsam.prepare.labels import parse_table
from pfedsam.prepare.site import Wish, prepare

SHAPE = (16, 14, 3)


def box(row: int, size: int) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[row : row + size, 2 : 2 + size, 1:] = 1
    return mask


LIVER, TUMOUR, INSIDE = box(0, 8), box(10, 4), box(2, 3)


def series(home: Path, patient: int) -> list[Path]:
    write_series(home, scan(patient, SHAPE).astype(np.uint16), patient=f"ID-{patient}")
    return files_of(home)


def mixed(folder: Path, plain: NDArray[np.uint8]) -> Path:
    """Three patients with a DICOM-SEG of liver and tumour, and three with a NIfTI mask."""
    for i in range(6):
        files = series(folder / f"P{i}/CT{i}", i)
        if i < 3:
            write_seg(folder / f"P{i}/drawn.dcm", files, LIVER + 2 * TUMOUR, ["Liver", "Tumour"])
        else:
            nifti(folder / f"P{i}/CT{i}_mask.nii.gz", plain, read_series(files).affine)
    return folder


def overlapping(path: Path, files: list[Path], masks: dict[str, NDArray[np.uint8]]) -> Path:
    """A DICOM-SEG whose segments may share voxels."""
    write_seg(path, files, np.zeros(SHAPE, np.uint8) + box(0, 1), ["any"])
    one = highdicom.seg.segread(path).SegmentSequence[0]
    codes = one.SegmentedPropertyCategoryCodeSequence[0], one.SegmentedPropertyTypeCodeSequence[0]
    described = [highdicom.seg.SegmentDescription(i, name, *codes, "MANUAL") for i, name in enumerate(masks, 1)]
    planes = np.stack([np.moveaxis(mask, 2, 0) for mask in masks.values()], -1)
    uids = [pydicom.uid.generate_uid() for _ in range(2)]
    about = (uids[0], 2, uids[1], 1, "test", "test", "1", "1")
    highdicom.seg.Segmentation([pydicom.dcmread(f) for f in files], planes, "BINARY", described, *about).save_as(path)
    return path


def inside(folder: Path, masks: dict[str, NDArray[np.uint8]] | None = None) -> Path:
    """Three patients whose tumour is inside the liver."""
    for i in range(3):
        files = series(folder / f"P{i}/CT", i)
        overlapping(folder / f"P{i}/drawn.dcm", files, masks or {"Liver": LIVER, "Tumour": INSIDE})
    return folder


def pixels(out: Path, classes: int) -> list[list[int]]:
    """The pixels of each class from 1 up in each prepared mask."""
    masks = [
        np.stack([reader.read_mask(path, k, classes) for k in range(SHAPE[2])], -1) for path in sorted(out.iterdir())
    ]
    return [[int((mask == n).sum()) for n in range(1, classes + 1)] for mask in masks]


def test_numbers_beside_named_segments_are_asked_about_and_never_taken_for_their_classes(tmp_path: Path) -> None:
    home = mixed(tmp_path / "in", 2 * LIVER + TUMOUR)
    with pytest.raises(UserFault, match="what the numbers of plain masks mean") as caught:
        prepare([home], None, Wish())
    assert "--labels Liver=1,Tumour=2,1=1,2=2 if 1 is Liver and 2 is Tumour" in caught.value.do
    for said in (Wish(names=("Liver", "Tumour")), Wish(table=parse_table("Tumour=1"))):
        with pytest.raises(UserFault, match="what the numbers of plain masks mean"):
            prepare([home], None, said)
    report = prepare([home], tmp_path / "out", Wish(table=parse_table("Liver=1,Tumour=2,1=2,2=1"), plane="stored"))
    assert (report["cases"], report["class_names"]) == (6, ["Liver", "Tumour"])
    assert pixels(tmp_path / "out/masks", 2) == [[int(LIVER.sum()), int(TUMOUR.sum())]] * 6
    assert "Liver is 1, Tumour is 2" in report["labels_by"]
    assert "1 is 2, 2 is 1" in report["labels_by"]


def test_numbers_beside_a_single_segment_are_asked_about_with_each_number_in_the_remedy(tmp_path: Path) -> None:
    home = mixed(tmp_path / "in", 255 * LIVER)
    with pytest.raises(UserFault, match=r"came 255 in 3 mask\(s\) without names \(P3/CT3, P4/CT4, P5/CT5\)") as caught:
        prepare([home], None, Wish(table=parse_table("Liver=1")))
    assert "--labels Liver=1,255=1 if 255 is Liver" in caught.value.do
    assert prepare([home], None, Wish(table=parse_table("Liver=1,255=1")))["labels"][1]["cases"] == 6


def test_plain_masks_that_show_nothing_need_no_meaning_beside_named_segments(tmp_path: Path) -> None:
    report = prepare([mixed(tmp_path / "in", 0 * LIVER)], None, Wish())
    assert (report["cases"], report["class_names"]) == (6, ["Liver", "Tumour"])
    assert report["labels_by"].endswith("Liver is 1, Tumour is 2.")
    home = mixed(tmp_path / "unlabelled", 9 * LIVER)
    assert prepare([home], None, Wish(ignore=9))["unlabelled"]["cases"] == 3


def test_one_structure_and_masks_of_one_class_are_clear_and_the_report_says_both(tmp_path: Path) -> None:
    home = mixed(tmp_path / "in", 255 * LIVER)
    for i in range(3):
        write_seg(home / f"P{i}/drawn.dcm", files_of(home / f"P{i}/CT{i}"), LIVER, ["Liver"])
    report = prepare([home], None, Wish())
    assert (report["classes"], report["labels"][1]["pixels"]) == (1, 6 * int(LIVER.sum()))
    assert "Liver is 1. One class: 0 is the background, 255 is the class." in report["labels_by"]
    nifti(home / "P5/CT5_mask.nii.gz", LIVER + 2 * TUMOUR, read_series(files_of(home / "P5/CT5")).affine)
    for i in (3, 4):
        nifti(home / f"P{i}/CT{i}_mask.nii.gz", LIVER, read_series(files_of(home / f"P{i}/CT{i}")).affine)
    with pytest.raises(UserFault, match="what the numbers of plain masks mean"):
        prepare([home], None, Wish())


def test_a_segment_that_is_left_out_overlaps_with_nothing(tmp_path: Path) -> None:
    home = inside(tmp_path / "in")
    report = prepare([home], tmp_path / "out", Wish(table=parse_table("Tumour=1"), plane="stored"))
    assert (report["cases"], report["class_names"], report["notes"]) == (3, ["Tumour"], [])
    assert pixels(tmp_path / "out/masks", 1) == [[int(INSIDE.sum())]] * 3


def test_segments_that_overlap_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    home = inside(tmp_path / "in", {"Tumour": INSIDE, "Liver": LIVER})
    with pytest.raises(UserFault, match=rf"segments that overlap in {int(INSIDE.sum())} voxel") as caught:
        prepare([home], None, Wish())
    assert "--labels Liver=1,Tumour=2" in caught.value.do
    report = prepare([home], tmp_path / "out", Wish(table=parse_table("Liver=1,Tumour=2"), plane="stored"))
    left = int(LIVER.sum() - INSIDE.sum())
    assert pixels(tmp_path / "out/masks", 2) == [[left, int(INSIDE.sum())]] * 3
    assert f"Tumour covers Liver in 3 of 3 cases: {3 * INSIDE.sum()} pixels count as Tumour only." in report["notes"][0]
    lost = prepare([home], None, Wish(names=("Tumour", "Liver")))
    assert lost["notes"][0].startswith("CLASS LOST: no mask shows Tumour any more.")


def test_segments_of_one_class_overlap_without_a_fault(tmp_path: Path) -> None:
    report = prepare([inside(tmp_path / "in")], None, Wish(table=parse_table("Liver=1,Tumour=1")))
    assert (report["labels"][1]["pixels"], report["notes"]) == (3 * int(LIVER.sum()), [])


def test_the_remedy_for_segments_that_overlap_names_those_of_other_files_too(tmp_path: Path) -> None:
    home = inside(tmp_path / "in")
    for i in range(3, 6):
        overlapping(home / f"P{i}/drawn.dcm", series(home / f"P{i}/CT", i), {"Liver": LIVER, "Cyst": TUMOUR})
    report = prepare([home], None, Wish())
    assert report["cases"] == 3
    assert "--labels Liver=1,Tumour=2,Cyst=3" in report["dropped"][0]["do"]
    report = prepare([home], None, Wish(table=parse_table("Liver=1,Tumour=2,Cyst=3")))
    assert [row["cases"] for row in report["labels"]] == [6, 6, 3, 3]


def test_segmentations_of_one_series_are_told_how_to_become_one(tmp_path: Path) -> None:
    for i in range(4):
        files = series(tmp_path / f"P{i}/CT", i)
        write_seg(tmp_path / f"P{i}/liver.dcm", files, LIVER, ["Liver"])
    write_seg(tmp_path / "P0/tumour.dcm", files_of(tmp_path / "P0/CT"), TUMOUR, ["Tumour"])
    (whole, *_), count = (report := prepare([tmp_path], None, Wish()))["dropped"], report["cases"]
    assert count == 3
    assert "segments of one file" in whole["do"]
