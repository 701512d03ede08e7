import pytest
import torch
from torch import Tensor, nn

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.model import build
from pfedsam.model.lora import loras
from pfedsam.model.segmenter import Branches


def built(config: Config) -> Branches:
    """pFedSAM's two branches, every LoRA away from zero."""
    method = methods.get("pfedsam")
    parts = build.backbone(config.model, read=False)
    model = method.model(parts, config)
    method.partition(model, config)
    for lora in loras(model):
        nn.init.normal_(lora.b.weight, std=0.1)
    return model


def gradients(model: Branches, logits: dict[str, Tensor]) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = torch.stack([maps.square().mean() for maps in logits.values()]).sum()
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


@pytest.mark.parametrize("backbone", ["demo", "tiny_vit"])
@pytest.mark.parametrize(("reading", "decoder"), [("R3", "full"), ("R2", "full"), ("R2", "lora"), ("post", "full")])
def test_branches_side_by_side_equal_branches_in_turn(backbone: str, reading: str, decoder: str) -> None:
    settings = {"backbone": backbone, "image_size": 96, "decoder": decoder, "experts_in": "all"}
    model = built(tiny(own={"reading": reading}, model=settings)).eval()
    assert model._one_decoder == (reading == "R2")
    image = torch.randn(2, 3, 96, 96)
    together = model(image)
    alone = {name: model(image, (name,))[name] for name in model.names()}
    assert not torch.allclose(alone["global"], alone["personal"], atol=1e-3)
    assert all(torch.allclose(together[name], alone[name], atol=1e-5) for name in alone)
    fast, slow = gradients(model, together), gradients(model, alone)
    assert fast.keys() == slow.keys()
    noise = 1e-9  # the gradient of a key's bias is zero but for rounding
    assert all((fast[n] - slow[n]).norm() <= 1e-4 * slow[n].norm() + noise for n in slow)


def test_branches_on_bases_of_their_own_run_in_turn() -> None:
    model = built(tiny())
    other = built(tiny())
    both = Branches(**{"global": model["global"], "personal": other["personal"]}).eval()
    image = torch.randn(1, 3, 64, 64)
    alone = other.eval()(image, ("personal",))["personal"]
    assert torch.allclose(both(image)["personal"], alone, atol=1e-5)
