"""What makes each method of weak, few or missing labels that method and no other."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from conftest import NEEDS, tiny
from pfedsam.config import Config
from pfedsam.data import square
from pfedsam.data.dataset import PLAIN, Batch, View
from pfedsam.data.values import IGNORED
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import EXTRA
from pfedsam.exchange.server import Contribution, ServerState
from pfedsam.exchange.store import LAST, Moment
from pfedsam.methods import cpss_adapt, fedsemidg, furl, iscos
from pfedsam.model.channel_gate import ChannelGate
from pfedsam.model.partition import Kind, kinds
from pfedsam.site import Site
from pfedsam.study import initial_shared, shared_schema
from pfedsam.tensors import below
from pfedsam.train import ala
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.pseudo import agreed, move, perturbed, pseudo_loss


def test_a_step_of_w_goes_down_the_slope_along_the_way_and_stays_within_0_and_1() -> None:
    weight = {"w": torch.tensor([0.5, 0.9, 0.1, 1.0])}
    ala.turn(weight, {"w": torch.tensor([2.0, -1.0, 4.0, 0.0])}, {"w": torch.tensor([0.1, 3.0, 1.0, 9.0])}, 0.5)
    assert weight["w"].tolist() == pytest.approx([0.4, 1.0, 0.0, 1.0])


def test_w_is_trained_until_the_mix_fits_the_site_or_all_batches_are_used() -> None:
    """The site's loss wants 0.25 at the first value, a quarter of the way, and what came at the second."""
    wanted, own, received = torch.tensor([0.25, 5.0]), torch.zeros(2), torch.tensor([1.0, 3.0])
    found = {}
    for count, spread in ((400, 0.0), (400, 1e-3), (2, 0.0)):
        live, weight, taken = {"w": received.clone().requires_grad_()}, {"w": torch.ones(2)}, []

        def loss(live: dict = live, taken: list = taken) -> torch.Tensor:
            taken.append(1)
            return (live["w"] - wanted).square().sum()

        ala.train_weight(live, {"w": own}, weight, [loss] * count, rate=0.05, spread=spread)
        found[count, spread] = len(taken), weight["w"]
        assert torch.equal(live["w"], weight["w"] * received)
    assert found[400, 0.0][0] == 400
    assert found[400, 0.0][1].tolist() == pytest.approx([0.25, 1.0], abs=1e-4)
    assert ala.LAST < found[400, 1e-3][0] < 400
    assert found[2, 0.0][0] == 2


def weak(**own: float) -> Config:
    train = {"max_steps": 1, "batch_size": 2}
    return tiny(method="fedicra", data={"weaken": {"site-1": "scribble"}}, train=train, own={"ala_first": 2, **own})


def rounds(site: Site, count: int) -> list[dict[str, torch.Tensor]]:
    """What the server sends in `count` rounds, each a bit elsewhere; the site trains in all but the last."""
    shared, sent = initial_shared(site.config)[0], []
    for round_ in range(count):
        sent.append({name: tensor + 0.01 * round_ for name, tensor in shared.items()})
        site.receive(sent[-1], Moment("run", round_), trained=round_ > 0)
        if round_ < count - 1:
            site.train(round_, count)
    return sent


def w_of(site: Site) -> dict[str, torch.Tensor]:
    return below("memory/weight/", site.store.load()[0])


def test_a_site_mixes_the_decoder_alone_and_goes_on_with_the_w_of_its_last_round(open_site) -> None:
    """The released successor makes W anew in each round. A repeated round and a test leave the kept W as it was."""
    site = open_site(weak(ala_steps=0))
    *_, came = rounds(site, 3)
    weight, own = w_of(site), below("memory/own/", site.store.load()[0])
    assert any((one != 1).any() for one in weight.values())
    mixed = site.shared()
    for name, tensor in mixed.items():
        expected = own[name] + (came[name] - own[name]) * weight[name] if name in weight else came[name]
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert {name for name in came if not name.startswith("encoder.")} == weight.keys()
    again = open_site(site.config)
    again.receive(came, Moment("run", 2), trained=True)
    assert all(torch.equal(again.shared()[name], tensor) for name, tensor in mixed.items())


