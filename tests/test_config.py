import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from conftest import ROOT, tiny
from pfedsam import methods
from pfedsam.bounds import KEY, number, parse_count
from pfedsam.config import Config, to_dict
from pfedsam.errors import UserFault
from pfedsam.jobs import make_job
from pfedsam.settings import check_sites, from_dict, from_record, read_config


@pytest.mark.parametrize("method", ["apple", "fedms_sam", "flap_sam", "iat"])
def test_a_method_that_says_itself_what_of_the_decoder_is_trained_takes_no_decoder_by_lora(method: str) -> None:
    with pytest.raises(UserFault, match=f"model.decoder full with {method}; came lora"):
        tiny(method=method, model={"decoder": "lora"})
    assert tiny(method=method).model.decoder == "full"


def test_settings_come_back_from_their_own_json() -> None:
    config = from_dict({"seed": 3, "train": {"lr": 1e-3}, "model": {"lora_last": 2}})
    assert from_dict(to_dict(config)) == config
    assert config != from_dict({})


def test_the_digest_changes_with_any_setting() -> None:
    digests = {
        from_dict(v).digest()
        for v in ({}, {"seed": 1}, {"train": {"lr": 2e-4}}, {"method": {"reading": "R1"}}, {"method": "ditto"})
    }
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model": {"ranks": 4}}, "ranks"),
        ({"train": {"lr": "fast"}}, "'fast'"),
        ({"train": {"epochs": True}}, "True"),
        ({"method": {"reading": "R4"}}, "R1, R2, R3, post"),
        ({"model": {"image_size": 250}}, "multiple of 16"),
        ({"model": {"experts": 2, "top_k": 3}}, "top_k"),
        ({"model": {"experts_in": "mlp"}}, "lora_on linear"),
        ({"train": {"loss": "ce"}}, "exclusive"),
        ({"train": {"lr": -1}}, "train.lr above 0 and at most 10"),
        ({"study": "../up"}, "study"),
        ({"study": "budget"}, "a study with another name"),
        ({"train": {"max_steps": -1}}, "max_steps of 0 or more"),
        ({"train": {"lr_private": -1e-3}}, "lr_private of 0 or more"),
        ({"train": {"dice_weight": -1}}, "dice_weight of 0 or more"),
        ({"train": {"views": 0}}, "views of 1 or more"),
        ({"model": {"num_classes": 255}}, "model.num_classes of 1 or more and at most 254"),
        ({"data": {"val": 0}}, "data.val of 1 or more"),
        ({"data": {"test": 0}}, "data.test of 1 or more"),
        ({"method": {"recopy_if": "always", "recopy_margin": 0.01}}, "which compares nothing"),
        ({"model": {"lora_last": 0}}, "lora_last of 1 or more"),
        ({"model": 3}, "an object at model"),
        ([], "an object at the settings"),
        ({"method_settings": {}}, "settings of a job among study, seed"),
        ({"metod": "fedavg"}, "to mend it: write method"),
        ({"train": {"epoch": 3}}, "to mend it: write epochs"),
        ({"method": 3}, "an object at method"),
        ({"method": {"name": 3}}, "the method's name"),
        ({"method": "fedsomething"}, "method one of "),
        ({"method": {"name": "fedprox", "lam": 1}}, "settings of method fedprox among mu; came lam"),
        ({"method": {"name": "fedavg", "mu": 1}}, "no settings of method fedavg: it has none; came mu"),
        ({"method": {"name": "fedprox", "mu": -1}}, "method.mu of 0 or more"),
        ({"method": {"distill_weight": 1}}, "method.distill_weight of 0 or more and below 1"),
        ({"train": {"lr": math.nan}}, "came nan"),
        ({"train": {"weight_decay": math.inf}}, "at most 100; came inf"),
        ({"model": {"image_size": 8192}}, "model.image_size of 16 or more and at most 4096"),
        ({"seed": 10**30}, "seed of 0 or more"),
        ({"every": {"site-1": 10**9}}, "every.site-1 of 0 or more and at most 100000"),
        (
            {"model": {"num_classes": 2}, "data": {"unannotated": {"site-1": [0]}}},
            "data.unannotated.site-1 of 1 or more",
        ),
    ],
)
def test_a_wrong_setting_is_told_by_name(values: dict, told: str) -> None:
    with pytest.raises(UserFault, match="expected") as fault:
        from_dict(values)
    assert told in str(fault.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"privacy": {"epsilon": 1.0, "noise": 3.0}}, "privacy.epsilon and privacy.noise; came privacy.unit none"),
        ({"server": {"norm": 3.0}}, "server.secure masks beside the job's server.norm; came server.secure none"),
        ({"server": {"hostile": 2}}, "trimmed or median beside the job's server.hostile; came server.rule clipped"),
        ({"server": {"hostile": 2, "rule": "mean"}}, "came server.rule mean"),
        ({"train": {"views": 4, "augment": False}}, "train.augment true beside the job's train.views"),
        (
            {"model": {"experts_share": 0.5, "experts_rank": 0, "expert": "conv"}},
            "model.experts_rank of 1 or more beside the job's model.experts_share",
        ),
        (
            {"model": {"exclusive": True}, "train": {"loss": "ce", "pos_weight": 50.0}},
            "train.loss bce beside the job's train.pos_weight; came train.loss ce",
        ),
        (
            {"method": {"distill": "none", "distill_weight": 0.5, "temperature": 4.0}},
            "beside the job's method.distill_weight and method.temperature; came method.distill none",
        ),
        ({"method": {"recopy_if": "always"}}, "beside the job's method.recopy_if; came method.reading R2"),
        ({"method": {"reading": "R1", "recopy": 0.5}}, "method.reading R3 or post beside the job's method.recopy;"),
        ({"method": "gin", "train": {"augment": False}}, "train.augment true beside the job's method gin"),
        (
            {"method": {"name": "drflm", "mix": 0.5}, "train": {"batch_size": 1}},
            "2 or more beside the job's method.mix",
        ),
        ({"model": {"interpolation": "bicubic"}}, "model.expert conv beside the job's model.interpolation; came model"),
        ({"train": {"flips": "none", "augment": False}}, "train.augment true beside the job's train.flips"),
        ({"train": {"cache_gb": 1.0}}, "train.cache memory or disk beside the job's train.cache_gb"),
        (
            {"train": {"record": True}, "model": {"experts": 0}, "privacy": {"unit": "patient"}},
            "privacy.unit none or site beside the job's train.record; came privacy.unit patient",
        ),
        (
            {"method": "fedmsa", "model": {"lora_last": 2}},
            "LoRA in the encoder's layers beside the job's model.lora_last; came method fedmsa",
        ),
        ({"method": {"reading": "post"}, "model": {"lora_last": 2}}, "model.lora_last; came method.reading post"),
        ({"data": {"pool": True, "joined": {"a": ["b", "c"]}}}, "data.pool false beside the job's data.joined"),
    ],
)
def test_a_setting_that_another_one_would_have_to_turn_on_is_never_ignored(values: dict, told: str) -> None:
    with pytest.raises(UserFault, match="which ignores it") as fault:
        from_dict(values)
    assert told in str(fault.value)
    assert from_record(values) == from_record(to_dict(from_record(values))), "what once ran can be read"


