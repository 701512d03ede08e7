"""What makes each method that changes images or features that method and no other."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from nvflare.apis.filter import ContentBlockedException

from conftest import tiny
from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.dataset import View
from pfedsam.data.spectrum import foreign, low, restyled
from pfedsam.data.values import IGNORED
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import EXTRA
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.exchange.store import Moment
from pfedsam.flare.policy import SitePolicy
from pfedsam.methods import cpss, feddg, gin
from pfedsam.methods.base import Here, no_extras
from pfedsam.model.segmenter import Branches
from pfedsam.study import initial_shared
from pfedsam.train.boundary import boundary_loss, contrast, pooled, regions
from pfedsam.train.losses import segmentation_loss

SEED = 3


def drawn(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image() -> torch.Tensor:
    return torch.rand(3, 24, 20, generator=drawn(1))


def same(image: torch.Tensor, mask: torch.Tensor, _view: View) -> tuple[torch.Tensor, torch.Tensor]:
    return image, mask


def test_gin_s_network_is_four_convolutions_with_two_hidden_channels_written_out() -> None:
    """Pixel by pixel, with weights and shifts drawn in the same order, on values in deviations of the image."""
    found = gin.network(image(), drawn(), gin.Settings())
    draw, x, sides = drawn(), image() / image().std(), []
    for layer, (into, out) in enumerate(((3, 2), (2, 2), (2, 2), (2, 3))):
        side = 1 + 2 * int(torch.randint(2, (), generator=draw))
        weight = torch.randn(out, into, side, side, generator=draw)
        wide = F.pad(torch.where(x > 0, x, 0.01 * x) if layer else x, (side // 2,) * 4)
        places = wide.unfold(1, side, 1).unfold(2, side, 1)  # (into, H, W, side, side)
        x = torch.einsum("oiab,ihwab->ohw", weight, places) + torch.randn(out, 1, 1, generator=draw)
        sides.append(side)
    assert set(sides) == {1, 3}
    assert torch.allclose(found, x * image().std(), rtol=1e-4, atol=1e-4)


def test_gin_s_maps_of_intensity_bend_elsewhere_than_at_the_image_s_mean(monkeypatch) -> None:
    """With kernels of 1 alone the network maps each value by itself; leaky ReLUs make the map's kinks."""
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(0))
    ramp = torch.linspace(-0.3, 0.3, 201).expand(3, 1, 201).contiguous()
    kinks, middles = [], []
    for seed in range(100):
        line = gin.network(ramp, drawn(seed), gin.Settings())[:, 0]
        bend = (line[:, 2:] - 2 * line[:, 1:-1] + line[:, :-2]).abs() / (line.amax(1) - line.amin(1))[:, None]
        kinks.append((bend > 1e-4).any(0).nonzero()[:, 0] - 99)
        middles.append(line[:, 100].abs().max().item())
    assert (torch.cat(kinks).abs() > 2).float().mean() > 0.8
    assert min(middles) > 1e-3  # g(0) is not 0


def test_gin_s_changes_do_not_depend_on_an_image_s_contrast() -> None:
    for form in gin.FORMS.values():
        one, other = (form(times * (image() - 0.5), drawn(), gin.Settings()) for times in (1.0, 0.1))
        assert torch.allclose(0.1 * one, other, rtol=1e-3, atol=1e-5)
    assert gin.network(torch.zeros(3, 8, 8), drawn(), gin.Settings()).abs().max() < 1e-4


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
    torch.rand(9)  # whatever else was drawn
    assert torch.equal(one, apply(image(), mask, View(2, 5))[0])
    assert 0 <= one.min() < one.max() <= 1
    for elsewhere in (
        apply(image(), mask, View(2, 6)),
        apply(image(), mask, View(3, 5)),
        other(image(), mask, View(2, 5)),
    ):
        assert not torch.equal(one, elsewhere[0])


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


def test_styles_swap_before_positions_are_added(open_site) -> None:
    site = open_site(tiny(method="cpss"))
    entry, picture = site.model["global"].encoder.units[0], torch.rand(2, 3, 64, 64, generator=drawn())
    far = 100 * torch.randn(entry.position.shape, generator=drawn())
    site.model.train()
    torch.manual_seed(0)
    before = site.model.stem(picture)
    entry.position.data += far
    torch.manual_seed(0)
    assert torch.allclose(site.model.stem(picture) - far, before, atol=1e-3)


