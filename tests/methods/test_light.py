"""A light model that SAM teaches: what travels is the light model alone, and both learn from each other."""

from collections.abc import Callable

import pytest
import torch

from conftest import tiny
from pfedsam.data.dataset import PLAIN, View
from pfedsam.exchange.schema import size_of
from pfedsam.model.partition import Kind, kinds
from pfedsam.site import Site
from pfedsam.study import initial_shared, private_schema, shared_schema

Open = Callable[..., Site]


def test_the_light_model_alone_travels_and_starts_alike_everywhere(open_site: Open) -> None:
    config = tiny(method="dsfedmed")
    shared, _ = initial_shared(config)
    site = open_site(config)
    assert {kinds(site.model)[f"branch.global.{name}"] for name in shared} == {Kind.LIGHT}
    assert all(torch.equal(tensor, shared[name]) for name, tensor in site.shared().items())
    assert all(name.startswith("branch.sam.") for name in private_schema(config))
    assert size_of(shared_schema(config)) == 4 * 496_193


def test_each_model_gets_a_gradient_from_what_the_other_says_and_none_through_it(open_site: Open) -> None:
    site = open_site(tiny(method="dsfedmed", own={"distill_weight": 0.5}))
    batch = site.data["train"].batch([View(0, PLAIN)])
    for own in ("global", "sam"):
        site.model.zero_grad()
        site.method.loss(site.model, batch, site.config)[own].backward()
        assert {name.split(".")[1] for name, p in site.model.named_parameters() if p.grad is not None} == {own}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_images_without_labels_teach_by_distillation_alone(open_site: Open, weight: float) -> None:
    config = tiny(
        method="dsfedmed", own={"distill_weight": weight}, data={"unlabelled": {"site-1": 1.0}}, train={"max_steps": 1}
    )
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    losses = site.train(0, 1).report.losses
    assert (losses["global"] > 0) == (losses["sam"] > 0) == (weight > 0)
