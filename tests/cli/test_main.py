"""The command line's own manners."""

import subprocess
import sys
from pathlib import Path


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
