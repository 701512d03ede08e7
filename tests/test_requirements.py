"""What is imported is named in requirements.txt, and what is named is used."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import pfedsam
from conftest import ROOT

OWN = {"pfedsam", "federation", "conftest"}
BY_NAME = {"indexed-gzip", "tensorboard", "torchvision", "timm"}  # nibabel, FLARE, torch and segment-anything load them


def top_level_imports(*folders: str) -> dict[str, Path]:
    """The packages that the modules below import, anywhere in them, each with a module that does."""
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name not in OWN}


def plain(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[ \[=<>~!;]", name)[0]).lower()


def required() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {plain(line) for line in lines if line and not line.startswith("#")}


def optional() -> set[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {plain(line) for name in ("onnx", "bundle") for line in extras[name]}


def test_every_package_that_is_imported_is_named() -> None:
    offers = packages_distributions()
    for name, path in top_level_imports("custom/pfedsam", "poc").items():
        given = {plain(one) for one in offers.get(name, [name])}
        assert given & (required() | optional()), f"{name}, imported in {path}"


def test_every_package_that_is_named_is_imported() -> None:
    offers = packages_distributions()
    used = {
        plain(one) for name in top_level_imports("custom/pfedsam", "poc", "benchmarks") for one in offers.get(name, [])
    }
    assert required() - used - BY_NAME == set()


def test_the_tested_set_lies_within_the_ranges() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {plain(pin.name): str(next(iter(pin.specifier)).version) for pin in pins}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            need = Requirement(line)
            assert tested[plain(need.name)] in need.specifier, line


def test_the_citation_and_the_changelog_name_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == pfedsam.__version__
    assert f"## {pfedsam.__version__}" in (ROOT / "CHANGELOG.md").read_text().replace("[Unreleased]: ", "")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("uv", ["", "/opt/uv"])
@pytest.mark.parametrize(("made", "what"), [("ready", "."), ("tests", "'.[test]'")])
def test_make_installs_with_uv_where_it_is_and_with_pip_otherwise(uv: str, made: str, what: str) -> None:
    said = subprocess.run(["make", "-nB", f".venv/{made}", f"UV={uv}"], cwd=ROOT, capture_output=True, text=True)
    *_, install = (line for line in said.stdout.splitlines() if "install" in line)
    wanted = f"--quiet --constraint constraints.txt --editable {what}"
    with_uv = f"/opt/uv pip install --python .venv/bin/python {wanted} || " if uv else ""
    assert install == f"{with_uv}.venv/bin/pip install --no-compile {wanted}"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_demo_installs_nothing_of_the_tests() -> None:
    said = subprocess.run(["make", "-nB", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "[test]" not in said.stdout
