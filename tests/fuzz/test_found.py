"""What fuzzing has found, each as a plain test of its own."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from data.dicoms import change, enhanced, write_series
from fuzz.files import odd_image
from fuzz.stores import model_file
from PIL import Image

from conftest import tiny
from pfedsam.config import to_dict
from pfedsam.data import datalist
from pfedsam.data.dicom import dicom_header, unusable
from pfedsam.errors import LONGEST, UserFault
from pfedsam.exchange.accept import accept
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.guard import Rejected, facts_fault, judge_message
from pfedsam.exchange.schema import Stamp
from pfedsam.exchange.server import ServerState
from pfedsam.exchange.store import Moment, SiteStore, round_of
from pfedsam.files import parsed, read_json
from pfedsam.predict.scans import Scan, find_scans
from pfedsam.prepare.site import Wish, prepare
from pfedsam.settings import from_dict
from pfedsam.tensors import SETTINGS, facts_of

DEEP = b"[" * 100_000
GATE = {"gate": torch.ones(3)}


def test_json_with_too_many_brackets_is_a_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many brackets"):
        parsed(DEEP)
    (tmp_path / "job.json").write_bytes(DEEP)
    with pytest.raises(UserFault, match=r"JSON file at .*job\.json"):
        read_json(tmp_path / "job.json")
    (tmp_path / "datalist.json").write_bytes(DEEP)
    with pytest.raises(UserFault, match="a readable datalist"):
        datalist.read(tmp_path / "datalist.json")


@pytest.mark.parametrize("header", [b"[1]", b'{"__metadata__": [1]}', b'{"__metadata__": {"round": 1}}', DEEP, b"7"])
def test_a_header_with_other_than_texts_has_no_facts(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert facts_of(tmp_path / "x.safetensors") == {}


@pytest.mark.parametrize("said", [{}, {"round": "one"}, {"round": ""}, {"round": "9" * 5000}])
def test_a_generation_whose_round_cannot_be_read_has_none(said: dict[str, str]) -> None:
    assert round_of(said) == -1


def test_a_store_with_files_of_odd_names_and_an_unreadable_owner_goes_on(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    store.claim()
    store.save(GATE, {}, Moment("run", 0))
    (store.folder / "private.².safetensors").write_bytes(b"")
    store.save(GATE, {}, Moment("run", 1))
    assert store.load(Moment("run", 2))[1]["round"] == "1"
    (store.folder / "owner").write_bytes(b"\xff\xfe")
    with pytest.raises(UserFault, match="a later job"):
        store.save(GATE, {}, Moment("run", 2))


def test_a_measure_without_finite_values_is_none(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    store.keep_accepted({"decoder.b": torch.full((3,), torch.nan)}, Moment("run", 1))
    accept(store, {"decoder.b": torch.ones(3)}, Moment("run", 2))
    with pytest.raises(UserFault, match="near the last one"):
        accept(store, {"decoder.b": -torch.ones(3)}, Moment("run", 3))


def test_zeros_are_no_next_model_however_many_rounds_the_server_says_have_passed(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    accept(store, {"decoder.a": torch.ones(3)}, Moment("run", 0))
    for worse in (0.0, -1.0):
        with pytest.raises(UserFault, match="near the last one"):
            accept(store, {"decoder.a": torch.full((3,), worse)}, Moment("run", 50_000))


@pytest.mark.parametrize("wrong", [{"done": "2"}, {"done": True}, {"results": []}, {"run": 5}, {"base": None}])
def test_a_checkpoint_with_facts_of_another_kind_is_passed_over(tmp_path: Path, wrong: dict[str, object]) -> None:
    points = Checkpoints(tmp_path, "study")
    for done in (1, 2):
        points.save(Checkpoint("run", done, "c", "b", {}, ServerState(GATE)))
    path = tmp_path / "study/server/run/round.000002.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert points.load("run").done == 1
    path.write_bytes(DEEP)
    assert points.load("run").done == 1


@pytest.mark.parametrize("round_", [True, 1.0, torch.ones(3), "1"])
def test_a_round_of_another_kind_is_not_the_round(round_: object) -> None:
    verdict = judge_message({}, Stamp(round_, "", ""), schema={}, expected=Stamp(1, "", ""))
    assert isinstance(verdict, Rejected)


def test_facts_of_any_depth_are_refused_or_sent() -> None:
    for depth in range(300, 1100, 20):
        facts: object = "text"
        for _ in range(depth):
            facts = [facts]
        facts_fault(facts)


def test_a_half_of_a_character_is_no_name_of_a_class_or_of_a_file(tmp_path: Path) -> None:
    values = to_dict(tiny())
    with pytest.raises(UserFault, match=r"data\.classes to be a list"):
        from_dict(values | {"data": values["data"] | {"classes": ["\ud800"]}})
    with pytest.raises(UserFault, match="every"):
        from_dict(values | {"every": {"\ud800": 1}})
    rows = [{"image": "a", "mask": "a", "split": "train", "group": "\ud800"}]
    (tmp_path / "datalist.json").write_text(json.dumps(rows))
    with pytest.raises(UserFault, match="half of a character"):
        datalist.read(tmp_path / "datalist.json")


def test_a_half_of_a_character_in_a_header_is_a_damaged_header(tmp_path: Path) -> None:
    """A careful forger's: with a seal and a checksum that fit."""
    model_file({SETTINGS: "\ud800"}, tmp_path)


