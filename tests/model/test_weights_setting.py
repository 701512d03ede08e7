"""A weight file that a job names, from the settings to the masks: agreed by all sites, told in every file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, tiny
from pfedsam.cli import main
from pfedsam.config import Config, WeightsConfig, to_dict
from pfedsam.doctor import checks
from pfedsam.errors import UserFault
from pfedsam.federation import Plan, federate
from pfedsam.files import sha256
from pfedsam.inference.facts import read_facts
from pfedsam.inference.predictor import load_model
from pfedsam.jobs import read_job
from pfedsam.layout import Places
from pfedsam.model import weights
from pfedsam.settings import from_dict, from_record
from pfedsam.study import same_settings

SHA = "ab" * 32
NAMED = WeightsConfig("medsam_vit_b.pth", SHA)


def own_file(folder: Path, shift: float) -> Path:
    """A SAM of the demo backbone's shape, every value moved."""
    folder.mkdir(exist_ok=True)
    state = {k: t.float() + shift for k, t in load_file(weights.ASSETS / "demo_sam.safetensors").items()}
    torch.save({"model": state, "epoch": 1}, folder / "mine.pth")
    return folder / "mine.pth"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"medsam_vit_b.pth:{SHA}", NAMED),
        (f"medsam_vit_b.pth:{SHA}:unit", WeightsConfig("medsam_vit_b.pth", SHA, "unit")),
        ({"name": "medsam_vit_b.pth", "sha256": SHA}, NAMED),
        (None, None),
    ],
)
def test_a_job_names_its_file_as_text_or_as_json(value: object, expected: WeightsConfig | None) -> None:
    config = from_dict({"model": {"weights": value}})
    assert config.model.weights == expected
    assert from_record(json.loads(config.text())) == config


def test_the_command_line_names_it_with_set() -> None:
    job = ROOT / "jobs/brain_mri.json"
    assert read_job(job, [f"model.weights=medsam_vit_b.pth:{SHA}"]).config.model.weights == NAMED
    as_json = json.dumps({"name": "medsam_vit_b.pth", "sha256": SHA})
    assert read_job(job, [f"model.weights={as_json}"]).config.model.weights == NAMED


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (f"../medsam.pth:{SHA}", "without a folder; came '../medsam.pth'"),
        (f"/etc/passwd:{SHA}", "without a folder"),
        (f".hidden:{SHA}", "without a folder"),
        (f"{'x' * 200}:{SHA}", "at most 128"),
        ("medsam.pth", "64 digits of 0 to 9 and a to f; came ''"),
        ("medsam.pth:abc", "64 digits"),
        (f"medsam.pth:{SHA.upper()}", "in small letters"),
        (f"medsam.pth:{SHA}:half", "model.weights.pixels to be one of sam, unit"),
        ({"name": "medsam.pth"}, "64 digits"),
        ({"name": "medsam.pth", "sha256": SHA, "url": "x"}, "settings of model.weights among name, sha256, pixels"),
        (3, "an object at model.weights"),
    ],
)
def test_a_name_that_leads_elsewhere_or_a_short_checksum_is_refused(value: object, told: str) -> None:
    with pytest.raises(UserFault) as fault:
        from_dict({"model": {"weights": value}})
    assert told in str(fault.value)


def test_random_weights_need_no_file() -> None:
    with pytest.raises(UserFault, match=r"model\.pretrained true with model\.weights"):
        from_dict({"model": {"weights": f"medsam.pth:{SHA}", "pretrained": False}})


def test_settings_without_a_file_keep_the_digest_that_they_had_before_files_could_be_named() -> None:
    assert "weights" not in to_dict(from_dict({}))["model"]
    assert from_dict({"model": {"weights": None}}).text() == from_dict({}).text()


def test_settings_differ_by_the_file_both_ways() -> None:
    plain, named = from_dict({}), from_dict({"model": {"weights": f"medsam_vit_b.pth:{SHA}"}})
    assert plain.unlike(named) == {"model.weights": {"name": "medsam_vit_b.pth", "sha256": SHA, "pixels": "sam"}}
    assert named.unlike(plain) == {"model.weights": None}
    assert plain.digest() != named.digest()
    for one, other in ((plain, named), (named, plain)):
        with pytest.raises(UserFault, match=r"model\.weights"):
            same_settings(one, to_dict(other), "run x", "")


def test_the_doctor_looks_at_the_file_that_the_job_names(tmp_path: Path) -> None:
    path = own_file(tmp_path, 0.01)
    config = tiny(model={"weights": f"{path.name}:{sha256(path)}"})
    assert checks.weight_file(config, tmp_path) == checks.Finding("weights", True, "mine.pth, sha256 as the job says")
    own_file(tmp_path, 0.02)
    found = checks.weight_file(config, tmp_path)
    assert not found.ok
    assert "name its sha256 in the job" in found.do


def job_of(path: Path) -> Config:
    return tiny(method="fedavg", model={"weights": f"{path.name}:{sha256(path)}:unit"})


def test_a_site_with_another_file_of_that_name_does_not_take_part(hospital: Path, tmp_path: Path) -> None:
    path = own_file(tmp_path / "agreed", 0.01)
    own_file(tmp_path / "other", 0.02)
    config = job_of(path)
    places = {
        site: Places(hospital, tmp_path / folder / "store", tmp_path / folder)
        for site, folder in (("site-1", "agreed"), ("site-2", "other"))
    }
    with pytest.raises(UserFault, match=r"other/mine\.pth with sha256"):
        federate(Plan(config, places, 1, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a verb prints."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_run_from_weights_of_one_s_own_goes_to_masks_by_its_file_or_without_it(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_file(tmp_path / "weights", 0.01)
    line = said(capsys, "convert", path)
    assert f"--set model.backbone=demo --set model.weights=mine.pth:{sha256(path)}" in line
    config = job_of(path)
    places = dict.fromkeys(("site-1", "site-2"), Places(hospital, tmp_path / "store", path.parent))
    federate(Plan(config, places, 1, tmp_path / "run"))
    monkeypatch.delenv("PFEDSAM_WEIGHTS", raising=False)

    files = {name: tmp_path / f"{name}.safetensors" for name in ("bare", "whole")}
    said(capsys, "export", tmp_path / "run", "--global-only", "--out", files["bare"])
    said(
        capsys,
        *(
            "export",
            tmp_path / "run",
            "--global-only",
            "--out",
            files["whole"],
            "--with-base",
            "--weights",
            path.parent,
        ),
    )
    card = files["bare"].with_suffix(".md").read_text()
    for part in (
        "mine.pth",
        sha256(path),
        "Base weights (mine.pth): as its publisher says; not known to pfedsam",
    ):
        assert part in card
    assert read_facts(files["bare"]).config.model.weights == config.model.weights

    with pytest.raises(UserFault, match=r"mine\.pth \(sha256"):
        load_model(files["bare"], device="cpu")
    image = torch.rand(3, 64, 64)
    bare, whole = load_model(files["bare"], path.parent, device="cpu"), load_model(files["whole"], device="cpu")
    assert torch.equal(bare.normalise(image), image)
    assert torch.equal(bare.logits(image[None], "global"), whole.logits(image[None], "global"))
    for file in files.values():
        assert "FAILED" not in said(capsys, "verify", file, "--weights", path.parent)
    scans = hospital / "site-1/images"
    said(capsys, "predict", scans, tmp_path / "masks", "--model", files["bare"], "--weights", path.parent)
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list(scans.iterdir()))
