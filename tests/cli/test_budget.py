"""What the verbs say of a site's privacy budget."""

from pathlib import Path

import pytest

from pfedsam.cli import main
from pfedsam.config import PrivacyConfig
from pfedsam.exchange.privacy import Budget, Mechanism


def told(capsys: pytest.CaptureFixture[str], store: Path) -> str:
    assert main(["budget", "--site", "hospital-a", "--store", str(store)]) == 0
    return capsys.readouterr().out


def test_the_budget_verb_says_what_is_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Nothing is spent" in told(capsys, tmp_path)
    for round_ in ("0", "1", "2"):
        Budget(tmp_path, "hospital-a").pay(round_, Mechanism(1.5, 0.04, 750), PrivacyConfig(unit="patient"))
    out = told(capsys, tmp_path)
    assert "2250 steps with noise 1.5" in out
    assert "epsilon 7.33 at delta 1e-05, in 3 rounds" in out


@pytest.mark.parametrize("delta", ["0", "1", "2", "-1", "inf", "nan"])
def test_a_delta_that_is_no_small_probability_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], delta: str
) -> None:
    assert main(["budget", "--site", "hospital-a", "--store", str(tmp_path), f"--delta={delta}"]) == 2
    assert "--delta between 0 and 1" in capsys.readouterr().err


def test_a_store_that_is_none_is_refused_and_not_called_unspent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for name, came in (("typo", "nothing"), ("file", "a file")):
        assert main(["budget", "--site", "hospital-a", "--store", str(tmp_path / name)]) == 2
        told = capsys.readouterr()
        assert f"the site's store, a folder, at {tmp_path / name}; came {came}" in told.err
        assert told.out == ""


def test_a_damaged_budget_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "budget").mkdir()
    (tmp_path / "budget/hospital-a.json").write_text("{")
    assert main(["budget", "--site", "hospital-a", "--store", str(tmp_path)]) == 2
    assert "a damaged file" in capsys.readouterr().err


def test_forgetting_a_study_keeps_the_budget(tmp_path: Path) -> None:
    budget = Budget(tmp_path, "hospital-a")
    budget.pay("0", Mechanism(1.5, 0.04, 750), PrivacyConfig(unit="patient"))
    (tmp_path / "liver/hospital-a").mkdir(parents=True)
    (tmp_path / "liver/hospital-a/private.000001.safetensors").write_bytes(b"x")
    assert main(["forget", "liver", "--site", "hospital-a", "--store", str(tmp_path), "--yes"]) == 0
    assert budget.spent() is not None
