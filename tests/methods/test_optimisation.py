"""Methods that change the server's step or the site's loss: right values by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.data.dataset import View
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import apply
from pfedsam.exchange.schema import extras_of, schema_of
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.exchange.store import Moment
from pfedsam.methods import drflm, fedavg, feddyn, moon
from pfedsam.study import initial_shared, private_schema
from pfedsam.tensors import Tensors


def moved_by(*values: float, samples: float = 1, **more: Tensors) -> Contribution:
    return Contribution(samples, lambda: {"w": torch.tensor(values)}, **more)


def start(*values: float) -> ServerState:
    return ServerState({"w": torch.tensor(values)})


def test_fedadam_takes_adam_s_steps_on_the_mean_update() -> None:
    config = tiny(method="fedadam", own={"rate": 0.1, "beta1": 0.5, "beta2": 0.75, "tau": 2.0})
    rule, m, v, w = methods.get("fedadam").rule, 0.0, 2.0**2, 5.0
    state = start(5.0)
    for update in (2.0, -1.0):
        state = rule(state, {"a": moved_by(update - 1), "b": moved_by(update + 1)}, config)
        m, v = 0.5 * m + 0.5 * update, 0.75 * v + 0.25 * update**2
        w += 0.1 * m / (math.sqrt(v) + 2.0)
        assert state.shared["w"].item() == pytest.approx(w)


def test_fedadam_s_step_in_a_value_does_not_depend_on_the_update_s_size() -> None:
    rule, config = methods.get("fedadam").rule, tiny(method="fedadam", own={"tau": 1e-9})
    step = rule(start(0.0, 0.0), {"a": moved_by(1e-3, 10.0)}, config).shared["w"]
    assert step[0].item() == pytest.approx(step[1].item(), rel=1e-4)


WHOLE = {"max_steps": None, "batch_size": 4}


def steps(count: float) -> dict[str, Tensors]:
    return {"extras": {"steps": torch.tensor([count])}}


def test_fednova_s_mean_update_does_not_follow_the_site_that_takes_most_steps() -> None:
    rule, config = methods.get("fednova").rule, tiny(method="fednova", train=WHOLE)
    each = {"a": moved_by(1.0, 0.0, samples=36, **steps(1)), "b": moved_by(0.0, 9.0, samples=36, **steps(9))}
    assert rule(start(0.0, 0.0), each, config).shared["w"].tolist() == pytest.approx([2.5, 2.5])
    alike = {"a": moved_by(1.0, samples=48, **steps(4)), "b": moved_by(5.0, samples=16, **steps(4))}
    assert rule(start(0.0), alike, config).shared["w"].item() == pytest.approx(2.0)  # FedAvg's


def test_no_site_gains_in_fednova_by_claiming_few_steps() -> None:
    rule, config = methods.get("fednova").rule, tiny(method="fednova", server={"most_share": 1.5}, train=WHOLE)
    honest = {name: moved_by(0.0, samples=400, **steps(100)) for name in "abc"}
    for few in (0.0, -5.0, 1.0):
        liar = moved_by(1.0, samples=400, **steps(few))
        found = rule(start(0.0), {**honest, "z": liar}, config).shared["w"].item()
        weights = [0.25 * 75.25 / 100] * 3
        assert found == pytest.approx(sum(weights) * 0.375 / 0.625)


def test_no_site_in_fednova_moves_the_model_further_by_claiming_many_steps_and_samples() -> None:
    config = tiny(method="fednova", server={"rule": "clipped", "most_share": 1.5}, train=WHOLE)
    down = schema_of({"w": torch.zeros(1)})
    honest = {name: moved_by(1.0, samples=40, **steps(10)) for name in "abcd"}
    for samples in (40, 10_000_000):
        liar = moved_by(1.0, samples=samples, **steps(1e7))
        after = apply(methods.get("fednova").rule, start(0.0), {**honest, "z": liar}, config=config, down=down)
        assert after.shared["w"].item() < 1.3  # with five honest sites it is 1


def test_a_site_in_fednova_tells_the_steps_that_it_took(open_site) -> None:
    config = tiny(method="fednova", train={"max_steps": 3, "epochs": 2})
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    assert extras_of(site.train(0, 1).wire)["steps"].tolist() == [3.0]


def end_of_feddyn(
    curvature: Sequence[float] = (1.0, 1.0),
    samples: Sequence[int] = (1, 1),
    every: Sequence[int] = (1, 1),
    begins: Sequence[int] = (0, 0),
    alpha: float = 0.5,
) -> float:
    """Where FedDyn ends with site a's loss w^2 curv / 2 and b's (w - 1)^2 curv / 2, each minimised in full."""
    config, rule = tiny(method="feddyn", own={"alpha": alpha}), methods.get("feddyn").rule
    state, slope = start(3.0), [0.0, 0.0]
    for round_ in range(400):
        w, given = state.shared["w"].item(), {}
        for i in (i for i in (0, 1) if round_ % every[i] == 0 and round_ >= begins[i]):
            now = (curvature[i] * i + slope[i] + alpha * w) / (curvature[i] + alpha)
            slope[i] -= alpha * (now - w)
            given["ab"[i]] = moved_by(now - w, samples=samples[i])
        state = rule(state, given, config) if given else state
    return state.shared["w"].item()


def test_feddyn_on_quadratics_ends_at_the_federation_s_minimum_where_fedavg_does_not() -> None:
    """FedAvg's fixed point is the mean of the minima."""
    assert end_of_feddyn(curvature=(1.0, 9.0), alpha=2.0) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("every", [(1, 1), (1, 2), (1, 3), (3, 1)])
