"""Masks come in the format, size and place of what was given, and are those of the final test."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from data.dicoms import SAGITTAL, change, several_frames, write_series
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation

from pfedsam.cli import main
from pfedsam.data.dicom import read_series
from pfedsam.data.volume import read_nifti
from pfedsam.errors import UserFault
from pfedsam.files import sha256
from pfedsam.inference.predictor import Predictor, load_model
from pfedsam.layout import PREDICTED as RECORD
from pfedsam.predict.masks import Prediction, Way, segment
from pfedsam.predict.run import Done, predict
from pfedsam.predict.scans import Scan, find_scans
from pfedsam.predict.segmentation import Classes
from pfedsam.predict.written import write
from pfedsam.site import Site
from pfedsam.train.evaluate import find_masks as found_in_the_test

BESIDE = Path(sys.executable).parent  # where pip puts programs
WAY = Way("personal", scale="percentile", batch=2)
LPS = np.diag([-0.75, -0.5, 2.5, 1.0])[:, [1, 0, 2, 3]]  # rows to posterior, columns to left, slices up


def run(model: Predictor, source: Path, out: Path, way: Way = WAY, **how: bool) -> list[Done]:
    return list(predict(model, find_scans(source, out), out, way, Classes(["target"]), **how))


def nifti(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


@pytest.fixture(scope="module")
def model(trained_model: Path) -> Predictor:
    return load_model(trained_model)


@pytest.fixture(scope="module")
def volume(trained_site: Site) -> NDArray[np.float32]:
    """(40, 48, 5) of whole grey values cut out of the site's pictures: axial, as DICOM lays it out."""
    pictures = [trained_site.data["test"].picture(i % 3)[0, 4:44, 8 + i : 56 + i] for i in range(5)]
    return np.stack([np.rint(255 * p.numpy()) for p in pictures], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model: Predictor, volume: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory):
    """The labels of the volume in the layout in which it was made."""
    path = nifti(tmp_path_factory.mktemp("volume") / "v.nii.gz", volume)
    labels = segment(model, read_nifti(path), WAY).labels
    assert 0 < (labels > 0).mean() < 1, "a mask without content would prove nothing"
    return labels


def test_a_picture_s_mask_is_that_of_the_final_test(model: Predictor, trained_site: Site, tmp_path: Path) -> None:
    source = trained_site.data["test"].slices[0].image
    (done,) = run(model, source, tmp_path)
    branch = trained_site.method.personal
    final = found_in_the_test(trained_site.model, trained_site.data["test"], [0], (branch,))[branch][0, ..., 0]
    written = Image.open(tmp_path / source.name)
    assert np.array_equal(np.asarray(written), final.numpy().astype(np.uint8))
    assert written.mode == "P"
    assert done.pixels == (int(final.sum()),)


@pytest.mark.parametrize(("ending", "comes_out"), [(".jpg", ".png"), (".tif", ".tif"), (".bmp", ".bmp")])
def test_a_picture_keeps_its_format_where_that_keeps_class_numbers(
    model: Predictor, tmp_path: Path, volume: NDArray[np.float32], ending: str, comes_out: str
) -> None:
    Image.fromarray(volume[..., 0].astype(np.uint8)).save(tmp_path / f"a{ending}")
    (done,) = run(model, tmp_path / f"a{ending}", tmp_path / "out")
    assert done.files == (tmp_path / f"out/a{comes_out}",)
    assert np.asarray(Image.open(done.files[0])).shape == (40, 48)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR", "ILP", "PSR"])
def test_a_nifti_s_mask_has_its_geometry_and_does_not_depend_on_how_it_is_stored(
    model: Predictor, volume: NDArray[np.float32], expected: NDArray[np.uint8], tmp_path: Path, axes: str
) -> None:
    straight = nibabel.Nifti1Image(volume, LPS)
    change = orientations.ornt_transform(orientations.io_orientation(LPS), orientations.axcodes2ornt(tuple(axes)))
    source = straight.as_reoriented(change)
    source.set_qform(source.affine, code=1)
    source.to_filename(tmp_path / "a.nii.gz")
    run(model, tmp_path / "a.nii.gz", tmp_path / "out")
    mask = nibabel.load(tmp_path / "out/a.nii.gz")
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, nibabel.load(tmp_path / "a.nii.gz").affine)
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 2)
    assert mask.get_data_dtype() == np.uint8
    back = orientations.ornt_transform(orientations.axcodes2ornt(tuple(axes)), orientations.io_orientation(LPS))
    assert np.array_equal(np.asarray(mask.as_reoriented(back).dataobj), expected)


