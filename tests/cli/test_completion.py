"""The shell's completion, in a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pfedsam.cli import VERBS, main
from pfedsam.cli.completion import SHELLS

COMPLETED = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_pfedsam
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ([""], set(VERBS)),
        (["si"], {"simulate"}),
        (["simulate", "--s"], {"--set", "--sites"}),
        (["predict", "in", "out", "--scale", ""], {"uint8", "percentile"}),
        (["simulate", "nothing", "--out", "wa"], {"wards"}),
        (["simulate", "wa"], {"wards"}),
        (["completion", "b"], {"bash"}),
    ],
)
def test_bash_offers_verbs_options_values_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], offered: set[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "wards").mkdir()
    command = ["bash", "-c", COMPLETED, "bash", "./script", "pfedsam", *typed]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - {"-h", "--help", "--version"} == offered


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_of_all_verbs(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in VERBS)
