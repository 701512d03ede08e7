"""What reaches the terminal: no word of a library's, and no control character of a file's name."""

import subprocess
import sys
from pathlib import Path

import pytest

from pfedsam.cli import main

LOUD = """
import logging, warnings, nibabel, PIL, pydicom, highdicom
warnings.warn("Xqzname")
for name in ("pydicom", "pydicom.pixels", "highdicom.base", "nibabel", "nibabel.global", "PIL.TiffImagePlugin"):
    logging.getLogger(name).error("Xqzname in %s", name)
logging.getLogger("pfedsam.site").warning("said by us")
"""
STARTS = {
    "a verb": "from pfedsam.quiet import quiet; quiet()",
    "a site's job": "from pfedsam.flare.executor import PFedSAMExecutor; PFedSAMExecutor(); logging.basicConfig()",
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("first", [True, False])
def test_no_library_s_warning_is_shown_whichever_is_loaded_first(start: str, first: bool) -> None:
    parts = (
        ["import logging", STARTS[start], LOUD]
        if first
        else ["import logging, nibabel, PIL, pydicom, highdicom", STARTS[start], LOUD]
    )
    command = [sys.executable, "-W", "default", "-c", "\n".join(parts)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Xqzname" not in told.stdout + told.stderr
    assert "said by us" in told.stderr


def test_a_file_s_name_cannot_rewrite_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/\x1b[2Jbad.png").write_text("no picture")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "\\x1b[2Jbad.png" in told
