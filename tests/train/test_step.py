"""The step, and on a GPU its recording."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from conftest import NEEDS, tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.dataset import Batch, View
from pfedsam.errors import UserFault
from pfedsam.model.moe import LocalMoE, statistics
from pfedsam.model.partition import Kind, Part, kinds
from pfedsam.model.segmenter import Branches
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.train.evaluate import find_masks, reference
from pfedsam.train.loop import make_optimisers
from pfedsam.train.metrics import score
from pfedsam.train.step import Losses, step

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
Open = Callable[[Config], Site]


def test_an_expert_that_no_image_chose_is_stepped_with_a_gradient_of_zero(open_site: Open) -> None:
    """As on a GPU, where all experts are run: AdamW then counts the step, and its momentum goes on."""
    site = open_site(tiny(model={"experts": 4, "top_k": 1}))
    site.receive(initial_shared(site.config)[0])
    site.model.train()
    optimisers = make_optimisers(site.model, site.part, site.config.train)
    batch = site.data["train"].batch([View(0)])
    step(site.model, batch, optimisers.values(), site.method.loss, site.config)
    state = optimisers[Part.PRIVATE].state
    kind, followed = kinds(site.model), statistics(site.model)
    named = [(name, p) for name, p in site.model.named_parameters() if id(p) not in followed]
    experts = [p for name, p in named if kind[name] is Kind.EXPERT]
    assert any(not p.grad.any() for p in experts)
    assert {int(state[p]["step"]) for p in experts} == {1}


def test_losses_come_without_a_gradient_and_are_what_was_minimised(open_site: Open) -> None:
    site = open_site(tiny())
    site.receive(initial_shared(site.config)[0])
    losses = step(site.model, site.data["train"].batch([View(0)]), [], site.method.loss, site.config)
    assert losses.keys() == {"global", "personal", "balance"}
    assert not any(value.requires_grad for value in losses.values())


def test_a_method_may_act_between_the_gradient_and_the_optimisers_and_after_them(open_site: Open) -> None:
    site, seen = open_site(tiny()), []
    site.receive(initial_shared(site.config)[0])
    optimisers = make_optimisers(site.model, site.part, site.config.train).values()
    name, start = next(iter(site.shared().items()))

    def spy(model: Branches, _config: Config) -> None:
        p = dict(model["global"].named_parameters())[name]
        seen.append((p.grad is not None, torch.equal(p, start)))

    step(
        site.model,
        site.data["train"].batch([View(0)]),
        optimisers,
        site.method.loss,
        site.config,
        gradient=spy,
        stepped=spy,
    )
    assert seen == [(True, True), (True, False)]


def test_a_site_calls_both_in_each_step(open_site: Open) -> None:
    site, seen = open_site(tiny()), []
    hooks = {name: lambda *_, name=name: seen.append(name) for name in ("gradient", "stepped")}
    site.method = replace(site.method, **hooks)
    site.receive(initial_shared(site.config)[0])
    site.train(0, 1)
    assert seen == ["gradient", "stepped"] * 2


def test_after_a_step_nothing_of_its_graph_is_kept(open_site: Open) -> None:
    """What L-MoEs keep for the balance term would hold all activations until the next step."""
    site = open_site(tiny())
    site.receive(initial_shared(site.config)[0])
    site.model.train()
    layers = [m for m in site.model.modules() if isinstance(m, LocalMoE)]
    kept: list[weakref.ref[torch.Tensor]] = []

    def loss(model: Branches, batch: Batch, config: Config) -> Losses:
        losses = site.method.loss(model, batch, config)
        kept.extend(weakref.ref(layer.balance) for layer in layers)
        assert all(layer.balance.grad_fn is not None for layer in layers)
        return losses

    step(site.model, site.data["train"].batch([View(0)]), [], loss, site.config)
    assert len(kept) == len(layers) > 0
    assert all(of() is None for of in kept)
    assert all(layer.balance.grad_fn is None for layer in layers)


def test_a_step_is_not_recorded_unless_asked_for() -> None:
    assert not from_dict({}).train.record


def test_cases_pooled_into_large_passes_are_scored_as_case_by_case(
    trained_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, sizes = trained_site, []
    data, forward = site.data["test"], site.model.forward

    def counted(images: torch.Tensor, *args: object, **options: object) -> dict[str, torch.Tensor]:
        sizes.append(len(images))
        return forward(images, *args, **options)

    monkeypatch.setattr(site.model, "forward", counted)
    together = [one.dice for one in site.scores("test")["personal"]]
    assert sizes == [3]
    alone = [find_masks(site.model, data, case, ("personal",))["personal"] for case in data.cases()]
    expected = [score(found[..., 0], reference(data, i))[0].dice for i, found in enumerate(alone)]
    assert any(0 < dice < 1 for dice in together)
    assert together == pytest.approx(expected, abs=1e-4)


def test_on_a_cpu_a_step_is_taken_as_it_stands(open_site: Open) -> None:
    recorded, plain = open_site(tiny(train={"record": True})), open_site(tiny(study="plain"))
    if next(recorded.model.parameters()).is_cuda:
        pytest.skip("a GPU records")
    for site in (recorded, plain):
        site.receive(initial_shared(site.config)[0])
        site.train(0, 1)
    assert all(torch.equal(a, plain.shared()[name]) for name, a in recorded.shared().items())


def trained(open_site: Open, method: str, record: bool) -> tuple[Site, dict[str, float]]:
    """Two rounds with rates that rise and fall, a short batch at each epoch's end, and without noise; the losses."""
    train = {"record": record, "batch_size": 4, "epochs": 4, "max_steps": None, "warmup": 2, "schedule": "cosine"}
    config = tiny(study=f"record-{record}", method=method, train=train, model=NEEDS.get(method, {}))
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    return site, [site.train(round_, 3).report.losses for round_ in range(2)][-1]


@gpu
@pytest.mark.parametrize("method", [name for name in methods.names() if not methods.get(name).prompts])
def test_a_recorded_round_does_what_the_round_does(open_site: Open, method: str) -> None:
    (site, came), (other, expected) = (trained(open_site, method, record) for record in (True, False))
    assert came == pytest.approx(expected, rel=1e-2, abs=1e-6)
    pairs = zip(site.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


@gpu
def test_cases_are_scored_alike_together_and_alone(open_site: Open) -> None:
    site, _ = trained(open_site, "pfedsam", True)
    data = site.data["test"]
    together = [one.dice for one in site.scores("test")["personal"]]
    alone = []
    for case in data.cases():
        found = find_masks(site.model, data, case, ("personal",))["personal"][..., 0]
        alone += [score(found, reference(data, case[0]), (1.0, 1.0))[0].dice]
    assert together == pytest.approx(alone, abs=1e-2)


@gpu
def test_a_method_that_asks_the_gpu_for_a_value_is_told_in_a_line(open_site: Open) -> None:
    site = open_site(tiny(train={"batch_size": 2, "record": True}))
    site.receive(initial_shared(site.config)[0])

    loss = site.method.loss

    def asks(model, batch, config):
        losses = loss(model, batch, config)
        return losses | {"asked": losses["global"] * losses["global"].item()}

    site.method = replace(site.method, loss=asks)
    with pytest.raises(UserFault, match=r"train\.record false"):
        site.train(0, 1)
