"""pfedsam predict, as a user calls it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data.dicoms import write_series

from conftest import save_model, tiny
from pfedsam.cli import main
from pfedsam.config import Config
from pfedsam.predict.masks import segment
from pfedsam.site import Site


def test_a_folder_of_pictures_comes_out_with_its_folders(
    trained_site: Site, trained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for i, s in enumerate(trained_site.data["test"].slices):
        (tmp_path / f"in/deep/{i}.png").write_bytes(s.image.read_bytes())
    (tmp_path / "in/bad.png").write_bytes(b"x")
    code = main(["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(trained_model), "--json"])
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert code == 1
    assert "bad.png" in told.err
    assert "Traceback" not in told.err
    assert answer["branch"] == "personal"
    assert sorted(p.name for p in (tmp_path / "out/deep").iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(("mask", "beside"), [("masks/0.png", "images/0.png"), ("0_mask.png", "0.png")])
def test_images_that_are_named_as_masks_are_said(
    mask: str,
    beside: str,
    trained_site: Site,
    trained_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (mask, beside):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(trained_site.data["test"].slices[0].image.read_bytes())
    assert main(["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(trained_model)]) == 0
    said = f"1 of 2 images are named as masks are, such as {tmp_path / 'in' / mask}."
    assert said in capsys.readouterr().err


def test_a_folder_for_masks_that_is_named_as_a_file_is_refused(
    trained_site: Site, trained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained_site.data["test"].slices[0].image)
    assert main(["predict", source, str(tmp_path / "mask.png"), "--model", str(trained_model)]) == 2
    assert "expected a folder for the masks; came" in capsys.readouterr().err
    assert not (tmp_path / "mask.png").exists()


def test_a_wrong_number_of_names_is_told_before_anything_is_written(
    trained_site: Site, trained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained_site.data["test"].slices[0].image)
    assert main(["predict", source, str(tmp_path / "out"), "--model", str(trained_model), "--names", "a,b"]) == 2
    assert "expected 1 names; came 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_keeps_its_code_under_another_name(open_site: Callable[[Config], Site], tmp_path: Path) -> None:
    """A name in the hospital's language says nothing else than the job's."""
    data = {"classes": ["Liver"], "codes": {"Liver": "SCT:10200004:Liver"}, "scale": "percentile"}
    model = save_model(open_site(tiny(data=data)), tmp_path / "model.safetensors")
    write_series(tmp_path / "in/s", np.random.default_rng(0).integers(0, 255, (20, 24, 2)).astype(np.uint16))
    command = ["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(model)]
    assert main([*command, "--names", "Leber"]) == 0
    (segment,) = pydicom.dcmread(next((tmp_path / "out").glob("*.dcm"))).SegmentSequence
    assert segment.SegmentLabel == "Leber"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"


def test_a_command_that_was_stopped_says_so_and_goes_on_when_it_is_run_again(
    trained_site: Site,
    trained_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").mkdir()
    for i, s in enumerate(trained_site.data["test"].slices):
        (tmp_path / f"in/{i}.png").write_bytes(s.image.read_bytes())
    command = ["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(trained_model)]

    def stopped_at_the_third(*given: Any) -> Any:
        if (tmp_path / "out/1.png").exists():
            raise KeyboardInterrupt
        return segment(*given)

    with monkeypatch.context() as once:
        once.setattr("pfedsam.predict.run.segment", stopped_at_the_third)
        assert main(command) == 130
    told = capsys.readouterr().err
    assert "stopped. The masks that are written stay; run it again" in told
    assert told.count("\n") == 1
    before = (tmp_path / "out/1.png").stat().st_mtime_ns
    assert main(command) == 0
    assert "1 masks of the personal branch written" in capsys.readouterr().out
    assert (tmp_path / "out/1.png").stat().st_mtime_ns == before


def test_masks_and_maps_are_counted_apart(
    trained_site: Site, trained_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(trained_site.data["test"].slices[0].image)
    command = ["predict", source, str(tmp_path / "out"), "--model", str(trained_model)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"1 masks of the personal branch written to {tmp_path}/out\n"
    assert main([*command, "--probabilities", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert (len(entry["written"]), entry["pixels"]) == (1, []), "its pixels would be of a mask that was not written"
    Path(entry["written"][0]).unlink()
    assert main([*command, "--probabilities"]) == 0
    told = f"0 masks of the personal branch written to {tmp_path}/out; 1 probability maps written; 1 masks existed"
    assert capsys.readouterr().out.startswith(told)
    assert main([*command, "--branch", "global", "--probabilities"]) == 1
    captured = capsys.readouterr()
    assert "came one of the personal branch; it was not replaced" in captured.err
    assert captured.out.startswith(f"0 masks of the global branch written to {tmp_path}/out; 1 faults")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--batch", "0"], "--batch above 0"),
        (["--batch", "-1"], "--batch above 0"),
        (["--device", "gpu"], "came gpu"),
        (["--device", "cuda:77"], "came cuda:77"),
        (["--device", "meta"], "came meta"),
    ],
)
def test_an_option_that_cannot_be_is_told_before_anything_is_written(
    trained_site: Site,
    trained_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: list[str],
    told: str,
) -> None:
    source = str(trained_site.data["test"].slices[0].image)
    assert main(["predict", source, str(tmp_path / "out"), "--model", str(trained_model), *option]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_files(trained_model: Path, trained_site: Site, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = trained_site.data["test"].slices[0].image.read_bytes()
    for i in range(500):
        (tmp_path / f"in/{i}.png").write_bytes(data)
    peaks = []
    for count in (50, 500):
        code = (
            "import resource, sys; from pathlib import Path; from itertools import islice\n"
            "from pfedsam.inference.predictor import load_model; from pfedsam.predict.scans import find_scans\n"
            "from pfedsam.predict.masks import Way; from pfedsam.predict.run import predict\n"
            "from pfedsam.predict.segmentation import Classes\n"
            f"scans = islice(find_scans(Path({str(tmp_path / 'in')!r})), {count})\n"
            f"for _ in predict(load_model(Path({str(trained_model)!r})), scans, Path({str(tmp_path / str(count))!r}), "
            "Way('personal'), Classes(['x'])): pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.03 * peaks[0]


def test_predict_refuses_a_file_as_its_output_before_it_loads_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "taken").write_text("a note")
    for out in ("taken", "taken/deep"):
        command = ["predict", str(tmp_path / "in"), str(tmp_path / out), "--model", str(tmp_path / "none.safetensors")]
        assert main(command) == 2
        assert f"expected a folder for the masks at {tmp_path / out}; came the file {tmp_path}/taken" in (
            capsys.readouterr().err
        )
    assert (tmp_path / "taken").read_text() == "a note"
