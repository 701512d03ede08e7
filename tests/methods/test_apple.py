"""APPLE: whose core is in which slot, what a site's model is, and what stays."""

import math

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.data.dataset import View
from pfedsam.errors import UserFault
from pfedsam.exchange.server import Contribution, ServerState, begin_state, contribution, message
from pfedsam.exchange.slots import SAMPLES, WHOSE, filled, slotted, tag
from pfedsam.exchange.store import Moment
from pfedsam.methods import apple
from pfedsam.study import down_schema, initial_shared, private_schema, up_schema

A, B = "e.lora.a.weight", "e.lora.b.weight"


def core(value: float, samples: float = 1) -> Contribution:
    moves = {A: torch.full((1, 2), value), B: torch.full((2, 1), value), "d": torch.full((1,), value)}
    return Contribution(samples, lambda: moves)


def begun(slots: int = 3) -> tuple[ServerState, object]:
    shared = {A: torch.ones(1, 2), B: torch.zeros(2, 1), "d": torch.zeros(1)}
    schema = methods.get("apple").down({n: slotted({}, 1)[SAMPLES] for n in shared}, tiny(method="apple"))
    assert len(schema) == 8 * 2 + 2  # the decoder is in no slot
    zeros = {f"{slot}/{n}": torch.zeros_like(shared[n]) for slot in range(slots) for n in (A, B)}
    memory = zeros | {WHOSE: torch.zeros(slots, dtype=torch.int64), SAMPLES: torch.zeros(slots)}
    return ServerState(shared, memory), tiny(method="apple", own={"sites": slots})


def test_each_site_keeps_its_core_and_all_get_the_mean_decoder() -> None:
    state, config = begun()
    once = apple.rule(state, {"b": core(2.0, samples=3), "a": core(1.0)}, config)
    assert once.memory[WHOSE].tolist() == [tag("a"), tag("b"), 0]
    assert once.memory[SAMPLES].tolist() == [1, 3, 0]
    assert once.memory[f"1/{B}"].tolist() == [[2.0], [2.0]]
    assert once.model_of("a")[B].tolist() == [[1.0], [1.0]]
    assert once.model_of("a")["d"].item() == once.model_of("b")["d"].item() == pytest.approx(7 / 4)
    twice = apple.rule(once, {"b": core(1.0, samples=3), "0": core(5.0)}, config)
    assert twice.memory[WHOSE].tolist() == [tag("a"), tag("b"), tag("0")]
    assert twice.memory[f"0/{A}"].tolist() == once.memory[f"0/{A}"].tolist()
    assert twice.model_of("b")[A].tolist() == [[4.0, 4.0]]
    assert twice.model_of("a")["d"].item() == twice.model_of("0")["d"].item()  # absent or not
    assert torch.equal(state.memory[WHOSE], torch.zeros(3, dtype=torch.int64))  # the rule is pure


def test_more_sites_than_slots_are_told_what_to_set() -> None:
    state, config = begun(slots=2)
    with pytest.raises(UserFault, match=r"at most 2 sites in the run \(method\.sites\)"):
        apple.rule(state, {"a": core(1.0), "b": core(1.0), "c": core(1.0)}, config)
    memory = filled(state.memory, {"b": {}, "a": {}}, {"b": 2.0})
    assert memory[SAMPLES].tolist() == [0.0, 2.0]


