"""A person's connection to the server: what it keeps of a download, what it says of a silent server, how it ends."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.fuel.flare_api.api_spec import NoConnection

from pfedsam.errors import UserFault
from pfedsam.flare.admin import Admin, Unfetched


def person(folder: Path, told: object = None) -> Path:
    """A kit with as much as `Admin` reads before it connects."""
    (folder / "startup").mkdir(parents=True)
    told = {"admin": {"username": "lead@hub.org"}} if told is None else told
    (folder / "startup/fed_admin.json").write_text(json.dumps(told))
    return folder


def connected(folder: Path, **answers: object) -> Admin:
    """An `Admin` whose session answers so."""
    admin = Admin(person(folder / "kit"))
    admin._session = SimpleNamespace(close=lambda: None, **answers)
    return admin


@pytest.mark.parametrize("told", [[], {"admin": []}, {"admin": "x"}])
def test_a_kit_of_another_form_is_no_kit(tmp_path: Path, told: object) -> None:
    with pytest.raises(UserFault, match="name the folder that you were given"):
        Admin(person(tmp_path / "kit", told))


def test_results_are_in_their_folder_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(job: str, place: str) -> str:
        (Path(place) / job).mkdir(parents=True)
        (Path(place) / job / "results.json").write_text('{"rounds": [')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def whole(job: str, place: str) -> str:
        with pytest.raises(OSError, match="No space"):
            half(job, place)
        (Path(place) / job / "results.json").write_text("{}")
        return str(Path(place) / job)

    out = tmp_path / "out"
    with pytest.raises(Unfetched, match=r"No space left on device.*free space"):
        connected(tmp_path / "1", download_job_result=half).fetch("job", out)
    assert list(out.iterdir()) == []
    assert connected(tmp_path / "2", download_job_result=whole).fetch("job", out) == out / "job"
    assert [path.name for path in out.rglob("*")] == ["job", "results.json"]
    assert (out / "job/results.json").read_text() == "{}"


def test_a_server_that_sends_no_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unfetched, match="none") as fault:
        connected(tmp_path, download_job_result=lambda *_: None).fetch("job", tmp_path / "out")
    assert not fault.value.away


def test_why_the_server_does_not_answer_is_kept_until_it_does(tmp_path: Path) -> None:
    def lost() -> None:
        raise NoConnection("cannot connect to server")

    admin = connected(tmp_path, get_client_job_status=lost)
    assert admin.present() == {}
    assert admin.silent == "cannot connect to server"
    admin._session = SimpleNamespace(get_client_job_status=lambda: [])
    assert admin.present() == {}
    assert admin.silent == ""
