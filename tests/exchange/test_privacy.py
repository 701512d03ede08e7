"""The privacy budget: Opacus's known values, noise as it should be, and a file that only grows."""

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedsam.config import PrivacyConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.privacy import Budget, Mechanism, Noise, epsilon, noised
from pfedsam.settings import from_dict

AT = PrivacyConfig(unit="patient", epsilon=8.0, delta=1e-5)
PRV = replace(AT, accountant="prv")
ROUND = Mechanism(1.5, 0.04, 500)


def test_renyi_epsilon_is_opacus_s_known_value() -> None:
    assert epsilon([Mechanism(1.5, 0.04, 2250)], AT) == pytest.approx(7.32911117143, abs=1e-9)


def test_the_numerical_epsilon_is_opacus_s_known_value() -> None:
    """Opacus's test says 90 // 0.04 steps, which are 2 249."""
    assert epsilon([Mechanism(1.5, 0.04, 2249)], PRV) == pytest.approx(6.777395712150674, abs=1e-6)


@pytest.mark.parametrize("before", [Mechanism(0.05, 1.0, 1000), Mechanism(1.0, 0.05, 100_000)])
def test_where_the_numerical_epsilon_needs_too_much_memory_renyi_s_stands_for_it(before: Mechanism) -> None:
    """Low noise of an earlier job, or a great many steps: 877 and 4 GB."""
    spent = [before, ROUND]
    assert epsilon(spent, PRV) == epsilon(spent, AT) < math.inf


def test_one_gaussian_release_is_no_better_than_the_exact_bound() -> None:
    """Of Balle and Wang 2018: at epsilon e, delta is Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for of in (AT, PRV):
        for noise in (0.7, 1.0, 4.0):
            e = epsilon([Mechanism(noise, 1.0, 1)], of)
            exact = phi(0.5 / noise - e * noise) - math.exp(e) * phi(-0.5 / noise - e * noise)
            assert exact <= of.delta * 1.0001


@pytest.mark.parametrize("of", [AT, PRV])
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(of: PrivacyConfig) -> None:
    usual = epsilon([ROUND], of)
    assert epsilon([], of) == 0
    assert epsilon([ROUND, ROUND], of) == epsilon([replace(ROUND, steps=1000)], of) > usual
    assert epsilon([replace(ROUND, rate=0.08)], of) > usual > epsilon([replace(ROUND, noise=3.0)], of)
    assert epsilon([ROUND, Mechanism(5.0, 1.0, 1)], of) > usual


def test_noise_is_normal_and_the_same_only_for_the_same_key() -> None:
    drawn = Noise(bytes(32)).normal(torch.zeros(200_001, dtype=torch.float64))
    assert torch.equal(drawn, Noise(bytes(32)).normal(drawn))
    other = Noise(bytes(31) + b"1").normal(drawn)
    assert abs(float((drawn * other).mean())) < 0.01
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.1)
    inside = [float((drawn.abs() < bound).double().mean()) for bound in (1, 2, 3)]
    assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.004)


def test_an_update_is_cut_as_a_whole_and_noised_value_by_value() -> None:
    update = {"a": torch.full((300, 100), 3.0), "b": torch.full((40_000,), -4.0)}
    of = PrivacyConfig(unit="site", clip=2.0, noise=0.25)
    sent = noised(update, Noise(bytes(32)), of)
    norm = math.sqrt(30_000 * 9 + 40_000 * 16)
    for name, tensor in update.items():
        rest = sent[name] - tensor * (2.0 / norm)
        assert float(rest.std()) == pytest.approx(0.5, rel=0.02)
        assert abs(float(rest.mean())) < 0.01
    short = {"a": torch.full((4,), 0.5)}
    assert torch.allclose(noised(short, Noise(bytes(32)), replace(of, noise=0.0))["a"], short["a"])


def test_the_noise_of_all_sites_adds_up_to_that_of_one() -> None:
    alone = PrivacyConfig(unit="site", clip=2.0, noise=0.25)
    spread = replace(alone, sites=4)
    zero = {"a": torch.zeros(100_000)}
    parts = [noised(zero, Noise(bytes(31) + bytes([i])), spread)["a"] for i in range(4)]
    assert float(torch.stack(parts).sum(0).std()) == pytest.approx(0.5, rel=0.02)
    assert float(parts[0].std()) == pytest.approx(0.25, rel=0.02)


def test_noise_is_spread_only_over_a_masked_sum_of_equal_weights() -> None:
    privacy, server = {"unit": "site", "sites": 3}, {"rule": "mean", "secure": "masks", "most_share": 1}
    assert from_dict({"privacy": privacy, "server": server}).privacy.sites == 3
    for broken in ({"secure": "none"}, {"most_share": 1.5}):
        with pytest.raises(UserFault, match=r"privacy\.unit site, server\.secure masks and server\.most_share 1"):
            from_dict({"privacy": privacy, "server": {**server, **broken}})


def test_a_budget_survives_a_new_process_and_another_study_and_never_falls(tmp_path: Path) -> None:
    spent = 0.0
    for round_ in range(4):
        _, now = Budget(tmp_path, "site").pay(f"round {round_}", ROUND, AT)
        assert now > spent
        spent = now
    assert spent == pytest.approx(epsilon([replace(ROUND, steps=2000)], AT))
    with pytest.raises(UserFault, match=r"budget of epsilon 8 .* came \d\.\d\d spent"):
        Budget(tmp_path, "site").pay("round 9", replace(ROUND, steps=2000), AT)
    assert Budget(tmp_path, "site").pay("round 3", ROUND, AT)[1] == spent  # paid already, and nothing was added


def test_a_repeated_round_has_the_same_noise_and_every_other_round_another(tmp_path: Path) -> None:
    like = torch.zeros(16)
    first = Budget(tmp_path, "site").pay("round 0", ROUND, AT)[0].normal(like)
    assert torch.equal(first, Budget(tmp_path, "site").pay("round 0", ROUND, AT)[0].normal(like))
    assert not torch.equal(first, Budget(tmp_path, "site").pay("round 1", ROUND, AT)[0].normal(like))
    assert not torch.equal(first, Budget(tmp_path, "other").pay("round 0", ROUND, AT)[0].normal(like))


def test_a_budget_that_begins_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is not mounted, or a site under a new name, would spend its patients' privacy a second time."""
    for round_ in range(2):
        Budget(tmp_path, "site").pay(f"round {round_}", ROUND, AT)
    assert caplog.text.count(f"a new privacy budget begins in {tmp_path / 'budget/site.json'}") == 1


