"""A DICOM segmentation of any series that can be read: what it states, what it leaves out, and back into prepare."""

import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from data.dicoms import change, enhanced, write_series

from pfedsam.data.dicom import read_series
from pfedsam.errors import UserFault
from pfedsam.inference.predictor import Predictor, load_model
from pfedsam.predict import run as running
from pfedsam.predict.masks import Prediction, Way
from pfedsam.predict.run import predict
from pfedsam.predict.scans import Scan, find_scans
from pfedsam.predict.segmentation import TYPE_2, Classes, check_series, code_of, segmentation
from pfedsam.predict.written import existing, write
from pfedsam.prepare.dicomseg import read_segmentation

IMAGE = np.random.default_rng(3).integers(0, 900, (24, 20, 5)).astype(np.uint16)
LABELS = np.zeros(IMAGE.shape, np.uint8)
LABELS[3:9, 2:7, 1], LABELS[12:15, 4:18, 3] = 1, 2
TWO = Classes(["liver", "tumour"])


def only(folder: Path) -> Scan:
    (item,) = find_scans(folder)
    assert isinstance(item, Scan), item
    return item


def drawn(item: Scan, out: Path, classes: Classes = TWO) -> Path:
    """The file of the known labels."""
    masks = np.stack([LABELS[:, :, : IMAGE.shape[2]] == 1, LABELS == 2])
    check_series(item, classes)
    (path,) = write(out, item, Prediction(LABELS, masks, None), classes, again=True)
    return path


def tilted(folder: Path) -> None:
    for file in write_series(folder, IMAGE):
        k = int(pydicom.dcmread(file).InstanceNumber) - 1
        change(file, ImagePositionPatient=[10 + 0.2 * (k % 2), -20 + 0.8 * k, 30 + 2.5 * k])


def jittering(folder: Path) -> None:
    for k, file in enumerate(write_series(folder, IMAGE)):
        change(file, ImageOrientationPatient=[1, 0.0005 + 1e-5 * k, 0, -0.0005 - 1e-5 * k, 1, 0])


KINDS = {
    "straight": lambda folder: write_series(folder, IMAGE),
    "tilted": tilted,
    "jittering": jittering,
    "enhanced": lambda folder: enhanced(folder, IMAGE, shuffled=True),
    "enhanced and tilted": lambda folder: enhanced(folder, IMAGE, shuffled=True, shift=0.8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_predict_writes_prepare_reads_back_voxel_for_voxel(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "s")
    item = only(tmp_path / "s")
    path = drawn(item, tmp_path / "out")
    found = read_segmentation(path, read_series(item.files), item.files, classes={"liver": 1, "tumour": 2})
    assert np.array_equal(found, LABELS)


@pytest.mark.parametrize("tag", [*TYPE_2, "PositionReferenceIndicator"])
@pytest.mark.parametrize("left", ["nothing", "an empty value"])
def test_a_tag_that_de_identification_took_is_written_empty(tmp_path: Path, tag: str, left: str) -> None:
    write_series(tmp_path / "s", IMAGE, tags={tag: ""})
    if left == "nothing":
        for file in (tmp_path / "s").iterdir():
            change(file, **{tag: None})
    seg = pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out"))
    assert not seg.get(tag)


@pytest.mark.parametrize("stated", [None, "1.0", "0", "-2.5"])
def test_the_distance_of_slices_is_that_of_their_positions(tmp_path: Path, stated: str | None) -> None:
    """Some scanners state the gap between slices there. A reader that trusts it makes a volume with holes."""
    write_series(
        tmp_path / "s", IMAGE, tags={"SliceThickness": "1.5"} | ({"SpacingBetweenSlices": stated} if stated else {})
    )
    seg = pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out"))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, measures.SliceThickness) == (2.5, 1.5)


@pytest.mark.parametrize("stated", ["", None])
def test_a_thickness_that_is_not_stated_is_the_distance_of_the_slices(tmp_path: Path, stated: str | None) -> None:
    write_series(tmp_path / "s", IMAGE, tags={"SliceThickness": stated})
    seg = pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out"))
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("PatientSex", "male"),
        ("PatientBirthDate", "ANON"),
        ("StudyDate", "1950.13"),
        ("StudyTime", "noon"),
    ],
)
def test_a_value_that_a_segmentation_cannot_state_is_left_out(tmp_path: Path, tag: str, value: str) -> None:
    write_series(tmp_path / "s", IMAGE)
    for file in (tmp_path / "s").iterdir():
        data = pydicom.dcmread(file)
        data.add_new(tag, "LO", value)
        data.save_as(file)
    assert pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out")).get(tag) == ""


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_that_a_segmentation_cannot_refer_to_is_told_before_the_inference(
    tmp_path: Path, tag: str, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "s", IMAGE, tags={tag: None})
    monkeypatch.setattr(running, "segment", None)
    (done,) = predict(model, find_scans(tmp_path / "s"), tmp_path / "out", Way("global"), Classes(["target"]))
    assert f"expected a {tag} in each file" in str(done.fault)


