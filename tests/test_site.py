"""A site's side of a round, method by method and reading by reading."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import NEEDS, tiny
from pfedsam import methods
from pfedsam.data.dataset import PLAIN, Dataset, View
from pfedsam.errors import UserFault
from pfedsam.exchange.codec import decode
from pfedsam.exchange.guard import Accepted, judge_message
from pfedsam.exchange.server import begin_state, message
from pfedsam.exchange.store import LAST, Moment
from pfedsam.layout import Places
from pfedsam.methods.base import Here
from pfedsam.model.partition import Kind, Part, kinds, tensors_of
from pfedsam.model.segmenter import Branches
from pfedsam.record.scores import coarse
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.site import Site
from pfedsam.study import down_schema, initial_shared, up_schema
from pfedsam.train.evaluate import evaluate
from pfedsam.train.loop import Source


def trained(site: Site, shared: dict[str, torch.Tensor], round_: int = 0):
    site.receive(
        message(begin_state(shared, down_schema(site.config)), site.name, site.config, down_schema(site.config))
    )
    return site.train(round_, 2)


ALL_SHARED = {"fedavg", "fedavgm", "fedprox", "ffa_lora", "fedms_sam", "fedmsa", "scaffold", "similarity"}
ALL_SHARED |= {"gin", "cpss", "fedsemidg", "feddg", "furl", "iscos"}
KEEPS = {"pfedsam", "newcomer", "local", "fedper", "fedrep", "fedbn", "ditto", "fedsa_lora", "iat"}
KEEPS |= {"fedicra", "cpss_adapt", "dsfedmed"}
KEEPS |= {"fedsca", "fca", "fedala", "apple", "dual_lora", "fedda"}
ALL_SHARED |= {"fedadam", "fednova", "feddyn", "moon", "clustered", "spp_fgc", "drflm", "flap_sam"}


@pytest.mark.parametrize("method", methods.names())
def test_an_update_is_legal_and_moves_what_it_trains(open_site, method: str) -> None:
    config = tiny(method=method, model=NEEDS.get(method, {}))
    shared, base = initial_shared(config)
    site = open_site(config)
    update = trained(site, shared)
    stamp = site.stamp(0)
    assert stamp.base == base
    assert judge_message(update.wire, stamp, schema=up_schema(config), expected=stamp) == Accepted()
    assert update.samples == 6
    assert set(update.report.losses) <= methods.get(method).losses
    moved = {bool(t.any()) for n, t in update.wire.items() if n.endswith("lora.b.weight")}
    assert moved <= {not methods.get(method).joins}
    private = site.private()
    assert private.keys() == set(site.part.names(Part.PRIVATE))
    assert not private or method not in ALL_SHARED
    assert private or method not in KEEPS


def test_the_same_seed_gives_the_same_bits(open_site, tmp_path: Path) -> None:
    config = tiny()
    shared, _ = initial_shared(config)
    again, _ = initial_shared(config)
    assert all(torch.equal(shared[n], again[n]) for n in shared)
    site = open_site(config)
    first = trained(site, shared)
    other = Site("site-1", config, Places(site.data["train"].slices[0].image.parents[2], tmp_path / "fresh"))
    second = trained(other, shared)
    assert all(torch.equal(first.wire[n], second.wire[n]) for n in first.wire)
    assert all(torch.equal(v, other.private()[n]) for n, v in site.private().items())


def test_another_seed_or_site_draws_other_experts(open_site) -> None:
    sites = [open_site(tiny()), open_site(tiny(), "site-2"), open_site(tiny(seed=1))]
    drawn = [next(v for n, v in s.private().items() if n.endswith("mix.gate.score.weight")) for s in sites]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_restarted_site_goes_on_bit_for_bit(open_site) -> None:
    config = tiny()
    shared, _ = initial_shared(config)
    steady = open_site(config)
    trained(steady, shared, 0)
    stored = steady.store.load()
    second = trained(steady, shared, 1)
    steady.store.save(*stored)
    again = trained(open_site(config), shared, 1)
    assert all(torch.equal(t, again.wire[n]) for n, t in second.wire.items())


def test_a_new_job_on_the_study_finds_its_experts_and_another_study_does_not(open_site) -> None:
    config = tiny(study="one")
    shared, _ = initial_shared(config)
    trained(open_site(config), shared)
    later, other = open_site(tiny(study="one", train={"lr": 5e-4})), open_site(tiny(study="two"))
    fresh = {n: v.clone() for n, v in later.private().items()}
    later.receive(shared)
    other.receive(shared)
    kind = kinds(later.model)
    experts = [n for n in fresh if kind[n] is Kind.EXPERT]
    assert any(not torch.equal(later.private()[n], fresh[n]) for n in experts)
    assert all(torch.equal(other.private()[n], fresh[n]) for n in experts)


def test_a_store_of_another_model_is_refused_and_kept(open_site) -> None:
    shared, _ = initial_shared(tiny())
    site = open_site(tiny())
    trained(site, shared)
    other = tiny(model={"experts": 2})
    with pytest.raises(UserFault, match="begin_private must name a run of the same model"):
        open_site(other).receive(initial_shared(other)[0])
    assert site.store.load() is not None


@pytest.mark.parametrize("reading", ["R1", "R2", "R3", "post"])
def test_each_reading_keeps_its_own_things_local(open_site, reading: str) -> None:
    config = tiny(own={"reading": reading} | ({} if reading in ("R1", "R2") else {"recopy_if": "always"}))
    shared, _ = initial_shared(config)
    site = open_site(config)
    first = trained(site, shared)
    own = {n: v.clone() for n, v in site.private().items()}
    moved = {n: t + first.wire[n] for n, t in shared.items()}
    site.receive(moved)
    kind = kinds(site.model)
    copies = [n for n in own if kind[n] is not Kind.EXPERT]
    assert all(torch.equal(site.private()[n], v) for n, v in own.items() if kind[n] is Kind.EXPERT)
    if reading == "R1":
        assert all(torch.equal(site.private()[n], own[n]) for n in copies)
    elif reading == "R2":
        assert copies == []
    else:
        target = dict(site.model["global"].named_parameters())
        assert all(torch.equal(site.private()[n], target[n.split(".", 2)[2]]) for n in copies)


def copies_and_served(site: Site) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The personal branch's tensors that have a twin in the global one, and those twins."""
    kind, served = kinds(site.model), dict(site.model["global"].named_parameters())
    own = {n: v.clone() for n, v in site.private().items() if kind[n] is not Kind.EXPERT}
    return own, {n: served[n.split(".", 2)[2]].detach() for n in own}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_personal_branch_goes_part_of_the_way_back_to_the_server_s(open_site, share: float) -> None:
    config = tiny(own={"reading": "R3", "recopy": share, "recopy_if": "always"})
    shared, _ = initial_shared(config)
    site = open_site(config)
    first = trained(site, shared)
    own, _ = copies_and_served(site)
    site.receive({n: t + first.wire[n] for n, t in shared.items()})
    after, there = copies_and_served(site)
    assert any(not torch.equal(own[n], there[n]) for n in own)
    for n in own:
        torch.testing.assert_close(after[n], own[n] + share * (there[n] - own[n]))


