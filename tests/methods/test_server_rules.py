"""Methods whose server does more than average, or that remember and tell: right values by hand."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import apply
from pfedsam.exchange.guard import Accepted, judge_message
from pfedsam.exchange.schema import EXTRA, Spec, extras_of, shared_of
from pfedsam.exchange.server import Contribution, ServerState, begin_state, contribution, message, weighted
from pfedsam.exchange.store import LAST, Moment
from pfedsam.layout import Places
from pfedsam.methods import fedavg, scaffold, similarity
from pfedsam.methods.base import Here, Told
from pfedsam.site import Site
from pfedsam.site_faults import require_declared
from pfedsam.study import down_schema, initial_shared, shared_schema, up_schema
from pfedsam.tensors import Tensors


def moved_by(*values: float, samples: int = 1, **more: Tensors) -> Contribution:
    return Contribution(samples, lambda: {"w": torch.tensor(values)}, **more)


def test_fedavgm_keeps_its_velocity() -> None:
    rule = methods.get("fedavgm").rule
    once = rule(ServerState({"w": torch.zeros(1)}), {"a": moved_by(1.0), "b": moved_by(3.0)}, tiny(method="fedavgm"))
    assert once.shared["w"].item() == 2.0
    twice = rule(once, {"a": moved_by(1.0)}, tiny(method="fedavgm"))
    assert twice.memory["w"].item() == pytest.approx(0.9 * 2 + 1)
    assert twice.shared["w"].item() == pytest.approx(2 + 2.8)


def test_similar_sites_average_with_each_other_and_each_has_its_model() -> None:
    state = ServerState({"w": torch.zeros(2)}, models={"d": {"w": torch.full((2,), 7.0)}})
    each = {"a": moved_by(1.0, 0.0), "b": moved_by(2.0, 0.0), "c": moved_by(0.0, 4.0)}
    after = methods.get("similarity").rule(state, each, tiny(method="similarity"))
    near, far = (math.exp(5 * cosine) / (math.exp(5) + 1) / 2 for cosine in (1, 0))
    assert after.model_of("a")["w"].tolist() == pytest.approx([0.5 * 1 + near * 2, far * 4])
    assert after.model_of("c")["w"].tolist() == pytest.approx([0.25 * 1 + 0.25 * 2, 0.5 * 4])
    assert after.model_of("d")["w"].tolist() == [7.0, 7.0]  # it gave nothing in this round
    assert after.model_of("new")["w"].tolist() == pytest.approx([1.0, 4 / 3])
    again = methods.get("similarity").rule(after, {"a": moved_by(1.0, 1.0)}, tiny(method="similarity"))
    assert torch.allclose(again.model_of("a")["w"], after.model_of("a")["w"] + 1)


def test_a_site_that_did_not_move_is_like_no_other() -> None:
    assert similarity.cosine({"w": torch.zeros(2)}, {"w": torch.ones(2)}) == 0.0


def rounds_of_scaffold(open_site, rounds: int = 2) -> tuple[Config, ServerState, dict[str, Site]]:
    """Two sites and the server after some rounds."""
    config = tiny(method="scaffold")
    state = begin_state(initial_shared(config)[0], down_schema(config))
    sites = {name: open_site(config, name) for name in ("site-1", "site-2")}
    for round_ in range(rounds):
        given = {}
        for name, site in sites.items():
            wire = message(state, name, config, down_schema(config))
            stamp, down = site.stamp(round_), down_schema(config)
            assert judge_message(wire, stamp, schema=down, expected=stamp) == Accepted()
            site.receive(wire, Moment("run", round_), trained=round_ > 0)
            update = site.train(round_, rounds)
            assert judge_message(update.wire, stamp, schema=up_schema(config), expected=stamp) == Accepted()
            given[name] = contribution(update.wire, update.samples, {}, config=config, up=up_schema(config))
        state = scaffold.rule(state, given, config)
    return config, state, sites


def kept(site: Site) -> Tensors:
    """A site's own control variates, as they lie in its store."""
    stored, _ = site.store.load() or ({}, {})
    return {name.removeprefix("memory/"): t for name, t in stored.items() if name.startswith("memory/")}


