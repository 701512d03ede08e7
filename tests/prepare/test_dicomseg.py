"""DICOM-SEG: on the right voxels, in the right series, under the right numbers."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from data.dicoms import SAGITTAL, change, write_seg, write_series
from prepare.corpus import lesion, scan

from pfedsam.data import datalist
from pfedsam.data.dicom import files_of, read_series
from pfedsam.data.volume import read_volume
from pfedsam.errors import UserFault
from pfedsam.prepare.dicomseg import number_labels, read_segmentation
from pfedsam.prepare.discover import discover
from pfedsam.prepare.site import Wish, prepare

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


@pytest.mark.parametrize("named", [True, False])
def test_wider_pixels_from_the_same_corner_are_another_grid(tmp_path: Path, named: bool) -> None:
    files = in_order_written(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"])
    if not named:
        drawn = pydicom.dcmread(path)
        for group in drawn.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
        drawn.save_as(path)
    for file in files:
        change(file, PixelSpacing=[1.0, 1.5])
    with pytest.raises(UserFault, match="another grid"):
        read_segmentation(path, read_series(files), files, classes=ONE)


@pytest.mark.parametrize(("wider", "fits"), [(1.015, False), (1.001, True)])
def test_wider_pixels_that_add_up_to_half_a_voxel_at_the_far_corner_are_another_grid(
    tmp_path: Path, wider: float, fits: bool
) -> None:
    whole = lesion(1, (100, 90, 5))
    write_series(tmp_path / "s", scan(1, whole.shape).astype(np.uint16), tags={"PixelSpacing": [1.0, 1.0]})
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, whole, ["Tumour"])
    drawn = pydicom.dcmread(path)
    drawn.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [wider, wider]
    for group in drawn.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    drawn.save_as(path)
    if fits:
        assert np.array_equal(read_segmentation(path, read_series(files), files, classes=ONE), whole)
    else:
        with pytest.raises(UserFault, match="another grid"):
            read_segmentation(path, read_series(files), files, classes=ONE)


def in_order_written(folder: Path) -> list[Path]:
    write_series(folder, scan(1).astype(np.uint16))
    return files_of(folder)


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


def two(seed: int) -> np.ndarray:
    """Class numbers of two lesions that do not touch."""
    return np.asarray(lesion(seed) + 2 * (np.roll(lesion(seed), 9, 0) > lesion(seed)), np.uint8)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("names", "numbers"), [(["Tumour"], [1]), (["Tumour", "Oedema"], [3, 7])])
def test_a_label_map_s_background_is_no_class(tmp_path: Path, names: list[str], numbers: list[int], flat: bool) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16)[..., 1 : 2 if flat else None])
    files = files_of(tmp_path / "s")
    drawn = np.where(two(1) > len(names), 0, two(1))[..., 1 : 2 if flat else None]
    path = write_seg(tmp_path / "seg.dcm", files, drawn, names, kind="LABELMAP", numbers=numbers)
    if flat:
        data = pydicom.dcmread(files[0])
        del data.ImagePositionPatient, data.ImageOrientationPatient
        data.save_as(files[0])
    found = discover([tmp_path], None)
    assert found.segments == {name: i + 1 for i, name in enumerate(names)}
    assert np.array_equal(read_segmentation(path, read_series(files), files, classes=found.segments), drawn)


@pytest.mark.parametrize("padding", [0, 9, None])
def test_a_label_map_s_background_is_known_by_its_padding_value_or_its_code(
    tmp_path: Path, padding: int | None
) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, two(1), ["Tumour", "Oedema"], kind="LABELMAP", numbers=[2, 4])
    data = pydicom.dcmread(path)
    del data.PixelPaddingValue
    if padding is not None:
        data.add_new("PixelPaddingValue", "US", padding)
        data.SegmentSequence[0].SegmentNumber = padding
        pixels = data.pixel_array
        data.PixelData = np.where(pixels == 0, padding, pixels).astype(np.uint8).tobytes()
    data.SegmentSequence.reverse()
    data.save_as(path)
    found = discover([tmp_path], None)
    assert found.segments == {"Tumour": 1, "Oedema": 2}
    assert np.array_equal(read_segmentation(path, read_series(files), files, classes=found.segments), two(1))


def test_a_label_map_of_background_alone_shows_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, lesion(1), ["Tumour"], kind="LABELMAP")
    data = pydicom.dcmread(path)
    data.SegmentSequence, data.PixelData = data.SegmentSequence[:1], bytes(len(data.PixelData))
    data.save_as(path)
    assert discover([tmp_path], None).segments == {}
    assert not read_segmentation(path, read_series(files), files, classes={}).any()


@pytest.mark.parametrize("tag", ["SegmentNumber", "SegmentedPropertyTypeCodeSequence"])
def test_a_segment_that_lacks_a_tag_is_a_fault_of_its_file(tmp_path: Path, tag: str) -> None:
    for i in range(4):
        write_series(tmp_path / f"in/{i}/s", scan(i).astype(np.uint16), patient=f"ID-{i}")
        path = write_seg(
            tmp_path / f"in/{i}/seg.dcm", files_of(tmp_path / f"in/{i}/s"), lesion(i), ["A"], kind="LABELMAP"
        )
    data = pydicom.dcmread(path)
    del data.SegmentSequence[1][tag]
    data.save_as(path)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert (report["cases"], [d["file"] for d in report["dropped"]]) == (3, ["3/s"])
    assert "seg.dcm" in report["dropped"][0]["why"]


def test_a_segment_that_the_site_does_not_number_is_a_fault_of_its_file(tmp_path: Path) -> None:
    write_series(tmp_path / "s", scan(1).astype(np.uint16))
    files = files_of(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, two(1), ["Tumour", "Oedema"])
    with pytest.raises(UserFault, match=r"seg\.dcm"):
        read_segmentation(path, read_series(files), files, classes=ONE)


def test_a_datalist_s_segmentations_have_their_classes(tmp_path: Path) -> None:
    rows = []
    for i, split in enumerate(datalist.SPLITS):
        whole, home = scan(i)[..., :1].astype(np.uint16), tmp_path / f"in/{i}"
        (image,) = write_series(home / "s", whole)
        write_seg(home / "seg.dcm", [image], two(i)[..., 1:2], ["Tumour", "Oedema"])
        rows.append(datalist.Row(str(image.relative_to(tmp_path / "in")), f"{i}/seg.dcm", split, str(i)))
    datalist.write_csv(tmp_path / "in/datalist.csv", rows)
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish())
    assert (report["cases"], report["dropped"], report["classes"]) == (3, [], 2)
    assert [row["name"] for row in report["labels"]] == ["background", "Tumour", "Oedema"]
    assert [row["cases"] for row in report["labels"]] == [3, 3, 3]


def test_a_datalist_s_mask_that_is_no_segmentation_is_named(tmp_path: Path) -> None:
    rows = []
    for i, split in enumerate((*datalist.SPLITS, "train")):
        (image,) = write_series(tmp_path / f"in/{i}/s", scan(i)[..., :1].astype(np.uint16))
        write_seg(tmp_path / f"in/{i}/seg.dcm", [image], lesion(i)[..., 1:2], ["Tumour"])
        name = str(image.relative_to(tmp_path / "in"))
        rows.append(datalist.Row(name, name if i == 3 else f"{i}/seg.dcm", split, str(i)))
    datalist.write_csv(tmp_path / "in/datalist.csv", rows)
    with pytest.raises(
        UserFault, match=rf"what the numbers of plain masks mean.*in 1 mask\(s\) without names \({name}"
    ):
        prepare([tmp_path / "in"], None, Wish())
    report = prepare([tmp_path / "in"], None, Wish(table={"Tumour": 1, "1": 1}))
    assert report["cases"] == 3
    (left,) = report["dropped"]
    assert "values 0, 1" in left["why"]


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
    assert number_labels([{1: "b", 2: "a"}, {3: "c", 1: "a"}]) == {"a": 1, "b": 2, "c": 3}


def test_labels_that_differ_in_case_alone_are_one_class() -> None:
    assert number_labels([{1: "Tumour"}, {1: "tumour", 2: "Liver"}]) == {"Tumour": 1, "tumour": 1, "Liver": 2}


def test_one_spelling_of_a_label_stands_for_all(tmp_path: Path) -> None:
    for i, label in enumerate(["Tumour", "tumour", "TUMOUR"]):
        write_series(tmp_path / f"in/{i}", scan(i).astype(np.uint16), patient=str(i))
        write_seg(tmp_path / f"in/{i}.dcm", files_of(tmp_path / f"in/{i}"), lesion(i), [label])
    report = prepare([tmp_path / "in"], tmp_path / "out", Wish(table={"tumour": 1}, plane="stored"))
    assert (report["classes"], report["class_names"]) == (1, ["TUMOUR"])
    masks = [read_volume(path, labels=True).values for path in sorted((tmp_path / "out/masks").iterdir())]
    assert all(np.array_equal(mask, lesion(i)) for i, mask in enumerate(masks))


def test_segments_without_a_label_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    both = lesion(1) + 2 * np.roll(lesion(1), 9, 0)
    files = in_order_written(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", files, both, ["a", "b"])
    drawn = pydicom.dcmread(path)
    for segment in drawn.SegmentSequence:
        segment.SegmentLabel = ""
    drawn.save_as(path)
    (case,) = (found := discover([tmp_path], None)).cases
    assert found.segments == {"segment 1": 1, "segment 2": 2}
    assert np.array_equal(read_segmentation(case.mask, read_series(files), files, classes=found.segments), both)


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