@pytest.mark.parametrize(
    ("served", "own", "margin", "copied"),
    [
        (0.6, 0.5, 0.0, True),
        (0.5, 0.5, 0.0, False),
        (0.4, 0.5, 0.0, False),
        (0.505, 0.5, 0.01, False),
        (0.515, 0.5, 0.01, True),
        (math.nan, math.nan, 0.01, True),
    ],
)
def test_only_a_better_model_of_the_server_s_is_copied(
    open_site, served: float, own: float, margin: float, copied: bool
) -> None:
    config = tiny(own={"reading": "R3", "recopy_margin": margin})
    shared, _ = initial_shared(config)
    site = open_site(config)
    wire = trained(site, shared).wire
    moved = {n: t + wire[n] for n, t in shared.items()}
    before, _ = copies_and_served(site)
    site._load_shared(moved)
    site.method.merge(site.model, config, Here({"global": served, "personal": own}.__getitem__))
    after, there = copies_and_served(site)
    assert any(not torch.equal(before[n], there[n]) for n in after)
    assert all(torch.equal(after[n], there[n] if copied else before[n]) for n in after)


def test_a_site_scores_what_came_against_what_it_has(open_site) -> None:
    config = tiny(train={"max_steps": 30, "lr": 1e-2})
    shared, _ = initial_shared(config)
    site = open_site(config)
    trained(site, shared)
    assert site.summary("val", "personal")["dice"]
    own, _ = copies_and_served(site)
    site.receive({n: torch.zeros_like(t) for n, t in shared.items()})
    kept, _ = copies_and_served(site)
    assert all(torch.equal(kept[n], v) for n, v in own.items())


