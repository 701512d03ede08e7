"""The command line's own manners."""

import subprocess
import sys
from pathlib import Path

import pytest

from pfedsam import __version__
from pfedsam.cli import main


def test_a_reader_that_has_enough_is_no_fault(tmp_path: Path) -> None:
    verb = [sys.executable, "-m", "pfedsam.cli", "synthetic", str(tmp_path / "out")]
    process = subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1
    assert (tmp_path / "out/datalist.csv").is_file()


HEAVY = "torch monai matplotlib nvflare highdicom numpy scipy nibabel pydicom PIL jinja2"


def test_help_is_shown_without_loading_what_verbs_compute_with() -> None:
    """`pfedsam --help` takes as long as its imports."""
    code = "import sys; from pfedsam.cli import parser; parser(); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "argparse" in loaded
    assert loaded & set(HEAVY.split()) == set()


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"pfedsam {__version__}\n"
