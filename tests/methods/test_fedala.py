"""FedALA: what a site learns of how far it follows the server, by hand and in its rounds."""

import torch

from conftest import tiny
from pfedsam.exchange.store import Moment
from pfedsam.methods import fedala
from pfedsam.site import Site
from pfedsam.study import initial_shared

OWN = {"first": 2, "rate": 1e4}


def opened(open_site, rounds: int, *, own: dict | None = None) -> tuple[Site, dict[str, torch.Tensor], dict]:
    """A site that has received some rounds' models, each far from its own, and trained in all but the last."""
    config = tiny(method="fedala", own=own or OWN)
    site = open_site(config)
    shared = initial_shared(config)[0]
    generator = torch.Generator().manual_seed(1)
    for round_ in range(rounds):
        site.receive(shared, Moment("run", round_), trained=round_ > 0)
        if round_ < rounds - 1:
            wire = site.train(round_, 9).wire
            noise = {n: torch.randn(t.shape, generator=generator) for n, t in shared.items()}
            shared = {n: t + wire[n] + noise[n] * wire[n].abs().mean() for n, t in shared.items()}
    return site, shared, fedala.below(fedala.WEIGHT, site.model.received)


def test_w_is_learned_on_the_site_s_images_by_the_gradient_at_the_mix(open_site) -> None:
    """One pass of one batch, against the update written out on a site that learned nothing."""
    one = {"first": 1, "rate": 1e4, "share": 1.0}
    site, shared, learned = opened(open_site, 2, own=one)
    mine = {n.split(".", 2)[2]: t for n, t in site.private().items()}
    batches = list(fedala.drawn(site.data["train"], site.config, torch.Generator(), passes=1))
    assert [len(batch.image) for batch in batches] == [4, 2]
    weights = {name: torch.ones_like(t) for name, t in shared.items()}
    ways = {name: shared[name] - mine[name] for name in shared}
    live = dict(site.model["global"].named_parameters())
    generator = torch.Generator().manual_seed(fedala.seed_of("0/site-1/1"))
    for batch in fedala.drawn(site.data["train"], site.config, generator, passes=1):
        for name, w in weights.items():
            live[name].data.copy_(mine[name] + ways[name] * w)
        site.model.zero_grad()
        sum(fedala.fedavg.losses(site.model, batch, site.config).values()).backward()
        weights = {n: (w - 1e4 * live[n].grad * ways[n]).clamp(0, 1) for n, w in weights.items()}
    assert all(torch.allclose(weights[n], w, atol=1e-4) for n, w in learned.items())
    assert any(bool(((w > 0) & (w < 1)).any()) for w in learned.values())


def test_a_round_begins_between_the_site_s_own_model_and_the_received_one(open_site) -> None:
    site, shared, weights = opened(open_site, 2)
    mine = {n.split(".", 2)[2]: t for n, t in site.private().items()}
    for name, tensor in site.shared().items():
        assert torch.allclose(tensor, mine[name] + (shared[name] - mine[name]) * weights[name], atol=1e-6)
    assert any(not torch.equal(tensor, shared[name]) for name, tensor in site.shared().items())
    site.train(1, 9)
    trained = site.shared()
    assert all(torch.equal(t, trained[n.split(".", 2)[2]]) for n, t in site.private().items())
    site.recall(shared, Moment("run", 10), trained=True)
    assert all(torch.equal(tensor, shared[name]) for name, tensor in site.shared().items())
    assert all(torch.equal(t, trained[n.split(".", 2)[2]]) for n, t in site.private().items())


def test_w_stays_at_the_site_from_round_to_round_and_a_repeated_round_learns_the_same(open_site) -> None:
    site, shared, third = opened(open_site, 3)
    stored, _ = site.store.load(Moment("run", 2), trained=True)
    second = {n.removeprefix("memory/weight/"): t for n, t in stored.items() if n.startswith("memory/weight/")}
    assert any(bool((w == 0).any()) for w in second.values())
    assert any(not torch.equal(second[name], w) for name, w in third.items())
    again = open_site(site.config)
    again.receive(shared, Moment("run", 2), trained=True)
    assert all(torch.equal(again.model.received["weight/" + name], w) for name, w in third.items())
    slow = tiny(method="fedala", own=OWN | {"rate": 1e-9})  # a site that began again at ones would stay there
    fedala.merge(again.model, slow, again._use(lambda _: 0.5, shared, stored))
    assert all(torch.allclose(again.model.received["weight/" + name], w, atol=1e-6) for name, w in second.items())


def test_the_first_round_takes_the_received_model(open_site) -> None:
    site, shared, weights = opened(open_site, 1)
    assert all(torch.equal(tensor, shared[name]) for name, tensor in site.shared().items())
    assert all(bool((w == 1).all()) for w in weights.values())
