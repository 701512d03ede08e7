"""onnxruntime finds the masks that torch finds, and makes each graph once."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pfedsam
from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.export import runtime
from pfedsam.export.onnx import CLOSE, session
from pfedsam.export.runtime import by_onnxruntime, load_on
from pfedsam.inference.predictor import Predictor, load_model
from pfedsam.site import Site


@pytest.fixture(scope="module")
def kept(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graph of the trained model's personal branch; not to be changed."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.set_num_threads(1)
    by_onnxruntime(slow(trained_model), folder).ready("personal")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, kept: Path) -> list[str]:
    """The branches whose graphs were made in a test. None is made in truth: each is the kept one."""
    branches: list[str] = []

    def graph(model: Predictor, branch: str) -> tuple[bytes, float]:
        branches.append(branch)
        return next(kept.glob("*.onnx")).read_bytes(), 0.0

    monkeypatch.setattr(runtime, "graph", graph)
    return branches


def slow(path: Path) -> Predictor:
    return load_model(path, device="cpu", precision="fp32")


def test_the_masks_are_those_of_torch_but_for_pixels_at_the_threshold(
    trained_site: Site, trained_model: Path, kept: Path, made: list[str], tmp_path: Path
) -> None:
    model, sources = slow(trained_model), [one.image for one in trained_site.data["test"].slices]
    (tmp_path / "in").mkdir()
    for i, source in enumerate(sources):
        shutil.copy(source, tmp_path / f"in/{i}.png")
    verb = ["predict", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(trained_model)]
    assert main([*verb, "--runtime", "onnxruntime", "--cache", str(kept)]) == 0
    for i in range(len(sources)):
        picture = trained_site.data["test"].picture(i)
        logits = model.logits_at_size(picture[None], "personal")[0, 0]
        found = torch.from_numpy(np.array(Image.open(tmp_path / f"out/{i}.png"))) == 1
        sure = logits.abs() > 1e-4
        assert sure.float().mean() > 0.99
        assert 0 < found.float().mean() < 1, "a mask without content would prove nothing"
        assert torch.equal(found[sure], (logits > 0)[sure])
    assert not made


def test_the_python_api_takes_it_and_a_second_start_makes_no_graph(
    trained_site: Site, trained_model: Path, kept: Path, made: list[str]
) -> None:
    source = trained_site.data["test"].slices[0].image
    model = pfedsam.load(trained_model, runtime="onnxruntime", cache=kept)
    likely = model.predict(source, probabilities=True)[1]
    assert np.allclose(
        likely, pfedsam.load(trained_model, device="cpu").predict(source, probabilities=True)[1], atol=1e-4
    )
    assert model.card == pfedsam.load(trained_model).card
    assert not made


def test_a_branch_s_graph_is_made_when_it_is_first_needed_and_then_once(
    trained_model: Path, made: list[str], tmp_path: Path
) -> None:
    model = load_on("onnxruntime", trained_model, cache=tmp_path)
    assert not made
    for branch in ("global", "global", "personal"):
        model.logits(torch.zeros(1, 3, model.size, model.size), branch)
    assert made == ["global", "personal"]
    load_on("onnxruntime", trained_model).ready("personal")
    assert made == ["global", "personal", "personal"], "without a cache each start makes it"


def test_any_layout_of_images_in_memory_does(trained_model: Path, kept: Path) -> None:
    model = by_onnxruntime(slow(trained_model), kept)
    images = torch.rand(2, model.size, model.size, 3).permute(0, 3, 1, 2)
    assert torch.allclose(model.logits(images, "personal"), slow(trained_model).logits(images, "personal"), atol=CLOSE)


@pytest.mark.parametrize("damage", ["cut", "changed", "no note", "another note", "no JSON"])
def test_a_damaged_graph_is_made_again(
    trained_model: Path, kept: Path, made: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shutil.copytree(kept, tmp_path / "cache")
    (graph,) = (tmp_path / "cache").glob("*.onnx")
    note, data = graph.with_suffix(".json"), graph.read_bytes()
    if damage == "cut":
        graph.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        graph.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text("[]" if damage == "another note" else "{")
    by_onnxruntime(slow(trained_model), tmp_path / "cache").ready("personal")
    assert made == ["personal"]
    assert graph.read_bytes() == data
    assert json.loads(note.read_text())["sha256"]
    assert ("is damaged" in caplog.text) == (damage != "no note")
    by_onnxruntime(slow(trained_model), tmp_path / "cache").ready("personal")
    assert made == ["personal"]


def test_a_model_with_other_settings_or_another_base_does_not_take_the_graph(
    trained_model: Path, kept: Path, made: list[str], tmp_path: Path
) -> None:
    shutil.copytree(kept, tmp_path / "cache")
    model = slow(trained_model)
    other = replace(model.facts, origin=replace(model.facts.origin, base="another"))
    by_onnxruntime(replace(model, facts=other), tmp_path / "cache").ready("personal")
    by_onnxruntime(replace(model, facts=replace(model.facts, settings="{}")), tmp_path / "cache").ready("personal")
    assert made == ["personal", "personal"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"runtime": "tensorrt"}, "a runtime: torch or onnxruntime"),
        ({"runtime": "onnxruntime", "device": "cuda"}, "the CPU, where onnxruntime computes; came device cuda"),
    ],
)
def test_what_cannot_be_asked_for_together_is_told(trained_model: Path, how: dict[str, str], told: str) -> None:
    with pytest.raises(UserFault, match=told):
        pfedsam.load(trained_model, **how)


@pytest.fixture
def verb(trained_site: Site, trained_model: Path, tmp_path: Path) -> list[str]:
    """`pfedsam predict` on a test image with onnxruntime, to tmp_path/out."""
    source = str(trained_site.data["test"].slices[0].image)
    return ["predict", source, str(tmp_path / "out"), "--model", str(trained_model), "--runtime", "onnxruntime"]


def test_missing_packages_are_told_before_anything_is_written(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert main(verb) == 2
    assert "no onnxruntime; to mend it: pip install 'pfedsam[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_torch_cannot_write_as_a_graph_is_told_once_and_nothing_is_kept(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data dependent")

    monkeypatch.setattr(torch.export, "export", fail)
    assert main([*verb, "--cache", str(tmp_path / "cache")]) == 2
    told = capsys.readouterr().err
    assert "came RuntimeError from torch" in told
    assert "compute with torch" in told
    assert not list((tmp_path / "cache").glob("*.onnx"))
    assert not (tmp_path / "out").exists()


def test_a_session_has_as_many_threads_as_torch(kept: Path) -> None:
    torch.set_num_threads(2)
    options = session(next(kept.glob("*.onnx")).read_bytes()).get_session_options()
    assert options.intra_op_num_threads == 2
