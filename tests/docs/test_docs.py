"""The documents' commands: each is one that the program knows, and the guides' run from first to last."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from pfedsam.cli import VERBS, parser

PAGES = [ROOT / "README.md", ROOT / "poc/README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALL = ("python3.11 -m venv", ".venv/bin/", "export PATH=")  # the tests run where all is installed


def commands(page: Path) -> list[str]:
    """The lines of a page's sh blocks, continued lines joined, comments left out."""
    text = "".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]


def follow(page: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a guide's commands in an empty folder that has the checkout's jobs and benchmarks."""
    for name in ("jobs", "benchmarks", "custom"):
        (folder / name).symlink_to(ROOT / name)
    lines = [line for line in commands(ROOT / "docs" / page) if not line.startswith(INSTALL)]
    usual = {key: value for key, value in os.environ.items() if not key.startswith("PFEDSAM_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env={**usual, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_verb_and_option_on_a_page_is_one_that_the_program_knows(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "pfedsam" and (len(words) == 1 or words[1] in VERBS):
            parser().parse_args(words[1:])


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_link_on_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), (target, anchor)


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_only_rows_of_tables_are_long_lines(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_each_verb_is_on_a_page() -> None:
    text = " ".join(" ".join(commands(page)) + page.read_text() for page in PAGES)
    assert [verb for verb in VERBS if f"pfedsam {verb}" not in text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_s_example_is_one_that_the_program_takes(verb: str) -> None:
    module = __import__(f"pfedsam.cli.{verb}", fromlist=["EXAMPLE"])
    parser().parse_args(shlex.split(module.EXAMPLE)[1:])


@pytest.mark.long
@pytest.mark.parametrize("page", ["quickstart.md", "tutorial.md"])
def test_a_guide_s_commands_run_from_first_to_last(page: str, tmp_path: Path) -> None:
    done = follow(page, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert (tmp_path / "model.safetensors").exists()
    assert len(list((tmp_path / "masks").rglob("*.png"))) >= 20
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_researcher_s_commands_run_from_first_to_last(tmp_path: Path, real: Path) -> None:
    done = follow("research.md", tmp_path, PFEDSAM_DATA_ROOT=str(real / "data"), PFEDSAM_WEIGHTS=str(real / "weights"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FedAvg" in done.stdout


def test_every_file_that_a_page_names_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for path in re.findall(r"`([a-z_/]+/[a-z_]+\.py)`", page.read_text()):
            assert any((place / path).is_file() for place in (ROOT, ROOT / "custom/pfedsam")), (page.name, path)