def test_scaffold_s_c_is_the_mean_of_the_sites_own(open_site) -> None:
    config, state, sites = rounds_of_scaffold(open_site)
    own = [kept(site) for site in sites.values()]
    assert own[0].keys() == shared_schema(config).keys()
    assert any(bool(c.any()) for c in own[0].values())
    for name in own[0]:
        assert torch.allclose(state.memory[name], (own[0][name] + own[1][name]) / 2, atol=1e-7)


def test_no_site_s_control_variate_leads_the_others() -> None:
    """It is bounded by the values' declared bound alone, 1e6, and the server keeps it."""
    state, config = ServerState({"w": torch.zeros(2)}, {"w": torch.zeros(2)}), tiny(method="scaffold")
    told = {"a": (1.0, 0.0), "b": (0.0, 2.0), "c": (-1e6, 1e6)}
    after = scaffold.rule(
        state, {site: moved_by(0.0, 0.0, extras={"w": torch.tensor(c)}) for site, c in told.items()}, config
    )
    assert after.memory["own/c/w"].norm().item() == pytest.approx(2.0)
    assert after.memory["own/a/w"].tolist() == [1.0, 0.0]
    assert after.memory["w"].norm().item() < 2.0
    two = {site: moved_by(0.0, 0.0, extras={"w": torch.tensor(told[site])}) for site in "bc"}
    after = scaffold.rule(replace(state, sites=3), two, config)
    assert after.memory["own/c/w"].norm().item() == pytest.approx(2.0)  # no further than the shorter of two


def test_under_the_plain_mean_scaffold_s_c_is_the_paper_s() -> None:
    state = ServerState({"w": torch.zeros(2)}, {"w": torch.zeros(2)})
    told = {"a": (1.0, 0.0), "b": (1.0, 0.0), "c": (-2.0, 0.0)}
    given = {site: moved_by(0.0, 0.0, extras={"w": torch.tensor(c)}) for site, c in told.items()}
    after = scaffold.rule(state, given, tiny(method="scaffold", server={"rule": "mean"}))
    assert after.memory["w"].tolist() == [0.0, 0.0]


def end_of_scaffold(*samples: int) -> float:
    """Where SCAFFOLD ends with the losses w^2 / 2 and (w - 1)^2 / 2, and five steps of SGD a round."""
    config, rate, own = tiny(method="scaffold"), 0.1, [0.0, 0.0]
    state = ServerState({"w": torch.tensor([3.0])}, {"w": torch.zeros(1)})
    for _ in range(300):
        w, c, given = state.shared["w"].item(), state.memory["w"].item(), {}
        for i, count in enumerate(samples):
            y, gradients = w, []
            for _ in range(5):
                gradients.append(y - i)
                y -= rate * (gradients[-1] + c - own[i])
            own[i] = sum(gradients) / 5
            given["ab"[i]] = moved_by(y - w, samples=count, extras={"w": torch.tensor([own[i]])})
        state = scaffold.rule(state, given, config)
    return state.shared["w"].item()


def test_scaffold_ends_at_the_minimum_of_the_loss_over_all_samples() -> None:
    assert end_of_scaffold(90, 10) == pytest.approx(0.1, abs=1e-3)
    assert end_of_scaffold(5, 5) == pytest.approx(0.5, abs=1e-3)


def controls_of(**told: tuple[int, float]) -> dict[str, Contribution]:
    """By site, its samples and its control variate."""
    return {site: moved_by(0.0, samples=count, extras={"w": torch.tensor([c])}) for site, (count, c) in told.items()}


def test_scaffold_s_c_weighs_a_site_that_is_away_by_its_last_samples() -> None:
    config, state = tiny(method="scaffold"), ServerState({"w": torch.zeros(1)}, {"w": torch.zeros(1)})
    state = scaffold.rule(state, controls_of(a=(90, 0.0), b=(10, 1.0)), config)
    assert state.memory["w"].item() == pytest.approx(0.1)
    assert scaffold.rule(state, controls_of(a=(30, 0.0)), config).memory["w"].item() == pytest.approx(0.25)
    old = replace(state, memory={key: t for key, t in state.memory.items() if not key.startswith("samples/")})
    after = scaffold.rule(old, controls_of(a=(90, 0.0)), config)  # an earlier version's checkpoint knows no samples
    assert after.memory["w"].item() == pytest.approx(0.5)