def test_images_are_mixed_before_the_frozen_front_and_not_after_it() -> None:
    with pytest.raises(UserFault, match=r"train\.cache none with drflm"):
        tiny(method="drflm", model={"lora_last": 1}, train={"cache": "memory", "views": 1})


@pytest.mark.parametrize("method", ["cpss", "gin"])
def test_no_cache_keeps_one_swap_or_one_style(method: str) -> None:
    with pytest.raises(UserFault, match=rf"train\.cache none with {method}.*came memory"):
        tiny(method=method, model={"lora_last": 1}, train={"cache": "memory", "views": 1})


def slow_amplitude(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """|mean of x exp(-2 pi i (down r + right c) / S)| of each channel."""
    side = image.shape[-1]
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = 2 * math.pi * (down * rows + right * columns) / side
    return torch.hypot((image * angle.cos()).mean((1, 2)), (image * angle.sin()).mean((1, 2)))


def test_a_spectrum_is_the_amplitudes_of_the_lowest_frequencies_and_holds_no_phase() -> None:
    picture = torch.rand(3, 12, 12, generator=drawn())
    found = low(picture, 2)
    for row in range(5):
        for column in range(3):
            assert torch.allclose(found[:, row, column], slow_amplitude(picture, row - 2, column), atol=1e-5)
    assert torch.allclose(low(picture.roll((3, 5), (1, 2)), 2), found, atol=1e-5)


def test_a_restyled_image_has_the_other_s_low_amplitudes_and_its_own_everything_else() -> None:
    one, other = (0.4 + 0.2 * torch.rand(1, 3, 12, 12, generator=drawn(seed)) for seed in (1, 2))
    share = torch.tensor([0.25]).view(1, 1, 1, 1)
    found = restyled(one, low(other, 2), share)
    assert torch.allclose(low(found, 2), 0.75 * low(one, 2) + 0.25 * low(other, 2), atol=1e-5)
    before, after = torch.fft.fft2(one), torch.fft.fft2(found)
    assert torch.allclose(before[..., 3:10, :], after[..., 3:10, :], atol=1e-4)
    assert torch.allclose((after * before.conj()).angle(), torch.zeros(()), atol=1e-3)
    assert torch.allclose(restyled(one, low(other, 2), 0 * share), one, atol=1e-6)


def spectra(config: Config, *values: float) -> torch.Tensor:
    shape = feddg.up({}, config)[feddg.SPECTRA].shape[1:]
    return torch.stack([torch.full(shape, value) for value in values])


def test_the_bank_takes_the_sites_spectra_in_turn_and_keeps_those_of_sites_that_sit_out() -> None:
    config = tiny(method="feddg", own={"spectra": 2, "bank": 3})
    state = ServerState({"w": torch.zeros(1)}, {feddg.BANK: spectra(config, 0.0, 0.0, 0.0)})

    def sent(*values: float) -> Contribution:
        return Contribution(1, lambda: {"w": torch.ones(1)}, {feddg.SPECTRA: spectra(config, *values)})

    state = feddg.rule(state, {"b": sent(0.3, 0.4)}, config)
    assert state.memory[feddg.BANK][:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.4, 0])
    state = feddg.rule(state, {"a": sent(0.1, 0.2)}, config)
    assert state.memory[feddg.BANK][:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert state.shared["w"].item() == 2


def feddg_config(**own: float) -> Config:
    return tiny(method="feddg", own={"spectra": 2, "bank": 4, **own}, train={"max_steps": 1, "batch_size": 2})


def test_a_site_uses_the_others_spectra_alone_and_sends_the_same_of_its_own_in_each_round(open_site) -> None:
    config = feddg_config()
    site, sent = open_site(config), initial_shared(config)[0]
    empty = feddg.down({}, config)[feddg.BANK].zeros()
    site.receive(sent | {EXTRA + feddg.BANK: empty}, Moment("run", 0))
    assert len(site.model.received[feddg.BANK]) == 0
    update = site.train(0, 2)
    assert update.report.losses.keys() == {"global"}
    own = update.wire[EXTRA + feddg.SPECTRA]
    assert all(any(torch.allclose(one, low(site.data["train"][i][0], 1)) for i in range(6)) for one in own)
    bank = torch.cat([own[:1], 0.5 * own[:1], empty[:1], own[1:]])
    site.receive(sent | {EXTRA + feddg.BANK: bank}, Moment("run", 1), trained=True)
    assert torch.equal(site.model.received[feddg.BANK], 0.5 * own[:1])
    again = site.train(1, 2)
    assert torch.equal(again.wire[EXTRA + feddg.SPECTRA], own)
    assert again.report.losses.keys() == {"global", "episode", "boundary"}


def test_an_episode_s_gradient_is_that_of_the_stepped_model_on_the_foreign_image(open_site, monkeypatch) -> None:
    config = feddg_config(inner_rate=0.5, boundary_weight=0.0)
    site = open_site(config)
    batch = site.data["train"].batch([View(0), View(1)])
    site.method.merge(site.model, config, Here(extras={feddg.BANK: spectra(config, 0.2)}))
    monkeypatch.setattr(feddg, "foreign", lambda image, _bank: image.flip(-1))
    stepped = copy.deepcopy(site.model)

    def slopes(model: Branches, image: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        segmentation_loss(model(image)["global"], batch, config.train).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = slopes(stepped, batch.image)
    with torch.no_grad():
        for name, p in stepped.named_parameters():
            if name in plain:
                p -= 0.5 * plain[name]
    episode = slopes(stepped, batch.image.flip(-1))
    found = site.method.loss(site.model, batch, config)
    sum(found.values()).backward()
    for name, p in site.model.named_parameters():
        if name in plain:
            assert torch.allclose(p.grad, plain[name] + episode[name], atol=1e-4), name


def test_boundaries_are_one_pixel_inside_and_their_surroundings_five_outside() -> None:
    label = torch.zeros(1, 20, 20, dtype=torch.long)
    label[0, 6:12, 6:12], label[0, 13] = 1, 255
    edge, ring = (area[0, 0] for area in regions(label, 20))
    assert (edge.sum(), ring[0].sum(), ring[1].sum()) == (36 - 16, 0, 16)
    assert edge[6, 6:12].all()
    assert not edge[7:11, 7:11].any()
    assert not ring[13].any()
    assert regions(label, 5)[0].mean() == pytest.approx(edge.mean().item())


def test_the_boundary_loss_pulls_vectors_of_one_kind_together_and_leaves_out_missing_ones() -> None:
    first, second = (F.normalize(torch.randn(4, 6, generator=drawn(seed)), dim=1) for seed in (1, 2))
    first[1], second[0] = 0, 0
    terms = []
    for own, other in ((first, second), (second, first)):
        others = [v for v in other if v.any()]
        for i in range(4):
            for j in range(4):
                if i != j and own[i].any() and own[j].any():
                    pair = math.exp(own[i] @ own[j] / 0.5)
                    terms.append(-math.log(pair / (pair + sum(math.exp(own[i] @ v / 0.5) for v in others))))
    assert contrast(first, second, 0.5).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert contrast(torch.zeros(2, 6), torch.zeros(2, 6), 0.5) == 0


def test_feddg_contrasts_each_class_s_boundary_by_itself(open_site) -> None:
    """In the reference too: disc and cup have embeddings and a contrast of their own, and the two are summed."""
    config = tiny(
        method="feddg", own={"boundary_weight": 1.0}, model={"num_classes": 2}, train={"max_steps": 1, "batch_size": 2}
    )
    site = open_site(config)
    batch = site.data["train"].batch([View(0), View(1)])
    batch.label.zero_()
    batch.label[:, 8:40, 8:40], batch.label[:, 20:30, 20:30], batch.label[1, :10] = 1, 2, IGNORED
    site.method.merge(site.model, config, Here(extras={feddg.BANK: spectra(config, 0.2)}))
    torch.manual_seed(0)
    found = site.method.loss(site.model, batch, config)["boundary"].item()

    encoder, received = site.model["global"].encoder, site.model.received
    torch.manual_seed(0)
    own = batch.image * received[feddg.STD] + received[feddg.MEAN]
    changed = (foreign(own, received[feddg.BANK]) - received[feddg.MEAN]) / received[feddg.STD]
    slopes = torch.autograd.grad(
        segmentation_loss(site.model(batch.image)["global"], batch, config.train),
        [p for p in encoder.parameters() if p.requires_grad],
    )
    stepped = copy.deepcopy(encoder)
    for p, slope in zip((p for p in stepped.parameters() if p.requires_grad), slopes, strict=True):
        p.data -= 1e-3 * slope
    maps = encoder(batch.image), stepped(changed)

    def loss(label: torch.Tensor) -> float:
        areas = regions(label, maps[0].shape[-1])
        return contrast(*(torch.cat([pooled(one, area) for one in maps]) for area in areas), 0.05).item()

    ignored = torch.full_like(batch.label, IGNORED)
    each = [torch.where(batch.label == IGNORED, ignored, (batch.label == c).long()) for c in (1, 2)]
    assert found == pytest.approx(sum(map(loss, each)), rel=1e-4)
    merged = torch.where(batch.label == IGNORED, ignored, (batch.label > 0).long())
    assert found != pytest.approx(loss(merged), rel=1e-2)


def test_of_one_class_the_boundary_loss_is_bit_for_bit_that_of_all_that_is_marked() -> None:
    label = (torch.rand(2, 64, 64, generator=drawn()) > 0.8).long()
    label[:, :10] = IGNORED
    maps = [torch.randn(2, 8, 16, 16, generator=drawn(seed)) for seed in (1, 2)]
    marked, known = ((label == 1)[:, None].float(), (label != IGNORED)[:, None].float())
    edge = F.adaptive_avg_pool2d(marked * F.max_pool2d(1 - marked, 3, 1, 1), 16)
    ring = F.adaptive_avg_pool2d((F.max_pool2d(marked, 11, 1, 5) - marked) * known, 16)
    vectors = (torch.cat([pooled(one, area) for one in maps]) for area in (edge, ring))
    assert torch.equal(boundary_loss(maps, label, classes=1, temperature=0.05), contrast(*vectors, 0.05))


def test_spectra_leave_a_hospital_only_if_its_fence_permits_what_is_made_of_images() -> None:
    with pytest.raises(ContentBlockedException, match="came feddg with spectra: set derived true in the fence"):
        SitePolicy().require_model_only(tiny(method="feddg"))
    SitePolicy(derived=True).require_model_only(tiny(method="feddg"))
    for name in methods.names():
        method = methods.get(name)
        assert not method.derived or method.up is not no_extras, name
        assert not method.derived or hasattr(method.settings, "hold_derived"), name


@pytest.mark.parametrize("size", [256, 512, 1024])
@pytest.mark.parametrize("method", ["feddg", "furl", "spp_fgc"])
def test_a_fence_lets_out_what_a_method_makes_of_images_as_it_is_by_default(method: str, size: int) -> None:
    SitePolicy(derived=True).require_model_only(tiny(method=method, model={"image_size": size}))


@pytest.mark.parametrize(
    ("method", "own", "size", "came"),
    [
        ("feddg", {"spectra": 9}, 256, "method.spectra of 1 or more and at most 8; came 9"),
        ("feddg", {"reach": 0.5}, 256, "method.reach in periods an image of 1 or more and at most 20; came 127"),
        ("feddg", {}, 4096, "at most 20; came 82"),
        ("furl", {"entries": 17}, 256, "method.entries of 1 or more and at most 16; came 17"),
        ("spp_fgc", {"size": 17}, 256, "method.size of 1 or more and at most 16; came 17"),
        ("spp_fgc", {"noise": 0.49}, 256, "method.noise of 0.5 or more and at most 1000; came 0.49"),
    ],
)
def test_no_job_makes_a_fence_let_out_more_of_the_images(
    method: str, own: dict[str, float], size: int, came: str
) -> None:
    """A whole spectrum of amplitudes shows the image: its phases can be found from them."""
    job = tiny(method=method, own=own, model={"image_size": size})
    with pytest.raises(ContentBlockedException, match=came):
        SitePolicy(derived=True).require_model_only(job)