@pytest.mark.parametrize("unit", ["micron", "meter", "mm"])
def test_a_mask_lies_where_its_image_lies_in_the_image_s_own_unit(tmp_path: Path, unit: str) -> None:
    source = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.int16), np.diag([500.0, 500.0, 2000.0, 1]))
    source.header.set_xyzt_units(unit)
    source.to_filename(tmp_path / "a.nii")
    item, classes = Scan("nifti", (tmp_path / "a.nii",), Path("a")), Classes(["class"])
    found = Prediction(np.ones((3, 4, 2), np.uint8), np.ones((1, 3, 4, 2), bool), None)
    (mask,) = write(tmp_path / "out", item, found, classes, again=False)
    assert np.array_equal(read_nifti(mask).affine, read_nifti(tmp_path / "a.nii").affine)
    assert nibabel.load(mask).header.get_xyzt_units()[0] == unit


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nothing_of_a_nifti_s_header_that_may_name_a_patient_comes_out(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, kind: type
) -> None:
    source = kind(volume, LPS)
    texts = [name for name, (of, *_) in source.header.structarr.dtype.fields.items() if of.kind == "S"]
    assert {"descrip", "intent_name"} < set(texts)
    for name in texts:
        if name != "magic":
            source.header[name] = b"Doe, Jane"
    source.header["intent_code"] = 1005
    source.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe, Jane"))
    source.to_filename(tmp_path / "a.nii")
    run(model, tmp_path / "a.nii", tmp_path / "out")
    mask = nibabel.load(tmp_path / "out/a.nii").header
    assert {name: mask[name].item() for name in texts} == dict.fromkeys(texts, b"") | {
        "magic": source.header["magic"].item(),
        "descrip": b"pfedsam",
    }
    assert mask["intent_code"] == 0
    assert b"Doe" not in (tmp_path / "out/a.nii").read_bytes()


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_a_picture_of_class_numbers_holds_every_class(tmp_path: Path, ending: str) -> None:
    labels = np.arange(21, dtype=np.uint8).reshape(3, 7)
    item = Scan("picture", (tmp_path / f"a{ending}",), Path("a"))
    found = Prediction(labels[..., None], np.zeros((20, 3, 7, 1), bool), None)
    write(tmp_path / "out", item, found, Classes(["class"] * 20), again=False)
    picture = Image.open(tmp_path / f"out/a{ending}")
    assert np.array_equal(np.asarray(picture), labels)
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert [colour.any() for colour in colours] == [False] + [True] * 20, "black is the background's alone"


@pytest.mark.parametrize("odd", ["one slice", "a fourth axis of one"])
def test_a_nifti_of_another_number_of_axes_keeps_them(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, odd: str
) -> None:
    values = volume[..., 0] if odd == "one slice" else volume[..., None]
    nifti(tmp_path / "a.nii", values)
    run(model, tmp_path / "a.nii", tmp_path / "out")
    assert nibabel.load(tmp_path / "out/a.nii").shape == values.shape


def test_a_dicom_segmentation_lies_on_its_series(
    model: Predictor, volume: NDArray[np.float32], expected: NDArray[np.uint8], tmp_path: Path
) -> None:
    files = write_series(tmp_path / "in/series", volume.astype(np.uint16))
    run(model, tmp_path / "in", tmp_path / "out")
    seg = highdicom.seg.segread(tmp_path / "out/series.seg.dcm")
    order = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files]  # by slice
    found = seg.get_pixels_by_source_instance(order, combine_segments=True, ignore_spatial_locations=True)
    assert np.array_equal(np.moveaxis(found, 0, 2) > 0, expected > 0)
    assert seg.PatientID == "PAT-1"
    assert seg.get_segment_description(1).SegmentLabel == "target"


