"""Checksums of files: of our own order, and those of files that an older version wrote."""

import hashlib
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from pfedsam.errors import UserFault
from pfedsam.exchange.store import SiteStore
from pfedsam.files import append_line, parsed, write_atomic, write_json
from pfedsam.predict.written import _replace
from pfedsam.tensors import digest, pack, unpack

TENSORS = {
    "b": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "c": torch.tensor(3),
}


def older(tensors: dict[str, torch.Tensor]) -> bytes:
    """A file as version 0.1 wrote it: its checksum is of the bytes that the library would write."""
    said = hashlib.sha256(save(dict(sorted(tensors.items())))).hexdigest()
    return save(dict(sorted(tensors.items())), metadata={"round": "1", "payload_sha256": said})


@pytest.mark.parametrize(("umask", "mode"), [("077", 0o600), ("027", 0o640)])
def test_a_file_is_the_user_s_alone_also_in_a_process_with_a_wider_umask(
    tmp_path: Path, umask: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that calls the Python API has the system's umask."""
    monkeypatch.setenv("PFEDSAM_UMASK", umask)
    own = os.umask(0o022)
    try:
        write_atomic(tmp_path / "model.safetensors", b"x")
        append_line(tmp_path / "ledger.jsonl", "x")
        _replace(tmp_path / "mask.nii.gz", nibabel.Nifti1Image(np.ones((2, 2, 2)), np.eye(4)).to_filename)
        _replace(tmp_path / "mask.png", Image.new("L", (2, 2)).save)
    finally:
        os.umask(own)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_a_new_file_s_name_is_on_the_disk_once_its_first_line_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could leave a ledger without its name in the folder."""
    synced: list[Path] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda one: synced.append(Path(f"/proc/self/fd/{one}").resolve()) or real(one))
    path = tmp_path / "ledger.jsonl"
    append_line(path, "one")
    assert synced == [path, tmp_path]
    append_line(path, "two")
    assert synced[2:] == [path]


@pytest.mark.parametrize(
    "value",
    [
        {float("nan"): 1, "a": 1},
        {float("nan"): 1, float("inf") - float("inf"): 1},
        {"a": "\ud800"},
        {"a": {1}},
        {"a": [float("nan")]},
    ],
)
def test_json_that_cannot_be_read_again_is_not_written(tmp_path: Path, value: object) -> None:
    """A checkpoint with such content would be lost at the next start."""
    path = tmp_path / "round.json"
    write_json(path, {"a": 1})
    with pytest.raises(UserFault, match=r"values for .*round.json that JSON can hold"):
        write_json(path, value)
    assert parsed(path.read_bytes()) == {"a": 1}


def test_a_digest_is_of_names_dtypes_shapes_and_bytes_in_an_order_of_our_own() -> None:
    own = hashlib.sha256()
    own.update(b"a\0torch.float32\0(2, 3)\0" + TENSORS["a"].numpy().tobytes())
    own.update(b"b\0torch.bfloat16\0(2,)\0" + TENSORS["b"].view(torch.int16).numpy().tobytes())
    own.update(b"c\0torch.int64\0()\0" + TENSORS["c"].numpy().tobytes())
    assert digest(TENSORS) == own.hexdigest()


def test_another_layout_of_the_library_damages_no_file() -> None:
    """A newer safetensors may order or pad its header otherwise: the same tensors stay the same."""
    data = pack(TENSORS, {"round": "1"})
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), indent=1).encode()
    header += b" " * (-len(header) % 8)
    moved = len(header).to_bytes(8, "little") + header + data[8 + size :]
    assert unpack(moved)[1] == {"round": "1"}


def test_a_file_of_an_older_version_is_still_read() -> None:
    tensors, facts = unpack(older(TENSORS))
    assert facts == {"round": "1"}
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("write", [older, lambda tensors: pack(tensors, {})])
def test_a_changed_value_is_found_in_either_form(write) -> None:
    data = bytearray(write(TENSORS))
    data[-1] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        unpack(bytes(data))


def test_a_private_part_of_an_older_version_is_still_loaded(tmp_path: Path) -> None:
    store = SiteStore(tmp_path, "study", "site")
    store.folder.mkdir(parents=True)
    (store.folder / "private.000001.safetensors").write_bytes(older(TENSORS))
    assert store.load()[1] == {"round": "1"}
