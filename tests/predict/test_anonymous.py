"""An anonymous segmentation has nothing of the patient, by the standard's own table, and still fits together."""

import json
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from data.dicoms import enhanced, write_series
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from pfedsam.cli import main
from pfedsam.data.dicom import dicom_header
from pfedsam.predict.anonymous import EMPTIED, REMOVED, REPLACED, new_secret, new_uid
from pfedsam.predict.masks import Prediction
from pfedsam.predict.scans import Scan, find_scans
from pfedsam.predict.segmentation import Classes
from pfedsam.predict.written import existing, write

IMAGE = np.random.default_rng(5).integers(0, 900, (24, 20, 4)).astype(np.uint16)
LABELS = (IMAGE > 450).astype(np.uint8)
SECRET = "Xqz"  # in every text of the source
DATED = {"StudyDate": "20200102", "StudyTime": "101112", "PatientBirthDate": "19510203", "SeriesDate": "20200102"}
NAMED = {
    "PatientName": "Xqz^Name",
    "PatientID": "Xqz1",
    "AccessionNumber": "XqzACC",
    "StudyID": "XqzSTUDY",
    "InstitutionName": "Xqz clinic",
    "InstitutionAddress": "Xqz street",
    "ReferringPhysicianName": "Xqz^Doctor",
    "OperatorsName": "Xqz^Operator",
    "StationName": "XqzSTATION",
    "ProtocolName": "Xqz protocol",
    "StudyDescription": "Xqz visit",
    "SeriesDescription": "Xqz series",
    "ImageComments": "Xqz comment",
    "PatientComments": "Xqz remark",
    "DeviceSerialNumber": "Xqz123",
    "ClinicalTrialSubjectID": "XqzTRIAL",
    "PositionReferenceIndicator": "Xqz",
}


def scan(folder: Path, **tags: object) -> Scan:
    for file in write_series(folder, IMAGE, tags={**NAMED, **DATED, **tags}):
        data = pydicom.dcmread(file)
        data.private_block(0x0011, "XQZ VENDOR", create=True).add_new(1, "LO", "Xqz private")
        data.save_as(file)
    (found,) = find_scans(folder)
    assert isinstance(found, Scan)
    return found


def drawn(item: Scan, out: Path, classes: Classes, *, likely: bool = False) -> list[Path]:
    maps = np.stack([LABELS == 1])
    probable = maps.astype(np.float32) if likely else None
    return write(out, item, Prediction(LABELS, maps, probable), classes, again=True)


def attributes(data: Dataset) -> Iterator[DataElement]:
    for own in data:
        yield own
        for item in own.value if own.VR == "SQ" else ():
            yield from attributes(item)


@pytest.fixture
def segmented(tmp_path: Path) -> Dataset:
    return pydicom.dcmread(drawn(scan(tmp_path / "s"), tmp_path / "out", Classes(["liver"], anonymous=True))[0])


def test_nothing_of_the_patient_is_in_the_file(tmp_path: Path) -> None:
    item = scan(tmp_path / "s")
    (path,) = drawn(item, tmp_path / "out", Classes(["liver"], anonymous=True))
    data = path.read_bytes()
    assert b"Xqz" not in data
    assert b"XQZ" not in data
    for date in set(DATED.values()):
        assert date.encode() not in data
    source = {str(own.value) for file in item.files for own in attributes(pydicom.dcmread(file)) if own.VR == "UI"}
    found = {str(own.value) for own in attributes(pydicom.dcmread(path)) if own.VR == "UI"}
    assert {uid for uid in source & found if not uid.startswith("1.2.840.10008.")} == set()


def test_the_file_states_that_the_patient_is_out_and_by_which_profile(segmented: Dataset) -> None:
    assert segmented.PatientIdentityRemoved == "YES"
    assert "basic profile of DICOM PS3.15" in segmented.DeidentificationMethod
    assert len(segmented.DeidentificationMethod) <= 64
    (code,) = segmented.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")
    assert segmented.LongitudinalTemporalInformationModified == "REMOVED"


def test_each_attribute_is_treated_as_the_standard_s_table_says(segmented: Dataset) -> None:
    """The table is the copy of a package that is written for it; ours has only what a segmentation can have."""
    table = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2024b")
    kinds = [name for name in vars(table) if name.endswith("_TAGS") and name != "ALL_TAGS"]
    actions = {tuple(tag[:2]): kind for kind in kinds for tag in vars(table)[kind]}
    assert len(actions) > 600
    seen = []
    for own in attributes(segmented):
        action = actions.get((own.tag.group, own.tag.element))
        if action is None or own.VR == "SQ":  # what is within a sequence is judged by itself
            continue
        seen.append(own.keyword)
        if "U" in action:
            assert str(own.value).startswith("2.25."), own.keyword
        elif "D" in action:
            assert own.value in ("", REPLACED.get(own.keyword)), own.keyword
        else:
            assert "Z" in action, f"{own.keyword} is to be removed"
            assert own.value in ("", None), own.keyword
    assert {"PatientName", "SOPInstanceUID", "ContentDate", "ReferencedSOPInstanceUID"} <= set(seen)


