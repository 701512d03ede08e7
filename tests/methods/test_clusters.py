"""Methods with a model for each group of sites."""

import itertools

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import extras_of
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.exchange.store import Moment
from pfedsam.methods import clustered, spp_fgc
from pfedsam.model.lora import loras
from pfedsam.study import initial_shared
from pfedsam.tensors import Tensors, digest
from pfedsam.train.patients import patients_of


def moved_by(*values: float, samples: float = 1, **more: Tensors) -> Contribution:
    return Contribution(samples, lambda: {"w": torch.tensor(values)}, **more)


def test_no_other_two_groups_are_less_alike_across() -> None:
    """Against all ways to part five sites in two, whose largest similarity across is the least in the paper's cut."""
    generator = torch.Generator().manual_seed(3)
    sites = list("abcde")
    for _ in range(20):
        pairs = list(itertools.combinations(sites, 2))
        alike = {frozenset(p): x for p, x in zip(pairs, torch.rand(10, generator=generator).tolist(), strict=True)}

        def across(group: frozenset[str], alike=alike) -> float:
            return max(alike[frozenset({x, y})] for x in group for y in set(sites) - group)

        parts = [frozenset(one) for n in (1, 2) for one in itertools.combinations(sites, n)]
        one, other = clustered.split(sites, alike, 2)
        assert one | other == set(sites)
        assert across(one) == min(map(across, parts))


def test_sites_are_split_in_the_chosen_round_and_then_average_in_their_groups() -> None:
    rule, config = methods.get("clustered").rule, tiny(method="clustered", own={"after": 2})
    each = {"a": moved_by(1.0, 0.0, samples=3), "b": moved_by(5.0, 0.1), "c": moved_by(0.0, 4.0)}
    once = rule(ServerState({"w": torch.zeros(2)}), each, config)
    mean = [8 / 5, 4.1 / 5]
    assert once.shared["w"].tolist() == pytest.approx(mean)
    assert once.models == {}
    twice = rule(once, each, config)
    assert clustered.groups_in(twice) == {"a": 0, "b": 0, "c": 1}
    assert twice.model_of("a")["w"].tolist() == pytest.approx([mean[0] + 2, mean[1] + 0.025])
    assert twice.model_of("b")["w"].tolist() == twice.model_of("a")["w"].tolist()
    assert twice.model_of("c")["w"].tolist() == pytest.approx([mean[0], mean[1] + 4])
    assert twice.shared["w"].tolist() == pytest.approx([2 * mean[0], 2 * mean[1]])
    later = rule(twice, {"b": moved_by(-9.0, -9.0), "d": moved_by(-9.0, -9.0)}, config)
    assert clustered.groups_in(later) == {"a": 0, "b": 0, "c": 1, "d": 0}  # no group changes, and the new one joins
    assert later.model_of("a")["w"].tolist() == later.model_of("d")["w"].tolist()  # a was away
    assert later.model_of("c")["w"].tolist() == twice.model_of("c")["w"].tolist()


def test_a_site_owns_no_group_by_its_samples_in_a_run_of_three() -> None:
    rule, config = methods.get("clustered").rule, tiny(method="clustered", server={"most_share": 1.5})
    each = {"a": moved_by(1.0, 0.0), "b": moved_by(5.0, 0.0, samples=2), "c": moved_by(0.0, 1.0)}
    after = rule(ServerState({"w": torch.zeros(2)}, sites=3), each, config)
    assert after.model_of("a")["w"].tolist() == [3.0, 0.0]


def test_the_split_waits_for_as_many_sites_as_there_are_to_be_groups() -> None:
    each = {"a": moved_by(1.0, 0.0), "b": moved_by(0.0, 4.0), "c": moved_by(0.1, 5.0)}
    rule, config = methods.get("clustered").rule, tiny(method="clustered")
    once = rule(ServerState({"w": torch.zeros(2)}, sites=3), {"a": each["a"]}, config)
    assert (once.models, clustered.groups_in(once), once.shared["w"].tolist()) == ({}, {}, [1.0, 0.0])
    assert clustered.groups_in(rule(once, each, config)) == {"a": 0, "b": 1, "c": 1}


