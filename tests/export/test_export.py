"""The verb finds a run's parts where runs leave them, refuses what does not belong together, and writes a card."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from kits import Project

from conftest import tiny
from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.exchange.store import LAST, Moment
from pfedsam.export.single import card_beside
from pfedsam.export.source import Place, gather
from pfedsam.federation import Plan, federate
from pfedsam.inference.facts import read_facts
from pfedsam.inference.predictor import load_model
from pfedsam.layout import Places
from pfedsam.model import weights
from pfedsam.site import Site
from pfedsam.tensors import facts_of, pack, unpack


def lay(hospital: Path, folder: Path, **changes: object) -> Path:
    """A finished run's files as FLARE's simulator leaves them: the server's folder and each site's."""
    names = ("site-1", "site-2")
    places = {name: Places(hospital, folder / "store") for name in names}
    record = federate(Plan(tiny(**changes), places, 2, folder / "run"))
    server = folder / "server/simulate_job"
    (server / "models").mkdir(parents=True)
    shared = folder / "run/site-1/shared.safetensors"
    if shared.exists():
        tensors, facts = unpack(shared.read_bytes())
        facts = {k: v for k, v in facts.items() if k not in ("site", "part")} | {"round": "1"}
        (server / "models/shared.safetensors").write_bytes(pack(tensors, facts))
    (server / "results.json").write_text(json.dumps(record | {"run": "run"}))
    for name in names:
        (folder / name / "simulate_job").mkdir(parents=True)
        (folder / "run" / name).rename(folder / name / "simulate_job/pfedsam")
    return folder


@pytest.fixture(scope="module")
def workspace(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(hospital, tmp_path_factory.mktemp("workspace"))


def test_a_workspace_and_a_site_give_that_site_s_model(workspace: Path, hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace), "--site", "site-2", "--out", str(out)]) == 0
    facts = read_facts(out)
    assert facts.branches == ("global", "personal")
    assert (facts.origin.site, facts.origin.round, facts.origin.private_round) == ("site-2", 1, 1)
    site = Site("site-2", tiny(), Places(hospital, workspace / "store"))
    shared = unpack((workspace / "server/simulate_job/models/shared.safetensors").read_bytes())[0]
    site.recall(shared, Moment("run", LAST))
    image = torch.rand(1, 3, 64, 64)
    model = load_model(out)
    site.model.eval()
    with torch.no_grad():
        expected = site.model(model.normalise(image), ("personal",))["personal"]
    assert torch.allclose(model.logits(image, "personal"), expected, atol=1e-6)


def test_a_card_that_somebody_filled_in_is_not_written_over(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(workspace), "--out", str(tmp_path / "model.safetensors")]
    assert main(command) == 0
    (tmp_path / "model.md").write_text("filled in")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.md").read_text() == "filled in"
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("out", "more", "told"),
    [
        ("model.md", [], "another ending than .md"),
        ("m.safetensors", ["--onnx", "m.safetensors"], "twice"),
        ("m.safetensors", ["--onnx", "x/../m.md"], "twice"),
        ("m.safetensors", ["--onnx", "m.safetensors.sig"], "twice"),
        ("m.safetensors", ["--bundle", "m.safetensors"], "in the folder of --bundle"),
        ("m.safetensors", ["--bundle", "b", "--onnx", "b/m.onnx"], "in the folder of --bundle"),
    ],
)
def test_files_of_which_one_would_replace_another_are_refused_before_anything_is_written(
    workspace: Path,
    tmp_path: Path,
    out: str,
    more: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(workspace), "--out", out, *more, "--overwrite"]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_site_it_is_the_global_branch(workspace: Path) -> None:
    source = gather(Place(workspace))
    assert source.private is None
    assert source.facts.branches == ("global",)


def test_a_site_s_own_folder_needs_no_name(workspace: Path) -> None:
    source = gather(Place(workspace / "site-1/simulate_job"))
    assert source.facts.origin.site == "site-1"
    assert source.facts.branches == ("global", "personal")


def test_the_store_holds_the_same_private_part(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = gather(Place(workspace, "site-1"))
    stored = gather(Place(workspace, "site-1", store=workspace / "store"))
    monkeypatch.setenv("PFEDSAM_STORE", str(workspace / "store"))
    server = gather(Place(workspace / "server/simulate_job", "site-1"))
    assert tested.private is not None
    for other in (stored, server):
        assert other.private is not None
        assert all(torch.equal(tensor, other.private[name]) for name, tensor in tested.private.items())
        assert other.facts.origin.private_round == 1


def test_global_only_leaves_the_private_part_out(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace), "--site", "site-1", "--global-only", "--out", str(out)]) == 0
    assert read_facts(out).branches == ("global",)
    assert not [name for name in unpack(out.read_bytes())[0] if name.startswith("private/")]
    assert "must not be published" not in out.with_suffix(".md").read_text()


@pytest.mark.parametrize("method", ["fedper", "fedsa_lora"])
def test_a_global_branch_that_sites_keep_a_part_of_is_not_given_to_others(
    hospital: Path, tmp_path: Path, method: str
) -> None:
    """Without that part a file would predict with untrained tensors, under the scores of the sites' own models."""
    folder = lay(hospital, tmp_path, method=method)
    with pytest.raises(UserFault, match=f"with {method} each site keeps some or all of the global branch"):
        gather(Place(folder, "site-1", alone=True))
    assert gather(Place(folder, "site-1")).facts.branches == ("global", "personal")