def test_a_round_trains_w_on_and_a_test_does_not(open_site) -> None:
    site = open_site(weak(ala_steps=2, ala_rate=100.0))
    *_, came = rounds(site, 3)
    weight = w_of(site)
    assert any(not torch.equal(site.model.received["weight/" + name], one) for name, one in weight.items())
    site.recall(came, Moment("run", LAST), trained=True)
    assert all(torch.equal(site.model.received["weight/" + name], one) for name, one in weight.items())


def test_a_channel_gate_begins_at_one_and_weighs_channels_by_mean_and_maximum() -> None:
    gate, maps = ChannelGate(32), torch.randn(2, 32, 3, 3)
    assert torch.equal(gate(maps), maps)
    torch.nn.init.normal_(gate.up.weight)

    def scores(pooled: torch.Tensor) -> torch.Tensor:
        narrow = torch.relu((pooled + gate.site) @ gate.down.weight.T + gate.down.bias)
        return narrow @ gate.up.weight.T + gate.up.bias

    factor = 0.5 + torch.sigmoid(scores(maps.mean((2, 3))) + scores(maps.flatten(2).max(2).values))
    assert torch.allclose(gate(maps), maps * factor[:, :, None, None], atol=1e-6)


def test_the_gate_is_the_site_s_own_and_an_unknown_site_s_model_has_none(open_site) -> None:
    site = open_site(weak())
    assert {kinds(site.model)[name] for name in site.private()} == {Kind.GATE}
    assert shared_schema(site.config) == shared_schema(tiny(method="fedavg"))
    image = site.data["test"].batch([View(0, PLAIN)]).image
    with torch.no_grad():
        before = site.model(image, ("global",))["global"]
        for name, p in site.model["personal"].encoder.units[-1].named_parameters():
            p.add_(1.0 if name.startswith("up") else 0.0)
        assert torch.equal(site.model(image, ("global",))["global"], before)
        assert not torch.allclose(site.model(image, ("personal",))["personal"], before, atol=1e-2)


def test_fedicra_s_crf_falls_on_pixels_without_a_label_alone(open_site) -> None:
    site = open_site(weak())
    batch = site.data["train"].batch([View(0, PLAIN), View(1, PLAIN)])
    found = site.method.loss(site.model, batch, site.config)
    whole = site.method.loss(site.model, replace(batch, label=batch.label.clamp_max(1)), site.config)
    assert found["crf"] > 0
    assert whole["crf"] == 0


def test_fedicra_s_crf_leaves_whole_masks_alone(open_site) -> None:
    """No pixel is without a label, whether or not the job has a value for such pixels."""
    site = open_site(tiny(method="fedicra", own={"ala_first": 2}))
    batch = site.data["train"].batch([View(0, PLAIN), View(1, PLAIN)])
    assert site.method.loss(site.model, batch, site.config)["crf"] == 0


def given(site: str, samples: int, gap: float, update: float) -> Contribution:
    extras = {fedsemidg.GAP: torch.tensor([gap])}
    return Contribution(samples, lambda: {"w": torch.tensor([update])}, extras)


def test_weights_follow_the_gaps_from_round_to_round() -> None:
    """From 0.75 and 0.25: + 0.2 (1, -0.5), then + 0.2 (-1, 4); each time they add up to 1 again."""
    config = tiny(method="fedsemidg", own={"step": 0.2}, server={"rule": "mean"})
    state = ServerState({"w": torch.zeros(1)})
    state = fedsemidg.rule(state, {"a": given("a", 6, 1.0, 1.0), "b": given("b", 2, -0.5, 0.0)}, config)
    a = 0.95 / 1.1
    assert state.shared["w"].item() == pytest.approx(a)
    state = fedsemidg.rule(state, {"a": given("a", 6, -1.0, 1.0), "b": given("b", 2, 4.0, 0.0)}, config)
    again = (a - 0.2) / (a - 0.2 + 1 - a + 0.8)
    assert state.shared["w"].item() == pytest.approx(a + again)
    assert state.memory["weight/a"].item() == pytest.approx(again)


