from pathlib import Path

import pytest

from pfedsam.config import Config, from_dict, load, to_dict
from pfedsam.errors import UserFault


def test_settings_come_back_from_their_own_json() -> None:
    config = from_dict({"seed": 3, "train": {"lr": 1e-3}, "model": {"lora_last": 2}})
    assert from_dict(to_dict(config)) == config
    assert config != Config()


def test_the_digest_changes_with_any_setting() -> None:
    digests = {from_dict(v).digest() for v in ({}, {"seed": 1}, {"train": {"lr": 2e-4}}, {"reading": "R1"})}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model": {"ranks": 4}}, "ranks"),
        ({"train": {"lr": "fast"}}, "'fast'"),
        ({"train": {"epochs": True}}, "True"),
        ({"reading": "R4"}, "R1, R2, R3, post"),
        ({"model": {"image_size": 250}}, "multiple of 16"),
        ({"model": {"experts": 2, "top_k": 3}}, "top_k"),
        ({"model": {"experts_in": "mlp"}}, "lora_on linear"),
        ({"train": {"loss": "ce"}}, "exclusive"),
        ({"train": {"lr": -1}}, "lr > 0"),
        ({"study": "../up"}, "study"),
        ({"train": {"max_steps": -1}}, "max_steps of 0 or more"),
        ({"train": {"lr_private": -1e-3}}, "lr_private of 0 or more"),
        ({"train": {"dice_weight": -1}}, "dice_weight of 0 or more"),
        ({"train": {"views": 0}}, "views of 1 or more"),
        ({"train": {"recopy_if": "always", "recopy_margin": 0.01}}, "which asks nothing"),
        ({"model": {"lora_last": 0}}, "lora_last of 1 or more"),
        ({"model": 3}, "config.model"),
    ],
)
def test_a_wrong_setting_is_told_by_name(values: dict, told: str) -> None:
    with pytest.raises(UserFault, match="expected") as fault:
        from_dict(values)
    assert told in str(fault.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data": {"unannotated": {"site-1": [2]}}}, "unannotated"),
        ({"data": {"limit": {"site-1": 0}}}, "limit"),
        ({"every": {"site-1": -1}}, "every"),
        ({"every": {"site-1": "often"}}, "every"),
    ],
)
def test_what_a_single_site_does_otherwise_is_checked(values: dict, named: str) -> None:
    with pytest.raises(UserFault, match=named):
        from_dict(values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"every": {"sight-1": 2}}, "every among site-1, site-2; came sight-1"),
        ({"data": {"limit": {"sight-1": 2}}}, "data.limit among site-1, site-2; came sight-1"),
        ({"data": {"unannotated": {"sight-1": [1]}}, "model": {"num_classes": 2}}, "data.unannotated among"),
        ({"every": {"site-1": 2, "site-2": 2}}, "none in round 1"),
    ],
)
def test_settings_of_single_sites_are_held_against_the_sites_that_there_are(values: dict, told: str) -> None:
    with pytest.raises(UserFault, match=told):
        from_dict(values).check_sites(("site-2", "site-1"), 3)


def test_a_settings_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "pfedsam.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserFault, match="JSON file at"):
        load(tmp_path / "pfedsam.json")
