"""FLARE's real simulator: processes, messages, files. Each run is a job of seconds on synthetic sites."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import NEEDS, ROOT, TINY
from pfedsam import methods
from pfedsam.exchange.codec import wire_schema
from pfedsam.federation import Plan, federate
from pfedsam.flare.recipe import render
from pfedsam.layout import Places
from pfedsam.settings import read_config
from pfedsam.study import shared_schema

pytestmark = pytest.mark.flare
BRANCHES, METRICS = ("before", "global", "personal"), ("dice", "iou", "hd95", "assd")


def job(folder: Path, *changes: str, sites: str = "site-1,site-2", rounds: int = 2, **more: Any) -> Path:
    render(ROOT / "jobs/pfedsam", folder, changes=[*TINY, *changes], rounds=rounds, sites=sites.split(","), **more)
    return folder


def simulate(job: Path, workspace: Path, threads: int, **environment: str) -> str:
    """Run a job to its end; returns the log. Artefacts, not the exit code, say what happened."""
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace), "-t", str(threads)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PFEDSAM_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env={**clean, **environment})
    return done.stdout + done.stderr


def results_path(workspace: Path) -> Path:
    return workspace / "server/simulate_job/results.json"


def results(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results_path(workspace).read_text())
    return found


def ledger(store: Path, site: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / "demo" / site / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    log = simulate(job(folder / "job"), folder / "ws", threads=2)
    return folder / "ws", log


def test_results_hold_every_site_branch_and_metric(run: tuple[Path, str]) -> None:
    found = results(run[0])
    assert [r["round"] for r in found["rounds"]] == [0, 1]
    assert set(found["final"]["sites"]) == {"site-1", "site-2"}
    for group in [*found["final"]["sites"].values(), found["final"]["mean"], found["final"]["worst"]]:
        for branch in BRANCHES:
            assert set(METRICS) <= set(group[branch])
    for r in found["rounds"]:
        for site in r["sites"].values():
            assert site["bytes_sent"] > 0
            assert site["seconds"] > 0
            assert set(site["losses"]) == {"global", "personal", "balance"}
    assert found["synthetic"] is True
    worst = min(s["personal"]["dice"] for s in found["final"]["sites"].values())
    assert found["final"]["worst"]["personal"]["dice"] == worst


def test_the_run_ends_with_a_table_and_the_place_of_its_results(run: tuple[Path, str]) -> None:
    for text in ("personal", "site-2", "synthetic data", "s left", str(run[0] / "server/simulate_job")):
        assert text in run[1]


BEFORE_OUR_CODE = 2 + 2  # FLARE's own word on its command, its selector's, and a line of each site's process
CLOCK = r"\d\d:\d\d:\d\d "


def test_the_terminal_has_a_line_a_site_and_round_and_of_flare_s_own_what_comes_before_our_code(
    run: tuple[Path, str],
) -> None:
    lines = run[1].splitlines()
    for site in ("site-1", "site-2"):
        told = [line for line in lines if f"[{site}] round" in line]
        assert len(told) == 2
        for i, line in enumerate(told):
            assert re.fullmatch(rf"{CLOCK}\[{site}\] round {i + 1}/2 step 2/2 loss .*, about \d+ s left", line)
    table = next(i for i, line in enumerate(lines) if "the run is done" in line)
    others = [line for line in lines[:table] if not re.match(CLOCK, line)]
    assert len(others) <= BEFORE_OUR_CODE, others
    assert max(map(len, lines)) <= 120
    assert lines[-1] == f"results: {run[0] / 'server/simulate_job'}"


def test_log_txt_keeps_what_the_terminal_leaves_out(run: tuple[Path, str]) -> None:
    for party, told in (("server", "ServerRunner - INFO"), ("site-1", "ClientRunner - INFO")):
        log = (run[0] / party / "log.txt").read_text()
        assert log.count(told) > 5
        assert told not in run[1]
    assert "round 2 done" in (run[0] / "server/log.txt").read_text()


def test_only_declared_tensors_left_each_site_and_the_ledger_shows_them(run: tuple[Path, str]) -> None:
    declared = sorted(shared_schema(read_config(run[0].parent / "job/app/config/pfedsam.json")))
    assert not any("mix" in name for name in declared)
    for site in ("site-1", "site-2"):
        lines = ledger(run[0] / site / "pfedsam_store", site)
        out = [line for line in lines if line["direction"] == "out"]
        assert [(line["task"], line["round"]) for line in out] == [("train", 0), ("train", 1), ("validate", -1)]
        assert [line["tensors"] for line in out] == [declared, declared, []]
        sent = [r["sites"][site]["bytes_sent"] for r in results(run[0])["rounds"]]
        assert [line["bytes"] for line in out] == [*sent, 0]
        came = [line for line in lines if line["direction"] == "in"]  # each once: filter and executor both check
        assert [line["task"] for line in came] == ["train", "train", "validate"]


CACHED = ("model.lora_last=2", "train.views=2", "train.cache=disk")


@pytest.mark.long
def test_a_small_job_in_integers_runs_and_the_ledger_counts_its_bytes_both_ways(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", "model.decoder=lora", "wire.up=int4", "wire.down=int8", *CACHED)
    log = simulate(folder, tmp_path / "ws", threads=2)
    shared = shared_schema(read_config(folder / "app/config/pfedsam.json"))
    up, down = (
        sum(torch.Size(spec.shape).numel() for spec in wire_schema(shared, number).values())
        for number in ("int4", "int8")
    )
    assert len(results(tmp_path / "ws")["final"]["sites"]) == 2, log
    for site in ("site-1", "site-2"):
        lines = ledger(tmp_path / "ws" / site / "pfedsam_store", site)
        assert [line["bytes"] for line in lines if line["direction"] == "out"] == [up, up, 0]
        assert [line["bytes"] for line in lines if line["direction"] == "in"] == [down, down, down]
        told = [r["sites"][site] for r in results(tmp_path / "ws")["rounds"]]
        assert [(t["bytes_sent"], t["bytes_received"]) for t in told] == [(up, down)] * 2
        kept = {path.stem.split(".")[0] for path in (tmp_path / "ws" / site).rglob("front/*/*.safetensors")}
        assert kept == {"train", "val", "test"}


def test_the_run_in_one_process_gives_the_bits_of_the_run_through_flare(run: tuple[Path, str], tmp_path: Path) -> None:
    config = read_config(run[0].parent / "job/app/config/pfedsam.json")
    sites = ("site-1", "site-2")
    data = {site: next((run[0] / site / "simulate_job/synthetic_data").iterdir()) for site in sites}
    places = {site: Places(path, tmp_path / "stores") for site, path in data.items()}
    found, through = federate(Plan(config, places, 2, tmp_path / "out")), results(run[0])
    assert found["final"] == through["final"]
    for one, other in zip(found["rounds"], through["rounds"], strict=True):
        for site in sites:
            apart = {"seconds", "scoring_seconds", "private"}  # the last names the run
            here, there = one["sites"][site], other["sites"][site]
            assert {k: v for k, v in here.items() if k not in apart} == {
                k: v for k, v in there.items() if k not in apart
            }
            assert here["private"].get("round") == there["private"].get("round")
    model = load_file(next((tmp_path / "out/store").rglob("round.000002.safetensors")))
    sent = load_file(run[0] / "server/simulate_job/models/shared.safetensors")
    assert all(torch.equal(model[name], tensor) for name, tensor in sent.items())


def test_no_private_tensor_is_anywhere_in_the_server_s_folder(run: tuple[Path, str]) -> None:
    declared = sorted(shared_schema(read_config(run[0].parent / "job/app/config/pfedsam.json")))
    for model in (run[0] / "server").rglob("*.safetensors"):
        if "app_server" not in model.parts:
            assert sorted(load_file(model)) == declared
    private = load_file(run[0] / "site-1/simulate_job/pfedsam/private.safetensors")
    expert = next(v for n, v in private.items() if n.endswith(".own.a.weight"))
    needle = expert.numpy().tobytes()
    for path in (run[0] / "server").rglob("*"):
        assert not path.is_file() or needle not in path.read_bytes(), path


def test_each_site_keeps_its_own_experts_pictures_and_cases(run: tuple[Path, str]) -> None:
    private = [load_file(run[0] / s / "simulate_job/pfedsam/private.safetensors") for s in ("site-1", "site-2")]
    name = next(n for n in private[0] if n.endswith(".own.a.weight"))
    assert not torch.equal(private[0][name], private[1][name])
    for site in ("site-1", "site-2"):
        folder = run[0] / site / "simulate_job/pfedsam"
        for file in ("private.md", "cases.json", "pictures.safetensors"):
            assert (folder / file).stat().st_size > 0
    server = run[0] / "server/simulate_job"
    for file in ("models/shared.safetensors", "models/shared.md", "metrics/round_metrics.jsonl"):
        assert (server / file).stat().st_size > 0
    assert list(server.rglob("events.out.tfevents.*"))


def test_no_file_name_of_a_site_reaches_the_server(run: tuple[Path, str]) -> None:
    for path in (run[0] / "server").rglob("*"):
        assert not path.is_file() or b"synthetic_train_000" not in path.read_bytes(), path


@pytest.mark.long
def test_fewer_threads_than_sites_give_the_same_bits(run: tuple[Path, str], tmp_path: Path) -> None:
    """With one thread every task is a new process: all that lasts must come from the disk."""
    simulate(run[0].parent / "job", tmp_path / "ws", threads=1)
    models = [load_file(ws / "server/simulate_job/models/shared.safetensors") for ws in (run[0], tmp_path / "ws")]
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
    private = "site-2/simulate_job/pfedsam/private.safetensors"
    own = [load_file(ws / private) for ws in (run[0], tmp_path / "ws")]
    assert all(torch.equal(own[0][n], own[1][n]) for n in own[0])


BAD_SITE = '''
from nvflare.apis.dxo import from_shareable
from pfedsam.flare.executor import PFedSAMExecutor

class Bad(PFedSAMExecutor):
    """A site whose second round goes wrong: its update is all NaN, and it asks no filter."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if task_name == "train" and shareable.get_header("current_round") == 1:
            for tensor in from_shareable(reply).data.values():
                tensor.fill_(float("nan"))
        return reply