def test_our_tables_do_what_the_standard_s_says() -> None:
    table = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2024b")
    kinds = [name for name in vars(table) if name.endswith("_TAGS") and name != "ALL_TAGS"]
    actions = {tuple(tag[:2]): kind.removesuffix("_TAGS") for kind in kinds for tag in vars(table)[kind]}
    for names, allowed in ((EMPTIED, "Z"), (REMOVED, "X"), (set(REPLACED), "D")):
        for name in names - {"ContentDescription", "PositionReferenceIndicator"}:
            tag = pydicom.tag.Tag(name)
            assert allowed in actions[(tag.group, tag.element)].split("_"), name


def test_the_uids_of_one_call_fit_together_and_those_of_another_call_are_others(tmp_path: Path) -> None:
    item = scan(tmp_path / "s")
    classes = Classes(["liver"], anonymous=True)
    mask, likely = (pydicom.dcmread(path) for path in drawn(item, tmp_path / "one", classes, likely=True))
    other = pydicom.dcmread(drawn(item, tmp_path / "two", Classes(["liver"], anonymous=True))[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert mask[name].value == likely[name].value != other[name].value
    (series,) = mask.ReferencedSeriesSequence
    listed = {str(image.ReferencedSOPInstanceUID) for image in series.ReferencedInstanceSequence}
    heads = [pydicom.dcmread(file) for file in item.files]
    assert listed == {new_uid(head.SOPInstanceUID, classes.secret) for head in heads}
    assert series.SeriesInstanceUID == new_uid(heads[0].SeriesInstanceUID, classes.secret)
    of_frames = {
        str(source.ReferencedSOPInstanceUID)
        for frame in mask.PerFrameFunctionalGroupsSequence
        for derived in frame.DerivationImageSequence
        for source in derived.SourceImageSequence
    }
    assert of_frames <= listed
    assert mask.file_meta.MediaStorageSOPInstanceUID == mask.SOPInstanceUID
    assert highdicom.seg.segread(tmp_path / "one/s.seg.dcm").number_of_segments == 1


def test_a_new_uid_is_valid_and_hides_the_old_one() -> None:
    secret = new_secret()
    one = pydicom.uid.UID(new_uid("1.2.3", secret))
    assert one.is_valid
    assert one == new_uid("1.2.3", secret)
    assert len({one, new_uid("1.2.4", secret), new_uid("1.2.3", new_secret())}) == 3


@pytest.mark.parametrize("frames", ["classic", "enhanced"])
def test_a_second_call_keeps_anonymous_masks_and_takes_no_named_one_for_one(tmp_path: Path, frames: str) -> None:
    if frames == "enhanced":
        enhanced(tmp_path / "s", IMAGE)
        (item,) = find_scans(tmp_path / "s")
    else:
        item = scan(tmp_path / "s")
    hidden, named = Classes(["liver"], anonymous=True), Classes(["liver"])
    (nameless,), (plain,) = drawn(item, tmp_path / "a", hidden), drawn(item, tmp_path / "b", named)
    assert existing(nameless, item, anonymous=True) == existing(plain, item, anonymous=False) == ""
    assert existing(plain, item, anonymous=True) == "one that names its patient"
    assert existing(nameless, item, anonymous=False) == "an anonymous one"


def test_the_mask_of_a_series_that_is_anonymous_already_keeps_its_uids(tmp_path: Path) -> None:
    """So that mask and images still belong together."""
    item = scan(tmp_path / "s", PatientIdentityRemoved="YES", DeidentificationMethod="by the archive")
    (path,) = drawn(item, tmp_path / "out", Classes(["liver"]))
    assert pydicom.dcmread(path).StudyInstanceUID == dicom_header(item.files[0]).StudyInstanceUID
    assert existing(path, item, anonymous=False) == ""


def test_the_verb_says_that_a_segmentation_names_its_patient(
    tmp_path: Path, trained_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = scan(tmp_path / "in")
    verb = ["predict", str(item.files[0].parent), "--model", str(trained_model), "--scale", "percentile", "--json"]
    assert main([*verb, str(tmp_path / "named")]) == 0
    told = capsys.readouterr()
    assert "the DICOM segmentations name their patient, as the standard demands" in told.err
    assert json.loads(told.out)["files"][0]["written"]
    assert main([*verb, str(tmp_path / "named"), "--anonymous"]) == 1
    assert "came one that names its patient; it was not replaced" in capsys.readouterr().err
    assert main([*verb, str(tmp_path / "nameless"), "--anonymous"]) == 0
    assert "name their patient" not in capsys.readouterr().err
