"""Names that FLARE takes, and files that are being written."""

import os
from pathlib import Path

import pytest
import torch
from nvflare.apis.utils.format_check import name_check
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from safetensors.torch import load_file

from conftest import ROOT
from pfedsam.data.folder import new_folder
from pfedsam.errors import UserFault
from pfedsam.files import write_atomic
from pfedsam.flare.recipe import render
from pfedsam.names import beside, job_name, one_name, site_name, site_names
from pfedsam.predict.written import _replace
from pfedsam.settings import from_dict
from pfedsam.train.prefix import Disk


@pytest.mark.parametrize("name", ["hospital-a", "Ward_7", "7", "_a", "server-2", "a" * 64])
def test_a_name_that_flare_takes_for_a_site_is_taken_here(name: str) -> None:
    assert site_name(name) == name
    assert FQCN.validate(name) == ""
    assert name_check(name, "client")[0] is False


@pytest.mark.parametrize(
    "name",
    [
        *("Ward A", "", " ", "a b", "ward.a", "Köln", "a/b", "a\n", "a,b", "a:b", "a@b.org", "a~b", "..", "a" * 65),
        *("-a", "@ALL", "server", "Server", "all", "client", "_admin_1"),  # FLARE takes them for something else
    ],
)
def test_any_other_is_refused_with_what_flare_allows(name: str) -> None:
    with pytest.raises(UserFault, match=r"letters, digits, - and _, at most 64.*none of all, client, server"):
        site_name(name)


def test_a_site_is_named_once() -> None:
    assert site_names(["a", "b"]) == ["a", "b"]
    with pytest.raises(UserFault, match="a twice"):
        site_names(["a", "b", "a"])


@pytest.mark.parametrize("name", ["my job", "", "-job", "_job", ".job", "é", "a" * 101])
def test_a_job_s_folder_has_a_name_that_flare_takes(name: str) -> None:
    assert job_name("Job-1.a_b") == "Job-1.a_b"
    with pytest.raises(UserFault, match="a job folder's name"):
        job_name(name)


@pytest.mark.parametrize("text", ["", "a b", "../a", ".a", "a/b", "é", "a\n", "a" * 101])
def test_a_study_and_a_run_have_names_that_a_disk_takes(text: str) -> None:
    assert one_name("a-B_1.c", "run") == "a-B_1.c"
    for what in ("study", "run"):
        with pytest.raises(UserFault, match=f"a {what}'s name"):
            one_name(text, what)
    with pytest.raises(UserFault, match="a study's name"):
        from_dict({"study": text})


@pytest.mark.parametrize(
    ("out", "more", "told"),
    [
        ("job", {"sites": ["Ward A", "b"]}, "'Ward A'"),
        ("job", {"sites": ["a", "a"]}, "a twice"),
        ("job", {"sites": ["a", ""]}, "came ''"),
        ("my job", {}, "'my job'"),
        ("job", {"begin": "study"}, "STUDY/RUN"),
        ("job", {"begin": "study/../x"}, "a run's name"),
    ],
)
def test_a_name_that_flare_would_refuse_is_refused_when_the_job_is_rendered(
    tmp_path: Path, out: str, more: dict, told: str
) -> None:
    with pytest.raises(UserFault, match=told):
        render(ROOT / "jobs/pfedsam", tmp_path / out, code=False, **more)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is number 1, as in containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)


@pytest.mark.usefixtures("container")
def test_two_processes_of_one_number_that_write_one_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes while the first is between its writing and its renaming."""
    path, replace = tmp_path / "file", os.replace

    def interrupted(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_atomic(path, b"second")
        assert path.read_bytes() == b"second"
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    write_atomic(path, b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("container")
def test_two_processes_of_one_number_that_make_one_folder_do_not_mix_their_files(tmp_path: Path) -> None:
    with pytest.raises(UserFault), new_folder(tmp_path / "out") as first:  # noqa: PT012 - the second in the first's time
        (first / "first").touch()
        with new_folder(tmp_path / "out") as second:
            (second / "second").touch()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "second"]


@pytest.mark.usefixtures("container")
def test_two_processes_of_one_number_that_write_one_mask_or_cache_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"

    def save(where: str) -> None:
        assert where.endswith(".nii.gz")  # the library goes by it
        Path(where).write_text("first")
        _replace(path, lambda other: Path(other).write_text("second"))
        assert Path(where).read_text() == "first"

    _replace(path, save)
    assert path.read_text() == "first"
    disk = Disk(tmp_path / "cache")
    disk["key"] = {"hidden": torch.ones(2)}
    assert list(disk.sizes()) == ["key"]
    assert load_file(tmp_path / "cache/key.safetensors")["hidden"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["key.safetensors", "mask.nii.gz"]


def test_what_fails_half_way_leaves_nothing_beside(tmp_path: Path) -> None:
    for make in (Path.touch, Path.mkdir):
        with pytest.raises(KeyboardInterrupt), beside(tmp_path / ("x" * 250)) as place:  # noqa: PT012
            make(place)
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_named_by_the_number_of_its_process() -> None:
    for path in (*(ROOT / "custom").rglob("*.py"), *(ROOT / "poc").glob("*.py")):
        assert "getpid" not in path.read_text(), path
