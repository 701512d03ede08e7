"""pFedSAM's own loss, and what it is without experts."""

import pytest

from conftest import after_a_round, tiny
from pfedsam.data.dataset import View
from pfedsam.errors import UserFault
from pfedsam.model.partition import DECODER, Kind, kinds
from pfedsam.study import shared_schema

OWN_DECODER = {"reading": "R3", "distill_weight": 0.5}


def test_a_class_that_a_site_does_not_annotate_is_taught_by_the_global_branch_alone(open_site) -> None:
    """The other sites know it; the personal branch has it from nobody else."""
    config = tiny(model={"num_classes": 2}, data={"unannotated": {"site-1": [2]}}, own=OWN_DECODER)
    site = open_site(config)
    batch = site.data["train"].batch([View(0, 0), View(1, 0)])
    site.model["personal"].decoder.head.conv.bias.data[1] += 1  # so that there would be something to learn
    sum(site.method.loss(site.model, batch, config).values()).backward()
    for role, taught in (("global", False), ("personal", True)):
        first, second = site.model[role].decoder.head.conv.bias.grad
        assert first != 0
        assert (second != 0) == taught


def test_without_experts_a_site_keeps_its_own_lora_and_decoder_and_sends_what_it_sends_with_them(open_site) -> None:
    config = tiny(model={"experts": 0, "experts_rank": 0}, own={"reading": "R3"})
    site = after_a_round(open_site, config)
    private = {kinds(site.model)[name] for name in site.private()}
    assert private == {Kind.LORA_A, Kind.LORA_B} | DECODER
    assert shared_schema(config) == shared_schema(tiny())


@pytest.mark.parametrize("changes", [{"own": {"reading": "R2"}}, {"method": "newcomer"}])
def test_where_experts_alone_are_a_site_s_own_there_must_be_some(changes: dict[str, object]) -> None:
    with pytest.raises(UserFault, match=r"model\.experts or model\.experts_rank of 1 or more"):
        shared_schema(tiny(model={"experts": 0, "experts_rank": 0}, **changes))
