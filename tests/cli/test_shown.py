"""What reaches the terminal: no word of a library's, and no control character of a file's name."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from pfedsam import log
from pfedsam.cli import main
from pfedsam.cli.console import say
from pfedsam.errors import UserFault
from pfedsam.names import LONGEST_LINE, aligned

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


EVIL = "\x1b[2J\x9b31m\u202egood\udcff"  # clears the screen, colours, turns the text round, and is no UTF-8


@pytest.mark.parametrize("json_", [False, True])
def test_every_verb_shows_a_name_without_its_control_characters(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture[str], json_: bool
) -> None:
    (tmp_path / EVIL).mkdir()
    odd = tmp_path / EVIL / "m.safetensors"
    odd.write_bytes(model_file.read_bytes())
    more, job = ["--json"] if json_ else [], str(ROOT / "jobs/brain_mri.json")
    told = []
    for verb in (
        ["verify", str(odd), "--by", str(tmp_path / EVIL), *more],
        ["verify", str(odd.with_name("none")), *more],
        ["export", str(tmp_path / EVIL), "--out", str(odd), *more],
        ["predict", str(tmp_path / EVIL), str(tmp_path / "out"), "--model", str(odd), *more],
        ["prepare", str(tmp_path / EVIL), str(tmp_path / "out"), *more],
        ["doctor", job, "--data", str(tmp_path / EVIL), "--kit", str(tmp_path / EVIL), *more],
        ["synthetic", str(tmp_path / EVIL / "site")],
        ["project", str(tmp_path / EVIL / "project.yml")],
        ["convert", str(odd)],
        ["report", str(tmp_path / EVIL), "--out", str(tmp_path / "r.html"), *more],
    ):
        main(verb)
        told.append("".join(capsys.readouterr()))
    for text in told:
        assert not any(one in text for one in "\x1b\x9b\u202e\udcff"), text
    assert sum("good" in text for text in told) >= 8


def test_a_log_line_shows_a_name_without_its_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("%s is damaged (%d)", EVIL, 3)
    assert caplog.messages == ["\\x1b[2J\\x9b31m\\u202egood\\udcff is damaged (3)"]


def test_only_the_line_breaks_of_the_message_itself_begin_lines(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("two\nlines of %s: %s", "a\nb", UserFault(expected="x\ny", came=("1\r", "2"), do="z"))
    log.warning("%(name)s", {"name": "a\u2028b"})
    assert caplog.messages == [
        "two\nlines of a\\nb: expected x\\ny; came 1\\r\\n2\\nto mend it: z",
        "a\\u2028b",
    ]


def test_in_flare_s_lines_a_site_s_text_stays_within_its_line() -> None:
    """FLARE also moves what is in brackets to the beginning of a line."""
    told = "Failing job %s due to reported failure from %s: %s"
    for text, line in (
        ("x\n2026 y", "from b: x\n  2026 y"),
        ("x\r\x1b[2J", "from b: x\\r\\x1b[2J"),
        ("[a=1]: y", "from b: [a=1] : y"),
    ):
        record = logging.LogRecord("FederatedServer", logging.INFO, "", 0, told, ("9", "b", text), None)
        assert aligned(record)
        assert aligned(record)  # each of FLARE's handlers asks
        assert record.getMessage().endswith(line)
    try:
        raise ValueError("x\n2026 - y")
    except ValueError:
        failed = logging.LogRecord("ServerRunner", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert aligned(failed)
    assert all(line.startswith("  ") for line in logging.Formatter().format(failed).split("\n")[1:])
    ours = logging.LogRecord("pfedsam", logging.INFO, "", 0, "done\nresults: here", (), None)
    assert aligned(ours)
    assert ours.getMessage() == "done\nresults: here"
    beside = logging.LogRecord("pfedsam", logging.DEBUG, "", 0, "could not be judged", (), failed.exc_info)
    assert aligned(beside)
    assert all(line.startswith("  ") for line in logging.Formatter().format(beside).split("\n")[1:])
    own = logging.LogRecord("ServerRunner", logging.INFO, "", 0, "[identity=server]: started", (), None)
    assert aligned(own)
    assert own.getMessage() == "[identity=server]: started"


def test_in_flare_s_log_a_site_s_long_text_does_not_drive_other_lines_out() -> None:
    told = f"ServerRunner: got result for task {'x' * 1_800_000}, id=1"
    record = logging.LogRecord("ServerRunner", logging.INFO, "", 0, told, (), None)
    assert aligned(record)
    assert aligned(record)
    assert len(record.getMessage()) <= LONGEST_LINE
    assert record.getMessage().startswith("ServerRunner: got result for task xxx")
    assert record.getMessage().endswith("x, id=1")
    try:
        raise ValueError("\n" * 1_800_000)
    except ValueError:
        failed = logging.LogRecord("ServerRunner", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert aligned(failed)
    assert len(logging.Formatter().format(failed)) < 4 * LONGEST_LINE


def test_a_line_break_in_a_file_s_name_begins_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad\nWritten to out.png").write_text("no picture")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out\nx")]) == 2
    assert main(["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", "a\nb"]) == 2
    assert main(["doctor", "a\nb"]) == 2
    told = capsys.readouterr()
    assert "bad\\nWritten to out.png: " in told.err
    assert [line.split()[0] for line in told.err.splitlines()] == [
        "pfedsam:",
        "bad\\nWritten",
        "to",
        "pfedsam:",
        "pfedsam:",
    ]


def test_json_with_an_odd_name_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    say({"file": EVIL + "\U000e0001"})
    assert json.loads(capsys.readouterr().out)["file"] == EVIL + "\U000e0001"
