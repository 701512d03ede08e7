from pathlib import Path

import pytest
import torch

from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.store import Moment, SiteStore


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    store = SiteStore(tmp_path, "liver", "hospital-a")
    for run in ("first", "second"):
        store.save({"gate": torch.ones(3)}, {}, Moment(run, 0))
        store.keep_accepted({"x": torch.ones(3)}, Moment(run, 0))
        store.remember("before", run, {"dice": 0.5})
    Ledger(store.folder / "ledger.jsonl").note("out", {}, task="train", round_=0, facts={})
    return store


def names(store: SiteStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def forget(store: SiteStore, *more: str) -> int:
    return main(["forget", "liver", "--site", "hospital-a", "--store", str(store.folder.parents[1]), *more])


def test_a_run_is_forgotten_and_the_others_and_the_ledger_stay(store: SiteStore) -> None:
    before = names(store)
    assert forget(store, "--run", "first") == 0
    assert names(store) == before
    assert forget(store, "--run", "first", "--yes") == 0
    kept = {"private.000002.safetensors", "accepted.second.safetensors", "before.second.json", "ledger.jsonl"}
    assert names(store) == kept
    assert store.load(Moment("second", 1))[1]["run"] == "second"


def test_a_run_is_forgotten_and_one_whose_name_ends_with_its_own_keeps_its_notes(store: SiteStore) -> None:
    for run in ("v1.2", "2"):
        store.remember("before", run, {"dice": 0.5})
    assert forget(store, "--run", "2", "--yes") == 0
    assert store.remembered("before", "v1.2") == {"dice": 0.5}
    assert store.remembered("before", "2") is None


def test_the_parts_of_a_rotated_ledger_stay_too(store: SiteStore) -> None:
    (store.folder / "ledger.jsonl").rename(store.folder / "ledger.jsonl.1")
    assert forget(store, "--yes") == 0
    assert names(store) == {"ledger.jsonl.1"}


def test_a_site_that_is_not_in_the_store_is_told_with_those_that_are(
    store: SiteStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forget(store, "--site", "hospital-b") == 2
    assert "came liver/hospital-a; to mend it: correct STUDY, --site or --store" in capsys.readouterr().err


def test_a_study_is_forgotten_and_its_ledger_stays(store: SiteStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert forget(store, "--yes") == 0
    assert names(store) == {"ledger.jsonl"}
    out = capsys.readouterr().out
    assert "deleted" in out
    assert "run folders" in out.splitlines()[-1]


@pytest.mark.parametrize("more", [("--run", "third", "--yes"), ("--run", "../first", "--yes")])
def test_a_run_that_is_not_there_is_told_and_nothing_is_deleted(
    store: SiteStore, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(store)
    assert forget(store, *more) == 2
    assert "run" in capsys.readouterr().err
    assert names(store) == before


@pytest.mark.parametrize("save", ["private part", "note", "model"])
def test_a_job_that_still_runs_saves_nothing_after_its_study_is_forgotten(store: SiteStore, save: str) -> None:
    store.claim()
    assert forget(store, "--yes") == 0
    at = Moment("second", 1)
    saves = {
        "private part": lambda: store.save({"gate": torch.ones(3)}, {}, at),
        "note": lambda: store.remember("before", "second", {}),
        "model": lambda: store.keep_accepted({"x": torch.ones(3)}, at),
    }
    with pytest.raises(UserFault, match="emptied while the job ran"):
        saves[save]()
    assert names(store) == {"ledger.jsonl"}


def test_a_link_is_forgotten_and_what_it_leads_to_stays(store: SiteStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/scan.png").write_bytes(b"x")
    (store.folder / "link").symlink_to(tmp_path / "elsewhere")
    assert forget(store, "--yes") == 0
    assert names(store) == {"ledger.jsonl"}
    assert (tmp_path / "elsewhere/scan.png").exists()


def test_a_file_that_cannot_be_deleted_is_told_and_not_called_deleted(
    store: SiteStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert forget(store, "--yes") == 2
    told = capsys.readouterr()
    assert "deleted" not in told.out
    assert "to delete" in told.err
    assert "Permission denied" in told.err


def test_a_site_that_is_not_there_is_told(store: SiteStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", "liver", "--site", "b", "--store", str(store.folder.parents[1]), "--yes"]) == 2
    assert "expected a folder of site b" in capsys.readouterr().err


def test_files_are_the_user_s_alone_or_as_the_user_says(store: SiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for umask, mode in (("077", 0o600), ("027", 0o640)):
        monkeypatch.setenv("PFEDSAM_UMASK", umask)
        assert forget(store) == 0
        store.remember("note", "run", {})
        assert (store.folder / "note.run.json").stat().st_mode & 0o777 == mode
    monkeypatch.setenv("PFEDSAM_UMASK", "rwx")
    assert forget(store) == 2