@pytest.mark.parametrize("harm", ["torn", "edited", "empty", "another"])
def test_a_damaged_budget_stops_the_site_instead_of_beginning_anew(tmp_path: Path, harm: str) -> None:
    budget = Budget(tmp_path, "site")
    budget.pay("round 0", ROUND, AT)
    text = budget.path.read_text()
    less = json.dumps({**json.loads(text), "mechanisms": [[1.5, 0.04, 1]]})
    budget.path.write_text({"torn": text[:-20], "edited": less, "empty": "", "another": "[1, 2]"}[harm])
    with pytest.raises(UserFault, match="the site's privacy budget in"):
        budget.pay("round 1", ROUND, AT)


def _pay(root: Path, first: int) -> None:
    for number in range(first, first + 20):
        Budget(root, "site").pay(f"round {number}", Mechanism(20.0, 0.01, 1), AT)


def test_two_jobs_at_once_lose_nothing_of_what_they_spend(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=_pay, args=(tmp_path, first)) for first in (0, 100)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    spent = Budget(tmp_path, "site").spent()
    assert spent is not None
    assert sum(one.steps for one in spent.mechanisms) == 40 == len(spent.rounds)


def test_the_file_holds_the_noise_s_key_and_is_the_user_s_alone(tmp_path: Path) -> None:
    from pfedsam.umask import private_files

    private_files()
    budget = Budget(tmp_path, "site")
    budget.pay("round 0", ROUND, AT)
    assert budget.path.stat().st_mode & 0o077 == 0
