"""The Python API: what it promises, each as one test."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import highdicom
import monai
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from data.dicoms import write_series
from PIL import Image

import pfedsam
from conftest import ROOT, TINY
from pfedsam.cli import main
from pfedsam.flare.recipe import PFedSAMRecipe
from pfedsam.quiet import LIBRARIES, quietly
from pfedsam.site import Site

SETTINGS: dict[str, Any] = {
    "study": "try",
    "model": {"backbone": "demo", "image_size": 64, "experts": 3},
    "train": {"max_steps": 2, "lr": 1e-3},
    "data": {"source": "synthetic", "train": 4, "val": 2, "test": 2},
}
SITES = ["site-1", "site-2"]
LPS = np.diag([-0.75, -0.5, 2.5, 1.0])[:, [1, 0, 2, 3]]


@pytest.fixture(scope="module")
def model(trained_model: Path) -> pfedsam.Model:
    return pfedsam.load(trained_model)


@pytest.fixture(scope="module")
def volume(trained_site: Site) -> np.ndarray:
    """(40, 48, 5) of whole grey values, cut out of the site's pictures."""
    pictures = [trained_site.data["test"].picture(i % 3)[0, 4:44, 8 + i : 56 + i] for i in range(5)]
    return np.stack([np.rint(255 * p.numpy()) for p in pictures], axis=-1).astype(np.uint8)


def predicted(model: Path, source: Path, out: Path) -> None:
    """What `pfedsam predict` writes of `source`."""
    assert main(["predict", str(source), str(out), "--model", str(model), "--probabilities"]) == 0


def test_importing_the_package_loads_neither_torch_nor_flare() -> None:
    told = "import sys, pfedsam; dir(pfedsam); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "nvflare", "numpy", "monai", "rich"} == set()


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in pfedsam.__all__:
        assert getattr(pfedsam, name)
        assert name in dir(pfedsam)
    assert pfedsam.PFedSAMRecipe is PFedSAMRecipe
    with pytest.raises(AttributeError, match="no attribute 'epochs'"):
        pfedsam.epochs  # noqa: B018


def test_a_picture_s_mask_is_bit_for_bit_that_of_the_command(
    model: pfedsam.Model, trained_model: Path, trained_site: Site, tmp_path: Path
) -> None:
    source = trained_site.data["test"].slices[0].image
    predicted(trained_model, source, tmp_path)
    written = np.asarray(Image.open(tmp_path / source.name))
    mask, likely = model.predict(source, probabilities=True)
    assert written.any()
    assert np.array_equal(mask, written)
    assert mask.dtype == np.uint8
    assert np.array_equal(model.predict(np.asarray(Image.open(source))), written)
    assert np.array_equal(model.predict(str(source)), written)
    deep = np.asarray(Image.open(tmp_path / f"{source.stem}.prob-1.png"))
    assert np.array_equal(np.rint(likely[0] * 65535).astype(np.uint16), deep)


def test_a_nifti_s_mask_is_bit_for_bit_that_of_the_command_by_path_and_by_array_with_affine(
    model: pfedsam.Model, trained_model: Path, volume: np.ndarray, tmp_path: Path
) -> None:
    turned, affine = np.flip(volume.transpose(2, 0, 1), 1), LPS[:, [2, 0, 1, 3]] * [1, -1, 1, 1]
    nibabel.Nifti1Image(turned, affine).to_filename(tmp_path / "a.nii.gz")
    predicted(trained_model, tmp_path / "a.nii.gz", tmp_path / "out")
    written = np.asarray(nibabel.load(tmp_path / "out/a.nii.gz").dataobj)
    assert written.any()
    assert np.array_equal(model.predict(tmp_path / "a.nii.gz"), written)
    read = nibabel.load(tmp_path / "a.nii.gz")
    mask, likely = model.predict(read.get_fdata(), affine=read.affine, probabilities=True)
    assert np.array_equal(mask, written)
    assert np.array_equal(likely[0], nibabel.load(tmp_path / "out/a.prob-1.nii.gz").get_fdata(dtype=np.float32))
    assert not np.array_equal(model.predict(turned), written), "without affine the third axis is of slices"
    assert np.array_equal(model.predict(volume), model.predict(volume, plane="stored"))


