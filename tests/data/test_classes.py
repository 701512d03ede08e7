import json
import shutil
from pathlib import Path

import pytest

from conftest import tiny
from pfedsam.data.classes import check_class_names, sided
from pfedsam.errors import UserFault
from pfedsam.federation import Plan, federate
from pfedsam.layout import Places
from pfedsam.site import Site

LIVER = {"1": "Liver", "2": "Tumour"}
TURNED = {"1": "Tumour", "2": "Liver"}


def named(*names: str, classes: int = 2):
    return tiny(model={"num_classes": classes}, data={"classes": list(names)})


def site(folder: Path, names: dict[str, str]) -> Path:
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize("names", [("Liver", "Tumour"), ("liver ", "TUMOUR")])
def test_a_site_whose_numbers_mean_what_the_job_says_goes_on(tmp_path: Path, names: tuple[str, str]) -> None:
    check_class_names(site(tmp_path, LIVER), named(*names))


def test_of_two_sites_that_number_their_classes_otherwise_one_is_stopped_in_words(tmp_path: Path) -> None:
    """Trained together, one hospital's liver was the other's tumour, and nothing said so."""
    with pytest.raises(UserFault, match=r"1 Liver, 2 Tumour.*came 1 Tumour, 2 Liver in .*classes.json"):
        check_class_names(site(tmp_path, TURNED), named("Liver", "Tumour"))


def test_a_job_of_several_classes_without_names_is_told_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match=r"data.classes.*none in the job, and here: 1 Liver, 2 Tumour"):
        check_class_names(site(tmp_path, LIVER), named())


def test_a_class_beyond_the_job_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="3 Cyst"):
        check_class_names(site(tmp_path, {**LIVER, "3": "Cyst"}), named("Liver", "Tumour"))


@pytest.mark.parametrize("names", [{"Tumour": 1, "Liver": 2}, {"1": "Tumour", "two": "Liver"}, {"1": 2}])
def test_names_that_a_person_wrote_otherwise_are_not_passed_over(tmp_path: Path, names: dict[str, object]) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(names))
    with pytest.raises(UserFault, match=r"class number to name in .*classes.json"):
        check_class_names(tmp_path, named("Liver", "Tumour"))


def test_a_site_that_names_nothing_and_a_job_of_one_nameless_class_go_on(tmp_path: Path) -> None:
    check_class_names(tmp_path, named("Liver", "Tumour"))
    check_class_names(site(tmp_path, {"1": "Nuclei"}), named(classes=1))


def test_sites_that_mean_two_things_by_a_job_s_one_nameless_class_do_not_train_together(
    hospital: Path, tmp_path: Path
) -> None:
    for name, meaning in (("site-1", "liver"), ("site-2", "spleen")):
        shutil.copytree(hospital / name, tmp_path / "data" / name)
        site(tmp_path / "data" / name, {"1": meaning})
    places = Places(tmp_path / "data", tmp_path / "store")
    with pytest.raises(UserFault, match="class 1 at all sites; came liver at site-1, spleen at site-2"):
        federate(Plan(tiny(), {"site-1": places, "site-2": places}, 1, tmp_path / "run"))


def test_a_site_says_that_nothing_compares_its_class_with_a_nameless_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_class_names(site(tmp_path, {"1": "liver"}), named(classes=1))
    assert "the job names no class, so nothing compares this site's (1 liver)" in caplog.text


def test_a_site_compares_before_it_trains(hospital: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/site-1").symlink_to(hospital / "site-1")
    folder = tmp_path / "named"
    folder.mkdir()
    for path in (hospital / "site-1").iterdir():
        (folder / path.name).symlink_to(path)
    site(folder, {"1": "Spleen"})
    with pytest.raises(UserFault, match="1 Target"):
        Site("site-1", named("Target", classes=1), Places(folder, tmp_path / "store"))


@pytest.mark.parametrize(
    "name",
    [
        *("kidney_left", "Lung_L", "Lung_R", "Kidney_L", "L kidney", "LeftLung", "lungRight", "Lung-Left", "RtLung"),
        *("lt eye", "left_lung2", "poumon gauche", "rein droit", "oreille droite", "riñón izquierdo", "mama derecha"),
        *("KIDNEYLEFT", "leftkidney", "lh.hippocampus", "Hippocampus RH", "rene sx", "polmone dx"),
        *("linker Vorhof", "Niere links", "rechte Niere", "Ren dexter", "pulmo sinister", "rim esquerdo"),
    ],
)
def test_a_class_of_one_side_is_known_by_its_name(name: str) -> None:
    assert sided(["liver", name]) == [name]


def test_both_eyes_are_sides_and_a_disc_or_a_bone_is_none() -> None:
    assert sided(["macula_OD", "macula_OS", "OD", "OS"]) == ["macula_OD", "macula_OS", "OD", "OS"]
    assert sided(["OD", "OC"]) == sided(["Os sacrum", "Os coxae"]) == sided(["disc_OD", "cup_OS"]) == []


@pytest.mark.parametrize(
    "name",
    [
        *("Liver", "RLiver", "VB_L1", "L5", "Leftover", "bright spot", "cartilage", "artery", "VesselR", "Lr", "ALT"),
        *("cleft", "upright", "rightmost", "height"),
    ],
)
def test_a_name_with_the_letters_of_a_side_in_it_is_no_side(name: str) -> None:
    assert sided([name]) == []
