"""The command line's own manners."""

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pfedsam import __version__
from pfedsam.cli import VERBS, main


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


def test_what_the_system_refuses_is_one_line_with_the_file_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "liver/b").mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["forget", "liver", "--site", "b", "--store", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"pfedsam: expected to read or write {tmp_path}/liver/b; came Permission denied")
    assert told.count("\n") == 1


def test_a_model_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / "m.safetensors").write_bytes(b"x")
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("m.safetensors"))
    places = [str(tmp_path / name) for name in ("image.png", "out")]
    assert main(["predict", *places, "--model", str(tmp_path / "m.safetensors")]) == 2
    assert "no permission" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_in_a_verb_is_one_plain_line(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pfedsam.cli.{verb}.serve", stop)
    assert main(shlex.split(import_module(f"pfedsam.cli.{verb}").EXAMPLE)[1:]) == 130
    told = capsys.readouterr()
    assert told.err.startswith("pfedsam: stopped")
    assert (told.out, told.err.count("\n")) == ("", 1)


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
