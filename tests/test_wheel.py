"""What an installed pfedsam has without a checkout: licence, jobs, project.yml, and verbs that use them."""

import filecmp
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, TINY
from pfedsam.shipped import presets

SOURCES = ("custom/pfedsam", "jobs", "poc", "LICENSE", "NOTICE", "README.md", "MANIFEST.in", "constraints.txt")
SOURCES += ("pyproject.toml", "requirements.txt", "setup.py")
BUILD = "import setuptools.build_meta as build, sys; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def built(kind: str, tree: Path, out: Path) -> Path:
    """What the build of pyproject.toml makes of a tree, without a package index."""
    done = subprocess.run([sys.executable, "-c", BUILD, kind, out], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made as a packager makes it: out of the source archive, which is made out of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy, leave = folder / "tree" / name, shutil.ignore_patterns("__pycache__")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, copy, ignore=leave) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, copy)
    with tarfile.open(built("build_sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder, filter="data")
        source = folder / archive.getnames()[0]
    return built("build_wheel", source, folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; what it needs is found among this interpreter's packages."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], env=clean(), check=True)
    place = next(home.glob("lib/python*/site-packages"))
    (place / "needed.pth").write_text("\n".join(site.getsitepackages()))  # its own .pth files are not read
    return home


def clean() -> dict[str, str]:
    """This process's environment without what could lead to the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PFEDSAM_"))}


def run(home: Path, *words: str | Path, cwd: Path) -> str:
    """The output of a command of that environment."""
    command = [home / "bin" / words[0], *words[1:]]
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def facts(wheel: Path) -> Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_wheel_has_its_licence_and_says_so(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        kept = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if "/licenses/" in name}
    assert facts(wheel)["License-Expression"] == "Apache-2.0"
    assert kept == {name: (ROOT / name).read_text() for name in ("LICENSE", "NOTICE")}


def test_the_wheel_holds_the_package_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {path.relative_to(ROOT / "custom").as_posix() for path in (ROOT / "custom").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.split("/")[0] for name in names} == {"pfedsam", Path(names[-1]).parts[0]}


def test_the_wheel_s_jobs_and_project_are_the_checkout_s(installed: Path) -> None:
    assets = next(installed.glob("lib/python*/site-packages/pfedsam/assets"))
    same = filecmp.dircmp(ROOT / "jobs", assets / "jobs")
    assert (same.left_only, same.right_only, same.diff_files) == ([], [], [])
    assert (assets / "jobs/pfedsam/meta.json").read_text() == (ROOT / "jobs/pfedsam/meta.json").read_text()
    assert (assets / "poc/project.yml").read_text() == (ROOT / "poc/project.yml").read_text()


def test_an_installed_pfedsam_renders_a_job_by_its_name_and_writes_project_yml(installed: Path, tmp_path: Path) -> None:
    code = "import pfedsam; from pfedsam.cli import main; print(pfedsam.__file__); print(main(['project', 'own.yml']))"
    where, *_, zero = run(installed, "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed)
    assert zero == "0"
    hospitals = [one["name"] for one in yaml.safe_load((tmp_path / "own.yml").read_text())["participants"][1:4]]
    assert hospitals == ["hospital-a", "hospital-b", "hospital-c"]
    run(installed, "pfedsam", "render", "brain_mri", "job", cwd=tmp_path)
    assert (tmp_path / "job/app/custom/pfedsam/site.py").is_file()
    assert '"study": "brain_mri"' in (tmp_path / "job/app/config/pfedsam.json").read_text()


def test_the_help_of_an_installed_pfedsam_names_the_jobs_that_it_brings(installed: Path, tmp_path: Path) -> None:
    assert ", ".join(presets()) in " ".join(run(installed, "pfedsam", "doctor", "--help", cwd=tmp_path).split())


@pytest.mark.long
def test_an_installed_pfedsam_trains_in_flare_s_simulator_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    changes = [word for change in TINY for word in ("--set", change)]
    run(installed, "pfedsam", "render", "pfedsam", "job", "--rounds", "1", "--sites", "site-1", *changes, cwd=tmp_path)
    run(installed, "python", "-m", "nvflare.cli", "simulator", "job", "-w", "work", "-t", "1", cwd=tmp_path)
    assert (tmp_path / "work/server/simulate_job/results.json").is_file()


@pytest.mark.long
def test_an_installed_pfedsam_makes_the_startup_kits_of_its_project_yml(installed: Path, tmp_path: Path) -> None:
    run(installed, "pfedsam", "project", "project.yml", cwd=tmp_path)
    run(installed, "python", "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "kits", cwd=tmp_path)
    assert (tmp_path / "kits/pfedsam/prod_00/hospital-a/local/privacy.json").is_file()