def test_feddyn_weighs_sites_by_samples_whoever_takes_part_how_often(every: tuple[int, int]) -> None:
    assert end_of_feddyn(samples=(90, 10), every=every) == pytest.approx(0.1, abs=1e-3)


def test_a_site_that_joins_feddyn_late_counts_like_its_equals() -> None:
    assert end_of_feddyn(begins=(0, 3)) == pytest.approx(0.5, abs=1e-3)


def test_feddyn_goes_on_with_a_checkpoint_that_does_not_know_the_sites_samples() -> None:
    """Earlier versions kept a 1 for each site. Its sum counts on, and a site that is away counts as one sample."""
    ones, rule = {f"site/{site}": torch.ones(1) for site in "ab"}, methods.get("feddyn").rule
    state = replace(start(0.0), memory={"sum/w": torch.tensor([2.0])} | ones)
    given = {"a": moved_by(0.0, samples=90), "b": moved_by(1.0, samples=10)}
    after = rule(state, given, tiny(method="feddyn"))
    assert after.memory["sum/w"].item() == pytest.approx(2.1)
    assert [after.memory[f"site/{site}"].item() for site in "ab"] == [90, 10]
    alone = rule(state, {"a": given["a"]}, tiny(method="feddyn"))
    assert (alone.memory["sum/w"].item(), alone.memory["site/b"].item()) == (pytest.approx(2.0), 1)


def test_feddyn_s_sum_counts_a_round_by_the_share_of_sites_in_it() -> None:
    config, rule = tiny(method="feddyn"), methods.get("feddyn").rule
    once = rule(start(0.0), {"a": moved_by(1.0), "b": moved_by(3.0)}, config)
    assert once.shared["w"].item() == 2 + 2
    twice = rule(once, {"a": moved_by(1.0)}, config)
    assert twice.shared["w"].item() == pytest.approx(4 + 1 + (2 + 0.5))


def test_a_site_in_feddyn_has_the_gradient_of_its_three_terms_and_keeps_its_slope(open_site) -> None:
    config = tiny(method="feddyn", own={"alpha": 0.5})
    site = open_site(config)
    shared = initial_shared(config)[0]
    site.receive(shared, Moment("run", 0))
    site.train(0, 2)
    slope = {name: -0.5 * (t - shared[name]) for name, t in site.shared().items()}
    site.receive(shared, Moment("run", 1), trained=True)
    assert all(torch.allclose(site._here.memory[name], one) for name, one in slope.items())
    batch = site.data["train"].batch([View(0)])
    live = {n: p for n, p in site.model["global"].named_parameters() if n in shared}
    with torch.no_grad():
        for p in live.values():
            p.add_(0.25)
    plain = torch.autograd.grad(methods.get("fedavg").loss(site.model, batch, config)["global"], live.values())
    whole = torch.autograd.grad(sum(feddyn.losses(site.model, batch, config).values()), live.values())
    for name, one, other in zip(live, plain, whole, strict=True):
        assert torch.allclose(other, one - slope[name] + 0.5 * 0.25, atol=1e-5)


