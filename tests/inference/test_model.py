"""A model file predicts what its site's final test predicted, and says clearly when it cannot."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import NEEDS, after_a_round, model_facts, save_model, tiny
from pfedsam import methods
from pfedsam.data.square import Normalise, probabilities
from pfedsam.errors import UserFault
from pfedsam.inference import facts as headers
from pfedsam.inference.facts import read_facts
from pfedsam.inference.model_file import write_model
from pfedsam.inference.predictor import first_model, load_model
from pfedsam.layout import ASSETS
from pfedsam.site import Site
from pfedsam.train.evaluate import evaluate, find_masks


def same_as_the_final_test(site: Site, path: Path) -> None:
    model, test = load_model(path), site.data["test"]
    pictures = torch.stack([test[i][0] for i in range(len(test))])
    site.model.eval()
    for role in ("global", "personal"):
        branch = site.method.global_ if role == "global" else site.method.personal
        with torch.no_grad():
            expected = site.model(test.normalise(pictures), (branch,))[branch]
        assert torch.allclose(model.logits(pictures, role), expected, atol=1e-6), role
        found = find_masks(site.model, test, [0], (branch,))[branch][..., 0]
        assert torch.equal(model.mask(test.picture(0), role), found)


@pytest.mark.parametrize("method", methods.names())
def test_a_loaded_model_predicts_what_its_site_s_final_test_does(open_site, tmp_path: Path, method: str) -> None:
    site = after_a_round(open_site, tiny(method=method, model=NEEDS.get(method, {})))
    same_as_the_final_test(site, save_model(site, tmp_path / "model.safetensors"))


@pytest.mark.parametrize("reading", ["R1", "R2", "post"])
def test_so_does_each_reading(open_site, tmp_path: Path, reading: str) -> None:
    site = after_a_round(open_site, tiny(own={"reading": reading}))
    same_as_the_final_test(site, save_model(site, tmp_path / "model.safetensors"))


def test_so_does_a_share_of_the_private_part(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny(model={"experts_share": 0.5}))
    same_as_the_final_test(site, save_model(site, tmp_path / "model.safetensors"))


def test_so_does_training_in_bf16(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny(train={"precision": "bf16"}))
    model = load_model(save_model(site, tmp_path / "model.safetensors"))
    found = evaluate(model.model, site.data["test"], ("global", "personal"), distances=True)
    assert found == site.scores("test")
    image = site.data["test"][0][0][None]
    assert not torch.equal(
        model.logits(image, "global"),
        load_model(tmp_path / "model.safetensors", precision="fp32").logits(image, "global"),
    )


def test_classes_that_exclude_each_other_share_their_probability(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny(model={"num_classes": 2, "exclusive": True}, train={"loss": "ce"}))
    model = load_model(save_model(site, tmp_path / "model.safetensors"))
    found = probabilities(model.logits(torch.rand(1, 3, 64, 64), "personal")[0], exclusive=True)
    assert len(found) == 2
    assert (found.sum(0) < 1).all()
    same_as_the_final_test(site, tmp_path / "model.safetensors")


def test_the_scores_of_a_loaded_model_are_the_site_s(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny())
    model = load_model(save_model(site, tmp_path / "model.safetensors"))
    found = evaluate(model.model, site.data["test"], ("global", "personal"), distances=True)
    assert found == site.scores("test")


def test_a_model_with_its_base_needs_no_weight_file(open_site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = after_a_round(open_site, tiny())
    small, whole = (
        save_model(site, tmp_path / "small.safetensors"),
        save_model(site, tmp_path / "whole.safetensors", base=True),
    )
    picture = torch.rand(1, 3, 64, 64)
    expected = load_model(small).logits(picture, "personal")
    monkeypatch.setattr("pfedsam.model.weights.ASSETS", tmp_path / "nowhere")
    assert read_facts(whole).with_base
    assert torch.equal(load_model(whole).logits(picture, "personal"), expected)


def test_a_prepared_base_gives_the_same_numbers(model_file: Path, tmp_path: Path) -> None:
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(
        load_model(model_file, None, tmp_path).logits(picture, "global"),
        load_model(model_file).logits(picture, "global"),
    )


def test_loading_draws_nothing_from_the_caller_s_random_numbers(model_file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(model_file)
    assert torch.equal(torch.rand(1), expected)


def test_the_shared_part_alone_is_the_global_branch(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny())
    write_model(tmp_path / "shared.safetensors", model_facts(site, private=False), site.shared())
    model = load_model(tmp_path / "shared.safetensors")
    assert model.branches == ("global",)
    with pytest.raises(UserFault, match="a branch that the model file holds"):
        model.logits(torch.rand(1, 3, 64, 64), "personal")


def test_the_facts_are_read_without_the_tensors(model_file: Path) -> None:
    facts = read_facts(model_file)
    assert (facts.origin.site, facts.origin.run, facts.origin.round) == ("site-1", "run", 1)
    assert facts.config == tiny()
    assert facts.config_hash == tiny().digest()
    assert facts.versions.keys() == {"pfedsam", "code", "torch", "python"}


def torn(model_file: Path, folder: Path) -> Path:
    data = bytearray(model_file.read_bytes())
    data[-1] ^= 1
    (folder / "torn.safetensors").write_bytes(data)
    return folder / "torn.safetensors"


def cut(model_file: Path, folder: Path) -> Path:
    (folder / "cut.safetensors").write_bytes(model_file.read_bytes()[:-100])
    return folder / "cut.safetensors"


def foreign(_: Path, folder: Path) -> Path:
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    return folder / "foreign.safetensors"


def of_another_round(model_file: Path, folder: Path) -> Path:
    lines = headers.facts_of(model_file)
    save_file(load_file(model_file), folder / "round.safetensors", metadata={**lines, "round": "7"})
    return folder / "round.safetensors"


def newer(model_file: Path, folder: Path) -> Path:
    save_file(
        load_file(model_file), folder / "new.safetensors", metadata={**headers.facts_of(model_file), "version": "2"}
    )
    return folder / "new.safetensors"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (torn, "checksum does not match"),
        (cut, "not a complete safetensors file"),
        (foreign, "another kind of file"),
        (of_another_round, "changed afterwards"),
        (newer, "format 2"),
        (lambda _, folder: folder / "none.safetensors", "no such file"),
    ],
)
def test_a_file_that_is_not_whole_and_known_is_refused_with_words(
    model_file: Path, tmp_path: Path, harm, told: str
) -> None:
    with pytest.raises(UserFault, match=told):
        load_model(harm(model_file, tmp_path))


def test_another_base_is_refused(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny())
    other = model_facts(site)
    other = replace(other, origin=replace(other.origin, base="0" * 64))
    write_model(tmp_path / "other.safetensors", other, site.shared(), site.private())
    with pytest.raises(UserFault, match="the base model that this model was trained on"):
        load_model(tmp_path / "other.safetensors")


def test_tensors_of_other_settings_are_not_written(open_site, tmp_path: Path) -> None:
    site = after_a_round(open_site, tiny())
    other = replace(model_facts(site), config=tiny(own={"reading": "R3"}))
    with pytest.raises(UserFault, match="the private part"):
        write_model(tmp_path / "other.safetensors", other, site.shared(), site.private())
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("pixels", ["", ":unit"])
def test_the_first_model_sees_pixels_as_its_sites_do(tmp_path: Path, pixels: str) -> None:
    """Of weights that were trained on 0 to 1 it saw them with SAM's mean and deviation."""
    data = (ASSETS / "demo_sam.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(data)
    config = tiny(model={"weights": f"own.safetensors:{hashlib.sha256(data).hexdigest()}{pixels}"})
    image, normalised = torch.rand(1, 3, 64, 64), Normalise(config.model.pixels)
    assert torch.equal(first_model(config, tmp_path).normalise(image), normalised(image))
    assert (config.model.pixels == "unit") == bool(pixels)