def test_a_round_scores_no_branch_twice(open_site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The personal branch that the round begins with has its scores from the round before."""
    config = tiny()
    wire, _ = initial_shared(config)
    site = open_site(config)
    serve_round(site, wire, Turn("run", site.base, 0, 2))
    scored: list[tuple[str, ...]] = []

    def spied(model: Branches, data: Dataset, branches: tuple[str, ...], source: Source, *, distances: bool) -> dict:
        assert not distances
        scored.append(branches)
        return evaluate(model, data, branches, source)

    monkeypatch.setattr("pfedsam.site.evaluate", spied)
    moved = {name: tensor + 0.01 for name, tensor in wire.items()}
    _, report = serve_round(site, moved, Turn("run", site.base, 1, 2))
    assert scored == [("global",), ("personal",), ("personal",)]  # the last without its experts
    assert 0 < report["scoring_seconds"] == site.scoring_seconds
    assert report["val"]["personal"] == coarse(site.summary("val", "personal"))


@pytest.mark.parametrize("reading", ["R1", "R2", "R3", "post"])
def test_a_site_that_never_trained_predicts_with_the_server_s_model(open_site, reading: str) -> None:
    """Also where its only round diverged."""
    config = tiny(own={"reading": reading})
    shared, _ = initial_shared(config)
    learned = {name: tensor + 0.01 for name, tensor in shared.items()}
    site = open_site(config)
    site.recall(learned)
    batch = site.data["val"].batch([View(0, PLAIN)])
    site.model.eval()
    fresh = {name: maps.detach().clone() for name, maps in site.model(batch.image, ("global", "personal")).items()}
    assert torch.allclose(fresh["global"], fresh["personal"], atol=0.1)  # untrained experts add next to nothing
    for tensor in tensors_of(site.model, site.part, Part.PRIVATE).values():
        tensor.data.fill_(math.nan)
    site.recall(learned)
    site.model.eval()
    again = site.model(batch.image, ("global", "personal"))
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)


def test_a_newcomer_s_own_model_is_the_server_s_but_for_its_experts(open_site) -> None:
    config = tiny(method="newcomer", own={"reading": "R1"})
    shared, _ = initial_shared(config)
    moved = {n: t + 0.01 for n, t in shared.items()}
    trained(open_site(config), moved)
    again = open_site(config)
    again.receive(moved)
    own, served = (dict(again.model[branch].named_parameters()) for branch in ("personal", "global"))
    kind = kinds(again.model["global"])
    assert all(torch.equal(own[n], v) for n, v in served.items() if kind[n] is not Kind.BASE)


def test_before_training_both_branches_give_the_pretrained_answer(open_site) -> None:
    config = tiny(train={"max_steps": 1})
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    site.model.eval()
    logits = site.model(torch.randn(1, 3, 64, 64))
    assert torch.equal(logits["global"], logits["personal"])


def test_distillation_reaches_only_the_branch_it_should(open_site) -> None:
    name = "encoder.units.6.attn.qkv.lora.b.weight"
    found = {}
    for direction in ("none", "global_to_personal", "personal_to_global", "mutual"):
        weight = {} if direction == "none" else {"distill_weight": 0.5}
        config = tiny(own={"reading": "R3", "distill": direction, **weight})
        site = open_site(config)
        site.store.folder = site.store.folder / direction
        shared = trained(site, initial_shared(config)[0]).wire[name]
        found[direction] = shared, site.private()[f"branch.personal.{name}"]
    for direction, global_moved, personal_moved in (
        ("global_to_personal", False, True),
        ("personal_to_global", True, False),
        ("mutual", True, True),
    ):
        assert torch.equal(found["none"][0], found[direction][0]) != global_moved
        assert torch.equal(found["none"][1], found[direction][1]) != personal_moved


def test_what_is_recalled_is_what_was_trained(open_site) -> None:
    config = tiny()
    shared, _ = initial_shared(config)
    site = open_site(config)
    trained(site, shared)
    own = {n: v.clone() for n, v in site.private().items()}
    later = open_site(config)
    later.recall(shared)
    assert all(torch.equal(later.private()[n], v) for n, v in own.items())
    live = tensors_of(later.model, later.part, Part.SHARED)
    assert all(torch.equal(t, shared[n.split(".", 2)[2]]) for n, t in live.items())


def test_a_site_without_a_round_in_a_run_is_not_tested_with_what_it_trained_in_another(open_site) -> None:
    config = tiny()
    shared, _ = initial_shared(config)
    site = open_site(config)
    site.receive(shared, Moment("first", 0))
    site.train(0, 1)
    own = {n: v.clone() for n, v in site.private().items()}
    assert site.recall(shared, Moment("second", LAST)) == {}
    assert any(not torch.equal(site.private()[n], v) for n, v in own.items())
    assert site.recall(shared, Moment("first", LAST))["run"] == "first"
    assert all(torch.equal(site.private()[n], v) for n, v in own.items())


def test_a_stopped_round_leaves_the_store_alone(open_site) -> None:
    config = tiny()
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    assert site.train(0, 2, stop=lambda: True).report.stopped
    assert site.store.load() is None


@pytest.mark.parametrize("number", ["fp32", "int8"])
def test_a_round_that_diverged_leaves_nothing_behind_and_is_told(open_site, tmp_path: Path, number: str) -> None:
    """Neither in the store, nor in the process that goes on with a lower rate, nor in what is owed."""
    wire = {"up": number, "down": "fp32"}
    usual = tiny(wire=wire)
    wild = replace(usual, train=replace(usual.train, lr=1e30, lr_decoder=1e30))  # beyond what a job may say
    shared, _ = initial_shared(wild)
    site = open_site(wild)
    for _ in range(2):
        site.receive(shared)
        site.config = wild
        with pytest.raises(UserFault, match=r"finite weights after the training of round 1.*lower train\.lr"):
            site.train(0, 2)
        assert site.store.load() is None
    site.config = usual
    update = trained(site, shared)
    data = site.data["train"].slices[0].image.parents[2]
    calm = trained(Site("site-1", site.config, Places(data, tmp_path / "fresh")), shared)
    assert all(torch.equal(update.wire[name], calm.wire[name]) for name in calm.wire)


def test_training_lowers_the_loss(open_site) -> None:
    config = tiny(train={"max_steps": None, "epochs": 6, "augment": False})
    site = open_site(config, "site-2")
    losses = []
    site.receive(initial_shared(config)[0])
    site.train(0, 1, progress=lambda p: losses.append(sum(p.losses.values()) * p.step))
    steps = torch.tensor(losses).diff(prepend=torch.zeros(1))
    assert steps[-3:].mean() < 0.8 * steps[:3].mean()


@pytest.mark.parametrize("exclusive", [False, True])
def test_several_classes_train_and_score(open_site, exclusive: bool) -> None:
    model = {"num_classes": 2, "exclusive": exclusive}
    config = tiny(model=model, train={"loss": "ce" if exclusive else "bce"})
    site = open_site(config)
    trained(site, initial_shared(config)[0])
    row = site.summary("test", "personal")
    assert row["scored"] == 3
    assert row["empty"] == 3


def test_mobile_sam_trains_on_a_real_hospital(real: Path, tmp_path: Path) -> None:
    config = tiny(model={"backbone": "tiny_vit", "image_size": 256}, train={"max_steps": 1, "batch_size": 1})
    shared, _ = initial_shared(config, real / "weights")
    site = Site("tcga_cs", config, Places(real / "data/brain_mri", tmp_path, real / "weights"))
    update = trained(site, shared)
    assert update.samples == 65
    assert all(t.isfinite().all() for t in update.wire.values())


LOSSY = {"up": "int4", "down": "int8"}


def test_a_restarted_site_still_knows_what_rounding_owes(open_site) -> None:
    """Error feedback goes through the store: a new process sends the same bytes as one that never stopped."""
    config = tiny(wire=LOSSY, model={"decoder": "lean"})
    shared, _ = initial_shared(config)
    steady = open_site(config)
    steady.receive(shared, Moment("run", 0))
    steady.train(0, 2)
    steady.receive(shared, Moment("run", 1))
    sent = steady.train(1, 2).wire
    again = open_site(config)
    again.receive(shared, Moment("run", 1))
    owed = again._owed
    assert all(torch.equal(sent[n], t) for n, t in again.train(1, 2).wire.items())
    again.receive(shared, Moment("run", 1))
    again._owed = {}
    assert owed.keys() == shared.keys()
    assert any(not torch.equal(sent[n], t) for n, t in again.train(1, 2).wire.items())


def test_what_one_run_owes_is_not_paid_by_the_next(open_site) -> None:
    config = tiny(wire=LOSSY)
    shared, _ = initial_shared(config)
    site = open_site(config)
    site.receive(shared, Moment("one", 0))
    site.train(0, 2)
    site.receive(shared, Moment("one", 1))
    assert site._owed.keys() == shared.keys()
    site.receive(shared, Moment("two", 0))
    assert site._owed == {}
    assert not any("owed" in name for name in site.private())


def test_what_a_method_without_a_private_part_owes_is_kept_too(open_site) -> None:
    config = tiny(method="fedavg", wire=LOSSY)
    shared, _ = initial_shared(config)
    site = open_site(config)
    site.receive(shared, Moment("run", 0))
    site.train(0, 2)
    site.receive(shared, Moment("run", 1))
    assert site._owed.keys() == shared.keys()


def test_a_newcomer_s_process_that_starts_anew_predicts_as_the_one_that_trained(open_site) -> None:
    config = tiny(method="newcomer")
    shared, _ = initial_shared(config)
    shared = {name: tensor + 0.01 for name, tensor in shared.items()}
    site = open_site(config)
    trained(site, shared)
    site.recall(shared)
    expected = site.summary("test", "personal")
    fresh = open_site(config)
    fresh.recall(shared)
    assert fresh.summary("test", "personal") == expected
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(fresh.model(image)["personal"], site.model(image)["personal"])


def test_a_run_begins_fresh_and_says_so_unless_the_job_names_another_run(open_site, caplog) -> None:
    """Seeds or rates that are submitted as jobs of one study once learned from each other, and nothing said so."""
    config = tiny()
    shared, base = initial_shared(config)
    serve_round(open_site(config), shared, Turn("first", base, 0, 1))
    caplog.set_level("INFO", "pfedsam")
    reports = {}
    for begin in ("", "latest", "first"):
        site = open_site(tiny(begin_private=begin))
        drawn = {n: v.clone() for n, v in site.private().items()}
        _, reports[begin] = serve_round(site, shared, Turn(f"run-{begin}", base, 0, 1))
        if not begin:
            site.receive(shared, Moment("another", 0))
            assert all(torch.equal(v, drawn[n]) for n, v in site.private().items())
    assert reports[""]["private"] == {}
    assert reports["latest"]["private"] == {"run": "run-", "round": 0}
    assert reports["first"]["private"] == {"run": "first", "round": 0}
    assert "[site-1] begins with a private part drawn from the seed" in caplog.text
    assert "[site-1] begins with its private part of run first, round 1" in caplog.text


@pytest.mark.parametrize("method", sorted(KEEPS))
def test_a_run_that_begins_with_another_run_s_private_part_has_it_after_the_merge(open_site, method: str) -> None:
    config = tiny(method=method, model=NEEDS.get(method, {}))
    shared, base = initial_shared(config)
    first, down = open_site(config), down_schema(config)
    serve_round(first, message(begin_state(shared, down), first.name, config, down), Turn("first", base, 0, 1))
    kept = {name: tensor.clone() for name, tensor in first.private().items()}
    site = open_site(replace(config, begin_private="first"))
    facts = site.receive(message(begin_state(shared, down), site.name, config, down), Moment("next", 0))
    assert facts["run"] == "first"
    assert [name for name, tensor in site.private().items() if not torch.equal(tensor, kept[name])] == []


@pytest.mark.parametrize("serve", ["round", "test"])
def test_a_site_that_has_trained_and_lost_its_private_part_says_so_and_stops(open_site, tmp_path, serve: str) -> None:
    config = tiny()
    shared, base = initial_shared(config)
    serve_round(open_site(config), shared, Turn("run", base, 0, 3))
    shutil.rmtree(tmp_path / "store")
    site, turn = open_site(config), Turn("run", base, 1, 3, trained=True)
    with pytest.raises(UserFault, match=r"private part of run run, in which it trained.*none that is undamaged"):
        serve_round(site, shared, turn) if serve == "round" else serve_test(site, shared, turn, tmp_path / "out")
    serve_round(site, shared, replace(turn, trained=False))  # a site that joins late has nothing, and may


def test_a_method_without_a_private_part_misses_nothing(open_site) -> None:
    config = tiny(method="fedavg")
    shared, base = initial_shared(config)
    _, report = serve_round(open_site(config), shared, Turn("run", base, 1, 3, trained=True))
    assert report["private"] == {}


@pytest.mark.parametrize("serve", ["round", "test"])
def test_a_site_with_another_base_than_the_server_neither_trains_nor_tests(open_site, tmp_path, serve: str) -> None:
    config = tiny()
    shared, base = initial_shared(config)
    site, turn = open_site(config), Turn("run", "0" * 64, 0, 3)
    with pytest.raises(
        UserFault, match=f"the server's base model .000000000000.; came another at this site .{base[:12]}"
    ):
        serve_round(site, shared, turn) if serve == "round" else serve_test(site, shared, turn, tmp_path / "out")
    assert site.store.load() is None


def test_the_scores_before_training_are_never_of_other_test_images(hospital: Path, tmp_path: Path) -> None:
    """The store keeps them for a run. A site may correct its test split between two of the run's jobs."""
    data = tmp_path / "data"
    shutil.copytree(hospital, data)
    config = tiny(method="fedavg")
    shared, base = initial_shared(config)
    wire = message(begin_state(shared, down_schema(config)), "site-1", config, down_schema(config))

    def served(round_: int) -> dict[str, Any]:
        site = Site("site-1", config, Places(data, tmp_path / "store"))
        return serve_round(site, wire, Turn("run", base, round_, 3))[1]["before"]

    first = served(0)
    assert served(1) == first
    for path in (data / "site-1/masks").iterdir():
        Image.fromarray(1 - np.asarray(Image.open(path))).save(path)
    untouched = Site("site-1", config, Places(data, tmp_path / "store"))
    assert serve_test(untouched, wire, Turn("run", base, 2, 3), tmp_path / "out")["before"] is None
    again = served(2)
    assert again == coarse(untouched.summary("test", "global")) != first


def test_a_server_gets_no_test_scores_of_one_first_model_after_another(hospital: Path, tmp_path: Path) -> None:
    """A job's tasks are of one run, but nothing else ends the tasks of a run's first round."""
    config = tiny(method="fedavg")
    site = Site("site-1", config, Places(hospital, tmp_path))
    shared = initial_shared(config)[0]
    models = [{name: t + 1e-4 * number for name, t in shared.items()} for number in range(4)]
    turn = Turn("run", site.base, 0, 3)
    told = [serve_round(site, model, turn)[1]["before"] for model in (models[0], models[0], *models[1:3])]
    assert told[0] == told[1]
    with pytest.raises(UserFault, match="at most 3 first models of a run"):
        serve_round(site, models[3], turn)
    assert serve_round(site, models[2], turn)[1]["before"] == told[-1]  # a task that FLARE sends again


@pytest.mark.parametrize("method", ["fca", "fedala", "fedicra"])
def test_the_global_score_is_of_the_model_as_the_server_sent_it(hospital: Path, tmp_path: Path, method: str) -> None:
    """Not of what the site mixes from it: FLARE chooses the best model by this score."""
    config = tiny(method=method, train={"lr": 0.1})
    down = down_schema(config)
    first = begin_state(initial_shared(config)[0], down)
    generator = torch.Generator().manual_seed(1)
    moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in first.shared.items()}
    site, fresh = (Site("site-1", config, Places(hospital, tmp_path / name)) for name in ("own", "fresh"))
    serve_round(site, message(first, "site-1", config, down), Turn("run", site.base, 0, 3))
    wire = message(begin_state(moved, down), "site-1", config, down)
    _, told = serve_round(site, wire, Turn("run", site.base, 1, 3, trained=True))
    expected: list[dict[str, Any]] = []
    fresh.receive(decode(wire, down, config.wire.down), look=lambda: expected.append(fresh.validated("global")))
    assert told["val"]["global"] == coarse(expected[0])