def test_a_site_that_misses_rounds_or_joins_late_weighs_as_much_as_its_equals() -> None:
    config, state = tiny(method="fedsemidg"), ServerState({"w": torch.zeros(1)}, sites=3)
    for sites in ("ab", "abc", "ab", "abc", "b", "abc"):
        state = fedsemidg.rule(state, {site: given(site, 4, 0.0, 0.0) for site in sites}, config)
    assert {key: weight.item() for key, weight in state.memory.items()} == pytest.approx(
        {f"weight/{site}": 1 / 3 for site in "abc"}
    )


def test_a_gap_gives_no_site_more_weight_than_the_job_allows() -> None:
    config = tiny(method="fedsemidg", own={"step": 1.0}, server={"most_share": 1.5})
    some = {site: given(site, 4, 0.0, 0.0) for site in ("b", "c")}
    state = fedsemidg.rule(ServerState({"w": torch.zeros(1)}), {"a": given("a", 4, 10.0, 1.0), **some}, config)
    assert state.shared["w"].item() == pytest.approx(0.5)
    assert state.memory["weight/b"].item() == pytest.approx(0.25)  # so it soon falls to the others' level again


def test_a_pixel_has_a_pseudo_label_where_both_teachers_are_sure_and_agree() -> None:
    one, other = torch.tensor([4.0, 4.0, 4.0, -4.0, 0.5]), torch.tensor([5.0, -5.0, 0.1, -4.0, 0.5])
    target, known = agreed(one.view(1, 1, 1, 5), other.view(1, 1, 1, 5), 0.8, exclusive=False)
    assert known.flatten().tolist() == [1, 0, 0, 1, 0]
    assert target.flatten()[known.flatten() == 1].tolist() == [1, 0]
    three = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 1.0, 0], [0, 0, 4.0]]).T.view(1, 3, 1, 4)
    others = torch.tensor([[4.0, 0, 0], [0, 0, 4.0], [0, 4.0, 0], [0, 0, 4.0]]).T.view(1, 3, 1, 4)
    target, known = agreed(three, others, 0.8, exclusive=True)
    assert known.flatten().tolist() == [1, 0, 0, 1]
    assert target.flatten()[[0, 3]].tolist() == [0, 2]


@pytest.mark.parametrize("exclusive", [True, False])
def test_pseudo_labels_teach_unlabelled_pixels_alone(exclusive: bool) -> None:
    label = torch.tensor([[[1, IGNORED], [IGNORED, 0]]])
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    target = torch.ones(1, 1 if exclusive else 2, 2, 2, dtype=torch.long if exclusive else torch.float)
    known = torch.ones_like(target, dtype=torch.float)
    known[..., 1, 0] = 0
    loss = pseudo_loss(logits, target, known, Batch(torch.zeros(1), label, ignores=True), exclusive=exclusive)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logits.grad.abs().sum(1)[0].bool().tolist() == [[False, True], [False, False]]
    none = pseudo_loss(logits, target, known, Batch(torch.zeros(1), label.clamp_max(1)), exclusive=exclusive)
    assert none == 0


def semi(**data: object) -> Config:
    train = {"max_steps": 3, "batch_size": 2}
    return tiny(method="fedsemidg", own={"decay": 0.5}, data={"unlabelled": {"site-1": 0.5}, **data}, train=train)