@pytest.fixture(scope="module")
def model(trained_model: Path) -> Predictor:
    return load_model(trained_model)


def test_an_anonymous_segmentation_says_nothing_of_the_patient(tmp_path: Path) -> None:
    tags = {"PatientName": "Xqzname^Jane", "PatientID": "XQZ-17", "PatientBirthDate": "19510203", "PatientSex": "F"}
    more = {
        "AccessionNumber": "XQZACC",
        "StudyID": "XQZSTUDY",
        "StudyDescription": "XQZ visit",
        "StudyDate": "20200102",
    }
    more |= {"InstitutionName": "XQZ clinic", "Manufacturer": "XQZ", "ReferringPhysicianName": "Xqz^Doctor"}
    write_series(tmp_path / "s", IMAGE, tags={**tags, **more})
    item = only(tmp_path / "s")
    named, nameless = (drawn(item, tmp_path / str(a), Classes(TWO.names, anonymous=a)) for a in (False, True))
    assert b"Xqzname" in named.read_bytes()
    assert not any(text in nameless.read_bytes() for text in (b"Xqz", b"XQZ", b"19510203", b"20200102"))
    seg = highdicom.seg.segread(nameless)
    assert seg.StudyInstanceUID != pydicom.dcmread(item.files[0]).StudyInstanceUID
    planes = np.moveaxis(seg.pixel_array.reshape(2, -1, *IMAGE.shape[:2]), 1, -1)
    assert planes.sum() == (LABELS > 0).sum()


def test_a_segmentation_names_its_patient_once_and_passes_on_no_other_name(tmp_path: Path) -> None:
    others = {"OtherPatientNames": "Formerly^Known", "PatientBirthName": "Born^As", "PatientComments": "nephew of Born"}
    write_series(tmp_path / "s", IMAGE, tags=others)
    path = drawn(only(tmp_path / "s"), tmp_path / "out")
    assert str(pydicom.dcmread(path).PatientName) == "Doe^PAT-1"
    assert not any(text in path.read_bytes() for text in (b"Formerly", b"Born"))


def test_a_mask_of_a_series_that_has_grown_since_is_not_taken_for_the_whole_one(tmp_path: Path) -> None:
    files = write_series(tmp_path / "s", IMAGE)
    whole = only(tmp_path / "s")
    path = drawn(whole, tmp_path / "out")
    assert not existing(path, whole, anonymous=False)
    whole.files[-1].rename(tmp_path / "late.dcm")
    assert "another number" in existing(path, only(tmp_path / "s"), anonymous=False), f"one of {len(files)} is gone"


def test_a_class_has_the_code_of_the_job_and_tissue_without_one(tmp_path: Path) -> None:
    write_series(tmp_path / "s", IMAGE)
    classes = Classes(TWO.names, {"liver": "SCT:10200004:Liver"})
    seg = highdicom.seg.segread(drawn(only(tmp_path / "s"), tmp_path / "out", classes))
    kinds = [seg.get_segment_description(n).segmented_property_type for n in (1, 2)]
    assert [(k.value, k.scheme_designator, k.meaning) for k in kinds] == [
        ("10200004", "SCT", "Liver"),
        ("85756007", "SCT", "Tissue"),
    ]


