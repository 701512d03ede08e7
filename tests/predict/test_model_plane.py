"""The model file says in which plane a volume is cut; predict, ONNX notes, bundle and card take it from there."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import model_facts
from pfedsam.cli import main
from pfedsam.data.geometry import oriented
from pfedsam.data.volume import read_nifti
from pfedsam.export.bundle import metadata
from pfedsam.export.onnx import _notes
from pfedsam.inference.model_file import write_model
from pfedsam.inference.predictor import load_model
from pfedsam.predict.masks import Way, segment
from pfedsam.site import Site

PLANE, NAMES = "coronal", ["Lesion"]


@pytest.fixture(scope="module")
def coronal(trained_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose job said that volumes are cut into coronal slices."""
    path, facts = tmp_path_factory.mktemp("coronal") / "model.safetensors", model_facts(trained_site)
    data = replace(facts.config.data, plane=PLANE, classes=NAMES)
    config = replace(facts.config, data=data)
    write_model(
        path, replace(facts, config=config, config_hash=config.digest()), trained_site.shared(), trained_site.private()
    )
    return path


def scan(path: Path, site: Site) -> Path:
    """A volume whose coronal slices are the site's pictures."""
    pictures = [site.data["test"].picture(i % 3)[0, 4:44, 8 + i : 56 + i] for i in range(5)]
    values = np.stack([np.rint(255 * p.numpy()) for p in pictures], axis=1)[::-1].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


def test_predict_cuts_along_the_plane_of_the_training(coronal: Path, trained_site: Site, tmp_path: Path) -> None:
    path = scan(tmp_path / "v.nii", trained_site)
    model, volume = load_model(coronal), read_nifti(path)
    found = segment(model, volume, Way("personal", scale="percentile")).labels
    laid = segment(model, oriented(volume, PLANE), Way("personal", plane="stored", scale="percentile")).labels
    assert 0 < found.sum() == laid.sum()
    assert np.array_equal(oriented(replace(volume, values=found), PLANE).values, laid)
    assert found.shape == volume.values.shape
    other = segment(model, volume, Way("personal", plane="axial", scale="percentile")).labels
    assert not np.array_equal(found, other)


def test_the_verb_takes_plane_and_names_from_the_model_and_tells_another_plane(
    coronal: Path, trained_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scan(tmp_path / "v.nii", trained_site)
    verb = ["predict", str(path), "--model", str(coronal), "--scale", "percentile"]
    assert main([*verb[:2], str(tmp_path / "a"), *verb[2:], "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert '"1": "Lesion"' in told.out
    assert main([*verb[:2], str(tmp_path / "b"), *verb[2:], "--plane", "axial"]) == 0
    assert "trained on coronal slices, not axial" in capsys.readouterr().err
    masks = [np.asarray(nibabel.load(tmp_path / out / "v.nii").dataobj) for out in "ab"]
    assert masks[0].any()
    assert not np.array_equal(*masks)


def test_what_leaves_for_other_programs_says_the_plane_and_the_classes(coronal: Path) -> None:
    model = load_model(coronal)
    notes, bundle = _notes(model, "personal"), metadata(model.facts)
    for told in (notes["plane"], bundle["plane"]):
        assert "coronal slices: rows run to inferior, columns to the patient's left, slices to posterior" in told
    assert "Lesion" in notes["classes"]
    assert bundle["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "Lesion"}
