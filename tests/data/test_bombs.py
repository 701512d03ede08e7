"""Small files that claim to be large are named by their headers: memory and time stay as they are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.bombs import BOMBS, SMALL
from PIL import Image

ROOM = 150  # MB that the verbs may take beyond what they take without such files
SECONDS = 60  # of CPU, for all together
CHILD = """
import json, resource, sys
from pfedsam.cli import main
def used():
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_maxrss / 1024, now.ru_utime + now.ru_stime
told = []
for arguments in json.loads(sys.argv[1]):
    told.append([main(arguments), *used()])
print(json.dumps(told), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of such files with masks, three right pairs among them; and one of right pairs alone."""
    root = tmp_path_factory.mktemp("bombs")
    for name in ("right", "all"):
        for sub in ("images", "masks"):
            (root / name / sub).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.roll(SMALL, i)).save(root / name / f"images/right{i}.png")
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / name / f"masks/right{i}.png")
    for i, (name, made) in enumerate(BOMBS.items()):
        stem, _, end = name.partition(".")
        (root / f"all/images/{stem}{i}").mkdir()
        (root / f"all/images/{stem}{i}/{stem}{i}.{end}").write_bytes(made(root / f"made{i}"))
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / f"all/masks/{stem}{i}.png")
    return root


def ran(*verbs: list[str]) -> tuple[list[list[float]], str]:
    """Exit code, peak memory in MB and CPU seconds after each verb, in one process of its own; and its output."""
    call = [sys.executable, "-c", CHILD, json.dumps(verbs)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout + done.stderr


def test_the_files_are_small(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (folder / "all/images").rglob("*.*")}
    assert len(sizes) == len(BOMBS) + 3
    assert max(sizes.values()) < 12 * 2**20


def test_prepare_names_each_file_without_reading_it(folder: Path, tmp_path: Path) -> None:
    (before, after), _ = ran(
        ["prepare", str(folder / "right"), str(tmp_path / "right"), "--patient", "each"],
        ["prepare", str(folder / "all"), str(tmp_path / "all"), "--patient", "each"],
    )
    report = json.loads((tmp_path / "all/report.json").read_text())
    dropped = {one["file"] for one in report["dropped"]}
    assert report["cases"] >= 3
    for name in BOMBS:
        assert any(name.partition(".")[0] in file for file in dropped), name
    assert after[1] - before[1] < ROOM
    assert after[2] - before[2] < SECONDS


def test_predict_names_each_file_without_reading_it(folder: Path, tmp_path: Path, model_file: Path) -> None:
    (before, after), told = ran(
        ["predict", str(folder / "right/images"), str(tmp_path / "right"), "--model", str(model_file)],
        ["predict", str(folder / "all/images"), str(tmp_path / "all"), "--model", str(model_file)],
    )
    assert (before[0], after[0]) == (0, 1)
    for name in BOMBS:
        assert name.partition(".")[0] in told, name
    assert len(list((tmp_path / "all").glob("right*.png"))) == 3
    assert after[1] - before[1] < ROOM
    assert after[2] - before[2] < SECONDS