def test_dual_lora_s_share_is_of_its_local_lora_and_needs_no_experts() -> None:
    model = {"experts": 0, "experts_rank": 0, "experts_share": 0.5}
    assert from_dict({"method": "dual_lora", "model": model}).model.experts_share == 0.5


def test_a_class_of_one_side_is_not_mirrored_in_training() -> None:
    """Half of the views of a left kidney would show it as the right one."""
    classes = {"classes": ["kidney_left", "Right kidney"]}
    values = {"model": {"num_classes": 2}, "data": classes}
    with pytest.raises(UserFault, match="classes kidney_left, Right kidney; came both, which mirrors") as fault:
        from_dict(values)
    assert "train.flips to vertical" in str(fault.value)
    with pytest.raises(UserFault, match="came horizontal"):
        from_dict({**values, "train": {"flips": "horizontal"}})
    for fine in ({"train": {"flips": "vertical"}}, {"train": {"augment": False}}):
        assert from_dict({**values, **fine}).data.classes == classes["classes"]
    assert from_dict({**values, "data": {**classes, "plane": "sagittal"}}).train.flips == "both"
    assert from_dict({"data": {"classes": ["bright lesion"]}}).train.flips == "both"
    assert from_record(values).train.flips == "both", "what once ran can be read"


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
        check_sites(from_dict(values), ("site-2", "site-1"), 3)


