"""The step, and on a GPU its recording."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.dataset import Dataset, View
from pfedsam.errors import UserFault
from pfedsam.model.partition import Kind, Part, kinds
from pfedsam.site import Site, initial_shared
from pfedsam.train.loop import make_optimisers
from pfedsam.train.step import Steps, step

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
Open = Callable[[Config], Site]


def test_an_expert_that_no_image_chose_is_stepped_with_a_gradient_of_zero(open_site: Open) -> None:
    """As on a GPU, where all experts are run: AdamW then counts the step, and its momentum goes on."""
    site = open_site(tiny(model={"experts": 4, "top_k": 1, "gate_noise": False}))
    site.receive(initial_shared(site.config)[0])
    site.model.train()
    optimisers = make_optimisers(site.model, site.part, site.config.train)
    batch = site.data["train"].batch([View(0)])
    step(site.model, batch, optimisers.values(), site.method.loss, site.config)
    state = optimisers[Part.PRIVATE].state
    experts = [p for name, p in site.model.named_parameters() if kinds(site.model)[name] is Kind.EXPERT]
    assert any(not p.grad.any() for p in experts)
    assert {int(state[p]["step"]) for p in experts} == {1}


def test_losses_come_without_a_gradient_and_are_what_was_minimised(open_site: Open) -> None:
    site = open_site(tiny())
    site.receive(initial_shared(site.config)[0])
    losses = step(site.model, site.data["train"].batch([View(0)]), [], site.method.loss, site.config)
    assert losses.keys() == {"global", "personal", "balance"}
    assert not any(value.requires_grad for value in losses.values())


def test_on_a_cpu_a_step_is_taken_as_it_stands(open_site: Open) -> None:
    recorded, plain = open_site(tiny()), open_site(tiny(study="plain", train={"record": False}))
    if next(recorded.model.parameters()).is_cuda:
        pytest.skip("a GPU records")
    for site in (recorded, plain):
        site.receive(initial_shared(site.config)[0])
        site.train(0, 1)
    assert all(torch.equal(a, plain.shared()[name]) for name, a in recorded.shared().items())


def trained(open_site: Open, method: str, record: bool) -> tuple[list[dict[str, float]], Site]:
    """Losses of a few steps, the last batch a short one, with the same batches and no noise."""
    train = {"record": record, "lr": 1e-3, "batch_size": 2, "precision": "fp32"}
    norms = {"backbone": "tiny_vit", "pretrained": False} if method == "fedbn" else {}
    config = tiny(study=f"record-{record}", method=method, train=train, model={"gate_noise": False, **norms})
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    site.model.train()
    take, optimisers = Steps(site.model, site.method.loss, config), make_optimisers(site.model, site.part, config.train)
    losses = []
    with take.stream():
        for views in [[View(i % 6), View((i + 1) % 6)] for i in range(5)] + [[View(3)], [View(1), View(4)]]:
            batch = Dataset.batch(site.data["train"], views)
            found = take(batch, {which: o for which, o in optimisers.items() if which in site.method.phase(0.0)})
            losses.append({name: value.item() for name, value in found.items()})
    return losses, site


@gpu
@pytest.mark.parametrize("method", methods.names())
def test_a_recorded_step_does_what_the_step_does(open_site: Open, method: str) -> None:
    (came, site), (expected, other) = (trained(open_site, method, record) for record in (True, False))
    for one, two in zip(came, expected, strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-6)
    pairs = zip(site.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


@gpu
def test_a_method_that_asks_the_gpu_for_a_value_is_told_in_a_line(open_site: Open) -> None:
    site = open_site(tiny(train={"batch_size": 2}))
    site.receive(initial_shared(site.config)[0])

    loss = site.method.loss

    def asks(model, batch, config):
        losses = loss(model, batch, config)
        return losses | {"asked": losses["global"] * losses["global"].item()}

    site.method = replace(site.method, loss=asks)
    with pytest.raises(UserFault, match=r"train\.record false"):
        site.train(0, 1)
