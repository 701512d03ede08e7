"""DP-SGD at a site: what a step's gradient is made of, what leaves, and what a kill or a new job cannot change."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.apis.filter import ContentBlockedException
from PIL import Image

from conftest import tiny
from pfedsam import hidden, methods
from pfedsam.config import Config
from pfedsam.data.dataset import Dataset
from pfedsam.data.dataset import open_site as read_site
from pfedsam.data.synthetic import write_site
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Budget, Noise
from pfedsam.exchange.schema import EXTRA
from pfedsam.exchange.server import begin_state, message
from pfedsam.exchange.store import Moment
from pfedsam.flare.policy import SitePolicy
from pfedsam.hidden import pay
from pfedsam.layout import Places
from pfedsam.model.partition import Part, tensors_of
from pfedsam.service import Turn, serve_round
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import down_schema, initial_shared
from pfedsam.train.evaluate import fewest_shown
from pfedsam.train.loop import patients_seen, sharing, slices_seen, views_of
from pfedsam.train.patients import Hidden, patients_of
from pfedsam.train.step import descend, weights_of


def hides(unit: str = "patient", **changes: object) -> Config:
    privacy = {"unit": unit, "epsilon": 1000.0, **changes.pop("privacy", {})}
    return tiny(privacy=privacy, model={"experts": 0, "experts_rank": 2}, **changes)


def round_of(site: Site, round_: int = 0, run: str = "run"):
    wire = message(
        begin_state(initial_shared(site.config)[0], down_schema(site.config)),
        site.name,
        site.config,
        down_schema(site.config),
    )
    return serve_round(site, wire, Turn(run, site.base, round_, 9))


def test_patients_are_in_a_step_with_one_slice_each_and_by_chance(hospital: Path, tmp_path: Path) -> None:
    site = Site("site-1", hides(train={"batch_size": 2}), Places(hospital, tmp_path))
    data = site.data["train"]
    for i, one in enumerate(data.slices):
        data.slices[i] = replace(one, group=f"patient {i // 2}")
    assert patients_of(data) == [[0, 1], [2, 3], [4, 5]]
    drawn = list(Hidden(Noise(bytes(32)), site.config).views(data, 0, 3000))
    sizes = torch.tensor([float(len(step)) for step in drawn])
    assert all(len({view.slice // 2 for view in step}) == len(step) for step in drawn)
    assert float(sizes.mean()) == pytest.approx(2, abs=0.06)
    assert float(sizes.var()) == pytest.approx(3 * (2 / 3) * (1 / 3), abs=0.06)  # of a binomial, not of a fixed batch
    of_both = torch.tensor([float(view.slice % 2) for step in drawn for view in step])
    assert float(of_both.mean()) == pytest.approx(0.5, abs=0.03)


def test_scores_are_of_as_few_patients_as_show_the_rarest_scored_class(tmp_path: Path) -> None:
    """A job may leave out the classes that many patients show."""
    write_site(tmp_path / "site-1", "site-1", {"train": 1, "val": 1, "test": 5}, seed=0)
    for number, path in enumerate(sorted((tmp_path / "site-1/masks").glob("*test*"))):
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        mask[:2, :2] = 2 if number == 3 else 0
        Image.fromarray(mask).save(path)

    def fewest(left_out: tuple[int, ...]) -> int:
        config = tiny(model={"num_classes": 2}, data={"unannotated": {"site-1": list(left_out)}})
        return fewest_shown(read_site(tmp_path, "site-1", config)["test"])

    shown = {left_out: fewest(left_out) for left_out in ((), (2,), (1,))}
    assert shown == {(): 1, (2,): 5, (1,): 1}


def test_only_steps_that_train_the_shared_part_count(hospital: Path) -> None:
    """FedRep trains what is private in the first half of a round, so its update shows the second half alone."""
    config = tiny(method="fedrep", train={"batch_size": 1, "max_steps": None})
    data, phase = read_site(hospital, "site-1", config)["train"], methods.get("fedrep").phase
    steps = list(views_of(data, config.train, 5, 0, 6))
    assert slices_seen(data, config, 5, 0, phase) == {view.slice for views in steps[3:] for view in views}
    assert sharing(phase, 6) == [3, 4, 5]
    assert sharing(methods.get("newcomer").phase, 6) == list(range(6))  # its update is zero
    with pytest.raises(ContentBlockedException, match="came 4 and 4"):
        SitePolicy(least_images=8, least_steps=4).require(config, 8)


def test_the_patients_of_a_round_are_those_whose_slices_its_steps_see(hospital: Path) -> None:
    def seen(data: Dataset, round_: int = 0, **train: int) -> int:
        config = tiny(train={"batch_size": 1, "max_steps": None, **train})
        return patients_seen(data, slices_seen(data, config, 5, round_))

    config = tiny(train={"batch_size": 1})
    data = read_site(hospital, "site-1", config)["train"]
    data.slices[:] = [replace(one, group=f"patient {i // 2}") for i, one in enumerate(data.slices)]
    assert seen(data) == 3
    for round_ in range(4):
        own = {view.slice // 2 for views in views_of(data, config.train, 5, round_, 2) for view in views}
        assert seen(data, round_, max_steps=2) == len(own)
    assert {seen(data, round_, max_steps=2) for round_ in range(9)} == {1, 2}
    hidden = slices_seen(data, hides(train={"max_steps": 1}), 5, 0)
    assert patients_seen(data, hidden) == 3  # drawn anew in each step, by chance
    data.slices[1:] = [replace(one, mask=None) for one in data.slices[1:]]
    assert seen(data) == 1
    assert slices_seen(data, tiny(train={"batch_size": 1, "max_steps": None}), 5, 0) == {0}


class Silent(Noise):
    """No noise, so that a step's gradient is its patients'."""

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like)


def test_the_gradient_is_the_sum_of_clipped_patients_over_their_expected_number(open_site) -> None:
    config = hides(privacy={"clip": 0.05}, train={"batch_size": 6})
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    parts = {which: tensors_of(site.model, site.part, which) for which in (Part.SHARED, Part.PRIVATE)}
    still = {which: torch.optim.SGD(of.values(), lr=1e-30) for which, of in parts.items()}
    data = site.data["train"]
    views = next(Hidden(Noise(bytes(32)), config).views(data, 0, 1))
    batch, every = data.batch(views), weights_of(still.values())
    wanted = [torch.zeros_like(weight) for weight in every]
    for i in range(len(views)):
        one = replace(batch, image=batch.image[i : i + 1], label=batch.label[i : i + 1])
        descend(site.model, one, still.values(), site.method.loss, config)
        own = [weight.grad.clone() for weight in every]
        size = float(torch.cat([g.flatten() for g in own]).norm())
        assert size > 0.05
        for total, part in zip(wanted, own, strict=True):
            total += part * (0.05 / size)
    Hidden(Silent(bytes(32)), config).steps(site.model, site.method.loss, data, site.method.gradient)(batch, still)
    for weight, total in zip(every, wanted, strict=True):
        assert torch.allclose(weight.grad, total / 6, atol=1e-7)
    assert float(torch.cat([weight.grad.flatten() for weight in every]).norm()) <= 0.05 * 1.0001


def test_a_method_may_act_after_the_optimisers_too_even_if_no_patient_was_drawn(open_site) -> None:
    site, seen = open_site(hides(train={"batch_size": 2})), []
    shared = tensors_of(site.model, site.part, Part.SHARED)
    name = next(iter(shared))
    start = shared[name].detach().clone()
    spy = lambda model, _config: seen.append(torch.equal(dict(model.named_parameters())[name], start))  # noqa: E731
    moving = {Part.SHARED: torch.optim.SGD(shared.values(), lr=0.1)}
    data = site.data["train"]
    steps = Hidden(Noise(bytes(32)), site.config).steps(site.model, site.method.loss, data, spy, spy)
    assert steps(None, moving) == {}
    assert seen == [True, False]


def test_a_step_without_a_patient_is_noise_of_the_declared_size(open_site) -> None:
    config = hides(privacy={"noise": 3.0, "clip": 0.1}, train={"batch_size": 2})
    site = open_site(config)
    shared = tensors_of(site.model, site.part, Part.SHARED)
    still = {Part.SHARED: torch.optim.SGD(shared.values(), lr=1e-30)}
    steps = Hidden(Noise(bytes(32)), config).steps(
        site.model, site.method.loss, site.data["train"], site.method.gradient
    )
    assert steps(None, still) == {}
    values = torch.cat([weight.grad.flatten() for weight in shared.values()])
    assert float(values.std()) == pytest.approx(3.0 * 0.1 / 2, rel=0.02)


@pytest.mark.parametrize("unit", ["patient", "site"])
def test_a_killed_round_is_repeated_bit_for_bit_and_paid_once(hospital: Path, tmp_path: Path, unit: str) -> None:
    """The second site is a new process on the same store, as after a kill -9."""
    first, report = round_of(Site("site-1", hides(unit), Places(hospital, tmp_path)))
    again, told = round_of(Site("site-1", hides(unit), Places(hospital, tmp_path)))
    assert all(torch.equal(first.wire[name], again.wire[name]) for name in first.wire)
    assert report["epsilon"] == told["epsilon"] > 0
    _, later = round_of(Site("site-1", hides(unit), Places(hospital, tmp_path)), round_=1)
    assert later["epsilon"] > told["epsilon"]


def test_a_round_on_another_model_is_paid_anew_with_other_noise(hospital: Path, tmp_path: Path) -> None:
    """Else a server that asks twice would get the difference of two updates without any noise."""
    site = Site("site-1", hides("site", privacy={"clip": 1e-5, "noise": 1e4}), Places(hospital, tmp_path))
    start = initial_shared(site.config)[0]
    noises = []
    for moved in (0.0, 1e-3):
        site.receive({name: tensor + moved for name, tensor in start.items()}, Moment("run", 0))
        noises.append(site.train(0, 4))
    assert noises[1].epsilon > noises[0].epsilon
    one, other = (torch.cat([t.flatten() for _, t in sorted(update.wire.items())]) for update in noises)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.02


def test_whatever_else_the_server_sends_changes_the_noise_too(hospital: Path, tmp_path: Path) -> None:
    """APPLE's other cores come down beside the shared tensors, and the update depends on them."""
    config = tiny(method="apple", privacy={"unit": "site", "epsilon": 1000.0}, own={"sites": 3})
    site, state = Site("site-1", config, Places(hospital, tmp_path)), initial_shared(config)[0]
    down = down_schema(config)
    for value in (0.0, 1e-3):
        wire = message(begin_state(state, down), "site-1", config, down)
        extras = {name for name in wire if name.startswith(EXTRA) and wire[name].is_floating_point()}
        site.receive({n: t + value if n in extras else t for n, t in wire.items()}, Moment("run", 0))
        site.train(0, 2)
    assert len(site.budget.spent().rounds) == 2