def test_the_image_of_a_mask_may_be_empty(tmp_path: Path) -> None:
    odd_image(("a.bmp", b""), tmp_path)


def test_a_dicom_file_of_fewer_frames_than_one_is_named(tmp_path: Path) -> None:
    (file, *_) = write_series(tmp_path / "scans", np.zeros((16, 16, 2), np.uint16))
    change(file, NumberOfFrames=-1)
    assert "-1 frames by its header" in str(unusable(file, dicom_header(file)))
    found = list(find_scans(tmp_path / "scans"))
    assert [isinstance(one, UserFault) for one in found] == [True, False]


def test_a_cell_longer_than_any_file_s_name_is_a_missing_file(tmp_path: Path) -> None:
    long = "x" * 100_000
    (tmp_path / "datalist.csv").write_text(f"image,mask,split,group\n{long},{long},train,p1\n")
    for use in (lambda: datalist.read(tmp_path / "datalist.csv"), lambda: prepare([tmp_path], None, Wish())):
        with pytest.raises(UserFault, match=r"each image .* to exist") as told:
            use()
        assert len(str(told.value)) < 2 * LONGEST
    (tmp_path / "datalist.csv").write_text(f"image,mask,split,group\n{long * 2},{long},train,p1\n")
    with pytest.raises(UserFault, match="a readable datalist"):
        datalist.read(tmp_path / "datalist.csv")


def test_a_fault_holds_no_more_of_a_text_than_a_terminal_can_show() -> None:
    fault = UserFault(expected="a name", came="x" * 10**6, do="shorten it")
    assert len(str(fault)) < LONGEST + 100
    assert len(fault.came) <= LONGEST + 5


def right(folder: Path) -> None:
    """Three right pairs of pictures."""
    for sub in ("images", "masks"):
        (folder / sub).mkdir()
        for i in range(3):
            Image.fromarray(np.eye(16, k=i, dtype=np.uint8)).save(folder / sub / f"right{i}.png")


def spoilt(folder: Path, tag: str, value: bytes) -> Path:
    """A DICOM slice with bytes in an element that cannot be read as its kind."""
    (path,) = write_series(folder, np.zeros((16, 16, 1), np.uint16))
    data = path.read_bytes()
    element = pydicom.dcmread(path)[tag]
    old = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
    at = data.index(old) + 8
    path.write_bytes(data[:at] + value + data[at + len(value) :])
    return path


@pytest.mark.parametrize(("tag", "value"), [("ImagePositionPatient", b"\xee\x9f\xd7m"), ("PixelSpacing", b"a\\b")])
def test_an_element_that_cannot_be_read_costs_its_file_and_no_other(tmp_path: Path, tag: str, value: bytes) -> None:
    right(tmp_path)
    path = spoilt(tmp_path / "images/odd", tag, value)
    found = list(find_scans(tmp_path / "images"))
    assert sum(isinstance(one, Scan) for one in found) == 3
    assert any(isinstance(one, UserFault) and path.name in str(one) for one in found)
    report = prepare([tmp_path], None, Wish(patient="each"))
    assert report["cases"] == 3
    assert any(path.name in one["file"] for one in report["dropped"])


@pytest.mark.parametrize("count", [10**9, "12x"])
def test_frames_that_are_not_there_are_named_at_once(tmp_path: Path, count: object) -> None:
    path = enhanced(tmp_path / "series", np.zeros((16, 16, 2), np.uint16))
    if isinstance(count, str):
        path.write_bytes(path.read_bytes().replace(b"(\0\x08\0IS\x02\0002 ", b"(\0\x08\0IS\x02\0x2"))
    else:
        change(path, NumberOfFrames=count)
    (only,) = find_scans(path)
    assert isinstance(only, UserFault)


def test_a_packed_dicom_file_is_not_unpacked(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, np.zeros((16, 16, 1), np.uint16))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert dicom_header(path) is None
    assert isinstance(unusable(path, None), UserFault)


def test_a_name_that_no_file_can_have_is_refused_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "datalist.csv").write_text("image,mask,split,group\na\0.png,a.png,train,a\n")
    with pytest.raises(UserFault, match=r"each image of .* to exist; came 1 missing"):
        datalist.read(tmp_path / "datalist.csv", "site")