@pytest.mark.parametrize("method", ["fedicra", "fedsca"])
def test_a_site_s_private_part_is_not_put_beside_tensors_that_the_site_does_not_predict_with(
    hospital: Path, tmp_path: Path, method: str
) -> None:
    """Of the first, a site mixes the decoder that it gets. Of the second, the server makes a model for each site."""
    folder = lay(hospital, tmp_path, method=method)
    assert gather(Place(folder, "site-1", store=folder / "store")).facts.branches == ("global", "personal")
    with pytest.raises(UserFault, match=r"the shared\.safetensors that the site tested"):
        gather(Place(folder / "server/simulate_job", "site-1", store=folder / "store"))


def test_scores_of_the_sites_own_models_are_not_those_of_the_shared_one(hospital: Path, tmp_path: Path) -> None:
    folder = lay(hospital, tmp_path, method="similarity")
    assert not gather(Place(folder, alone=True)).tested
    assert gather(Place(lay(hospital, tmp_path / "mean", method="fedavg"), alone=True)).tested


def test_parts_of_two_runs_are_not_joined(workspace: Path, tmp_path: Path) -> None:
    shared = workspace / "server/simulate_job/models/shared.safetensors"
    tensors, facts = unpack(shared.read_bytes())
    (tmp_path / "other.safetensors").write_bytes(pack(tensors, {**facts, "run": "another"}))
    with pytest.raises(UserFault, match="of one run"):
        gather(Place(workspace, "site-1", shared=tmp_path / "other.safetensors"))


def test_settings_of_another_job_are_refused(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "pfedsam.json").write_text('{"seed": 5}')
    with pytest.raises(UserFault, match="same settings"):
        gather(Place(workspace, "site-1", settings=tmp_path / "pfedsam.json"))


@pytest.mark.parametrize("site", ["site-9", "../site-1/x"])
def test_an_unknown_site_is_told(
    workspace: Path, tmp_path: Path, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(workspace), "--site", site, "--out", str(tmp_path / "m.safetensors")]) == 2
    assert "correct --site" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_method_that_shares_nothing_is_exported_at_a_site(hospital: Path, tmp_path: Path) -> None:
    folder = lay(hospital, tmp_path, method="local")
    assert gather(Place(folder, "site-1")).facts.branches == ("global", "personal")
    with pytest.raises(UserFault, match="below"):
        gather(Place(folder))


def test_the_card_has_counts_and_scores_and_no_case_s_name(workspace: Path, hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace), "--site", "site-1", "--out", str(out), "--json"]) == 0
    text = out.with_suffix(".md").read_text()
    record = json.loads((workspace / "server/simulate_job/results.json").read_text())
    dice = record["final"]["sites"]["site-1"]["personal"]["dice"]
    shown = re.search(r"\| personal \| (0\.\d{3}) \|", text)  # of the site's own cases, which have all digits
    assert shown
    assert float(shown[1]) == pytest.approx(dice, abs=6e-4)
    assert "2 site(s), 12 training slices in all" in text
    assert "must not be published" in text
    assert "site-2" not in text
    names = [path.stem for path in (hospital / "site-1/images").iterdir()]
    assert names
    assert not [name for name in names if name in text]
    assert str(workspace) not in text


def test_a_site_without_results_json_scores_from_its_own_cases(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace / "site-1/simulate_job/pfedsam"), "--out", str(out)]) == 0
    record = json.loads((workspace / "server/simulate_job/results.json").read_text())
    assert (
        f"| personal | {record['final']['sites']['site-1']['personal']['dice']:.3f} |"
        in out.with_suffix(".md").read_text()
    )


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"round": "1"}, True),
        ({"round": "0"}, False),
        ({"round": "1", "val_dice": "0.5"}, False),
        ({"run": "b"}, False),
    ],
)
def test_the_card_shows_scores_of_the_tested_shared_part_alone(
    workspace: Path, tmp_path: Path, facts: dict[str, str], shown: bool
) -> None:
    tensors, own = unpack((workspace / "server/simulate_job/models/shared.safetensors").read_bytes())
    (tmp_path / "other.safetensors").write_bytes(pack(tensors, own | facts))
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace), "--shared", str(tmp_path / "other.safetensors"), "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert ("| global |" in text) is shown
    assert ("not tested" in text) is not shown