def test_with_equal_samples_scaffold_s_c_is_bit_for_bit_the_plain_mean() -> None:
    told = {"a": 0.1, "b": 0.7, "c": -1.3}
    for count in (7, 16, 1001):
        given, state = controls_of(**{site: (count, c) for site, c in told.items()}), ServerState({"w": torch.zeros(1)})
        after = scaffold.rule(state, given, tiny(method="scaffold", server={"rule": "mean"}))
        plain = weighted(dict.fromkeys(told, 1 / 3), lambda site: {"w": torch.tensor([told[site]])})
        assert torch.equal(after.memory["w"], plain["w"])


def test_a_site_s_control_variate_is_the_mean_of_its_gradients(open_site) -> None:
    config = tiny(method="scaffold")
    site, seen = open_site(config), []
    shared = initial_shared(config)[0]
    spied = lambda model, config: (seen.append(grads(site)), scaffold.gradient(model, config))  # noqa: E731
    site.method = replace(site.method, gradient=spied)
    site.receive(message(begin_state(shared, down_schema(config)), "site-1", config, down_schema(config)))
    told = extras_of(site.train(0, 1).wire)
    for name, change in told.items():
        assert torch.allclose(change, sum(one[name] for one in seen) / len(seen), atol=1e-6)


def grads(site: Site) -> Tensors:
    live = site.model["global"].named_parameters()
    return {name: p.grad.clone() for name, p in live if p.grad is not None}


def test_scaffold_adds_c_less_the_site_s_own_to_each_gradient(open_site) -> None:
    config = tiny(method="scaffold")
    site = open_site(config)
    names = shared_schema(config)
    arrived = initial_shared(config)[0] | {EXTRA + n: torch.full(spec.shape, 3.0) for n, spec in names.items()}
    here = Here(extras=extras_of(arrived), memory={n: torch.full(spec.shape, 1.0) for n, spec in names.items()})
    scaffold.merge(site.model, config, here)
    for p in site.model["global"].parameters():
        p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
    scaffold.gradient(site.model, config)
    found = grads(site)
    assert found.keys() == names.keys()
    assert all(bool((g == 2.5).all()) for g in found.values())
    assert all(bool((site.model.received["sum/" + n] == 0.5).all()) for n in names)


def test_a_site_goes_on_with_the_memory_of_the_round_before_and_of_its_own_run_alone(open_site) -> None:
    config, state, sites = rounds_of_scaffold(open_site, rounds=1)
    wire = message(state, "site-1", config, down_schema(config))
    first = kept(sites["site-1"])
    again = open_site(config)  # a new process at the site
    again.receive(wire, Moment("run", 1), trained=True)
    assert all(torch.equal(again._here.memory[n], first[n]) for n in first)
    again.train(1, 2)
    redone = open_site(config)  # and once more: its second round did not reach the server
    redone.receive(wire, Moment("run", 1), trained=True)
    assert all(torch.equal(redone._here.memory[n], first[n]) for n in first)
    other = open_site(config)
    other.receive(wire, Moment("other", 0))
    assert other._here.memory == {}


def test_a_site_that_lost_its_memory_says_so(hospital, tmp_path, open_site) -> None:
    config, state, _ = rounds_of_scaffold(open_site, rounds=1)
    lost = Site("site-1", config, Places(hospital, tmp_path / "empty"))
    with pytest.raises(UserFault, match="site's private part of run run"):
        lost.receive(message(state, "site-1", config, down_schema(config)), Moment("run", 1), trained=True)


def test_the_guard_refuses_extras_that_were_not_declared_or_are_out_of_bounds(open_site) -> None:
    config = tiny(method="scaffold")
    site = open_site(config)
    shared = initial_shared(config)[0]
    site.receive(message(begin_state(shared, down_schema(config)), "site-1", config, down_schema(config)))
    wire, stamp = site.train(0, 1).wire, site.stamp(0)
    name = next(n for n in wire if n.startswith(EXTRA))
    for bad, reason in (
        ({**wire, name: torch.full_like(wire[name], 1e7)}, "within 1e+06"),
        ({**wire, EXTRA + "more": torch.ones(1)}, "not declared"),
        (shared_of(wire), "are missing"),
        ({**wire, name: wire[name].double()}, "float32"),
    ):
        assert reason in judge_message(bad, stamp, schema=up_schema(config), expected=stamp).reason