def test_hospitals_wait_too_before_their_sketches_group_them() -> None:
    rule, config = methods.get("spp_fgc").rule, tiny(method="spp_fgc")
    once = rule(ServerState({"w": torch.zeros(1)}, sites=3), {"a": sketched(0.1, 1.0)}, config)
    assert clustered.groups_in(once) == {}
    twice = rule(once, {"b": sketched(0.9, 1.0), "c": sketched(0.2, -3.0)}, config)
    assert clustered.groups_in(twice) == {"b": 0, "c": 1}
    later = rule(twice, {"a": sketched(0.1, 0.0)}, config)
    assert clustered.groups_in(later) == {"a": 1, "b": 0, "c": 1}


def sketched(value: float, *moves: float) -> Contribution:
    return moved_by(*moves, extras={"sketch": torch.full((16,), value)})


def test_hospitals_are_grouped_by_their_first_sketches_whatever_their_updates_are() -> None:
    rule, config = methods.get("spp_fgc").rule, tiny(method="spp_fgc")
    first = {"a": sketched(0.1, 1.0), "b": sketched(0.9, 1.0), "c": sketched(0.2, -3.0)}
    once = rule(ServerState({"w": torch.zeros(1)}), first, config)
    assert clustered.groups_in(once) == {"a": 0, "b": 1, "c": 0}
    assert [once.model_of(site)["w"].item() for site in "abc"] == [-1.0, 1.0, -1.0]
    second = {"a": sketched(0.8, 0.0), "b": sketched(0.1, 1.0), "d": sketched(0.85, 3.0)}  # a and b tell others now
    twice = rule(once, second, config)
    assert clustered.groups_in(twice) == {"a": 0, "b": 1, "c": 0, "d": 1}  # which are not looked at
    assert twice.model_of("b")["w"].item() == pytest.approx((2 + (3 - 1 / 3)) / 2)


def opened(open_site, noise: float, name: str = "site-1"):
    site = open_site(tiny(method="spp_fgc", own={"noise": noise}), name)
    site.receive(initial_shared(site.config)[0], Moment("run", 0))
    return site


def test_a_sketch_is_the_mean_over_patients_plus_noise_of_what_one_patient_changes(open_site) -> None:
    site = opened(open_site, 0.0)
    features, data = spp_fgc.pretrained_features(site.model, site.data["train"], site.config), site.data["train"]
    assert torch.allclose(features.norm(dim=1), torch.ones(6))
    patients = patients_of(data)
    mean = torch.stack([features[one].mean(0) for one in patients]).mean(0)
    flat = spp_fgc.projection(len(mean), 16, 0)
    assert torch.allclose(site.model.received["sketch"], flat @ mean, atol=1e-5)
    noised = opened(open_site, 0.5)
    drawn = noised.budget.noise(f"spp_fgc/0.5/{digest({'sketch': mean})}").normal(mean)
    expected = flat @ (mean + 0.5 * 2 / len(patients) * drawn)
    assert torch.allclose(noised.model.received["sketch"], expected, atol=1e-5)


def test_a_site_sends_one_sketch_throughout_whatever_it_is_sent(open_site) -> None:
    site = opened(open_site, 0.5)
    first = extras_of(site.train(0, 3).wire)["sketch"]
    moved = {name: tensor + 0.01 for name, tensor in initial_shared(site.config)[0].items()}
    site.receive(moved, Moment("run", 1), trained=True)
    assert torch.equal(extras_of(site.train(1, 3).wire)["sketch"], first)
    again = open_site(site.config)
    again.receive(moved, Moment("other", 0))  # a server that asks again with another model gets no other noise
    before = [one.b.weight.clone() for one in loras(again.model)]
    assert any(bool(weight.any()) for weight in before)
    assert torch.equal(extras_of(again.train(0, 3).wire)["sketch"], first)


def test_looking_at_the_features_leaves_the_adapters_as_they_came(open_site) -> None:
    site = opened(open_site, 0.5)
    with torch.no_grad():
        for one in loras(site.model):
            one.b.weight.fill_(0.25)
    spp_fgc.pretrained_features(site.model, site.data["train"], site.config)
    assert all(bool((one.b.weight == 0.25).all()) for one in loras(site.model))


def test_a_sketch_of_a_base_in_bf16_is_the_one_in_float32_up_to_rounding(open_site) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        site = open_site(tiny(method="spp_fgc", own={"noise": 0.0}, train={"precision": precision}))
        site.receive(initial_shared(site.config)[0])
        found.append(site.model.received["sketch"])
    assert torch.allclose(*found, atol=0.02)


def test_sketches_do_not_go_with_privacy_which_would_not_count_their_noise() -> None:
    with pytest.raises(UserFault, match="sends only its update"):
        tiny(method="spp_fgc", privacy={"unit": "site"})