def test_a_dicom_folder_s_mask_is_bit_for_bit_that_of_the_command(
    model: pfedsam.Model, trained_model: Path, volume: np.ndarray, tmp_path: Path
) -> None:
    files = write_series(tmp_path / "in/series", volume.astype(np.uint16))
    predicted(trained_model, tmp_path / "in", tmp_path / "out")
    written = highdicom.seg.segread(tmp_path / "out/series.seg.dcm")
    order = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files]
    found = written.get_pixels_by_source_instance(order, combine_segments=True, ignore_spatial_locations=True)
    mask = model.predict(tmp_path / "in")
    assert mask.any()
    assert np.array_equal(mask, np.moveaxis(found, 0, 2))


def test_the_branch_can_be_chosen_and_is_the_personal_one_unless_it_is(
    model: pfedsam.Model, volume: np.ndarray
) -> None:
    usual, personal, shared = (
        model.predict(volume, branch=branch, probabilities=True)[1] for branch in (None, "personal", "global")
    )
    assert np.array_equal(usual, personal)
    assert not np.allclose(usual, shared, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "more", "told"),
    [
        ([[1, 2]], {}, "a NumPy array, or a path; came list"),
        (np.zeros((8, 8), bool), {}, "dtype bool"),
        (np.array([["a"]]), {}, "dtype <U1"),
        (np.zeros(8, np.uint8), {}, r"shape \(8,\)"),
        (np.zeros((2, 8, 8, 3, 1), np.uint8), {}, "give one image or volume"),
        (np.zeros((0, 8), np.uint8), {}, r"shape \(0, 8\)"),
        (np.zeros((8, 9, 4), np.uint8), {}, "cut the transparency off"),
        (np.zeros((3, 8, 9), np.uint8), {}, "move the colours last"),
        (np.zeros((8, 9), np.uint8), {"affine": np.eye(4)}, "leave them out"),
        (np.zeros((8, 9, 5), np.uint8), {"affine": np.eye(3)}, r"an affine \(4, 4\)"),
        (np.zeros((8, 9, 5), np.uint8), {"affine": np.diag([1.0, 1, 0, 1])}, "no volume"),
        (np.full((8, 8), np.nan), {}, "NaN or infinite in 64 of 64"),
        (np.full((8, 8), 1e300), {}, "NaN or infinite in 64 of 64"),
        (np.full((8, 8), 0.7), {"scale": "uint8"}, "multiply by 255"),
        (np.full((8, 8), 700), {"scale": "uint8"}, "values of 0 to 255"),
        (np.ones((8, 8)), {"scale": "z-score"}, "a scale: uint8 or percentile"),
        (np.ones((8, 8)), {"branch": "local"}, "a branch that the model file holds"),
        (np.ones((8, 8, 5)), {"plane": "oblique"}, "a plane: axial"),
        ("nowhere.png", {}, "a file or folder at nowhere.png"),
        ("nowhere.png", {"affine": np.eye(4)}, "no affine with a path"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_three_parts(
    model: pfedsam.Model, image: Any, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(pfedsam.UserFault, match=told):
        model.predict(image, **more)


def test_a_volume_of_three_slices_is_one_where_its_affine_or_plane_is_given(
    model: pfedsam.Model, volume: np.ndarray
) -> None:
    three = volume[:, :, :3]
    assert model.predict(three).shape == (40, 48)
    assert model.predict(three, affine=LPS).shape == model.predict(three, plane="stored").shape == (40, 48, 3)
    assert model.predict(np.stack([volume] * 3, -1)).shape == (40, 48, 5)


def test_a_folder_of_several_images_is_refused(model: pfedsam.Model, tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(pfedsam.UserFault, match=r"one image at .*; came 2"):
        model.predict(tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(pfedsam.UserFault, match=r"b\.png"):
        model.predict(tmp_path / "b.png")


def test_the_card_says_what_a_user_has_to_know(model: pfedsam.Model) -> None:
    assert model.card == {
        "classes": {1: "class 1"},
        "scale": "percentile",
        "plane": "axial",
        "branches": ("global", "personal"),
        "method": "pfedsam",
        "backbone": "demo",
        "image_size": 64,
        "study": "pfedsam",
        "run": "run",
        "site": "site-1",
        "round": 1,
    }
    assert model.facts.config.model.experts == 3


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[pfedsam.Results, list[int]]:
    """A run of two rounds, and the rounds that it told."""
    told: list[int] = []
    out = tmp_path_factory.mktemp("api") / "run"
    done = pfedsam.simulate(
        SETTINGS, rounds=2, sites=SITES, out=out, on_round=lambda entry: told.append(entry["round"])
    )
    return done, told


def test_a_run_tells_each_round_and_returns_what_stands_in_its_folder(ran: tuple[pfedsam.Results, list[int]]) -> None:
    done, told = ran
    assert told == [0, 1]
    assert done.record == json.loads((done.folder / "results.json").read_text())
    assert set(done.record["final"]["sites"]) == set(SITES)
    assert "pfedsam, test split (synthetic data)" in done.table()


def test_the_command_gives_the_numbers_of_the_function(
    ran: tuple[pfedsam.Results, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"sites": SITES, "rounds": 2, "settings": SETTINGS}))
    assert main(["simulate", str(job), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["final"] == ran[0].record["final"]
    assert ran[0].table() in capsys.readouterr().out


def test_a_site_s_model_comes_out_of_a_run_and_predicts_as_its_final_test(
    ran: tuple[pfedsam.Results, list[int]], tmp_path: Path
) -> None:
    done, _ = ran
    own = pfedsam.load(done.export(tmp_path / "own.safetensors", "site-2"))
    shared = pfedsam.load(done.export(tmp_path / "shared.safetensors"))
    assert (own.card["branches"], own.card["site"]) == (("global", "personal"), "site-2")
    assert shared.card["branches"] == ("global",)
    assert "private part of site site-2" in (tmp_path / "own.md").read_text()
    final = done.record["final"]["sites"]["site-2"]
    for model, branch in ((own, "personal"), (own, "global"), (shared, "global"), (done.before(), "global")):
        role = "before" if model.card["round"] is None else branch
        assert dice(model, branch, next((done.folder / "site-2/synthetic_data").iterdir())) == pytest.approx(
            final[role]["dice"],
            abs=5e-5,  # which leaves with four digits
        )
    with pytest.raises(pfedsam.UserFault, match="files of site site-9"):
        done.export(tmp_path / "none.safetensors", "site-9")


def dice(model: pfedsam.Model, branch: str, data: Path) -> float:
    """The mean over a synthetic site's test images; two empty masks score nothing."""
    found = []
    for image in sorted((data / "images").glob("*_test_*.png")):
        mask, truth = model.predict(image, branch=branch), np.asarray(Image.open(data / "masks" / image.name))
        found.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    return float(np.mean(found))


def test_sites_that_begin_with_models_of_their_own_have_no_one_model_before(tmp_path: Path) -> None:
    done = pfedsam.Results({"config": {**SETTINGS, "method": "local"}}, tmp_path)
    with pytest.raises(pfedsam.UserFault, match="whose sites begin with one model; came local"):
        done.before()


def test_torch_is_afterwards_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFEDSAM_THREADS", "2")
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    monkeypatch.setattr(monai.data.meta_obj, "_TRACK_META", True)
    pfedsam.simulate(SETTINGS, sites=1, out=tmp_path / "run", train={"max_steps": 1})
    assert monai.data.get_track_meta()
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("job", "more", "told"),
    [
        ("nowhere.json", {}, "nowhere.json"),
        ({"metod": "ditto"}, {"sites": 2}, "came metod"),
        ({"settings": {}, "round": 3}, {"sites": 2}, "came round"),
        ({"settings": 3}, {"sites": 2}, "settings"),
        (SETTINGS, {}, "came a job that names none"),
        (SETTINGS, {"sites": -1}, "came a job that names none"),
        (SETTINGS, {"sites": 0}, "came a job that names none"),
        (SETTINGS, {"sites": ["a b"]}, "a site's name"),
        (SETTINGS, {"sites": 2, "rounds": 0}, "rounds"),
        (SETTINGS, {"sites": 2, "train": {"lr": "fast"}}, "train.lr"),
        (SETTINGS, {"sites": 2, "round": 3}, "came round; to mend it: write rounds"),
        (SETTINGS, {"sites": 1.5}, "a whole number of sites"),
        (3, {"sites": 2}, "a job: a path, a name or a mapping"),
        (SETTINGS, {"sites": 2, "grace": 3}, "write it in the job, beside its settings"),
        (SETTINGS, {"sites": 2, "data": {"source": "site"}}, "the data folder of site site-1"),
        (SETTINGS, {"sites": 2, "data": {"source": "site"}, "folders": {"site-1": "x"}}, "folder of site site-2"),
        ({"settings": SETTINGS, "sites": SITES}, {"sites": 3}, "at most the job's 2 sites"),
        ({"settings": SETTINGS, "begin": "demo/latest"}, {"sites": 2}, "a job that starts a new run"),
        (SETTINGS, {"sites": 2, "begin_private": "a"}, "a job that starts a new run; came begin_private a"),
    ],
)
def test_a_run_that_cannot_be_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Any, more: dict[str, Any], told: str
) -> None:
    monkeypatch.delenv("PFEDSAM_DATA", raising=False)
    with pytest.raises(pfedsam.UserFault, match=told):
        pfedsam.simulate(job, out=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_settings_given_beside_a_job_change_what_they_name_and_leave_the_rest(hospital: Path, tmp_path: Path) -> None:
    given = {**SETTINGS, "method": {"name": "pfedsam", "reading": "R2"}}
    done = pfedsam.simulate(
        {"settings": given, "sites": ["site-1"]},
        folders=hospital,
        out=tmp_path / "run",
        method={"reading": "R3"},
        train={"max_steps": 1},
        data={"source": "site"},
        seed=3,
    )
    config = done.record["config"]
    assert (config["method"]["name"], config["method"]["reading"]) == ("pfedsam", "R3")
    assert (config["train"]["max_steps"], config["train"]["lr"], config["seed"]) == (1, 1e-3, 3)
    assert given["method"]["reading"] == "R2"
    assert SETTINGS["train"]["max_steps"] == 2


def test_a_job_of_the_checkout_is_run_by_its_path(tmp_path: Path) -> None:
    small: dict[str, Any] = {}
    for change in TINY:
        part, name = change.split("=")[0].split(".")
        small.setdefault(part, {})[name] = int(change.split("=")[1])
    done = pfedsam.simulate(ROOT / "jobs/fedavg.json", rounds=1, sites=2, out=tmp_path / "run", **small)
    assert done.record["method"] == "fedavg"
    assert set(done.record["final"]["sites"]) == {"site-1", "site-2"}


def test_a_library_s_warning_is_kept_from_the_user_for_the_time_of_a_call_alone() -> None:
    logger = logging.getLogger(LIBRARIES[0])
    before, shown = (list(logger.filters), list(logger.handlers), logger.propagate), warnings.showwarning
    with quietly():
        assert warnings.showwarning is not shown
        assert not logger.propagate
    assert warnings.showwarning is shown
    assert (logger.filters, logger.handlers, logger.propagate) == before


def test_a_run_begins_in_no_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"mine")
    with pytest.raises(pfedsam.UserFault, match="a folder that is empty or holds a run"):
        pfedsam.simulate({}, rounds=1, sites=1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
