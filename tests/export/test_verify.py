"""Whatever is wrong with a file is found and named."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from conftest import tiny
from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.export.verify import verify
from pfedsam.federation import Plan, federate
from pfedsam.inference import facts as headers
from pfedsam.layout import Places
from pfedsam.record.results import start
from pfedsam.study import initial_shared
from pfedsam.tensors import pack

CHECKS = ["format", "tensors", "header", "settings", "round", "names and shapes", "base"]


def failed(path: Path, results: Path | None = None, weights: Path | None = None) -> list[str]:
    return [check.name for check in verify(path, results, weights) if check.ok is False]


def changed(source: Path, path: Path, *, reseal: bool = False, **lines: str) -> Path:
    """A copy with other lines in its header; `reseal` as a careful forger would."""
    header = {**headers.facts_of(source), **lines}
    if reseal:
        rest = {k: v for k, v in header.items() if k not in (headers.SEAL, headers.PAYLOAD)}
        header[headers.SEAL] = headers.seal(rest, header[headers.PAYLOAD])
    save_file(load_file(source), path, metadata=header)
    return path


@pytest.fixture
def results(model_file: Path, tmp_path: Path) -> Path:
    """The results.json of the run that the model file is of: rounds 0 and 1."""
    facts = headers.read_facts(model_file)
    record = start(json.loads(facts.settings), facts.config_hash, facts.origin.base)
    (tmp_path / "results.json").write_text(json.dumps({**record, "run": "run", "rounds": [{"round": 0}, {"round": 1}]}))
    return tmp_path / "results.json"


def test_a_file_in_order_passes_every_check(model_file: Path, results: Path) -> None:
    checks = verify(model_file, results)
    assert [check.name for check in checks] == [*CHECKS, "loading"]
    assert all(check.ok for check in checks)


def test_one_flipped_byte_is_found(model_file: Path, tmp_path: Path) -> None:
    data = bytearray(model_file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "torn.safetensors").write_bytes(data)
    assert failed(tmp_path / "torn.safetensors") == ["tensors"]


def test_a_changed_round_is_found_by_the_seal_and_a_resealed_one_by_the_results(
    model_file: Path, tmp_path: Path, results: Path
) -> None:
    path = tmp_path / "round.safetensors"
    assert failed(changed(model_file, path, round="7")) == ["header"]
    assert failed(changed(model_file, path, reseal=True, round="7"), results) == ["round"]
    assert failed(changed(model_file, path, reseal=True, run="another"), results) == ["round"]


@pytest.mark.parametrize("round_", ["", "1"])
def test_another_run_s_results_are_told_whatever_the_round(
    model_file: Path, tmp_path: Path, results: Path, round_: str
) -> None:
    path = changed(model_file, tmp_path / "other.safetensors", reseal=True, run="another", round=round_)
    assert failed(path, results) == ["round"]
    record = json.loads(results.read_text())
    results.write_text(json.dumps(record | {"base_hash": "0" * 64}))
    path = changed(model_file, tmp_path / "base.safetensors", reseal=True, round=round_)
    assert failed(path, results) == ["base"]


def test_swapped_settings_are_found(model_file: Path, tmp_path: Path, results: Path) -> None:
    path, other = tmp_path / "settings.safetensors", tiny(own={"reading": "R3"})
    assert failed(changed(model_file, path, reseal=True, settings=other.text())) == ["settings", "names and shapes"]
    both = {"settings": other.text(), "config": other.digest()}
    assert failed(changed(model_file, path, reseal=True, **both)) == ["names and shapes"]
    alike = tiny(seed=1)
    both = {"settings": alike.text(), "config": alike.digest()}
    assert failed(changed(model_file, path, reseal=True, **both), results) == ["settings"]


def test_another_base_is_found(model_file: Path, tmp_path: Path) -> None:
    assert failed(changed(model_file, tmp_path / "base.safetensors", reseal=True, base="0" * 64)) == ["base"]


def test_a_base_that_is_not_at_hand_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFEDSAM_WEIGHTS", raising=False)
    config = tiny(model={"backbone": "vit_b"})
    (tmp_path / "x.safetensors").write_bytes(
        pack({}, {"base": "0", "config": config.digest(), "settings": config.text()})
    )
    base = verify(tmp_path / "x.safetensors")[-1]
    assert base.ok is None
    assert "weights of vit_b" in base.why


def test_a_foreign_file_and_a_newer_one_fail_by_their_format(model_file: Path, tmp_path: Path) -> None:
    save_file({}, tmp_path / "foreign.safetensors")
    assert "format" in failed(tmp_path / "foreign.safetensors")
    assert failed(changed(model_file, tmp_path / "new.safetensors", reseal=True, version="2")) == ["format"]
    (tmp_path / "text.safetensors").write_text("no tensors here")
    assert failed(tmp_path / "text.safetensors") == ["format", "tensors"]


def test_a_run_s_own_files_are_checked_too(hospital: Path, tmp_path: Path) -> None:
    places = {"site-1": Places(hospital, tmp_path / "sites")}
    federate(Plan(tiny(), places, 2, tmp_path))
    for name in ("shared", "private"):
        checks = verify(tmp_path / f"site-1/{name}.safetensors", tmp_path / "results.json")
        assert [check.name for check in checks] == CHECKS
        assert {check.name for check in checks if check.ok} >= {*CHECKS} - {"header", "round"}, name


def test_a_private_part_in_the_store_is_called_private(hospital: Path, tmp_path: Path) -> None:
    federate(Plan(tiny(), {"site-1": Places(hospital, tmp_path / "sites")}, 1, tmp_path))
    (file,) = (tmp_path / "sites").rglob("private.*.safetensors")
    assert verify(file)[0].why.startswith("private")


def test_the_server_s_file_must_be_of_the_last_round(tmp_path: Path) -> None:
    config = tiny()
    shared, base = initial_shared(config)
    facts = {"run": "run", "config": config.digest(), "base": base, "settings": config.text()}
    record = start(json.loads(config.text()), config.digest(), base)
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "results.json").write_text(json.dumps({**record, "run": "run", "rounds": [{"round": 0}, {"round": 1}]}))
    for round_, wrong in (("1", []), ("0", ["round"])):
        (folder / "shared.safetensors").write_bytes(pack(shared, {**facts, "round": round_}))
        assert failed(folder / "shared.safetensors") == wrong
    (folder / "shared.safetensors").write_bytes(pack(shared, {**facts, "round": "0", "val_dice": "0.5"}))
    assert failed(folder / "shared.safetensors") == []


def test_the_verb_says_it_line_by_line_and_by_its_exit_code(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(model_file)]) == 0
    assert "ok      tensors" in capsys.readouterr().out
    bad = changed(model_file, tmp_path / "round.safetensors", round="7")
    assert main(["verify", str(bad)]) == 1
    assert "FAILED  header" in capsys.readouterr().out
    assert main(["verify", str(bad), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["verify", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{", b"[]"])
def test_results_that_cannot_be_read_are_the_user_s_to_mend(
    model_file: Path, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(UserFault, match=r"JSON (file|object) .*other\.json"):
        verify(model_file, tmp_path / "other.json")


@pytest.mark.parametrize("below", ["", "server/simulate_job"])
def test_verify_finds_the_results_in_a_run_s_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 99)
    run = tmp_path / "run" / below
    run.mkdir(parents=True)
    command = ["verify", str(tmp_path / "model.safetensors"), "--results", str(tmp_path / "run")]
    assert main(command) == 2
    assert "name its results.json" in capsys.readouterr().err
    (run / "results.json").write_text("{}")
    assert main(command) == 1
    assert "FAILED  tensors" in capsys.readouterr().out
