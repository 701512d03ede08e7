"""A model file predicts what its site's final test predicted, and says clearly when it cannot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.export import facts as headers
from pfedsam.export.facts import Facts, Origin, branches, read_facts
from pfedsam.export.model import load, save
from pfedsam.model import build
from pfedsam.site import Places, Site, initial_shared
from pfedsam.train.evaluate import evaluate, find

NORMS = {"fedbn": {"backbone": "tiny_vit", "pretrained": False}}


def trained(open_site, config: Config) -> Site:
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    site.train(0, 2)
    site.recall(site.shared())
    return site


def facts_of(site: Site, *, private: bool = True) -> Facts:
    origin = Origin(site.base, site.name if private else "", "run", 1, 1 if private else None)
    return Facts(site.config, site.config.digest(), origin, branches(site.config, private=private))


def saved(site: Site, path: Path, *, base: bool = False) -> Path:
    whole = build.backbone(site.config.model) if base else None
    save(path, facts_of(site), site.shared(), site.private(), base=whole)
    return path


@pytest.fixture(scope="module")
def file(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    site = trained(lambda config: Site("site-1", config, Places(hospital, folder / "store")), tiny())
    return saved(site, folder / "model.safetensors")


def same_as_the_final_test(site: Site, path: Path) -> None:
    model, test = load(path), site.data["test"]
    pictures = torch.stack([test[i][0] for i in range(len(test))])
    site.model.eval()
    for role in ("global", "personal"):
        branch = site.method.global_ if role == "global" else site.method.personal
        with torch.no_grad():
            expected = site.model(test.normalise(pictures), (branch,))[branch]
        assert torch.allclose(model.logits(pictures, role), expected, atol=1e-6), role
        found = find(site.model, test, [0], (branch,))[branch][..., 0]
        assert torch.equal(model.mask(test.picture(0), role), found)


@pytest.mark.parametrize("method", methods.names())
def test_a_loaded_model_predicts_what_its_site_s_final_test_does(open_site, tmp_path: Path, method: str) -> None:
    site = trained(open_site, tiny(method=method, model=NORMS.get(method, {})))
    same_as_the_final_test(site, saved(site, tmp_path / "model.safetensors"))


@pytest.mark.parametrize("reading", ["R1", "R2", "post"])
def test_so_does_each_reading(open_site, tmp_path: Path, reading: str) -> None:
    site = trained(open_site, tiny(reading=reading))
    same_as_the_final_test(site, saved(site, tmp_path / "model.safetensors"))


def test_so_does_training_in_bf16(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny(train={"precision": "bf16"}))
    model = load(saved(site, tmp_path / "model.safetensors"))
    assert evaluate(model.model, site.data["test"], ("global", "personal")) == site.scores("test")
    image = site.data["test"][0][0][None]
    assert not torch.equal(
        model.logits(image, "global"), load(tmp_path / "model.safetensors", precision="fp32").logits(image, "global")
    )


def test_classes_that_exclude_each_other_share_their_probability(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny(model={"num_classes": 2, "exclusive": True}, train={"loss": "ce"}))
    model = load(saved(site, tmp_path / "model.safetensors"))
    found = model.probabilities(torch.rand(2, 3, 64, 64), "personal")
    assert found.shape[:2] == (2, 2)
    assert (found.sum(1) < 1).all()
    same_as_the_final_test(site, tmp_path / "model.safetensors")


def test_the_scores_of_a_loaded_model_are_the_site_s(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny())
    model = load(saved(site, tmp_path / "model.safetensors"))
    assert evaluate(model.model, site.data["test"], ("global", "personal")) == site.scores("test")


def test_a_model_with_its_base_needs_no_weight_file(open_site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = trained(open_site, tiny())
    small, whole = saved(site, tmp_path / "small.safetensors"), saved(site, tmp_path / "whole.safetensors", base=True)
    picture = torch.rand(1, 3, 64, 64)
    expected = load(small).logits(picture, "personal")
    monkeypatch.setattr("pfedsam.model.weights.ASSETS", tmp_path / "nowhere")
    assert read_facts(whole).whole
    assert torch.equal(load(whole).logits(picture, "personal"), expected)


def test_a_prepared_base_gives_the_same_numbers(file: Path, tmp_path: Path) -> None:
    picture = torch.rand(1, 3, 64, 64)
    assert torch.equal(load(file, None, tmp_path).logits(picture, "global"), load(file).logits(picture, "global"))


def test_loading_draws_nothing_from_the_caller_s_random_numbers(file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load(file)
    assert torch.equal(torch.rand(1), expected)


def test_the_shared_part_alone_is_the_global_branch(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny())
    save(tmp_path / "shared.safetensors", facts_of(site, private=False), site.shared())
    model = load(tmp_path / "shared.safetensors")
    assert model.branches == ("global",)
    with pytest.raises(UserFault, match="a branch that the model file holds"):
        model.logits(torch.rand(1, 3, 64, 64), "personal")


def test_the_facts_are_read_without_the_tensors(file: Path) -> None:
    facts = read_facts(file)
    assert (facts.origin.site, facts.origin.run, facts.origin.round) == ("site-1", "run", 1)
    assert facts.config == tiny()
    assert facts.config_hash == tiny().digest()
    assert facts.versions.keys() == {"pfedsam", "torch", "python"}


def torn(file: Path, folder: Path) -> Path:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    (folder / "torn.safetensors").write_bytes(data)
    return folder / "torn.safetensors"


def cut(file: Path, folder: Path) -> Path:
    (folder / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    return folder / "cut.safetensors"


def foreign(_: Path, folder: Path) -> Path:
    save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
    return folder / "foreign.safetensors"


def of_another_round(file: Path, folder: Path) -> Path:
    lines = headers.facts_of(file)
    save_file(load_file(file), folder / "round.safetensors", metadata={**lines, "round": "7"})
    return folder / "round.safetensors"


def newer(file: Path, folder: Path) -> Path:
    save_file(load_file(file), folder / "new.safetensors", metadata={**headers.facts_of(file), "version": "2"})
    return folder / "new.safetensors"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (torn, "checksum does not fit"),
        (cut, "not a whole safetensors file"),
        (foreign, "another kind of file"),
        (of_another_round, "changed afterwards"),
        (newer, "format 2"),
        (lambda _, folder: folder / "none.safetensors", "no such file"),
    ],
)
def test_a_file_that_is_not_whole_and_known_is_refused_with_words(file: Path, tmp_path: Path, harm, told: str) -> None:
    with pytest.raises(UserFault, match=told):
        load(harm(file, tmp_path))


def test_another_base_is_refused(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny())
    other = facts_of(site)
    other = replace(other, origin=replace(other.origin, base="0" * 64))
    save(tmp_path / "other.safetensors", other, site.shared(), site.private())
    with pytest.raises(UserFault, match="the base model that this model was trained on"):
        load(tmp_path / "other.safetensors")


def test_tensors_of_other_settings_are_not_written(open_site, tmp_path: Path) -> None:
    site = trained(open_site, tiny())
    other = replace(facts_of(site), config=tiny(reading="R2"))
    with pytest.raises(UserFault, match="the private part"):
        save(tmp_path / "other.safetensors", other, site.shared(), site.private())
    assert not (tmp_path / "other.safetensors").exists()