def test_moon_s_term_is_small_near_the_received_features_and_large_near_the_last_ones() -> None:
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    placed = [one.view(1, 2, 1, 1).expand(1, 2, 3, 3) for one in (near, far)]
    expected = math.log(1 + math.exp(-1 / 0.5))
    assert moon.contrast(placed[0], *placed, 0.5).item() == pytest.approx(expected)
    assert moon.contrast(placed[1], *placed, 0.5).item() == pytest.approx(expected + 2)
    assert moon.contrast(placed[0], placed[1], placed[1], 0.5).item() == pytest.approx(math.log(2))


def test_moon_compares_with_the_received_model_and_the_site_s_last_one(open_site) -> None:
    config = tiny(method="moon", own={"mu": 5.0})
    site = open_site(config)
    shared = initial_shared(config)[0]
    site.receive(shared, Moment("run", 0))
    batch = site.data["train"].batch([View(0), View(1)])
    first = moon.losses(site.model, batch, config)
    first["contrast"].backward()
    assert first["contrast"].item() == pytest.approx(5 * math.log(2))
    grads = [p.grad for p in site.model["global"].parameters() if p.grad is not None]
    assert max(float(g.abs().max()) for g in grads) < 1e-6  # in the first round the term has no slope
    site.train(0, 2)
    last = site.shared()
    site.receive({name: t + 0.01 for name, t in shared.items()}, Moment("run", 1), trained=True)
    branches = {name: dict(site.model[name].named_parameters()) for name in moon.BESIDE}
    assert all(torch.equal(branches["received"][name], t + 0.01) for name, t in shared.items())
    assert all(torch.equal(branches["last"][name], t) for name, t in last.items())
    site.model.zero_grad(set_to_none=True)
    moon.losses(site.model, batch, config)["contrast"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in site.model["global"].encoder.parameters())
    assert all(p.grad is None for name in moon.BESIDE for p in site.model[name].parameters() if p.requires_grad)


def test_moon_s_branches_beside_are_neither_sent_nor_kept_as_private() -> None:
    assert private_schema(tiny(method="moon")) == {}


def test_fednova_does_not_go_with_privacy_and_the_others_say_why_not_with_masks() -> None:
    with pytest.raises(UserFault, match="sends only its update"):
        tiny(method="fednova", privacy={"unit": "site"})
    for method in ("fedadam", "feddyn"):
        with pytest.raises(UserFault, match="whose server takes the mean"):
            tiny(method=method, server={"rule": "mean", "secure": "masks"})
        with pytest.raises(UserFault, match="whose server has a rule of its own"):
            tiny(method=method, server={"rule": "median"})


def lost(value: float) -> dict[str, Tensors]:
    return {"extras": {"loss": torch.tensor([value])}}


def test_drflm_s_weights_follow_the_losses_from_round_to_round_and_stay_when_a_site_is_away() -> None:
    rule, config = methods.get("drflm").rule, tiny(method="drflm", own={"eta": 2.0})
    each = {"a": moved_by(0.0, samples=3, **lost(0.5)), "b": moved_by(1.0, **lost(1.0))}
    once = rule(start(0.0), each, config)
    odds = 1 / 3 * math.exp(2 * 0.5)  # of b against a
    assert once.shared["w"].item() == pytest.approx(odds / (1 + odds))
    twice = rule(once, each, config)
    again = odds * math.exp(2 * 0.5)
    assert (twice.shared["w"] - once.shared["w"]).item() == pytest.approx(again / (1 + again))
    away = rule(twice, {"a": moved_by(1.0, **lost(7.0))}, config)
    assert away.memory["lambda/b"].item() == pytest.approx(again / (1 + again))
    still = rule(start(0.0), each, tiny(method="drflm", own={"eta": 0.0}))
    assert still.shared["w"].item() == pytest.approx(0.25)