def test_a_site_s_gap_is_the_received_model_s_loss_less_its_own_and_its_average_goes_on(open_site) -> None:
    config = semi()
    site, path = open_site(config), []
    spied = lambda model, config: (path.append(site.shared()), fedsemidg.stepped(model, config))  # noqa: E731
    site.method = replace(site.method, stepped=spied)
    sent = initial_shared(config)[0]
    site.receive(sent, Moment("run", 0))
    update = site.train(0, 2)
    assert update.samples == len(site.data["train"]) == 6
    labelled = site.data["train"].labelled()
    assert len(labelled) == 3

    def loss() -> float:
        batch = site.data["train"].batch([View(i) for i in labelled])
        with torch.no_grad():
            return segmentation_loss(site.model(batch.image)["global"], batch, replace(config.train, dice_weight=0.0))

    dataset = site.data["train"]
    dataset.config = replace(config, train=replace(config.train, dice_weight=0.0))
    found, own = fedsemidg.gap_of(site.model, config, site._here).item(), loss()
    average = below("memory/average/", site.store.load()[0])
    assert len(path) == 3
    for name, kept in average.items():
        assert torch.equal(path[-1][name], site.shared()[name])
        expected = path[0][name]  # of one model the mean is that model
        for step in path[1:]:
            expected = 0.5 * expected + 0.5 * step[name]
        assert torch.allclose(kept, expected, atol=1e-6), name
    site.receive(sent, Moment("run", 1), trained=True)
    assert found == pytest.approx((loss() - own).item(), abs=1e-5)
    assert site.model.received["trust"].item() == 0.25
    again = below("average/", site.model.received)
    assert all(torch.equal(again[name], kept) for name, kept in average.items())


@pytest.mark.parametrize(
    ("method", "own", "share"), [("fedsemidg", {}, 1), ("iscos", {}, 1), ("cpss_adapt", {"decay": 0.75}, 0.25)]
)
def test_a_moving_average_has_met_the_model_that_a_round_s_last_step_made(
    open_site, method: str, own: dict[str, float], share: float
) -> None:
    """After a round of one step. The first move of an average that counts its moves goes the whole way."""
    data, train = {"unlabelled": {"site-1": 0.5}}, {"max_steps": 1, "lr": 1e-2, "batch_size": 2}
    site = open_site(tiny(method=method, own=own, model=NEEDS.get(method, {}), data=data, train=train))
    site.receive(initial_shared(site.config)[0], Moment("run", 0))
    start = {name: tensor.clone() for name, tensor in below("average/", site.model.received).items()}
    site.train(0, 2)
    live = dict(site.model[site.method.personal].named_parameters())
    assert any((live[name] - tensor).abs().max() > 1e-3 for name, tensor in start.items())
    for name, kept in below("memory/average/", site.store.load()[0]).items():
        assert torch.allclose(kept, start[name].lerp(live[name], share), atol=1e-6), name


def test_a_site_without_any_label_has_no_gap_and_trusts_no_pseudo_label_in_its_first_round(open_site) -> None:
    site = open_site(semi(unlabelled={"site-1": 1.0}))
    sent = initial_shared(site.config)[0]
    losses = []
    for round_ in range(2):
        site.receive(sent, Moment("run", round_), trained=round_ > 0)
        update = site.train(round_, 2)
        losses.append(update.report.losses)
        assert update.wire["extra/gap"].item() == 0
    assert [found["global"] for found in losses] == [0, 0]
    assert losses[0]["pseudo"] == 0 < losses[1]["pseudo"]
    assert any(tensor.any() for tensor in update.wire.values())


def test_a_view_s_representation_is_told_from_the_others_of_the_batch_and_of_the_dictionary() -> None:
    one, other, more = (F.normalize(torch.randn(3, 5), dim=1) for _ in range(3))
    terms = []
    for i in range(3):
        own = math.exp(one[i] @ other[i] / 0.5)
        every = sum(math.exp(one[i] @ vector / 0.5) for vector in (*other, *more))
        terms.append(-math.log(own / every))
    assert furl.contrast(one, other, more, 0.5).item() == pytest.approx(sum(terms) / 3, rel=1e-5)
    assert furl.contrast(one, other, more[:0], 0.5) < furl.contrast(one, other, more, 0.5)


def pretraining(open_site) -> tuple[Config, Site]:
    steps = {"max_steps": 2, "lr": 1e-2, "weight_decay": 1.0}
    config = tiny(method="furl", own={"entries": 2, "dictionary": 3}, train=steps)
    return config, open_site(config)


