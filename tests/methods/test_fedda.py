"""FedDA: a discriminator that stays at its site, and an encoder that learns against it."""

import pytest
import torch

from conftest import tiny
from pfedsam.data.dataset import View
from pfedsam.exchange.store import Moment
from pfedsam.methods import fedda
from pfedsam.study import initial_shared, private_schema, shared_schema


def test_a_turned_gradient_is_the_plain_one_turned_round_and_weighed() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    found = fedda.turned(x, 0.25)
    assert torch.allclose(found, x)
    (found * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([-0.75, -1.25])


def test_the_discriminator_s_loss_is_the_cross_entropy_of_its_two_answers() -> None:
    own, there = torch.tensor([2.0, -1.0]), torch.tensor([0.5])
    expected = -(torch.sigmoid(own).log().mean() + (1 - torch.sigmoid(there)).log().mean()) / 2
    assert fedda.told_apart(own, there).item() == pytest.approx(expected.item())


def gradients(open_site, weight: float, *, plain: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The discriminator's loss's gradient in the discriminator's first layer and in the encoder's LoRA."""
    torch.manual_seed(0)
    site = open_site(tiny(method="fedda", own={"weight": weight}))
    shared = initial_shared(site.config)[0]
    site.receive({name: tensor + 0.01 for name, tensor in shared.items()})
    with torch.no_grad():  # as after some steps
        for name, p in site.model["global"].named_parameters():
            if name in shared:
                p.copy_(shared[name] - 0.02)
    batch = site.data["train"].batch([View(0), View(1)])
    if plain:
        own, there = (site.model.embeddings(batch.image)[name] for name in ("global", "received"))
        fedda.told_apart(site.model.aside.net(own), site.model.aside.net(there)).backward()
    else:
        fedda.losses(site.model, batch, site.config)["told"].backward()
    lora = next(p for n, p in site.model["global"].named_parameters() if n.endswith(".lora.b.weight"))
    return site.model.aside.net[0].weight.grad, lora.grad


def test_the_encoder_climbs_where_the_discriminator_descends(open_site) -> None:
    (judge, encoder), (same, half) = gradients(open_site, 1.0), gradients(open_site, 0.5)
    assert judge.any()
    assert torch.allclose(judge, same)
    assert torch.allclose(half, encoder / 2, rtol=1e-3, atol=1e-8)
    _, plain = gradients(open_site, 1.0, plain=True)  # not turned round
    assert torch.allclose(plain, -encoder, rtol=1e-3, atol=1e-8)


def test_the_discriminator_stays_at_its_site_and_goes_on_from_round_to_round(open_site) -> None:
    config = tiny(method="fedda")
    assert shared_schema(config) == shared_schema(tiny(method="fedavg"))
    assert {name.split(".")[0] for name in private_schema(config)} == {"aside"}
    site, shared = open_site(config), initial_shared(config)[0]
    site.receive(shared, Moment("run", 0))
    drawn = site.private()["aside.net.0.weight"].clone()
    site.train(0, 2)
    trained = site.private()["aside.net.0.weight"].clone()
    assert not torch.equal(trained, drawn)
    other = open_site(config)
    arrived = {name: tensor + 0.001 for name, tensor in shared.items()}
    other.receive(arrived, Moment("run", 1), trained=True)
    assert torch.equal(other.private()["aside.net.0.weight"], trained)
    beside = dict(other.model["received"].named_parameters())
    assert all(torch.equal(beside[name], tensor) for name, tensor in arrived.items())
    other.train(1, 2)
    assert all(torch.equal(beside[name], tensor) for name, tensor in arrived.items())  # it is not trained