def test_a_site_that_joins_drflm_late_weighs_as_much_as_its_equals() -> None:
    rule, config, state = methods.get("drflm").rule, tiny(method="drflm"), start(0.0)
    for sites in ("ab", "abc", "d"):
        state = rule(state, {site: moved_by(0.0, **lost(0.5)) for site in sites}, config)
    assert {key: weight.item() for key, weight in state.memory.items()} == pytest.approx(
        {f"lambda/{site}": 1 / 4 for site in "abcd"}
    )


def test_a_site_in_drflm_that_claims_a_huge_loss_gets_no_more_than_the_largest_share() -> None:
    rule, config = methods.get("drflm").rule, tiny(method="drflm", own={"eta": 10.0})
    each = {name: moved_by(0.0, **lost(0.5)) for name in "abc"} | {"z": moved_by(1.0, **lost(1e9))}
    assert rule(start(0.0), each, config).shared["w"].item() == pytest.approx(1.5 / 4)


def test_a_site_in_drflm_that_always_claims_the_largest_loss_owns_no_round_of_a_long_run() -> None:
    rule, config = methods.get("drflm").rule, tiny(method="drflm", server={"most_share": 1.5})
    each = {name: moved_by(0.0, **lost(0.5)) for name in "abc"} | {"z": moved_by(1.0, **lost(10.0))}
    state, moves = start(0.0), []
    for _ in range(30):
        after = rule(state, each, config)
        moves.append((after.shared["w"] - state.shared["w"]).item())
        state = after
    assert moves == pytest.approx([1.5 / 4] * 30, abs=1e-5)
    assert min(float(weight) for weight in state.memory.values()) > 0.2
    alone = {name: each[name] for name in "az"}
    last = rule(replace(state, sites=4), alone, config).shared["w"] - state.shared["w"]
    assert last.item() == pytest.approx(0.5)  # two answers of a run of four


def test_a_lambda_in_drflm_never_falls_so_low_that_it_cannot_rise() -> None:
    rule, config = methods.get("drflm").rule, tiny(method="drflm", own={"eta": 10.0})
    low, state = {"a": moved_by(0.0, **lost(0.0)), "b": moved_by(0.0, **lost(10.0))}, start(0.0)
    for _ in range(5):
        state = rule(state, low, config)
    assert state.memory["lambda/a"].item() == pytest.approx(0.005, rel=0.01)


def test_a_site_in_drflm_tells_its_mean_loss(open_site) -> None:
    site = open_site(tiny(method="drflm"))
    site.receive(initial_shared(site.config)[0])
    update = site.train(0, 1)
    assert extras_of(update.wire)["loss"].item() == pytest.approx(update.report.losses["global"])


def test_drflm_mixes_images_and_masks_alike(open_site) -> None:
    config = tiny(method="drflm", own={"mix": 0.5})
    site = open_site(config)
    batch = site.data["train"].batch([View(0), View(1), View(2)])
    torch.manual_seed(4)
    found = drflm.losses(site.model, batch, config)["global"].item()
    torch.manual_seed(4)
    share = 1 - 0.5 * torch.rand(()).item()
    assert 0.5 < share < 0.95
    order = [2, 0, 1]
    images = torch.stack([share * batch.image[i] + (1 - share) * batch.image[j] for i, j in enumerate(order)])
    whole = [replace(batch, image=images, label=label) for label in (batch.label, batch.label[order])]
    parts = [fedavg.losses(site.model, one, config)["global"].item() for one in whole]
    assert found == pytest.approx(share * parts[0] + (1 - share) * parts[1], rel=1e-5)
    plain = drflm.losses(site.model, batch, tiny(method="drflm", own={"mix": 0.0}))["global"].item()
    assert plain == fedavg.losses(site.model, batch, config)["global"].item()