@pytest.mark.parametrize("pixels", ["sam", "unit"])
def test_an_image_is_changed_as_much_whatever_its_values_mean(pixels: str) -> None:
    picture = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255
    image = square.Normalise(pixels)(picture / 255)
    torch.manual_seed(0)
    change = (perturbed(image, pixels) - image).abs().mean().item() * square.spread(pixels)
    assert change == pytest.approx(0.0521, abs=0.001)


def test_furl_trains_the_adapters_without_a_label_and_leaves_the_decoder(open_site) -> None:
    config, site = pretraining(open_site)
    sent, empty = initial_shared(config)[0], furl.down({}, config)[furl.BANK].zeros()
    site.receive(sent | {EXTRA + furl.BANK: empty}, Moment("run", 0))
    batch = site.data["train"].batch([View(0), View(1)])
    torch.manual_seed(0)
    losses = site.method.loss(site.model, batch, config)
    torch.manual_seed(0)
    blind = site.method.loss(site.model, replace(batch, label=torch.full_like(batch.label, IGNORED)), config)
    assert losses == blind
    assert losses["align"].item() == pytest.approx(0, abs=1e-5)  # at the start the adapters add nothing
    update = site.train(0, 2)
    moved = {name: float(tensor.abs().max()) for name, tensor in update.wire.items() if not name.startswith(EXTRA)}
    assert not any(size for name, size in moved.items() if name.startswith("decoder."))
    assert max(size for name, size in moved.items() if name.startswith("encoder.")) > 1e-4
    assert site.method.loss(site.model, batch, config)["align"] > 1e-5
    own = update.wire[EXTRA + furl.ENTRIES]
    assert torch.allclose(own.norm(dim=1), torch.ones(2), atol=1e-5)
    site.receive(sent | {EXTRA + furl.BANK: torch.cat([own, -own[:1]])}, Moment("run", 1), trained=True)
    assert torch.equal(site.model.received[furl.BANK], -own[:1])


def test_another_method_can_begin_with_the_model_that_furl_trained() -> None:
    assert shared_schema(tiny(method="furl")) == shared_schema(tiny(method="fedavg"))


def prompted(**own: float) -> Config:
    return tiny(method="iscos", model={"pretrained": False}, data={"unlabelled": {"site-1": 0.5}}, own=own)


def sam_says(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor) -> None:
    monkeypatch.setattr(iscos, "answer", lambda *_: logits)


def test_sam_labels_pixels_without_a_label_where_it_is_sure_and_meets_the_coarse_mask(open_site, monkeypatch) -> None:
    """Of two images SAM agrees with the coarse mask on the first alone; and of that it is unsure of one row."""
    site = open_site(prompted())
    site.receive(initial_shared(site.config)[0])
    batch = site.data["train"].batch([View(0, PLAIN), View(1, PLAIN)])
    coarse = torch.full((2, 1, 64, 64), -5.0)
    coarse[:, :, :20] = 5.0
    monkeypatch.setattr(iscos, "taught", lambda *_: coarse)
    sam = coarse.clone()
    sam[0, :, 20:24], sam[0, :, 30] = 5.0, 0.1
    sam[1] = -sam[1]
    sam_says(monkeypatch, sam)
    target, known = iscos.labels(site.model, batch, site.config)
    assert torch.equal(target[0], (sam[0] > 0).float())
    assert known[0].mean() == 63 / 64
    assert known[0, 0, 30].sum() == known[1].sum() == 0