'''


def hostile(folder: Path) -> Path:
    """A job of three sites, one of which sends NaN in round 1 past its own filters."""
    path = job(folder, sites="site-1,site-2,site-3", rounds=3)
    shutil.copytree(path / "app", path / "app_bad")
    (path / "app_bad/custom/bad_site.py").write_text(BAD_SITE)
    client = path / "app_bad/config/config_fed_client.json"
    settings = json.loads(client.read_text())
    settings["executors"][0]["executor"]["path"] = "bad_site.Bad"
    settings["task_result_filters"] = []
    client.write_text(json.dumps(settings))
    meta = json.loads((path / "meta.json").read_text())
    meta["deploy_map"] = {"app": ["server", "site-1", "site-2"], "app_bad": ["site-3"]}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def test_a_bad_update_is_refused_with_its_reason_and_the_round_goes_on(tmp_path: Path) -> None:
    simulate(hostile(tmp_path / "job"), tmp_path / "ws", threads=3)
    found = results(tmp_path / "ws")
    assert [sorted(r["sites"]) for r in found["rounds"]] == [
        ["site-1", "site-2", "site-3"],
        ["site-1", "site-2"],
        ["site-1", "site-2", "site-3"],
    ]
    assert "NaN or infinite" in found["rounds"][1]["rejected"]["site-3"]
    model = load_file(tmp_path / "ws/server/simulate_job/models/shared.safetensors")
    assert all(t.isfinite().all() for t in model.values())


def test_a_site_without_data_is_told_in_one_line_and_the_job_stops(tmp_path: Path) -> None:
    path = job(tmp_path / "job", "data.source=site")
    log = simulate(path, tmp_path / "ws", threads=2, PFEDSAM_DATA=str(tmp_path / "nowhere"))
    assert any(f"[{site}] expected a datalist" in log for site in ("site-1", "site-2"))  # who comes first
    assert "PFEDSAM_DATA" in log
    assert not (tmp_path / "ws/server/simulate_job/results.json").exists()


def test_sites_that_number_their_classes_otherwise_stop_the_run_in_words(hospital: Path, tmp_path: Path) -> None:
    """Trained together one hospital's liver was the other's tumour. A quorum of one would have gone on without it."""
    for site, name in (("site-1", "Liver"), ("site-2", "Spleen")):
        shutil.copytree(hospital / site, tmp_path / "data" / site)
        (tmp_path / "data" / site / "classes.json").write_text(json.dumps({"1": name}))
    path = job(tmp_path / "job", "data.source=site", 'data.classes=["Liver"]')
    log = simulate(path, tmp_path / "ws", threads=2, PFEDSAM_DATA=str(tmp_path / "data"))
    assert "[site-2] expected the job's classes: 1 Liver; came 1 Spleen in" in log
    assert "site-2: its masks use other class numbers than the job (data.classes)" in log
    assert not results_path(tmp_path / "ws").exists() or not results(tmp_path / "ws")["final"]["sites"]


def simulate_and_kill(job: Path, workspace: Path, when: str, **environment: str) -> None:
    """Start a run and kill -9 all its processes as soon as `when` stands in its log."""
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace), "-t", "2"]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert run.stdout
    assert any(when in line for line in run.stdout), f"the run ended without: {when}"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()


@pytest.mark.parametrize(
    "when", ["[site-2] round 2/3 step 2/2", pytest.param("round 3 done in", marks=pytest.mark.long)]
)
def test_a_killed_run_goes_on_to_the_bits_of_the_undisturbed_one(tmp_path: Path, when: str) -> None:
    """Killed in a round (sites have trained it, the server has not taken it) and before the final test."""
    stores = {name: {"PFEDSAM_STORE": str(tmp_path / name)} for name in ("steady", "killed")}
    simulate(job(tmp_path / "job", rounds=3), tmp_path / "steady_ws", threads=2, **stores["steady"])
    simulate_and_kill(tmp_path / "job", tmp_path / "ws", when, **stores["killed"])
    render(tmp_path / "job", tmp_path / "rest", run="latest", continues=True, sites=["site-1", "site-2"])
    log = simulate(tmp_path / "rest", tmp_path / "ws", threads=2, **stores["killed"])
    assert "continues after" in log
    whole, found = results(tmp_path / "steady_ws"), results(tmp_path / "ws")
    assert [r["round"] for r in found["rounds"]] == [0, 1, 2]
    assert len(found["jobs"]) == 2
    assert found["final"] == whole["final"]
    models = [
        load_file(tmp_path / ws / "server/simulate_job/models/shared.best.safetensors") for ws in ("ws", "steady_ws")
    ]
    private = [load_file(max((tmp_path / s / "demo/site-2").glob("private.*.safetensors"))) for s in stores]
    for one, other in (models, private):
        assert all(torch.equal(one[n], other[n]) for n in other)


RULES = ("scaffold", "similarity", "fedavgm")


@pytest.mark.long
@pytest.mark.parametrize("method", RULES)
def test_a_killed_run_of_a_method_with_a_rule_goes_on_to_the_bits_of_the_run_in_one_process(
    tmp_path: Path, method: str
) -> None:
    """With the server's memory, its models of sites, each site's memory, and what travels beside the update."""
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    folder = job(tmp_path / "job", f"method={method}", rounds=3)
    simulate_and_kill(folder, tmp_path / "ws", "[site-2] round 2/3 step 2/2", **store)
    render(folder, tmp_path / "rest", run="latest", continues=True, sites=["site-1", "site-2"])
    assert "continues after" in simulate(tmp_path / "rest", tmp_path / "ws", threads=2, **store)
    data = {site: tmp_path / "ws" / site / "simulate_job/synthetic_data" for site in ("site-1", "site-2")}
    places = {site: Places(next(path.iterdir()), tmp_path / "stores") for site, path in data.items()}
    alone = federate(Plan(read_config(folder / "app/config/pfedsam.json"), places, 3, tmp_path / "out"))
    through = results(tmp_path / "ws")
    assert through["final"] == alone["final"]
    sent = [[r["sites"][site]["bytes_sent"] for site in places] for r in through["rounds"]]
    assert sent == [[r["sites"][site]["bytes_sent"] for site in places] for r in alone["rounds"]]
    last = "round.000003.safetensors"
    states = [load_file(next((tmp_path / place).rglob(last))) for place in ("store", "out/store")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.long
def test_a_second_run_of_a_job_in_the_same_store_begins_anew(tmp_path: Path) -> None:
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    folder = job(tmp_path / "job", sites="site-1", rounds=1)
    for _ in range(2):
        assert "continues after" not in simulate(folder, tmp_path / "ws", threads=1, **store)
    runs = list((tmp_path / "store/demo/server").iterdir())
    assert len(runs) == 2
    assert all((run / "round.000001.safetensors").exists() for run in runs)


ALONE = {"pooled": ["method=fedavg", "data.pool=true"]} | {r: [f"method.reading={r}"] for r in ("R1", "R2", "post")}
METHODS = {name: [f"method={name}"] for name in methods.names() if name != "pfedsam" and not methods.get(name).joins}


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS | ALONE)
def test_each_method_runs_as_a_setting_of_the_main_job(tmp_path: Path, name: str) -> None:
    changes = [
        *(METHODS | ALONE)[name],
        *TINY,
        *(f"model.{key}={json.dumps(of)}" for key, of in NEEDS.get(name, {}).items()),
    ]
    sites = ["pooled"] if name == "pooled" else ["site-1", "site-2"]
    render(ROOT / "jobs/pfedsam", tmp_path / "job", changes=changes, rounds=2, sites=sites)
    log = simulate(tmp_path / "job", tmp_path / "ws", threads=len(sites))
    found = results(tmp_path / "ws")
    assert set(found["final"]["sites"]) == set(sites), log
    assert [set(entry["sites"]) for entry in found["rounds"]] == [set(sites)] * 2
    assert not any(entry["rejected"] for entry in found["rounds"])


@pytest.mark.long
def test_a_site_trains_in_its_own_rounds_alone_and_one_that_never_trains_is_tested(tmp_path: Path) -> None:
    sites = "site-1,site-2,site-3"
    folder = job(tmp_path / "job", 'every={"site-2": 2, "site-3": 0}', sites=sites, rounds=3)
    log = simulate(folder, tmp_path / "ws", threads=3)
    found = results(tmp_path / "ws")
    both = {"site-1", "site-2"}
    assert [set(entry["sites"]) for entry in found["rounds"]] == [both, {"site-1"}, both], log
    assert set(found["final"]["sites"]) == {"site-1", "site-2", "site-3"}


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in methods.names() if methods.get(name).joins])
def test_a_newcomer_begins_with_the_model_of_a_finished_run(tmp_path: Path, method: str) -> None:
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    simulate(job(tmp_path / "job"), tmp_path / "ws", threads=2, **store)
    changes = [*TINY, f"method={method}", "study=late"]
    late = tmp_path / "late"
    render(ROOT / "jobs/pfedsam", late, changes=changes, rounds=1, begin="demo/latest", sites=["site-5"])
    log = simulate(late, tmp_path / "late_ws", threads=1, **store)
    found = results(tmp_path / "late_ws")
    assert set(found["final"]["sites"]) == {"site-5"}, log
    assert found["begun_with"]["run"] == f"demo/{results(tmp_path / 'ws')['run']}"
    assert f"begins with the model of run {found['begun_with']['run']} after 2 rounds" in log
    first, late = (
        load_file(tmp_path / ws / "server/simulate_job/models/shared.safetensors") for ws in ("ws", "late_ws")
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in late.items())


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.long
def test_torn_files_at_server_and_sites_cost_a_round_and_no_bit(tmp_path: Path) -> None:
    """A power cut that leaves the newest generation of everybody torn: both fall back to the one before."""
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    simulate_and_kill(job(tmp_path / "job", rounds=3), tmp_path / "ws", "round 3 done in", **store)
    run = next((tmp_path / "store/demo/server").iterdir())
    whole = load_file(run / "round.000003.safetensors")
    tear(run / "round.000003.json")
    for site in ("site-1", "site-2"):
        tear(max((tmp_path / "store/demo" / site).glob("private.*.safetensors")))
    render(tmp_path / "job", tmp_path / "rest", run="latest", continues=True, sites=["site-1", "site-2"])
    log = simulate(tmp_path / "rest", tmp_path / "ws", threads=2, **store)
    assert "round.000003.json is damaged" in log
    again = load_file(run / "round.000003.safetensors")
    assert all(torch.equal(again[n], whole[n]) for n in whole)


@pytest.mark.long
@pytest.mark.long
def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        log = simulate(job(tmp_path / "job"), tmp_path / "ws", threads=2, PFEDSAM_STORE=str(disk))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert "No space left on device; to mend it: free space" in log
    assert "Traceback" not in log


@pytest.mark.long
def test_continuing_a_run_with_other_settings_is_refused(run: tuple[Path, str], tmp_path: Path) -> None:
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    simulate(job(tmp_path / "job", rounds=1), tmp_path / "ws", threads=2, **store)
    changed = ["train.lr=0.5"]
    render(
        tmp_path / "job", tmp_path / "rest", changes=changed, run="latest", continues=True, sites=["site-1", "site-2"]
    )
    log = simulate(tmp_path / "rest", tmp_path / "ws", threads=2, **store)
    assert "[server] expected the settings of run" in log
    assert "came others (there: train.lr " in log
    assert "Traceback" not in log


@pytest.mark.long
def test_continuing_a_run_for_more_rounds_under_a_schedule_is_told(tmp_path: Path) -> None:
    store = {"PFEDSAM_STORE": str(tmp_path / "store")}
    simulate(job(tmp_path / "job", "train.schedule=cosine", rounds=1), tmp_path / "ws", threads=2, **store)
    assert results(tmp_path / "ws")["planned"] == {"rounds": 1, "earlier": []}
    render(tmp_path / "job", tmp_path / "rest", rounds=2, run="latest", continues=True, sites=["site-1", "site-2"])
    log = simulate(tmp_path / "rest", tmp_path / "ws", threads=2, **store)
    assert "[server] Planned for 1, then 2 rounds" in log
    found = results(tmp_path / "ws")
    assert found["planned"] == {"rounds": 2, "earlier": [1]}
    assert [entry["round"] for entry in found["rounds"]] == [0, 1]


@pytest.mark.long
def test_local_training_shares_nothing(tmp_path: Path) -> None:
    simulate(job(tmp_path / "job", "method=local"), tmp_path / "ws", threads=2)
    found = results(tmp_path / "ws")
    assert all(site["bytes_sent"] == 0 for r in found["rounds"] for site in r["sites"].values())
    assert found["final"]["mean"]["personal"]["dice"] is not None


def test_a_misspelt_setting_stops_the_job_with_one_line(tmp_path: Path) -> None:
    path = job(tmp_path / "job")
    settings = path / "app/config/pfedsam.json"
    settings.write_text(settings.read_text().replace('"study"', '"studdy"'))
    log = simulate(path, tmp_path / "ws", threads=2)
    assert "[server] expected settings of a job" in log
    assert "Traceback" not in log
