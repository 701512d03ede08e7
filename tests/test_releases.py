"""A hospital can check that a wheel is the one that was released, and what it runs on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_requirements import plain, required

from conftest import ROOT

needs_ssh = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH is not installed")


def make(target: str, **variables: object) -> int:
    words = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(["make", "-s", target, *words], cwd=ROOT, capture_output=True, check=False).returncode


def key(path: Path, who: str) -> Path:
    """A new SSH key, and beside it the file that lists it as `who`."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    public = path.with_suffix(".pub").read_text().split()
    path.with_suffix(".signers").write_text(f"{who} {public[0]} {public[1]}\n")
    return path


@needs_ssh
def test_a_signed_release_is_checked_and_a_forged_one_is_refused(tmp_path: Path) -> None:
    dist, who = tmp_path / "dist", "maintainers@pfedsam"
    dist.mkdir()
    wheel = dist / "pfedsam-1-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    (dist / "constraints.txt").write_text("torch==2\n")
    ours, others = key(tmp_path / "ours", who), key(tmp_path / "others", who)
    trusted = {"DIST": dist, "SIGNERS": ours.with_suffix(".signers"), "WHO": who}
    assert make("check-release", **trusted) != 0, "not signed"
    assert make("sign-release", DIST=dist, KEY=ours) == 0
    assert make("check-release", **trusted) == 0
    assert make("check-release", **trusted | {"WHO": "somebody@else"}) != 0
    assert make("check-release", **trusted | {"SIGNERS": others.with_suffix(".signers")}) != 0
    (dist / "constraints.txt").write_text("torch==1\n")
    assert make("check-release", **trusted) != 0
    (dist / "constraints.txt").write_text("torch==2\n")
    wheel.write_bytes(b"another wheel")
    assert make("check-release", **trusted) != 0
    assert make("sign-release", DIST=dist, KEY=others) == 0
    assert make("check-release", **trusted) != 0, "signed anew by somebody else"


@pytest.fixture(scope="module")
def licences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The cells of the list of licences, by package."""
    out = tmp_path_factory.mktemp("licences") / "licences.md"
    subprocess.run([sys.executable, str(ROOT / "scripts/licences.py"), str(out)], check=True, capture_output=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()[6:]]
    return {row[0]: row for row in rows}


def test_every_required_package_is_in_the_list_with_its_licence(licences: dict[str, list[str]]) -> None:
    assert required() <= licences.keys()
    assert {plain("grpcio"), plain("cryptography")} <= licences.keys(), "what they need in turn"
    assert not {"pytest", "mypy", "ruff", "bandit"} & licences.keys()
    assert all(len(row) == 4 and row[1] and row[2] for row in licences.values())
    assert [name for name in sorted(required()) if licences[name][2] == "not stated"] == []


def test_no_package_is_under_a_licence_that_binds_our_own_code(licences: dict[str, list[str]]) -> None:
    assert [row for row in licences.values() if "GPL" in row[2]] == []


def test_the_notice_names_every_required_package() -> None:
    notice = {plain(name) for line in (ROOT / "NOTICE").read_text().splitlines() for name in line.split()[:1]}
    assert required() <= notice