def test_a_site_s_own_scores_are_not_those_of_another_file_of_shared_tensors(workspace: Path, tmp_path: Path) -> None:
    best, own = tmp_path / "best.safetensors", workspace / "site-1/simulate_job/pfedsam"
    tensors, facts = unpack((workspace / "server/simulate_job/models/shared.safetensors").read_bytes())
    best.write_bytes(pack(tensors, facts | {"round": "0", "val_dice": "0.5"}))
    assert main(["export", str(own), "--shared", str(best), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert "not tested" in (tmp_path / "model.md").read_text()


def test_case_scores_of_another_run_are_not_shown(workspace: Path, tmp_path: Path) -> None:
    own = shutil.copytree(workspace / "site-1/simulate_job/pfedsam", tmp_path / "own")
    kept = json.loads((own / "cases.json").read_text())
    (own / "cases.json").write_text(json.dumps(kept | {"run": "another"}))
    assert main(["export", str(own), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert "No scores at hand" in (tmp_path / "model.md").read_text()


@pytest.mark.parametrize("folder", ["site-1/simulate_job", "site-1/simulate_job/pfedsam"])
def test_a_hospital_s_own_folder_gives_its_global_branch(workspace: Path, tmp_path: Path, folder: str) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace / folder), "--global-only", "--out", str(out)]) == 0
    assert read_facts(out).branches == ("global",)
    assert read_facts(out).origin.site == ""
    assert "site-1" not in out.with_suffix(".md").read_text() + str(facts_of(out))


def test_with_its_base_the_file_says_so(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["export", str(workspace), "--out", str(out), "--with-base"]) == 0
    assert facts_of(out)["whole"] == "true"
    assert "The frozen base too." in out.with_suffix(".md").read_text()
    assert main(["verify", str(out)]) == 0


def refused_before_writing(command: list[str], out: Path, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--out", str(out / "m.safetensors"), "--onnx", str(out / "m.onnx")]) == 2
    assert told in capsys.readouterr().err
    assert not list(out.iterdir())


def test_a_graph_of_a_branch_that_the_file_lacks_is_refused_before_anything_is_written(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(workspace), "--site", "site-1", "--global-only", "--branch", "personal"]
    refused_before_writing(command, tmp_path, "a branch that the model file holds (global)", capsys)


def test_a_graph_without_its_packages_is_refused_before_anything_is_written(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfedsam.export.onnx.importlib.util.find_spec", lambda name: None)
    refused_before_writing(["export", str(workspace)], tmp_path, "pip install 'pfedsam[onnx]'", capsys)


@pytest.mark.parametrize("more", [[], ["--with-base"]])
def test_a_base_that_is_not_the_run_s_is_refused_before_anything_is_written(
    workspace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
) -> None:
    """As with weights that are missing, or of another file."""
    other, read = tmp_path / "other", weights.read
    other.mkdir()
    monkeypatch.setattr(weights, "read", lambda *given: {name: one + 1 for name, one in read(*given).items()})
    refused_before_writing(["export", str(workspace), *more], other, "the base model that the run began with", capsys)


def test_a_base_too_large_for_a_graph_is_refused_before_anything_is_written(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfedsam.export.onnx.LARGE", 1000)
    refused_before_writing(["export", str(workspace)], tmp_path, "a graph of less than 2 GB", capsys)


def test_export_signs_with_a_kit_and_takes_an_outdated_signature_away(workspace: Path, tmp_path: Path) -> None:
    kit = Project().kit(tmp_path / "kit", "fl-server", file="server")
    out, graph = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    command = ["export", str(workspace), "--site", "site-1", "--out", str(out)]
    assert main([*command, "--sign", str(tmp_path)]) == 2
    assert not out.exists(), "a kit that cannot sign is told before anything is written"
    assert main([*command, "--onnx", str(graph), "--sign", str(kit)]) == 0
    for file in (out, graph):
        assert main(["verify", str(file), "--by", str(kit), "--signer", "fl-server"]) == 0
    assert main([*command, "--overwrite"]) == 0
    assert not out.with_name("model.safetensors.sig").exists()
    assert main(["verify", str(out), "--by", str(kit)]) == 1


@pytest.mark.parametrize("out", [".", "..", "folder"])
def test_a_folder_is_no_name_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserFault, match="the name of a model file"):
        card_beside(Path(out))