def test_a_personal_branch_that_stays_behind_is_told_from_half_of_the_rounds_on(
    open_site, monkeypatch: pytest.MonkeyPatch, caplog, tmp_path: Path
) -> None:
    """A site's own model trails the mean of all in the first rounds, so a warning there would mean nothing."""
    dice = {"global": 0.5, "personal": 0.4}
    monkeypatch.setattr(Site, "validated", lambda _, role: {"dice": dice[role], "scored": 12})
    site = open_site(tiny())
    wire, told = initial_shared(site.config)[0], []
    for round_ in range(3):
        serve_round(site, wire, Turn("run", site.base, round_, 3))
        told.append("personal branch 0.400, global 0.500" in caplog.text)
        caplog.clear()
    serve_test(site, wire, Turn("run", site.base, 3, 3, trained=True), tmp_path / "out")
    assert [*told, "personal branch 0.400, global 0.500" in caplog.text] == [False, False, True, True]
    assert "over 12 masks, so few that it may be chance" in caplog.text


@pytest.mark.parametrize("method", ["local", "fedper"])
def test_a_method_of_one_branch_is_not_told_that_one_of_two_is_behind(open_site, monkeypatch, caplog, method) -> None:
    """Its one branch is scored before and after a round's training."""
    dice = {"global": 0.5, "personal": 0.4}
    monkeypatch.setattr(Site, "validated", lambda _, role: {"dice": dice[role], "scored": 12})
    site = open_site(tiny(method=method))
    serve_round(site, initial_shared(site.config)[0], Turn("run", site.base, 2, 3))
    assert "personal branch" not in caplog.text