@pytest.mark.parametrize(
    ("server", "least"),
    [({"rule": "krum"}, 5), ({"rule": "trimmed"}, 3), ({"rule": "median", "hostile": 2}, 5), ({"rule": "product"}, 1)],
)
def test_too_few_sites_for_the_server_s_rule_are_refused_before_a_round_is_trained(server: dict, least: int) -> None:
    sites = [f"site-{number + 1}" for number in range(least)]
    config, rarely = (from_dict({"server": server, "every": every}) for every in ({}, {"site-1": 2}))
    check_sites(config, sites, 3)
    if least > 1:
        for one, there in ((config, sites[1:]), (rarely, sites)):
            with pytest.raises(UserFault, match=f"at least {least} sites for server.rule .*; came {least - 1}"):
                check_sites(one, there, 3)


def test_a_settings_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "pfedsam.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserFault, match="JSON file at"):
        read_config(tmp_path / "pfedsam.json")


def numbers(kind: type) -> Iterator[tuple[str, object]]:
    """Each field of a settings class whose values are or hold numbers, with its bounds."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from numbers(hints[field.name])
        elif {"int", "float"} & set(re.findall(r"\w+", str(hints[field.name]) + getattr(field.type, "__name__", ""))):
            yield field.name, field.metadata.get(KEY)


def test_every_number_has_bounds() -> None:
    found = [
        pair for kind in (Config, *(methods.get(name).settings for name in methods.names())) for pair in numbers(kind)
    ]
    assert {"lr", "limit", "unannotated", "every", "max_steps", "mu", "lam"} <= {name for name, _ in found}
    assert [name for name, bounds in found if bounds is None] == []
    with pytest.raises(TypeError, match="a lower and an upper bound"):
        number(1, least=0)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused_though_json_takes_it(tmp_path: Path, constant: str) -> None:
    (tmp_path / "pfedsam.json").write_text(f'{{"train": {{"dice_weight": {constant}}}}}')
    with pytest.raises(UserFault, match=r"train\.dice_weight of 0 or more"):
        read_config(tmp_path / "pfedsam.json")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rounds": 0}, "rounds of 1 or more and at most 100000"),
        ({"rounds": 10**6}, "rounds of 1 or more"),
        ({"min_sites": True}, "min_sites to be a whole number"),
        ({"timeout": -1}, "timeout of 0 or more"),
        ({"grace": 1.5}, "grace to be a whole number"),
        ({"rounds": float("nan")}, "rounds to be a whole number"),
        ({"meta": 3}, "meta to be"),
    ],
)
def test_the_numbers_of_a_run_have_bounds_too(values: dict, told: str) -> None:
    assert make_job({"name": "job", "settings": {}, "rounds": None, "min_sites": 2}).rounds == 1
    with pytest.raises(UserFault, match=told):
        make_job({"name": "job", "settings": {}, **values})


def test_a_count_in_a_text_is_a_whole_number() -> None:
    assert parse_count(" 8 ", "threads") == 8
    for text in ("0", "-1", "two", "1.5", "", "9" * 9):
        with pytest.raises(UserFault, match="a whole number of threads, from 1 to 100000"):
            parse_count(text, "threads")


def test_a_method_is_named_alone_or_with_its_own_settings() -> None:
    config = from_dict({"method": {"name": "fedprox", "mu": 0.5}})
    assert from_dict({"method": "fedavg"}) == from_dict({"method": {"name": "fedavg"}})
    assert to_dict(config)["method"] == {"name": "fedprox", "mu": 0.5}
    assert from_dict({"method": "fedprox"}).unlike(config) == {"method.mu": 0.5}
    assert from_dict({"method": "fedavg"}).unlike(config) == {"method.name": "fedprox", "method.mu": 0.5}
    with pytest.raises(TypeError, match="method fedprox has"):
        config.own(methods.get("ditto").settings)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"method": "fedprox", "train": {"prox_weight": 0.5}}, {"name": "fedprox", "mu": 0.5}),
        ({"method": "ditto", "train": {"prox_weight": 0.5}}, {"name": "ditto", "lam": 0.5}),
        ({"method": "iat", "train": {"orthogonal_weight": 2}}, {"name": "iat", "orthogonal_weight": 2}),
        ({"method": "fedmsa", "model": {"adapter_start": "random"}}, {"name": "fedmsa", "start": "random"}),
        ({"reading": "R2", "train": {"distill": "none"}}, {"name": "pfedsam", "reading": "R2", "distill": "none"}),
        ({"method": "newcomer", "reading": "R1"}, {"name": "newcomer", "reading": "R1"}),
    ],
)
def test_an_old_job_file_is_read(old: dict, new: dict) -> None:
    assert from_dict(old) == from_dict({"method": new})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "fedavg", "train": {"prox_weight": 0.01}}, r"no train\.prox_weight with method fedavg.*method\.mu"),
        (
            {"method": "ditto", "reading": "R3"},
            r"no reading with method ditto: it is method\.reading of method pfedsam or",
        ),
        (
            {"method": {"name": "fedprox", "mu": 0.5}, "train": {"prox_weight": 0.1}},
            r"only method\.mu; came train\.prox_weight too",
        ),
    ],
)
def test_an_old_setting_that_the_method_does_not_read_is_refused_in_a_job_file(values: dict, told: str) -> None:
    with pytest.raises(UserFault, match=told):
        from_dict(values)


def test_what_an_earlier_version_recorded_in_full_is_read_without_the_other_methods_settings() -> None:
    old = {
        "study": "pfedsam",
        "method": "ditto",
        "reading": "R3",
        "seed": 1,
        "model": {"adapter_start": "zero"},
        "train": {"recopy_margin": 0.5, "recopy_if": "always", "prox_weight": 0.1, "orthogonal_weight": 0.1},
    }
    then = {"rule": "mean", "most_share": 1_000_000}  # the server of earlier versions bounded nothing
    assert from_record(old) == from_dict({"method": {"name": "ditto", "lam": 0.1}, "seed": 1, "server": then})
    assert from_record(to_dict(from_record(old))) == from_record(old)
    with pytest.raises(UserFault, match="reading post with method pfedsam or newcomer"):
        from_record({**old, "reading": "post"})


@pytest.mark.parametrize(("noise", "gate"), [(True, "noisy"), (False, "quiet")])
def test_a_model_of_an_earlier_version_keeps_its_experts_and_their_gate(noise: bool, gate: str) -> None:
    """They were convolutions in the shared bottleneck, and their weights did not sum to 1."""
    model = from_record({"method": "pfedsam", "model": {"experts": 3, "gate_noise": noise}}).model
    assert (model.experts, model.experts_rank, model.expert, model.experts_in) == (3, 0, "conv", "qkv")
    assert model.gate == gate


@pytest.mark.parametrize("archive", sorted((ROOT / "benchmarks/evidence").glob("*.tar.xz")), ids=lambda path: path.name)
def test_the_settings_of_all_published_runs_are_read(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        records = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith("results.json")]
    assert records
    for record in records:
        assert from_record(record["config"]).method == record["method"]
