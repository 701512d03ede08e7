"""pFedSAM's own loss."""

from conftest import tiny
from pfedsam.data.dataset import View


def test_a_class_that_a_site_does_not_annotate_is_not_distilled_either(open_site) -> None:
    config = tiny(model={"num_classes": 2}, data={"unannotated": {"site-1": [2]}}, train={"distill_weight": 0.5})
    site = open_site(config)
    batch = site.data["train"].batch([View(0, 0), View(1, 0)])
    site.model["personal"].decoder.head.conv.bias.data[1] += 1  # so that there would be something to learn
    sum(site.method.loss(site.model, batch, config).values()).backward()
    for role in ("global", "personal"):
        first, second = site.model[role].decoder.head.conv.bias.grad
        assert first != 0
        assert second == 0