@pytest.mark.parametrize("text", ["", "10200004", "SCT:10200004", "SCT::Liver", ":1:Liver", f"SCT:1:{'x' * 65}"])
def test_a_code_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserFault, match="SCT:10200004:Liver"):
        code_of(text)


@pytest.mark.parametrize("name", ["a\\b", "x" * 65, " ", "", "a\nb"])
def test_a_class_name_that_dicom_cannot_hold_is_refused_before_the_inference(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "s", IMAGE)
    with pytest.raises(UserFault, match="a class name of 1 to 64"):
        check_series(only(tmp_path / "s"), Classes([name]))


def test_a_meaning_may_hold_a_colon() -> None:
    assert code_of("SCT: 10200004 : Liver: left").meaning == "Liver: left"


def test_several_enhanced_files_of_one_series_have_a_mask_each(tmp_path: Path) -> None:
    for name in "abc":
        path = enhanced(tmp_path / name, IMAGE)
        change(path, SeriesInstanceUID="1.2.3").rename(tmp_path / f"{name}.dcm")
        (tmp_path / name).rmdir()
    assert sorted(item.name.name for item in find_scans(tmp_path) if isinstance(item, Scan)) == ["a", "b", "c"]


def test_two_series_that_share_instance_uids_are_both_refused_and_a_copy_is_not(
    tmp_path: Path, model: Predictor
) -> None:
    for name in "ab":
        for k, file in enumerate(write_series(tmp_path / f"in/{name}", IMAGE + ord(name))):
            change(file, SOPInstanceUID=f"1.2.3.{k + 1}")
    (tmp_path / "in/c").mkdir()
    for file in write_series(tmp_path / "in/d", IMAGE):
        (tmp_path / "in/c" / file.name).write_bytes(file.read_bytes())
    done = list(
        predict(model, find_scans(tmp_path / "in"), tmp_path / "out", Way("global", scale="percentile"), Classes(["x"]))
    )
    assert ["1.2.3.1 in 2 different files" in str(d.fault) for d in done] == [True, True, False, False]
    assert [bool(d.files) for d in done] == [False, False, True, True]


def test_a_series_in_two_folders_is_named_and_gets_no_two_half_masks(tmp_path: Path, model: Predictor) -> None:
    (tmp_path / "in/second").mkdir(parents=True)
    for file in sorted(write_series(tmp_path / "in/first", IMAGE))[3:]:
        file.rename(tmp_path / "in/second" / file.name)
    way = Way("global", scale="percentile")
    done = list(predict(model, find_scans(tmp_path / "in"), tmp_path / "out", way, Classes(["x"])))
    assert [f"in {tmp_path}/in/first and {tmp_path}/in/second" in str(d.fault) for d in done] == [True, True]
    assert not (tmp_path / "out").exists()


def test_files_without_a_series_or_instance_uid_are_named_one_by_one(tmp_path: Path) -> None:
    write_series(tmp_path / "a", IMAGE, tags={"SeriesInstanceUID": ""})
    write_series(tmp_path / "b", IMAGE, tags={"SOPInstanceUID": ""})
    assert sum("a SeriesInstanceUID and a SOPInstanceUID" in str(f) for f in find_scans(tmp_path)) == 10