def test_of_several_classes_sam_s_surest_counts_and_one_that_is_not_there_is_no_class(open_site, monkeypatch) -> None:
    model = {"pretrained": False, "exclusive": True, "num_classes": 2}
    site = open_site(tiny(method="iscos", model=model, train={"loss": "ce"}))
    site.receive(initial_shared(site.config)[0])
    batch = site.data["train"].batch([View(0, PLAIN)])
    coarse = torch.full((1, 3, 64, 64), -5.0)
    coarse[:, 0], coarse[:, 1, :20] = 0.0, 5.0
    monkeypatch.setattr(iscos, "taught", lambda *_: coarse)
    sam_says(monkeypatch, torch.where(coarse[:, 1:2] > 0, 5.0, -5.0))
    target, known = iscos.labels(site.model, batch, site.config)
    assert target[0, 0, :20].eq(1).all()
    assert target[0, 0, 20:].eq(0).all()
    assert known.all()


def test_an_untrained_site_asks_sam_nothing_and_a_trained_one_does(open_site) -> None:
    site = open_site(prompted())
    pseudo = []
    for round_ in range(2):
        site.receive(initial_shared(site.config)[0], Moment("run", round_), trained=round_ > 0)
        assert site.model.received["turn"] == round_
        pseudo.append(site.train(round_, 2).report.losses["pseudo"])
    assert pseudo[0] == 0
    assert not any(p.requires_grad for p in site.model["sam"].parameters())


def test_a_sam_without_a_prompt_encoder_is_refused(open_site) -> None:
    with pytest.raises(UserFault, match="a SAM with its prompt encoder for iscos; came demo"):
        open_site(tiny(method="iscos"))


def adapting(open_site, **own: float) -> Site:
    """A site that adapts a model to images without labels, after its first round."""
    config = tiny(method="cpss_adapt", data={"unlabelled": {"site-1": 1.0}}, own={"sure": 0.5, **own})
    site = open_site(config)
    site.receive(initial_shared(config)[0], Moment("run", 0))
    return site


def test_a_model_adapts_to_images_without_labels_and_nothing_of_it_leaves(open_site) -> None:
    site = adapting(open_site)
    before = {name: tensor.clone() for name, tensor in site.private().items()}
    update = site.train(0, 2)
    assert not any(tensor.any() for tensor in update.wire.values())
    assert update.report.losses["pseudo"] > 0
    assert update.report.losses["personal"] == 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in site.private().items())


def test_its_teacher_sees_no_swapped_style_and_learns_from_the_student_slowly(open_site, monkeypatch) -> None:
    swapped, taught = [], []
    monkeypatch.setattr(cpss_adapt.cpss, "swapped", lambda maps, *_: swapped.append(1) or maps)
    honest = cpss_adapt.taught

    def watched(*given):
        before = len(swapped)
        found = honest(*given)
        taught.append(len(swapped) - before)
        return found

    monkeypatch.setattr(cpss_adapt, "taught", watched)
    site = adapting(open_site, decay=0.75)
    start = {name: tensor.clone() for name, tensor in below("average/", site.model.received).items()}
    site.train(0, 2)
    assert taught
    assert not any(taught)
    assert swapped
    live = dict(site.model["personal"].named_parameters())
    average = below("average/", site.store.load()[0] and below("memory/", site.store.load()[0]))
    steps = len(taught)
    moved = [name for name in start if not torch.equal(average[name], start[name])]
    assert moved
    assert all((average[name] - start[name]).norm() < (live[name] - start[name]).norm() * steps for name in moved)


def test_an_average_leaves_an_untrained_start_behind_and_then_moves_slowly() -> None:
    """After n steps it is the mean of the n models, until a step of 1 - decay is the longer one."""
    student, steps = torch.nn.Linear(1, 1, bias=False), torch.zeros(())
    average = {"weight": torch.full((1, 1), 100.0)}
    seen = []
    for value in (2.0, 4.0, 6.0):
        seen.append(value)
        torch.nn.init.constant_(student.weight, value)
        move(average, student, 0.9, steps)
        assert average["weight"].item() == pytest.approx(sum(seen) / len(seen))
    steps.fill_(999)
    torch.nn.init.constant_(student.weight, 14.0)
    move(average, student, 0.9, steps)
    assert average["weight"].item() == pytest.approx(0.9 * 4.0 + 0.1 * 14.0)
    move(average, student, 0.5)
    assert average["weight"].item() == pytest.approx(9.5)
