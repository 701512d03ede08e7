"""DP-SGD at a site: what a step's gradient is made of, what leaves, and what a kill or a new job cannot change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import tiny
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Budget, Noise
from pfedsam.exchange.server import begin_state, message
from pfedsam.exchange.store import Moment
from pfedsam.model.partition import Part, tensors_of
from pfedsam.service import Turn, serve_round
from pfedsam.settings import from_dict
from pfedsam.site import Places, Site
from pfedsam.study import down_schema, initial_shared
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


def test_the_gradient_is_the_sum_of_clipped_patients_over_their_expected_number(open_site) -> None:
    config = hides(privacy={"noise": 1e-12, "clip": 0.05}, train={"batch_size": 6})
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
    Hidden(Noise(bytes(32)), config).steps(site.model, site.method.loss, data, site.method.gradient)(batch, still)
    for weight, total in zip(every, wanted, strict=True):
        assert torch.allclose(weight.grad, total / 6, atol=1e-7)
    assert float(torch.cat([weight.grad.flatten() for weight in every]).norm()) <= 0.05 * 1.0001


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
    assert report_fault(report) is None


def test_without_privacy_nothing_is_paid(open_site, tmp_path: Path) -> None:
    _, report = round_of(open_site(tiny()))
    assert "epsilon" not in report
    assert not (tmp_path / "store/budget").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "scaffold"}, "a method that sends only its update"),
        ({"model": {"experts": 4}}, "model.experts 0 with privacy.unit patient"),
    ],
)
def test_what_would_leave_without_noise_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UserFault, match=expected):
        from_dict({"privacy": {"unit": "patient"}, **changes})


def test_settings_without_privacy_keep_their_digest() -> None:
    assert "privacy" not in from_dict({}).text()
    assert '"privacy"' in hides().text()