@pytest.mark.parametrize("verb", ["predict", "prepare"])
def test_no_library_tells_a_patient_s_name(tmp_path: Path, trained_model: Path, verb: str) -> None:
    tags = {"PatientName": "Xqzname", "PatientBirthDate": "Xqz", "StudyTime": "99Xqz", "PatientSex": "Xqz"}
    for i in range(3):
        write_series(tmp_path / f"in/images/{i}", IMAGE, patient=f"p{i}")
        for file in (tmp_path / f"in/images/{i}").iterdir():
            data = pydicom.dcmread(file)
            for tag, value in tags.items():
                data.add_new(tag, "PN" if tag == "PatientName" else "LO", value)
            data.save_as(file)
        write_series(tmp_path / f"in/masks/{i}", LABELS, patient=f"p{i}")
    more = ["--model", str(trained_model), "--anonymous"] if verb == "predict" else ["--site", "h"]
    source = tmp_path / "in/images" if verb == "predict" else tmp_path / "in"
    command = [sys.executable, "-W", "default", "-m", "pfedsam.cli", verb, str(source), str(tmp_path / "out"), *more]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    written = [f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert "Warning" not in told.stderr
    assert "Traceback" not in told.stderr
    assert "Xqz" not in told.stdout + told.stderr
    assert not any(b"Xqz" in data for data in written)
    assert written or verb == "prepare"


def test_the_segmentation_of_a_series_in_latin_1_keeps_its_name(tmp_path: Path) -> None:
    write_series(tmp_path / "s", IMAGE, tags={"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"})
    seg = pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out"))
    assert str(seg.PatientName) == "Müller^Jörg"


@pytest.mark.parametrize(
    ("stated", "name", "written"),
    [
        (None, "liver", None),
        (None, "Gewächs", "ISO_IR 192"),
        (None, "Wątroba ł", "ISO_IR 192"),
        ("ISO_IR 100", "liver", "ISO_IR 100"),
        ("ISO_IR 100", "Gewächs", "ISO_IR 100"),
        ("ISO_IR 100", "Wątroba ł", "ISO_IR 192"),
        ("ISO_IR 101", "Wątroba ł", "ISO_IR 101"),
        ("ISO_IR 13", "肝", "ISO_IR 192"),
        (["ISO 2022 IR 6", "ISO 2022 IR 149"], "간", "ISO_IR 192"),
        ("ISO_IR 192", "肝", "ISO_IR 192"),
    ],
)
@pytest.mark.parametrize("where", ["name", "meaning"])
def test_a_class_s_name_and_meaning_are_written_whole_whatever_the_series_character_set(
    tmp_path: Path, stated: object, name: str, written: str | None, where: str
) -> None:
    patient = "Müller^Jörg" if stated == "ISO_IR 100" else "Doe^Jane"
    tags = {"PatientName": patient, **({"SpecificCharacterSet": stated} if stated else {})}
    write_series(tmp_path / "s", IMAGE, tags=tags)
    classes = Classes([name, "b"]) if where == "name" else Classes(["a", "b"], {"a": f"99X:1:{name}"})
    seg = pydicom.dcmread(drawn(only(tmp_path / "s"), tmp_path / "out", classes))
    segment = seg.SegmentSequence[0]
    found = segment.SegmentLabel if where == "name" else segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
    assert (found, str(seg.PatientName)) == (name, patient)
    assert seg.get("SpecificCharacterSet") == written


def test_probabilities_of_a_shuffled_enhanced_file_lie_on_its_frames(tmp_path: Path) -> None:
    item = Scan("dicom", (enhanced(tmp_path, IMAGE, shuffled=True),), Path("x"))
    likely = (LABELS == 1)[None].astype(np.float32)
    segmentation(item, likely, Classes(["liver"]), fractional=True).save_as(tmp_path / "seg.dcm")
    found = read_segmentation(tmp_path / "seg.dcm", read_series(item.files), item.files, classes={"liver": 1})
    assert np.array_equal(found, LABELS == 1)


def test_slices_of_a_volume_that_are_a_series_each_are_named_and_a_few_single_ones_are_not(tmp_path: Path) -> None:
    """Each would be shown to the model by its own brightness, where training saw a volume."""
    files = write_series(tmp_path / "in", IMAGE)
    for k, file in enumerate(files):
        change(file, SeriesInstanceUID=f"1.2.3.{k + 1}")
    faults = [str(fault) for fault in find_scans(tmp_path / "in")]
    assert len(faults) == 5
    assert all("5 series of one slice in one folder" in fault and "one SeriesInstanceUID" in fault for fault in faults)
    for file in files[2:]:
        file.unlink()
    assert [type(item) for item in find_scans(tmp_path / "in")] == [Scan, Scan]