@pytest.mark.skipif(not (BESIDE / "segimage2itkimage").exists(), reason="pip has dcmqi for Linux on x86-64 alone")
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL])
def test_dcmqi_which_3d_slicer_reads_with_finds_the_mask_where_it_was_drawn(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    way = Way("personal", plane="stored", scale="percentile")
    write_series(tmp_path / "in/series", volume.astype(np.uint16), orientation=orientation)
    run(model, tmp_path / "in", tmp_path / "out", way)
    read = tmp_path / "read"
    read.mkdir()
    command = [
        BESIDE / "segimage2itkimage",
        "--inputDICOM",
        str(tmp_path / "out/series.seg.dcm"),
        "--outputDirectory",
        str(read),
    ]
    subprocess.run([*command, "--outputType", "nii"], check=True, capture_output=True)
    mask = nibabel.load(next(read.glob("*.nii.gz")))
    (item,) = find_scans(tmp_path / "in")
    source = read_series(item.files)
    inside = np.argwhere(segment(model, source, way).labels > 0)
    world = nibabel.affines.apply_affine(source.affine, inside)
    voxels = np.rint(nibabel.affines.apply_affine(np.linalg.inv(mask.affine), world)).astype(int)
    values = np.asarray(mask.dataobj)
    assert int((values > 0).sum()) == len(inside) > 0
    assert (values[tuple(voxels.T)] > 0).all()


def test_an_empty_mask_is_a_segmentation_too(model: Predictor, tmp_path: Path) -> None:
    write_series(tmp_path / "in", np.zeros((32, 32, 2), np.uint16))
    found = run(model, tmp_path / "in", tmp_path / "out")
    assert found[0].fault is None
    assert highdicom.seg.segread(found[0].files[0]).number_of_segments == 1


def test_probabilities_are_written_where_they_are_wanted(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    way = Way("global", scale="percentile", probabilities=True)
    source = nifti(tmp_path / "in/a.nii.gz", volume)
    Image.fromarray(volume[..., 0].astype(np.uint8)).save(tmp_path / "in/b.png")
    write_series(tmp_path / "in/c", volume.astype(np.uint16))
    run(model, tmp_path / "in", tmp_path / "out", way)
    likely = nibabel.load(tmp_path / "out/a.prob-1.nii.gz").get_fdata()
    assert np.array_equal(likely > 0.5, np.asarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj) > 0)
    assert nibabel.load(tmp_path / "out/a.prob-1.nii.gz").affine.tolist() == nibabel.load(source).affine.tolist()
    deep = np.asarray(Image.open(tmp_path / "out/b.prob-1.png"))
    assert np.array_equal(deep > 32767, np.asarray(Image.open(tmp_path / "out/b.png")) > 0)
    fractional = highdicom.seg.segread(tmp_path / "out/c.prob.seg.dcm")
    assert fractional.segmentation_type.value == "FRACTIONAL"


def test_the_branches_differ_and_the_batch_does_not_matter(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    read = read_nifti(nifti(tmp_path / "a.nii", volume))
    likely = {
        way: segment(model, read, Way(way[0], scale="percentile", batch=way[1], probabilities=True)).probabilities
        for way in (("personal", 2), ("personal", 5), ("global", 5))
    }
    assert np.allclose(likely["personal", 2], likely["personal", 5], atol=1e-5)
    assert not np.allclose(likely["personal", 5], likely["global", 5], atol=1e-3)


def test_a_faulty_file_is_named_and_the_others_come_out(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "in/good.nii.gz", volume)
    nifti(tmp_path / "in/holes.nii.gz", np.where(volume > 100, np.nan, volume))
    whole = (tmp_path / "in/good.nii.gz").read_bytes()
    (tmp_path / "in/cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/empty.png").write_bytes(b"")
    (tmp_path / "in/odd.dcm").write_bytes(b"no dicom at all")
    (tmp_path / "in/notes.txt").write_text("not an image")
    (tmp_path / "in/link.png").symlink_to(tmp_path / "nowhere.png")
    done = run(model, tmp_path / "in", tmp_path / "out")
    faults = " ".join(str(d.fault) for d in done if d.fault)
    assert [f.name for d in done for f in d.files] == ["good.nii.gz"]
    assert all(name in faults for name in ("holes.nii.gz", "cut.nii.gz", "empty.png", "odd.dcm", "link.png"))
    assert len(done) == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [RECORD, "good.nii.gz"]


def test_what_may_be_an_image_and_cannot_be_read_is_named(
    trained_model: Path, volume: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    nifti(folder / "good.nii.gz", volume)
    (folder / "IM0001").write_bytes(write_series(elsewhere, volume.astype(np.uint16))[0].read_bytes()[132:])
    (folder / "ward-7").symlink_to(elsewhere)
    (folder / "closed").mkdir()
    for name in ("b.webp", "c.gif"):
        Image.fromarray(volume[..., 0].astype(np.uint8)).save(folder / name)
    (folder / "d.mha").write_text("ObjectType = Image")
    for name in ("notes.txt", "list.csv", "report.pdf"):
        (folder / name).write_text("%PDF")
    monkeypatch.setattr(os, "scandir", closed_to(os.scandir, folder / "closed"))
    faults = [one for one in find_scans(folder) if isinstance(one, UserFault)]
    told = ["links are not followed", "its preamble", "closed", "3 files of other kinds"]
    assert [any(words in str(fault) for fault in faults) for words in told] == [True] * 4
    assert len(faults) == 4
    monkeypatch.undo()
    assert main(["predict", str(folder), str(tmp_path / "out"), "--model", str(trained_model)]) == 1


def closed_to(list_folder: Callable[[Any], Any], closed: Path) -> Callable[[Any], Any]:
    """`os.scandir` for a user who may not read one folder. A test's own user may be root, who may read all."""

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    return scandir


def test_a_series_with_a_file_of_several_frames_is_named_and_the_others_come_out(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    files = several_frames(write_series(tmp_path / "in/bad", volume.astype(np.uint16)), 2)
    write_series(tmp_path / "in/good", volume.astype(np.uint16))
    bad, good = run(model, tmp_path / "in", tmp_path / "out")
    assert f"3 frames in {files[2]}" in str(bad.fault)
    assert [file.name for file in good.files] == ["good.seg.dcm"]


def test_files_whose_masks_would_be_one_file_are_refused_and_named_before_anything_is_written(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    (tmp_path / "in/below").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b.png", "below/a.png", "c.tif", "c.png"):
        Image.fromarray(volume[..., 0].astype(np.uint8)).save(tmp_path / "in" / name)
    done = run(model, tmp_path / "in", tmp_path / "out")
    faults = [str(d.fault) for d in done if d.fault]
    assert len(faults) == 2
    assert all(str(tmp_path / "in" / name) in fault for fault in faults for name in ("a.jpg", "a.png"))
    likely = run(model, tmp_path / "in", tmp_path / "both", Way("personal", scale="percentile", probabilities=True))
    assert all(f"into {tmp_path / 'both/a.png'};" in str(d.fault) for d in likely if "a.jpg" in str(d.fault))
    assert sorted(str(d.files[0].relative_to(tmp_path / "out")) for d in done if d.files) == [
        "b.png",
        "below/a.png",
        "c.png",
        "c.tif",
    ]
    assert not (tmp_path / "out/a.png").exists()


def test_probabilities_that_would_be_another_image_s_mask_are_refused(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.prob-1.png"):
        Image.fromarray(volume[..., 0].astype(np.uint8)).save(tmp_path / "in" / name)
    way = Way("personal", scale="percentile", probabilities=True)
    assert all("a.prob-1.png" in str(done.fault) for done in run(model, tmp_path / "in", tmp_path / "out", way))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["超音波検査画像右乳" * 8, "1.2.840." + "113619." * 30])
def test_a_name_as_long_as_a_disk_takes_gets_a_mask(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, stem: str
) -> None:
    nifti(tmp_path / f"in/{stem}.nii.gz", volume)
    (done,) = run(model, tmp_path / "in", tmp_path / "out")
    assert [file.name for file in done.files] == [f"{stem}.nii.gz"]


def mixed(folder: Path, sources: dict[str, list[Path]]) -> None:
    """The files of several series in one folder."""
    folder.mkdir(exist_ok=True)
    for name, files in sources.items():
        for file in files:
            file.rename(folder / f"{name}{file.name}")


def test_two_series_in_one_folder_are_two_masks(model: Predictor, volume: NDArray[np.float32], tmp_path: Path) -> None:
    mixed(tmp_path / "in", {name: write_series(tmp_path / name, volume.astype(np.uint16)) for name in "ab"})
    done = run(model, tmp_path / "in", tmp_path / "out")
    assert len({d.files[0] for d in done}) == 2
    assert all(re.fullmatch(r"series-[0-9a-f]{8}\.seg\.dcm", d.files[0].name) for d in done)


def test_a_series_that_is_added_to_a_folder_gets_a_mask_and_the_others_keep_theirs(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    mixed(tmp_path / "in", {name: write_series(tmp_path / name, volume[..., :2].astype(np.uint16)) for name in "bc"})
    first = {d.scan.files[0]: d.files[0] for d in run(model, tmp_path / "in", tmp_path / "out") if d.scan}
    mixed(tmp_path / "in", {"a": write_series(tmp_path / "a", volume[..., :2].astype(np.uint16))})
    second = run(model, tmp_path / "in", tmp_path / "out")
    (added,) = [d for d in second if d.files]
    assert added.scan
    assert added.scan.files[0].name.startswith("a")
    assert added.files[0] not in first.values()
    assert len(list((tmp_path / "out").glob("*.seg.dcm"))) == len(list((tmp_path / "out").iterdir())) - 1 == 3


def test_single_dicom_files_of_one_folder_have_a_mask_each(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    files = write_series(tmp_path / "in", volume[..., :2].astype(np.uint16))
    written = [d.files[0].name for file in files for d in run(model, file, tmp_path / "out")]
    assert written == [f"{file.stem}.seg.dcm" for file in files]


def test_a_series_in_the_folder_one_stands_in_has_that_folder_s_name(
    volume: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "liver", volume.astype(np.uint16))
    monkeypatch.chdir(tmp_path / "liver")
    (item,) = find_scans(Path())
    assert isinstance(item, Scan)
    assert item.name == Path("liver")


def test_a_mask_of_another_series_is_not_taken_for_that_of_the_one_that_stands_in_its_place_now(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    write_series(tmp_path / "in/a", volume[..., :2].astype(np.uint16))
    run(model, tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out/a.seg.dcm").read_bytes()
    write_series(tmp_path / "in/a", volume[..., :2].astype(np.uint16))
    (done,) = run(model, tmp_path / "in", tmp_path / "out")
    assert "--overwrite" in str(done.fault)
    assert (tmp_path / "out/a.seg.dcm").read_bytes() == before


X_RAY = {
    **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "SliceThickness")),
    **{"Modality": "DX", "SOPClassUID": DigitalXRayImageStorageForPresentation, "PixelSpacing": None},
}


def test_x_rays_of_one_series_are_taken_one_by_one(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    files = write_series(tmp_path / "in/hand", volume[..., :2].astype(np.uint16), tags=X_RAY)
    done = run(model, tmp_path / "in", tmp_path / "out")
    assert [str(d.fault) for d in done if d.fault] == []
    assert sorted(d.files[0] for d in done) == sorted(tmp_path / f"out/hand/{f.stem}.seg.dcm" for f in files)
    for d in done:
        seg = highdicom.seg.segread(d.files[0])
        assert seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
            pydicom.dcmread(d.scan.files[0]).SOPInstanceUID if d.scan else None
        )


def test_a_slice_without_geometry_is_named_and_the_rest_of_its_series_comes_out(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    files = write_series(tmp_path / "in/head", volume.astype(np.uint16))
    lost = pydicom.dcmread(files[-1])
    del lost.ImagePositionPatient
    lost.save_as(files[-1])
    done = run(model, tmp_path / "in", tmp_path / "out")
    (fault,) = [str(d.fault) for d in done if d.fault]
    assert str(files[-1]) in fault
    assert [d.files[0].name for d in done if d.files] == ["head.seg.dcm"]


def test_dicom_files_named_by_their_uid_are_one_series(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    for number, file in enumerate(write_series(tmp_path / "in", volume.astype(np.uint16))):
        file.rename(file.with_name(f"1.2.826.0.1.{number}"))
    (tmp_path / "in/README").write_text("no image, and no ending either")
    (done,) = run(model, tmp_path / "in", tmp_path / "out")
    assert [file.name for file in done.files] == ["in.seg.dcm"]


def test_what_is_there_already_is_kept_unless_told(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "in/a.nii.gz", volume)
    (first,) = run(model, tmp_path / "in", tmp_path / "out")
    (second,) = run(model, tmp_path / "in", tmp_path / "out")
    (third,) = run(model, tmp_path / "in", tmp_path / "out", again=True)
    assert (len(first.files), len(second.files), len(third.files)) == (1, 0, 1)


def test_overwriting_leaves_what_predict_did_not_write(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    """Such as masks that a person drew, or another patient's images."""
    nifti(tmp_path / "in/a.nii.gz", volume)
    (tmp_path / "out").mkdir()
    drawn = shutil.copy(tmp_path / "in/a.nii.gz", tmp_path / "out/a.nii.gz")
    before = Path(drawn).read_bytes()
    (done,) = run(model, tmp_path / "in", tmp_path / "out", again=True)
    assert "came another, such as a drawn mask or an image" in str(done.fault)
    assert Path(drawn).read_bytes() == before


def test_a_mask_of_another_size_or_place_is_not_taken_for_that_of_the_image_that_has_its_name_now(
    model: Predictor, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (h, 30), dtype=np.uint8)) for h in (20, 24)]
    values = rng.integers(0, 255, (20, 24, 4)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    pictures[0].save(tmp_path / "in/p.png")
    nifti(tmp_path / "in/v.nii.gz", values)
    assert all(done.files for done in run(model, tmp_path / "in", tmp_path / "out"))
    assert not any(done.fault or done.files for done in run(model, tmp_path / "in", tmp_path / "out"))
    for place, shape in ((LPS, (20, 24, 3)), (2 * LPS, (20, 24, 4))):
        pictures[1].save(tmp_path / "in/p.png")
        nifti(tmp_path / "in/v.nii.gz", values[: shape[0], : shape[1], : shape[2]], place)
        faults = [str(done.fault) for done in run(model, tmp_path / "in", tmp_path / "out")]
        assert all("of another size or place than its image has now; it was not replaced" in told for told in faults)
    assert all(done.files for done in run(model, tmp_path / "in", tmp_path / "out", again=True))


def test_what_is_missing_beside_a_mask_is_written_and_the_mask_itself_kept(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "in/a.nii.gz", volume)
    Image.fromarray(volume[..., 0].astype(np.uint8)).save(tmp_path / "in/b.png")
    write_series(tmp_path / "in/c", volume.astype(np.uint16))
    masks = [d.files[0] for d in run(model, tmp_path / "in", tmp_path / "out")]
    before = [mask.read_bytes() for mask in masks]
    likely = Way("personal", scale="percentile", probabilities=True)
    more = run(model, tmp_path / "in", tmp_path / "out", likely)
    assert [[f.name for f in d.files] for d in more] == [["a.prob-1.nii.gz"], ["b.prob-1.png"], ["c.prob.seg.dcm"]]
    assert [mask.read_bytes() for mask in masks] == before
    assert not any(d.files for d in run(model, tmp_path / "in", tmp_path / "out", likely))


OTHERS = {
    "the global branch": replace(WAY, branch="global"),
    "axial slices": replace(WAY, plane="coronal"),
    "scale percentile": replace(WAY, scale="uint8"),
}


@pytest.mark.parametrize("likely", [False, True])
@pytest.mark.parametrize("words", [*OTHERS, "another model", "another image, which had this name"])
def test_masks_of_another_model_branch_or_image_are_named_and_neither_kept_as_these_nor_replaced(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, words: str, likely: bool
) -> None:
    nifti(tmp_path / "in/a.nii.gz", volume)
    first = OTHERS[words] if words == "the global branch" else WAY
    way = replace(WAY if words == "the global branch" else OTHERS.get(words, WAY), probabilities=likely)
    (before,) = run(model, tmp_path / "in", tmp_path / "out", first)
    written = before.files[0].read_bytes()
    if words == "another image, which had this name":
        nifti(tmp_path / "in/a.nii.gz", volume[::-1].copy())
    other = replace(model, facts=replace(model.facts, sha256="0" * 64)) if words == "another model" else model
    (done,) = run(other, tmp_path / "in", tmp_path / "out", way)
    assert f"came one of {words}; it was not replaced" in str(done.fault)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [RECORD, "a.nii.gz"]
    assert before.files[0].read_bytes() == written
    (again,) = run(other, tmp_path / "in", tmp_path / "new", way)
    assert again.files
    before.files[0].unlink()
    assert run(other, tmp_path / "in", tmp_path / "out", way)[0].files, "the user removed the old mask"


NAMED = Classes(["target"], {"target": "SCT:4147007:Mass", "lesion": "SCT:4147007:Mass"})
RENAMED = {
    "other class names": replace(NAMED, names=["lesion"]),
    "other codes": Classes(["target"], {"target": "SCT:108369006:Neoplasm"}),
    "another choice of --anonymous": replace(NAMED, anonymous=True),
}


@pytest.mark.parametrize("words", RENAMED)
def test_a_segmentation_with_other_names_or_codes_is_named_and_neither_kept_as_this_one_nor_replaced(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, words: str
) -> None:
    write_series(tmp_path / "in/a", volume.astype(np.uint16))
    likely = replace(WAY, probabilities=True)
    files = next(predict(model, find_scans(tmp_path / "in"), tmp_path / "out", likely, NAMED)).files
    same = replace(NAMED, codes={"target": NAMED.codes["target"]})
    (kept,) = predict(model, find_scans(tmp_path / "in"), tmp_path / "out", WAY, same)
    assert (kept.files, kept.fault) == ((), None)
    if "anonymous" in words:
        files[0].unlink()  # the mask itself tells of its patient
    (done,) = predict(model, find_scans(tmp_path / "in"), tmp_path / "out", likely, RENAMED[words])
    assert f"came one of {words}; it was not replaced" in str(done.fault)


def test_a_segmentation_of_other_pixels_with_the_same_uids_is_named(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    (file, *_) = write_series(tmp_path / "in/a", volume.astype(np.uint16))
    run(model, tmp_path / "in", tmp_path / "out")
    change(file, PixelData=volume[::-1, :, 0].astype(np.uint16).tobytes())
    (done,) = run(model, tmp_path / "in", tmp_path / "out")
    assert "came one of another image, which had this name; it was not replaced" in str(done.fault)


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_nothing_of_the_source_is_in_the_record_of_anonymous_masks(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path, kind: str
) -> None:
    """Whoever has a patient's image could have compared its checksum. All else is compared as ever."""

    def masks(way: Way) -> Done:
        (done,) = predict(model, find_scans(tmp_path / "in"), tmp_path / "out", way, replace(NAMED, anonymous=True))
        return done

    if kind == "dicom":
        write_series(tmp_path / "in/a", volume.astype(np.uint16)[..., :1])
    else:
        nifti(tmp_path / "in/a.nii.gz", volume)
    (source,) = (path for path in (tmp_path / "in").rglob("*") if path.is_file())
    assert masks(WAY).files
    said = (tmp_path / "out" / RECORD).read_text()
    assert json.loads(said)["maker"]["image"] == ""
    assert sha256(source) not in said
    assert (masks(WAY).files, masks(WAY).fault) == ((), None)
    assert "one of the personal branch" in str(masks(replace(WAY, branch="global")).fault)


def test_anonymous_masks_whose_record_is_an_older_version_s_are_kept(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    """It noted the image's checksum."""
    nifti(tmp_path / "in/a.nii.gz", volume)
    assert run(model, tmp_path / "in", tmp_path / "out")[0].files
    (kept,) = predict(model, find_scans(tmp_path / "in"), tmp_path / "out", WAY, Classes(["target"], anonymous=True))
    assert (kept.files, kept.fault) == ((), None)


def test_a_segmentation_whose_record_says_less_is_kept(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    """An older version noted neither names nor the image of a DICOM series."""
    write_series(tmp_path / "in/a", volume.astype(np.uint16))
    run(model, tmp_path / "in", tmp_path / "out")
    said = json.loads((tmp_path / "out" / RECORD).read_text())
    said["maker"] = {name: said["maker"][name] for name in ("model", "branch", "plane", "scale")}
    (tmp_path / "out" / RECORD).write_text(json.dumps(said | {"maker": said["maker"] | {"image": ""}}))
    (kept,) = run(model, tmp_path / "in", tmp_path / "out")
    assert (kept.files, kept.fault) == ((), None)
    (done,) = run(model, tmp_path / "in", tmp_path / "out", replace(WAY, branch="global"))
    assert "one of the personal branch" in str(done.fault)


def test_a_mask_is_not_written_again_beside_maps_of_another_branch(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "in/a.nii.gz", volume)
    likely = replace(WAY, probabilities=True)
    run(model, tmp_path / "in", tmp_path / "out", replace(likely, branch="global"))
    (done,) = run(model, tmp_path / "in", tmp_path / "out", WAY, again=True)
    assert f"no other mask at {tmp_path}/out/a.prob-1.nii.gz" in str(done.fault)
    assert "came one of the global branch" in str(done.fault)
    assert "add --overwrite and --probabilities" in str(done.fault)
    (again,) = run(model, tmp_path / "in", tmp_path / "out", likely, again=True)
    assert len(again.files) == 2


def test_a_file_that_predict_did_not_write_is_not_taken_for_its_mask(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    """It may be a drawn mask: whoever scored it as a prediction would find a perfect one."""
    nifti(tmp_path / "in/a.nii.gz", volume)
    drawn = nifti(tmp_path / "out/a.nii.gz", np.ones(volume.shape, np.uint8)).read_bytes()
    for way in (WAY, replace(WAY, probabilities=True)):
        (done,) = run(model, tmp_path / "in", tmp_path / "out", way)
        assert "such as a drawn mask" in str(done.fault)
        assert (tmp_path / "out/a.nii.gz").read_bytes() == drawn


def test_a_name_that_is_no_text_is_known_again(model: Predictor, volume: NDArray[np.float32], tmp_path: Path) -> None:
    nifti(tmp_path / os.fsdecode(b"in/B\xe4r.nii"), volume)
    run(model, tmp_path / "in", tmp_path / "out")
    (done,) = run(model, tmp_path / "in", tmp_path / "out", replace(WAY, branch="global"))
    assert "one of the personal branch" in str(done.fault)


def test_the_source_is_never_written_over(model: Predictor, volume: NDArray[np.float32], tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", volume)
    before = path.read_bytes()
    with pytest.raises(UserFault, match="separate output folder"):
        run(model, tmp_path, tmp_path, again=True)
    (done,) = predict(model, find_scans(path), tmp_path, WAY, Classes(["target"]), again=True)
    assert "separate output folder" in str(done.fault)
    assert path.read_bytes() == before


def test_masks_in_a_folder_below_the_images_are_no_images(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "a.nii.gz", volume)
    run(model, tmp_path, tmp_path / "masks")
    (again,) = run(model, tmp_path, tmp_path / "masks")
    assert again.files == ()
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [RECORD, "a.nii.gz"]


def test_nor_are_the_masks_of_an_earlier_command(model: Predictor, volume: NDArray[np.float32], tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", volume)
    run(model, tmp_path, tmp_path / "first")
    (done,) = run(model, tmp_path, tmp_path / "second")
    assert [path.name for path in done.files] == ["a.nii.gz"]
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == [RECORD, "a.nii.gz"]


def test_values_beyond_eight_bits_are_told_where_training_took_eight(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "a.nii.gz", 4 * volume)
    (done,) = run(model, tmp_path / "a.nii.gz", tmp_path / "out", Way("global", scale="uint8"))
    assert "--scale percentile" in str(done.fault)


def test_a_nifti_that_states_no_position_gets_a_mask_only_as_stored(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nibabel.Nifti1Image(volume, None).to_filename(tmp_path / "a.nii")
    (done,) = run(model, tmp_path / "a.nii", tmp_path / "out")
    assert re.search(r"a position in the header of the image, .*axial slices .*a\.nii; .*--plane", str(done.fault))
    (done,) = run(model, tmp_path / "a.nii", tmp_path / "out", replace(WAY, plane="stored"))
    mask = nibabel.load(done.files[0])
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (0, 0)


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="images in"):
        list(find_scans(tmp_path))


def test_a_file_of_0_to_1_is_no_black_image_and_gets_no_empty_mask(
    model: Predictor, volume: NDArray[np.float32], tmp_path: Path
) -> None:
    nifti(tmp_path / "in" / "unit.nii.gz", volume / 255)
    (done,) = run(model, tmp_path / "in", tmp_path / "out", Way("personal", scale="uint8"))
    assert "fractions of 0 to 1" in str(done.fault)