def test_a_site_s_model_is_the_mix_of_all_cores_and_it_trains_its_own_and_the_mix(open_site) -> None:
    config = tiny(method="apple", own={"sites": 3, "mu": 0.4, "fades": 4})
    state, down = begin_state(initial_shared(config)[0], down_schema(config)), down_schema(config)
    sites = {name: open_site(config, name) for name in ("site-1", "site-2")}
    given = {}
    for name, site in sites.items():
        site.receive(message(state, name, config, down), Moment("run", 0))
        update = site.train(0, 2)
        assert not set(update.wire) - set(state.shared)  # nothing but its own core and the decoder goes up
        given[name] = contribution(update.wire, 6 if name == "site-1" else 2, {}, config=config, up=up_schema(config))
    after = apple.rule(state, given, config)
    site = sites["site-1"]
    site.receive(message(after, "site-1", config, down), Moment("run", 1), trained=True)
    p = apple.relation(site.model)
    assert p.tolist() == [[0.75, 0.25, 0.0]]
    assert site.model.received["pull"].item() == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)) / 2)
    name = next(name for name in after.shared if name.endswith(".lora.b.weight"))
    mix = 0.75 * after.model_of("site-1")[name] + 0.25 * after.model_of("site-2")[name]
    assert torch.allclose(apple.mixed(site.model)[name], mix)
    wire = site.train(1, 2).wire
    assert wire[name].any()
    assert p[0, :2].tolist() != [0.75, 0.25]
    now = p[0, 0] * site.shared()[name] + p[0, 1] * after.model_of("site-2")[name]
    private = {n.split(".", 2)[2]: t for n, t in site.private().items()}
    assert torch.allclose(private[name], now, atol=1e-6)
    decoder = next(name for name in after.shared if name.startswith("decoder."))
    assert torch.equal(private[decoder], site.shared()[decoder])
    kept = p.clone()
    site.receive(message(after, "site-1", config, down), Moment("run", 2), trained=True)
    assert torch.equal(apple.relation(site.model), kept)  # known cores do not make it begin again


def test_a_site_that_joins_late_begins_at_the_mean_core_and_then_all_weights_still_sum_to_one(open_site) -> None:
    config = tiny(method="apple", own={"sites": 3})
    down = down_schema(config)
    state = begin_state(initial_shared(config)[0], down)
    site = open_site(config, "site-1")
    name = next(name for name in state.shared if name.endswith(".lora.b.weight"))
    names = [name for name in state.shared if ".lora." in name]
    cores = {
        site: {n: torch.full_like(state.shared[n], value) for n in names} for site, value in (("a", 1.0), ("b", 3.0))
    }
    mean = state.shared | {n: torch.full_like(state.shared[n], 2.0) for n in names}
    before = filled(state.memory, cores, {"a": 1, "b": 1})
    site.receive(message(ServerState(mean, before), "site-1", config, down), Moment("run", 4))
    assert torch.equal(apple.mixed(site.model)[name], mean[name])
    site.train(4, 6)
    own = {"site-1": {n: site.shared()[n] for n in names}}
    after = ServerState(mean, filled(before, own, {"site-1": 2}), models={"site-1": mean | own["site-1"]})
    site.receive(message(after, "site-1", config, down), Moment("run", 5), trained=True)
    p = apple.relation(site.model)[0]
    assert p.tolist() == pytest.approx([0.25, 0.25, 0.5], abs=1e-3)
    wanted = p[0] * cores["a"][name] + p[1] * cores["b"][name] + p[2] * own["site-1"][name]
    assert torch.allclose(apple.mixed(site.model)[name], wanted)


def test_the_loss_is_that_of_the_mixed_model_and_falls_on_p(open_site) -> None:
    config = tiny(method="apple", own={"sites": 2})
    site, down = open_site(config), down_schema(config)
    state = begin_state(initial_shared(config)[0], down)
    names = [name for name in state.shared if ".lora." in name]
    generator = torch.Generator().manual_seed(0)
    other = {name: 0.1 * torch.randn(state.shared[name].shape, generator=generator) for name in names}
    memory = filled(state.memory, {"site-1": {n: state.shared[n] for n in names}, "z": other}, {"site-1": 1, "z": 1})
    site.receive(message(ServerState(state.shared, memory), "site-1", config, down))
    batch = site.data["train"].batch([View(0), View(1)])
    found = apple.losses(site.model, batch, config)
    live, mix = dict(site.model["global"].named_parameters()), apple.mixed(site.model)
    before = {name: live[name].detach().clone() for name in names}
    for name in names:
        live[name].data.copy_(mix[name])
    whole = methods.get("fedavg").loss(site.model, batch, config)["global"]
    assert found["global"].item() == pytest.approx(whole.item(), rel=1e-5)
    for name in names:
        live[name].data.copy_(before[name])
    apple.losses(site.model, batch, config)["global"].backward()
    assert bool((apple.relation(site.model).grad != 0).all())


def test_p_stays_at_its_site() -> None:
    config = tiny(method="apple")
    assert [name for name in private_schema(config) if name.startswith("aside.")] == ["aside.net.weight"]
    assert all(not name.startswith(("extra/net", "aside")) for name in up_schema(config))
