"""An archive that would fill the disk is refused before it is unpacked."""

import io
import tarfile
import zipfile
from pathlib import Path

import archives
import pytest
from archives import files_in, unpack

from pfedsam.errors import UserFault


def bomb(path: Path, size: int = 3_000_000) -> Path:
    """An archive of a thousandth of what is in it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("zeros", bytes(size))
    else:
        with tarfile.open(path, "w:xz") as rolled:
            entry = tarfile.TarInfo("zeros")
            entry.size = size
            rolled.addfile(entry, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize("name", ["set.zip", "set.tar.xz"])
def test_an_archive_that_grows_a_hundredfold_beyond_what_any_may_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / name)
    unpack(path, tmp_path / "small")
    assert (tmp_path / "small/zeros").stat().st_size == 3_000_000, "below the size that any archive may have"
    monkeypatch.setattr(archives, "FREE", 1_000_000)
    with pytest.raises(UserFault, match=r"at most 1000000 entries and 0\.0 GB at .*; came more"):
        unpack(path, tmp_path / "large")
    assert not (tmp_path / "large").exists()
    if name.endswith("xz"):
        with pytest.raises(UserFault, match="came more"):
            files_in(path)


def test_an_archive_of_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for i in range(11):
            packed.writestr(str(i), b"")
    monkeypatch.setattr(archives, "ENTRIES", 10)
    with pytest.raises(UserFault, match="at most 10 entries"):
        unpack(tmp_path / "set.zip", tmp_path / "out")


def test_a_zip_that_understates_an_entry_does_not_grow_beyond_what_it_states(tmp_path: Path) -> None:
    """The check reads the stated sizes, so they must bind."""
    path = bomb(tmp_path / "set.zip")
    data = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UserFault):
        unpack(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in tmp_path.rglob("zeros")) <= 10
