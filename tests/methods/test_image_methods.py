"""What makes each method that changes images or features that method and no other."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from conftest import tiny
from pfedsam.data.dataset import View
from pfedsam.errors import UserFault
from pfedsam.methods import cpss, gin
from pfedsam.methods.base import Here
from pfedsam.site_faults import require_fresh_views

SEED = 3


def drawn(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image() -> torch.Tensor:
    return torch.rand(3, 24, 20, generator=drawn(1))


def same(image: torch.Tensor, mask: torch.Tensor, _view: View) -> tuple[torch.Tensor, torch.Tensor]:
    return image, mask


def test_gin_s_network_is_four_convolutions_with_two_hidden_channels_written_out() -> None:
    """Pixel by pixel, with weights drawn in the same order."""
    found = gin.network(image(), drawn(), gin.Settings())
    draw, x, sides = drawn(), image(), []
    for layer, (into, out) in enumerate(((3, 2), (2, 2), (2, 2), (2, 3))):
        side = 1 + 2 * int(torch.randint(2, (), generator=draw))
        weight = torch.randn(out, into, side, side, generator=draw)
        wide = F.pad(torch.where(x > 0, x, 0.01 * x) if layer else x, (side // 2,) * 4)
        places = wide.unfold(1, side, 1).unfold(2, side, 1)  # (into, H, W, side, side)
        x = torch.einsum("oiab,ihwab->ohw", weight, places)
        sides.append(side)
    assert set(sides) == {1, 3}
    assert torch.allclose(found, x, rtol=1e-4, atol=1e-4)


def test_a_blend_has_the_image_s_own_norm_and_alpha_says_how_much_of_it_is_new() -> None:
    old, new = image(), torch.randn(3, 24, 20, generator=drawn())
    for alpha in (0.0, 0.3, 1.0):
        found = gin.blended(old, new, alpha)
        assert found.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)
        assert torch.cosine_similarity(found.flatten(), (alpha * new + (1 - alpha) * old).flatten(), dim=0) > 0.9999
    assert torch.allclose(gin.blended(old, new, 0.0), old)
    assert not gin.blended(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), 0.5).any()


@pytest.mark.parametrize("form", gin.FORMS)
def test_a_view_is_restyled_alike_each_time_and_its_mask_is_not(form: str) -> None:
    config = tiny(method="gin", own={"form": form})
    mask = torch.ones(24, 20)
    apply, other = (gin.augment(same, config, Here(seed=seed)) for seed in (SEED, SEED + 1))
    one, kept = apply(image(), mask, View(2, 5))
    assert kept is mask
    assert torch.equal(one, apply(image(), mask, View(2, 5))[0])
    assert 0 <= one.min() < one.max() <= 1
    for elsewhere in (
        apply(image(), mask, View(2, 6)),
        apply(image(), mask, View(3, 5)),
        other(image(), mask, View(2, 5)),
    ):
        assert not torch.equal(one, elsewhere[0])


def test_another_process_restyles_a_view_to_the_same_bits() -> None:
    code = (
        "import torch; torch.set_num_threads(1); torch.rand(9);"
        "from conftest import tiny; from pfedsam.methods import gin; from pfedsam.methods.base import Here;"
        "from pfedsam.data.dataset import View; from pfedsam.files import digest;"
        "image = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(1));"
        "apply = gin.augment(lambda image, mask, view: (image, mask), tiny(method='gin'), Here(seed=3));"
        "print(digest({'it': apply(image, image, View(2, 5))[0]}))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="tests")
    from pfedsam.files import digest

    apply = gin.augment(same, tiny(method="gin"), Here(seed=SEED))
    assert told.stdout.strip() == digest({"it": apply(image(), image(), View(2, 5))[0]})


def test_the_amplitude_keeps_phases_and_the_intensity_keeps_the_picture_up_to_scale() -> None:
    old = image()
    new = gin.amplitude(old, drawn(), gin.Settings())
    ratio = torch.fft.rfft2(new)[:, 1:, 1:-1] / torch.fft.rfft2(old)[:, 1:, 1:-1]
    assert ratio.imag.abs().max() < 1e-3
    assert 0 <= ratio.real.min() < 0.2 < 1.8 < ratio.real.max() <= 2.001
    flat = gin.intensity(old, drawn(), gin.Settings())
    for channel, was in zip(flat, old, strict=True):
        assert torch.corrcoef(torch.stack([channel.flatten(), was.flatten()]))[0, 1] > 0.9999
        assert 0.49 < channel.std() / was.std() < 1.51


def test_gin_without_views_to_change_is_fedavg_s_augmentation_and_without_augmentation_nothing() -> None:
    none = gin.augment(same, tiny(method="gin", own={"share": 0.0}), Here(seed=SEED))
    assert torch.equal(none(image(), image(), View(0, 0))[0], image())
    assert gin.augment(None, tiny(method="gin"), Here()) is None


def test_a_patch_that_swaps_has_its_own_content_in_its_partner_s_style() -> None:
    """Patch by patch and channel by channel, against AdaIN written out."""
    maps = torch.randn(2, 3, 8, 4, generator=drawn()) * 3 + 1
    partner, swaps = torch.randperm(8, generator=drawn()), torch.rand(8, generator=drawn()) < 0.7
    found = cpss.swapped(maps, 2, partner, swaps)

    def patch(of: torch.Tensor, i: int, channel: int) -> torch.Tensor:
        image, row, column = i // 4, i // 2 % 2, i % 2
        return of[image, channel, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]

    for i in range(8):
        for channel in range(3):
            own, other = patch(maps, i, channel), patch(maps, int(partner[i]), channel)
            styled = (own - own.mean()) / own.std(correction=0) * other.std(correction=0) + other.mean()
            assert torch.allclose(patch(found, i, channel), styled if swaps[i] else own, atol=1e-3)


def test_a_flat_patch_erases_no_content() -> None:
    maps = torch.randn(1, 1, 2, 4, generator=drawn())
    maps[..., 2:] = 7.0
    found = cpss.swapped(maps, 2, torch.tensor([1, 0, 3, 2]), torch.ones(4, dtype=torch.bool))
    flat = cpss.swapped(maps[..., :2], 1, torch.tensor([0]), torch.ones(1, dtype=torch.bool))
    assert torch.allclose(flat, maps[..., :2], atol=1e-4)
    wide = cpss.swapped(torch.cat([maps, maps], 2), 2, torch.tensor([1, 0, 3, 2]), torch.ones(4, dtype=torch.bool))
    assert found.shape == maps.shape
    assert wide[0, 0, :2, :2].mean().item() == pytest.approx(7.0, abs=1e-4)
    assert wide[0, 0, :2, :2].std() == pytest.approx(cpss.LEAST * maps[..., :2].std().item(), rel=1e-2)


@pytest.mark.parametrize("backbone", ["demo", "tiny_vit"])
def test_styles_swap_in_training_alone_and_a_repeated_round_swaps_alike(open_site, backbone: str) -> None:
    model = {"backbone": backbone, "pretrained": backbone == "demo"}
    site = open_site(tiny(method="cpss", model=model))
    plain = open_site(tiny(method="fedavg", model=model), "site-2")
    picture = torch.rand(2, 3, 64, 64, generator=drawn())
    site.model.eval(), plain.model.eval()
    assert torch.equal(site.model.stem(picture), plain.model.stem(picture))
    site.model.train()
    torch.manual_seed(0)
    one, other = site.model.stem(picture), site.model.stem(picture)
    torch.manual_seed(0)
    assert torch.equal(one, site.model.stem(picture))
    for unlike in (other, plain.model.stem(picture)):
        assert (one - unlike).norm() > 0.1 * one.norm()


def test_no_cache_keeps_one_swap() -> None:
    with pytest.raises(UserFault, match=r"train\.cache none with cpss"):
        require_fresh_views(
            cpss.METHOD, tiny(method="cpss", model={"lora_last": 1}, train={"cache": "memory", "views": 1})
        )
