import json
import os
from pathlib import Path

import pytest
import torch

from pfedsam.exchange.files import digest, pack, unpack, write_atomic
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.store import CURRENT, PREVIOUS, SiteStore

OLD, NEW = {"gate": torch.ones(3)}, {"gate": torch.full((3,), 2.0)}


def filled(root: Path) -> SiteStore:
    store = SiteStore(root, "study", "site")
    store.save(OLD, {"round": "0"})
    store.save(NEW, {"round": "1"})
    return store


def test_the_newest_generation_comes_back_and_the_one_before_stays(tmp_path: Path) -> None:
    store = filled(tmp_path)
    tensors, facts = store.load()
    assert torch.equal(tensors["gate"], NEW["gate"])
    assert facts == {"round": "1"}
    assert torch.equal(unpack((store.folder / PREVIOUS).read_bytes())[0]["gate"], OLD["gate"])


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    assert SiteStore(tmp_path, "study", "site").load() is None


def test_studies_and_sites_do_not_touch_each_other(tmp_path: Path) -> None:
    filled(tmp_path)
    assert SiteStore(tmp_path, "study", "other").load() is None
    assert SiteStore(tmp_path, "another", "site").load() is None


@pytest.mark.parametrize("harm", ["torn", "flipped", "emptied", "garbage"])
def test_a_damaged_generation_is_noticed_and_the_one_before_used(tmp_path: Path, harm: str) -> None:
    store = filled(tmp_path)
    path = store.folder / CURRENT
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[-2] ^= 1
    path.write_bytes({"torn": data[:-5], "flipped": data, "emptied": b"", "garbage": b"\xff" * 40}[harm])
    tensors, _ = store.load()
    assert torch.equal(tensors["gate"], OLD["gate"])


def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_what_is_packed_comes_back_with_its_facts() -> None:
    tensors, facts = unpack(pack(NEW, {"base": "abc"}))
    assert torch.equal(tensors["gate"], NEW["gate"])
    assert facts == {"base": "abc"}


def test_a_ledger_line_can_be_computed_again_from_the_tensors(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: 5.0)
    ledger.note("out", NEW, task="train", round_=2, facts={"samples": 4})
    ledger.note("in", OLD, task="train", round_=3, facts={})
    first, second = ledger.lines()
    assert first == {
        "time": 5.0,
        "direction": "out",
        "task": "train",
        "round": 2,
        "bytes": 12,
        "sha256": digest(NEW),
        "tensors": ["gate"],
        "facts": {"samples": 4},
    }
    assert second["direction"] == "in"
    assert json.dumps(first)