def test_other_patients_of_the_same_files_are_paid_anew(hospital: Path, tmp_path: Path) -> None:
    site = Site("site-1", hides(), Places(hospital, tmp_path))
    data = site.data["train"]
    for together in (2, 3):
        for i, one in enumerate(data.slices):
            data.slices[i] = replace(one, group=f"patient {i // together}")
        pay(site.budget, site.config, data, ("run", 0))
    assert len(site.budget.spent().rounds) == 2


def test_noise_that_several_sites_spread_is_new_each_time_and_paid_each_time(hospital: Path, tmp_path: Path) -> None:
    """Else a server could repeat a sum without a site, and subtract the two."""
    server = {"secure": "masks", "most_share": 1.0, "rule": "mean"}
    config = hides("site", privacy={"sites": 3}, server=server)
    site = Site("site-1", config, Places(hospital, tmp_path))
    like = torch.zeros(5)
    first, again = (pay(site.budget, config, site.data["train"], ("run", 0)) for _ in range(2))
    assert not torch.equal(first.noise.normal(like), again.noise.normal(like))
    assert again.epsilon > first.epsilon


@pytest.mark.parametrize("unit", ["site", "patient"])
def test_a_round_that_is_repeated_on_a_gpu_has_new_noise_and_is_paid_anew(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """It may make another update there. With one noise the difference would show itself without any."""
    config = hides(unit)
    site = Site("site-1", config, Places(hospital, tmp_path))
    monkeypatch.setattr(hidden, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(hidden, "computes_bf16", lambda *_: True)
    first, again = (pay(site.budget, config, site.data["train"], ("run", 0)) for _ in range(2))
    assert not torch.equal(first.noise.normal(torch.zeros(5)), again.noise.normal(torch.zeros(5)))
    assert again.epsilon > first.epsilon


def test_another_number_format_has_another_noise(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site("site-1", hides(), Places(hospital, tmp_path))
    for bf16 in (True, False, True):
        monkeypatch.setattr(hidden, "computes_bf16", lambda *_, bf16=bf16: bf16)
        pay(site.budget, site.config, site.data["train"], ("run", 0))
    assert len(site.budget.spent().rounds) == 2


def test_a_round_that_hides_patients_begins_with_no_private_part_that_knows_them(
    hospital: Path, tmp_path: Path
) -> None:
    plain = tiny(model={"experts": 0, "experts_rank": 2})
    round_of(Site("site-1", plain, Places(hospital, tmp_path)), run="plain")
    named = hides(begin_private="plain")
    with pytest.raises(UserFault, match=r"privacy.unit patient; came one of run plain, which hides no patients"):
        round_of(Site("site-1", named, Places(hospital, tmp_path)))
    round_of(Site("site-1", hides(), Places(hospital, tmp_path)), run="hidden")
    round_of(Site("site-1", hides(begin_private="hidden"), Places(hospital, tmp_path)), run="next")


def test_a_patient_whose_gradient_is_not_finite_counts_for_nothing_and_cannot_be_seen(open_site) -> None:
    config = hides(privacy={"noise": 1e-2, "clip": 0.05}, train={"batch_size": 6})
    site = open_site(config)
    site.receive(initial_shared(config)[0])
    data = site.data["train"]
    still = {Part.SHARED: torch.optim.SGD(tensors_of(site.model, site.part, Part.SHARED).values(), lr=1e-30)}
    batch = data.batch(next(Hidden(Noise(bytes(32)), config).views(data, 0, 1)))
    calls = iter(range(99))

    def overflows(model, one, job):
        return {
            name: term * (math.inf if next(calls) == 0 else 1)
            for name, term in site.method.loss(model, one, job).items()
        }

    Hidden(Noise(bytes(32)), config).steps(site.model, overflows, data, site.method.gradient)(batch, still)
    assert all(bool(weight.grad.isfinite().all()) for weight in weights_of(still.values()))


def test_a_synthetic_job_spends_nothing_of_the_patients_budget(hospital: Path, tmp_path: Path) -> None:
    site = Site("site-1", hides(data={"source": "synthetic"}), Places(hospital, tmp_path))
    round_of(site)
    assert Budget(tmp_path, "site-1").spent() is None
    assert site.budget.spent() is not None


def test_a_spent_budget_stops_the_training_in_every_study(hospital: Path, tmp_path: Path) -> None:
    config = hides(privacy={"epsilon": 16.0, "noise": 0.7})
    for round_ in (0, 1):
        round_of(Site("site-1", config, Places(hospital, tmp_path)), round_)
    site = Site("site-1", config, Places(hospital, tmp_path))
    with pytest.raises(UserFault, match=r"a privacy budget of epsilon 16 .*came \d+\.\d\d spent"):
        round_of(site, 2)
    spent = Budget(tmp_path, "site-1").spent()
    renamed = replace(config, study="another")
    other = Site("site-1", renamed, Places(hospital, tmp_path))
    with pytest.raises(UserFault, match="a privacy budget of epsilon 16"):
        round_of(other, run="new")
    assert Budget(tmp_path, "site-1").spent() == spent


@pytest.mark.parametrize("unit", ["patient", "site"])
def test_no_training_loss_leaves_and_the_report_says_what_is_spent(open_site, unit: str) -> None:
    from pfedsam.record.said import report_fault

    update, report = round_of(open_site(hides(unit)))
    assert report["losses"] == update.report.losses == {}
    assert report_fault(report, ()) is None


def test_without_privacy_nothing_is_paid(open_site, tmp_path: Path) -> None:
    _, report = round_of(open_site(tiny()))
    assert "epsilon" not in report
    assert not (tmp_path / "store/budget").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "scaffold"}, "a method that sends only its update"),
        ({"model": {"experts": 4}}, "model.experts 0 with privacy.unit patient"),
        ({"method": "iat"}, "a method whose loss keeps nothing from one image to the next"),
    ],
)
def test_what_would_leave_without_noise_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UserFault, match=expected):
        from_dict({"privacy": {"unit": "patient"}, **changes})


def test_settings_without_privacy_keep_their_digest() -> None:
    assert "privacy" not in from_dict({}).text()
    assert '"privacy"' in hides().text()