def test_a_method_augments_with_what_the_server_sent(open_site) -> None:
    site, seen = open_site(tiny()), []

    def augment(usual, _config, here):
        seen.append(here.data is site.data["train"])
        return lambda image, mask, view: (torch.zeros_like(image), usual(image, mask, view)[1])

    images = []
    loss = lambda model, batch, config: images.append(batch.image) or fedavg.losses(model, batch, config)  # noqa: E731
    site.method = replace(site.method, augment=augment, loss=loss)
    site.receive(initial_shared(site.config)[0])
    site.train(0, 1)
    assert seen == [True]
    assert all(image.std(dim=(2, 3)).max() == 0 for image in images)


def test_a_method_s_own_augmentation_and_kept_views_exclude_each_other(open_site, monkeypatch) -> None:
    own = replace(methods.get("fedavg"), augment=lambda augment, _config, _here: augment)
    monkeypatch.setattr(methods, "get", lambda _: own)
    with pytest.raises(UserFault, match=r"expected train\.cache none with fedavg"):
        open_site(tiny(method="fedavg", model={"lora_last": 1}, train={"cache": "memory", "views": 1}))


def test_an_update_that_did_not_count_leaves_c_right_in_the_next_round(open_site) -> None:
    config, state, sites = rounds_of_scaffold(open_site, rounds=1)
    down, up = down_schema(config), up_schema(config)
    for round_, counted in ((1, ("site-1",)), (2, ("site-1", "site-2"))):
        given = {}
        for name, site in sites.items():
            site.receive(message(state, name, config, down), Moment("run", round_), trained=True)
            update = site.train(round_, 3)
            given[name] = contribution(update.wire, update.samples, {}, config=config, up=up)
        state = scaffold.rule(state, {name: given[name] for name in counted}, config)
    own = [kept(site) for site in sites.values()]
    for name in own[0]:
        assert torch.allclose(state.memory[name], (own[0][name] + own[1][name]) / 2, atol=1e-7)


def telling(site: Site, told: Told) -> None:
    site.method = replace(site.method, tell=lambda *_: told)
    site.receive(initial_shared(site.config)[0], Moment("run", 0))


def test_a_method_may_remember_nothing_and_go_on(open_site) -> None:
    site = open_site(tiny(method="fedavg"))
    telling(site, Told())
    site.train(0, 2)
    site.receive(initial_shared(site.config)[0], Moment("run", 1), trained=True)
    site.recall(initial_shared(site.config)[0], Moment("run", LAST), trained=True)


def test_a_site_sends_no_extra_that_is_not_declared(open_site) -> None:
    site = open_site(tiny(method="fedavg"))
    telling(site, Told({"more": torch.ones(2)}))
    with pytest.raises(UserFault, match=r"of method fedavg to send only what .* declares in up; came .*not declared"):
        site.train(0, 2)


def test_a_site_sends_no_private_tensor_as_an_extra(open_site) -> None:
    site = open_site(tiny())
    name, expert = next((name, t) for name, t in site.private().items() if t.numel() > 1 and t.any())
    declared = {EXTRA + "harmless": Spec(tuple(expert.shape), expert.dtype)}
    with pytest.raises(UserFault, match=f"{name} of the private part as extra/harmless"):
        require_declared({EXTRA + "harmless": expert.clone()}, declared, site.private(), method="x")


def test_a_rule_that_forgets_what_sites_are_sent_is_told_so() -> None:
    config, down = tiny(method="scaffold"), {"w": Spec((1,), torch.float32), EXTRA + "c": Spec((1,), torch.float32)}
    state = begin_state({"w": torch.zeros(1)}, down)
    kept = apply(lambda state, _given, _config: state, state, {}, config=config, down=down)
    assert kept == state
    for forgets in (replace(state, memory={}), replace(state, models={"a": {"w": torch.zeros(2)}})):
        with pytest.raises(UserFault, match="rule of method scaffold to keep the shape"):
            apply(lambda _state, _given, _config, after=forgets: after, state, {}, config=config, down=down)
