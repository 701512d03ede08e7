"""A model card begins with front matter that the Hugging Face hub reads, and that claims no more than is known."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from conftest import tiny
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.export.card import card
from pfedsam.export.source import RunModel
from pfedsam.inference.facts import ModelFacts, Origin
from pfedsam.record.cards import front_matter, part_card

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # how the hub names a model: owner/name
ROW = {"dice": 0.81234, "iou": 0.7, "detected": 1.0, "surface_dice": 0.9, "hd95": 4.2, "assd": None, "unit": "mm"}
FINAL = {"personal": ROW, "global": {**ROW, "dice": None}, "before": ROW, "patients": 3}


def source(config: Config, *, tested: bool = True, site: str = "site-1") -> RunModel:
    roles = ("global", "personal") if site else ("global",)
    facts = ModelFacts(config, config.digest(), Origin("0" * 64, site, "run", 1), roles, versions={"pfedsam": "1"})
    results = {"final": {"sites": {"site-1": FINAL, "clinic-of-dr-smith": FINAL}, "mean": {"global": ROW}}}
    return RunModel(facts, {}, None, results, tested)


def text_of(given: RunModel) -> str:
    return card(given, given.facts, Path("/data/of/patient-7/model.safetensors"))


def head(text: str) -> dict[str, Any]:
    """What the front matter of a card says, read as YAML alone."""
    opening, front, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front)


def test_the_hub_s_own_reader_takes_the_card_and_finds_the_scores_in_it() -> None:
    data = ModelCard(text_of(source(tiny()))).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("other", "pfedsam", "image-segmentation")
    found = {one.metric_name: one.metric_value for one in data.eval_results}
    assert found["Dice, personal branch"] == 0.8123
    assert found["HD95 (mm), personal branch"] == 4.2
    one = data.eval_results[0]
    assert (one.task_type, one.dataset_type, one.dataset_split) == ("image-segmentation", "private", "test")
    assert one.verified is None


def test_every_score_has_what_the_hub_s_specification_requires() -> None:
    (entry,) = head(text_of(source(tiny())))["model-index"]
    assert entry["name"]
    for result in entry["results"]:
        assert result["task"]["type"]
        assert {"type", "name"} <= result["dataset"].keys()
        assert all(isinstance(metric["value"], float) and metric["type"] for metric in result["metrics"])


def test_branches_that_the_file_does_not_hold_and_empty_scores_are_left_out() -> None:
    names = [one.metric_name for one in ModelCard(text_of(source(tiny()))).data.eval_results]
    assert not [name for name in names if "before" in name or "ASSD" in name or name == "Dice, global branch"]
    shared = ModelCard(text_of(source(tiny(), site=""))).data.eval_results
    assert {one.metric_name.split(", ")[1] for one in shared} == {"global branch"}
    assert shared[0].dataset_name.endswith("mean over sites")


def test_a_model_that_was_not_tested_has_no_scores_in_its_front_matter() -> None:
    assert "model-index" not in head(text_of(source(tiny(), tested=False)))


def test_it_claims_no_licence_and_no_data_set() -> None:
    said = head(text_of(source(tiny())))
    assert (said["license"], said["license_name"]) == ("other", "set-by-the-sites")
    assert "datasets" not in said
    assert "no licence, as the sites decide" in text_of(source(tiny()))


@pytest.mark.parametrize("backbone", ["demo", "tiny_vit", "vit_b", "vit_l", "vit_h"])
def test_the_base_model_is_named_where_its_authors_put_it_on_the_hub(backbone: str) -> None:
    config = tiny(model={"backbone": backbone})
    base = head(front_matter(config)).get("base_model")
    assert (base is None) == (backbone in ("demo", "tiny_vit"))
    assert base is None or HUB_ID.fullmatch(base)
    random = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=False))
    assert "base_model" not in head(front_matter(random))


def test_images_of_a_site_make_it_medical_and_private_and_drawn_ones_do_not() -> None:
    for given, kind, medical in (("site", "private", True), ("synthetic", "synthetic", False)):
        said = head(text_of(source(tiny(data={"source": given}))))
        assert said["model-index"][0]["results"][0]["dataset"]["type"] == kind
        assert ("medical" in said["tags"]) is medical


@pytest.mark.parametrize("sites", [{"site-1": {}}, {"site-1": 3}, 3])
def test_a_record_without_the_number_of_slices_is_told(sites: object) -> None:
    given = source(tiny())
    given.results["rounds"] = [{"round": 0, "sites": sites}]
    with pytest.raises(UserFault, match=r"results\.json.*take the one that the server wrote"):
        text_of(given)


def test_no_other_site_and_no_path_stands_in_it() -> None:
    front = text_of(source(tiny())).split("---\n")[1]
    assert not [word for word in ("smith", "patient", "/data", "site-1") if word in front]


def test_the_shared_part_s_card_has_front_matter_and_the_private_part_s_has_none() -> None:
    assert head(part_card("shared", tiny(), {"run": "x"}))["library_name"] == "pfedsam"
    assert part_card("private", tiny(), {"run": "x"}).startswith("# Private part")
