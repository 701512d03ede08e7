"""What a method may use and change at a site, apart from any single method."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import tiny
from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Budget
from pfedsam.study import initial_shared
from pfedsam.tensors import not_finite


def test_a_site_sends_of_its_update_what_its_method_lets_leave(open_site) -> None:
    wires = []
    for half in (False, True):
        site = open_site(tiny(method="fedavg", study=f"half-{half}"))
        if half:
            keep = lambda _model, _config, update: {name: tensor * 0.5 for name, tensor in update.items()}  # noqa: E731
            site.method = replace(site.method, sends=keep)
        site.receive(initial_shared(site.config)[0])
        wires.append(site.train(0, 1).wire)
    assert any(tensor.any() for tensor in wires[0].values())
    assert all(torch.equal(wires[1][name], 0.5 * tensor) for name, tensor in wires[0].items())


def test_a_method_knows_its_site_and_noise_that_repeats_for_one_purpose_and_site_alone(open_site) -> None:
    seen = []
    for name in ("site-1", "site-2", "site-1"):
        site = open_site(tiny(method="fedavg"), name)
        site.method = replace(site.method, merge=lambda _model, _config, here: seen.append(here))
        site.receive(initial_shared(site.config)[0])
    assert [here.name for here in seen] == ["site-1", "site-2", "site-1"]
    drawn = [here.noise("sketch").normal(torch.zeros(100)) for here in seen]
    assert not_finite(dict(zip("abc", drawn, strict=True))) is None
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], seen[0].noise("other").normal(torch.zeros(100)))


def test_noise_spends_nothing_of_the_budget_and_keeps_what_was_spent(tmp_path: Path) -> None:
    budget = Budget(tmp_path, "site-1")
    first = budget.noise("x").uniform(3).tolist()
    assert budget.spent().rounds == ()
    secret = budget.spent().secret
    assert Budget(tmp_path, "site-1").noise("x").uniform(3).tolist() == first
    assert budget.spent().secret == secret


def test_a_method_that_learns_from_images_while_it_merges_does_not_go_with_privacy(monkeypatch) -> None:
    looking = replace(methods.get("fedavg"), looks=True)
    assert tiny(method="fedavg", privacy={"unit": "patient"}, model={"experts": 0}).method == "fedavg"
    monkeypatch.setattr(methods, "get", lambda _: looking)
    with pytest.raises(UserFault, match=r"with privacy\.unit patient or site; came fedavg"):
        tiny(method="fedavg", privacy={"unit": "patient"}, model={"experts": 0})


def test_a_site_whose_updates_are_zero_does_not_send_noise_alone() -> None:
    with pytest.raises(UserFault, match=r"sites send something, with privacy\.unit site; came newcomer"):
        tiny(method="newcomer", privacy={"unit": "site"})


def test_a_method_that_shares_nothing_spends_no_budget_to_hide_a_site() -> None:
    with pytest.raises(UserFault, match=r"sites send something, with privacy\.unit site; came local"):
        tiny(method="local", privacy={"unit": "site"})
    assert tiny(method="fedavg", privacy={"unit": "site"}).privacy.unit == "site"


def test_the_embeddings_are_what_the_branches_decode(open_site) -> None:
    site = open_site(tiny(method="ditto"))
    image = torch.rand(2, 3, 64, 64)
    found = site.model.embeddings(image)
    logits = site.model(image)
    assert list(found) == ["global", "personal"]
    assert all(torch.equal(site.model[name].decode(one), logits[name]) for name, one in found.items())