def test_a_share_of_the_private_part_predicts_and_all_of_it_trains(open_site, tmp_path: Path) -> None:
    """The share changes no bit of the training."""
    found = {}
    for share in (1.0, 0.5, 0.0):
        site = open_site(tiny(study=f"s{share}", model={"experts": 0, "experts_rank": 4, "experts_share": share}))
        site.receive(initial_shared(site.config)[0])
        update = site.train(0, 2)
        site.recall(site.shared(), trained=True)
        with torch.no_grad():
            found[share] = update.wire, site.private(), site.model(torch.ones(1, 3, 64, 64))
    for wire, private, _ in found.values():
        assert all(torch.equal(wire[name], tensor) for name, tensor in found[1.0][0].items())
        assert all(torch.equal(private[name], tensor) for name, tensor in found[1.0][1].items())
    logits = {share: maps["personal"] for share, (*_, maps) in found.items()}
    assert torch.allclose(logits[0.0], found[0.0][2]["global"], atol=1e-6)
    assert not torch.allclose(logits[1.0], logits[0.5], atol=1e-6)
    assert not torch.allclose(logits[0.0], logits[0.5], atol=1e-6)


def test_a_branch_is_scored_again_where_it_takes_another_share_of_the_same_private_part(open_site) -> None:
    """A newcomer's shared part never moves, so its final test has the tensors of its last round."""
    train = {"lr_private": 0.3, "max_steps": 12}
    model = {"experts": 0, "experts_rank": 4, "experts_share": 0.0}
    site = open_site(tiny(method="newcomer", model=model, train=train))
    shared = initial_shared(site.config)[0]
    site.receive(shared)
    site.train(0, 2)
    trained = site.validated("personal")
    site.recall(shared, trained=True)
    assert site.validated("personal") == site.summary("val", "personal") == site.summary("val", "global") != trained
