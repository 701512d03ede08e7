"""A certificate that ends soon is told in words, with what to do, wherever somebody can act on it."""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from kits import Project
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace

from conftest import ROOT, TINY
from pfedsam.certificates import now, terms, warnings
from pfedsam.cli import main
from pfedsam.flare.process import set_up

DO = "ask the project's administrator to renew it"


@pytest.mark.parametrize(
    ("party", "root", "told"),
    [
        (61, 1000, []),
        (59, 1000, ["hospital-a ends on"]),
        (61, 30, ["pfedsam ends on"]),
        (-1, 1000, ["hospital-a ended on"]),
        (0, 0, ["hospital-a ends on", "pfedsam ends on"]),
    ],
)
def test_sixty_days_before_its_end_a_certificate_is_told_with_what_to_do(
    tmp_path: Path, party: int, root: int, told: list[str]
) -> None:
    lines = warnings(Project(days=root).kit(tmp_path / "kit", "hospital-a", days=party), now())
    assert len(lines) == len(told)
    assert all(f"the certificate of {text}" in line and DO in line for text, line in zip(told, lines, strict=True))


def test_the_days_that_are_left_are_counted(tmp_path: Path) -> None:
    kit = Project().kit(tmp_path / "kit", "fl-server", days=10, file="server")
    assert "in 10 days" in warnings(kit, now())[0]
    assert [term.left for term in terms(kit, now() + datetime.timedelta(days=12))] == [-2, 1813]


def test_a_folder_without_certificates_is_no_kit_and_a_broken_one_is_told(tmp_path: Path) -> None:
    assert warnings(tmp_path, now()) == []
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup/client.crt").write_text("no certificate")
    assert "expected a certificate (PEM) at" in warnings(tmp_path, now())[0]


def test_a_job_s_process_warns_at_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kit = Project().kit(tmp_path / "kit", "site-1", days=20)
    for sub in ("local", "job/app_site-1/config"):
        (kit / sub).mkdir(parents=True)
    (kit / "job/app_site-1/config/pfedsam.json").write_text("{}")
    workspace = Workspace(str(kit), site_name="site-1")
    context = FLContext()
    engine = SimpleNamespace(get_workspace=lambda: workspace)
    context.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    context.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=True, sticky=False)
    context.set_prop(FLContextKey.CURRENT_RUN, "job", private=True, sticky=False)
    set_up(context)
    assert sum("[site-1] the certificate of site-1 ends on" in line and DO in line for line in caplog.messages) == 1


def doctor(kit: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """The doctor's finding. The job lacks a weight file, so no trial is made."""
    job = ["doctor", str(ROOT / "jobs/brain_mri.json"), "--weights", "/nowhere", "--json", "--kit", str(kit)]
    assert main([*job, *(part for one in TINY for part in ("--set", one))]) == 1
    found = json.loads(capsys.readouterr().out)["checks"]
    return next(check for check in found if check["name"] == "certificates")


def test_the_doctor_checks_a_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project()
    found = {days: doctor(project.kit(tmp_path / str(days), "a", days=days), capsys) for days in (300, 20, -2)}
    assert [found[days]["ok"] for days in (300, 20, -2)] == [True, True, False]
    assert [DO in found[days]["found"] for days in (300, 20, -2)] == [False, True, True]
    assert not doctor(tmp_path, capsys)["ok"]


def test_the_watcher_warns_before_it_connects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kit = Project().kit(tmp_path / "kit", "lead@hub.org", days=5)
    assert main(["watch", str(tmp_path), "--kit", str(kit)]) == 2, "it has no fed_admin.json"
    assert sum("the certificate of lead@hub.org ends on" in line for line in caplog.messages) == 1
