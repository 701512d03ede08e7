"""A provisioned federation of three hospitals: real certificates, processes, roles, site policy."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from federation import LEAD, Federation, main
from nvflare.recipe import ProdEnv
from safetensors.torch import load_file

from conftest import ROOT, TINY, let_little_leave
from pfedsam.errors import UserFault
from pfedsam.exchange.ledger import Ledger
from pfedsam.flare.presence import Patience
from pfedsam.flare.recipe import PFedSAMRecipe, render
from pfedsam.jobs import read_job
from pfedsam.settings import read_config
from pfedsam.study import shared_schema

pytestmark = [pytest.mark.flare, pytest.mark.long]
READER = "reader@hospital-b.org"
SITES = {"hospital-a", "hospital-b", "hospital-c"}


def bare_venv(folder: Path) -> Path:
    """An interpreter with every package but this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (place,) = folder.glob("lib/python*/site-packages")
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (place / "others.pth").write_text(f"{here}\n")
    python = folder / "bin/python3"
    assert subprocess.run([python, "-c", "import torch, nvflare"], cwd=folder).returncode == 0
    assert subprocess.run([python, "-c", "import pfedsam"], cwd=folder, capture_output=True).returncode == 1
    return python


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with this package as a hospital installs it: from a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    python, source = bare_venv(folder / "venv"), folder / "source"
    skip = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=skip)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder], check=True)
    (place,) = (folder / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", place, *folder.glob("*.whl")], check=True)
    where = subprocess.run(
        [python, "-c", "import pfedsam; print(pfedsam.__file__)"], cwd=folder, capture_output=True, text=True
    ).stdout
    assert str(place) in where
    return python


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory, wheel_python: Path) -> Iterator[Federation]:
    """A federation whose sites have the wheel and take no foreign code, prepared by the documented command."""
    home = tmp_path_factory.mktemp("provisioned") / "federation"
    assert main(["prepare", "--home", str(home)]) == 0
    federation = Federation(home, wheel_python)
    let_little_leave(federation)
    federation.start()
    yield federation
    assert main(["stop", "--home", str(home)]) == 0
    assert not any(federation.processes(party) for party in federation.parties)


def end_of(federation: Federation, job: str, longest: float = 240) -> str:
    """The status a job ends with."""
    with federation.admin() as admin:
        end = time.monotonic() + longest
        while time.monotonic() < end:
            status = str((admin.ask("get_job_meta", job) or {}).get("status", ""))
            if status.startswith("FINISHED"):
                return status
            time.sleep(2)
    raise TimeoutError(job)


def log_of(federation: Federation, party: str, job: str) -> str:
    return "".join(path.read_text() for path in (federation.kit(party) / job).rglob("log.txt"))


def leavings(store: Path) -> int:
    """How many messages have left a site, by the ledgers below `store`."""
    return sum(line["direction"] == "out" for path in store.rglob("ledger.jsonl") for line in Ledger(path).lines())


def test_a_job_of_configuration_alone_runs_and_its_results_are_fetched(hospitals: Federation) -> None:
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=plain", rounds=2)
    assert not list(job.rglob("*.py"))
    number = hospitals.submit(job)
    assert end_of(hospitals, number) == "FINISHED:COMPLETED"
    with hospitals.admin() as admin:
        assert admin.heard(number)  # the server's log, by grep
        with pytest.raises(UserFault, match=r"not authorized"):
            admin.call("cat_target", "server", "", "log.txt")
    fetched = hospitals.fetch(number)
    (found,) = fetched.rglob("results.json")
    results = json.loads(found.read_text())
    assert set(results["final"]["sites"]) == SITES
    assert [set(r["sites"]) for r in results["rounds"]] == [SITES, SITES]
    declared = set(shared_schema(read_config(job / "app/config/pfedsam.json")))
    for model in fetched.rglob("*.safetensors"):
        assert set(load_file(model)) == declared
    for site in SITES:
        own = hospitals.kit(site) / "pfedsam_store/plain" / site
        assert list(own.glob("private.*.safetensors"))
        assert leavings(own)


def test_the_admin_console_takes_the_same_folder(hospitals: Federation) -> None:
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=console", rounds=1)
    said = subprocess.run(
        ["bash", str(hospitals.kit(LEAD) / "startup/fl_admin.sh")],
        input=f"{LEAD}\nsubmit_job {job}\nlist_jobs\nbye\n",
        capture_output=True,
        text=True,
        timeout=120,
        env=hospitals.environment,
    ).stdout
    assert "Submitted job" in said
    number = said.split("Submitted job: ")[1].split()[0]
    assert end_of(hospitals, number) == "FINISHED:COMPLETED"


def test_the_recipe_runs_on_a_provisioned_federation(hospitals: Federation) -> None:
    job = read_job(ROOT / "jobs/pfedsam", [*TINY, "study=recipe"], rounds=1, sites=sorted(SITES))
    env = ProdEnv(startup_kit_location=str(hospitals.kit(LEAD)), username=LEAD)
    number = PFedSAMRecipe.of(job, code=False).execute(env).get_job_id()
    assert end_of(hospitals, number) == "FINISHED:COMPLETED"


def test_a_person_without_the_right_may_look_but_not_submit(hospitals: Federation) -> None:
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, rounds=1)
    with hospitals.admin(READER) as reader:
        assert set(reader.present()) == SITES
        with pytest.raises(UserFault, match=r"not authorized"):
            reader.submit(job)


@pytest.mark.parametrize("app", ["app", "at_server"])
def test_a_job_with_code_is_refused_where_nobody_takes_any(hospitals: Federation, app: str) -> None:
    """Also if the code is in the server's app alone, which no site sees."""
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, rounds=1)
    if app == "at_server":
        shutil.copytree(job / "app", job / app)
        meta = json.loads((job / "meta.json").read_text())
        split = {app: ["server"], "app": sorted(SITES)}
        (job / "meta.json").write_text(json.dumps({**meta, "deploy_map": split}))
    (job / app / "custom").mkdir()
    (job / app / "custom/mine.py").write_text("STOLEN = open('/etc/hostname').read()\n")
    number = hospitals.submit(job)
    assert end_of(hospitals, number) != "FINISHED:COMPLETED"
    with hospitals.admin() as admin:
        told = json.dumps(admin.ask("get_job_meta", number))
    assert "BYOC not permitted" in told


def test_code_that_a_job_s_network_settings_name_does_not_run(hospitals: Federation, tmp_path: Path) -> None:
    """FLARE takes only a folder `custom` for code, but imports what a comm_config.json names, wherever it finds one."""
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, rounds=1)
    (job / "app/config/comm_config.json").write_text(json.dumps({"comm_driver_path": "."}))
    (job / "app/extra").mkdir()
    (job / "app/extra/mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    number = hospitals.submit(job)
    assert end_of(hospitals, number) != "FINISHED:COMPLETED"
    with hospitals.admin() as admin:
        told = json.dumps(admin.ask("get_job_meta", number))
    assert "a job of settings alone" in told
    assert not (tmp_path / "ran").exists()


def test_a_message_over_the_site_s_limit_does_not_leave_and_the_site_says_why(hospitals: Federation) -> None:
    """hospital-a's administrator lowers the limit below what this job sends; the others go on."""
    policy = hospitals.kit("hospital-a") / "local/privacy.json"
    before = policy.read_text()
    policy.write_text(before.replace('"max_megabytes": 64.0', '"max_megabytes": 0.1').replace(": 64", ": 0.1"))
    try:
        hospitals.stop("hospital-a")
        hospitals.start("hospital-a")
        number = hospitals.submit(hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=limit", rounds=1))
        end_of(hospitals, number)
        assert "site policy: expected at most 0.1 MB to leave" in log_of(hospitals, "hospital-a", number)
        (found,) = hospitals.fetch(number).rglob("results.json")
        assert set(json.loads(found.read_text())["rounds"][0]["sites"]) == SITES - {"hospital-a"}
    finally:
        policy.write_text(before)
        hospitals.stop("hospital-a")
        hospitals.start("hospital-a")


GREEDY = '''
from nvflare.apis.dxo import from_shareable
from pfedsam.flare.executor import PFedSAMExecutor

class Greedy(PFedSAMExecutor):
    """Puts an expert into what it sends."""

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if task_name == "train":
            name, expert = next(iter(self._site.private().items()))
            from_shareable(reply).data[name] = expert.clone()
        return reply
'''


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation whose sites have no package of ours: each job brings its code, which the sites allow."""
    home = tmp_path_factory.mktemp("trusting")
    federation = Federation(home / "federation", bare_venv(home / "venv"))
    federation.prepare("provisioned", byoc=True)
    let_little_leave(federation)
    federation.start()
    yield federation
    federation.stop()


def test_code_comes_with_the_job_where_sites_allow_it_and_their_fence_stays(trusting: Federation) -> None:
    number = trusting.submit(trusting.render(ROOT / "jobs/pfedsam", *TINY, rounds=1))
    assert end_of(trusting, number) == "FINISHED:COMPLETED"
    (found,) = trusting.fetch(number).rglob("results.json")
    assert set(json.loads(found.read_text())["final"]["sites"]) == SITES

    left = {site: leavings(trusting.kit(site) / "pfedsam_store") for site in SITES}
    assert all(left.values())

    job = trusting.render(ROOT / "jobs/pfedsam", *TINY, rounds=1)
    (job / "app/custom/greedy.py").write_text(GREEDY)
    path = job / "app/config/config_fed_client.json"
    client = json.loads(path.read_text())
    client["executors"][0]["executor"]["path"] = "greedy.Greedy"
    client["task_result_filters"] = []
    path.write_text(json.dumps(client))
    number = trusting.submit(job)
    assert end_of(trusting, number) != "FINISHED:COMPLETED"
    logs = [log_of(trusting, site, number) for site in SITES]  # two refusals end the run, of whichever sites
    assert sum("site policy: expected" in log and "are not declared" in log for log in logs) >= 2
    assert left == {site: leavings(trusting.kit(site) / "pfedsam_store") for site in SITES}


def test_a_hostile_hospital_ends_nobody_s_run_and_forges_no_record(
    hospitals: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed installation, over real certificates and processes, where no site takes foreign code."""
    shutil.copytree(ROOT / "custom/pfedsam", tmp_path / "pfedsam")
    source = (ROOT / "tests/flare/hostile.py").read_text().replace('HOSTILE = "site-3"', 'HOSTILE = "hospital-b"')
    (tmp_path / "pfedsam/flare/hostile.py").write_text(source)
    with (tmp_path / "pfedsam/flare/executor.py").open("a") as executor:
        executor.write("from pfedsam.flare.hostile import Hostile as PFedSAMExecutor\n")
    hospitals.stop("hospital-b")
    try:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        hospitals.start("hospital-b")
        number = hospitals.submit(hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=hostile", rounds=2))
        assert end_of(hospitals, number) == "FINISHED:COMPLETED"
    finally:
        monkeypatch.delenv("PYTHONPATH")
        hospitals.stop("hospital-b")
        hospitals.start("hospital-b")
    assert list((hospitals.kit("hospital-b") / number).rglob("tried.json"))
    (found,) = hospitals.fetch(number).rglob("results.json")
    results = json.loads(found.read_text())
    assert [set(r["sites"]) for r in results["rounds"]] == [SITES - {"hospital-b"}, SITES]
    assert "TASK_UNKNOWN" in results["rounds"][0]["rejected"]["hospital-b"]
    assert set(results["final"]["sites"]) == SITES
    said = "refused a request that no run needs: "
    for party in SITES - {"hospital-b"}:
        assert f"{said}'fed.event'" in log_of(hospitals, party, number)
    assert f"{said}'fed.event'" in next(found.parent.rglob("log.txt")).read_text()
    server = hospitals.facts["server"]
    for party, kinds in ((server, ("stop", "update_run_status")), ("hospital-a", ("train.abort", "stop_cell"))):
        log = (hospitals.kit(party) / "log.txt").read_text()
        assert [f"{said}'{kind}'" in log for kind in kinds] == [True] * len(kinds)
    assert "expected a message of at most 64.0 MB, came 70.0 MB" in (hospitals.kit(server) / "log.txt").read_text()
    named = "refused a request in another's name, sent by 'hospital-b"
    assert named in (hospitals.kit(server) / "log.txt").read_text()


def test_a_site_absent_at_the_start_joins_late_and_a_lost_one_comes_back(hospitals: Federation) -> None:
    """Only two hospitals at the start; the third's machine comes up after the first round."""
    hospitals.stop("hospital-c")
    job = hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=late", "train.max_steps=8", rounds=30)
    kept = hospitals.kit(hospitals.facts["server"]) / "pfedsam_store/late"

    def come_up() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not list(kept.glob("server/*/round.00000[1-9].json")):
            time.sleep(0.2)
        hospitals.start("hospital-c")

    late = threading.Thread(target=come_up)
    late.start()
    outcome = hospitals.watch(job, Patience(poll=1, settle=0, outside=5, boundary=30))
    late.join()
    (found,) = outcome.folder.rglob("results.json")
    results = json.loads(found.read_text())
    assert outcome.ends == ("REJOIN", "FINISHED:COMPLETED")
    assert [r["round"] for r in results["rounds"]] == list(range(30))
    assert set(results["rounds"][0]["sites"]) == SITES - {"hospital-c"}
    assert set(results["rounds"][-1]["sites"]) == SITES == set(results["final"]["sites"])


def test_a_hospital_that_joins_later_gets_a_kit_beside_the_running_server_and_begins_with_its_model(
    hospitals: Federation,
) -> None:
    """As docs/operations.md says: provisioned again in the same workspace; its job names it and brings no code."""
    first = hospitals.watch(hospitals.render(ROOT / "jobs/pfedsam", *TINY, "study=first", rounds=1))
    project = yaml.safe_load((hospitals.home / "project.yml").read_text())
    project["participants"].append({"name": "hospital-d", "type": "client", "org": "hospital_d"})
    (hospitals.home / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
    hospitals._nvflare("provision", "-p", "project.yml", "-w", "workspace", "--force")
    (kit,) = hospitals.home.glob("workspace/*/prod_01/hospital-d")
    shutil.copytree(kit, hospitals.kit("hospital-d"))
    fence = hospitals.kit("hospital-d") / "local/privacy.json"
    shutil.copyfile(hospitals.kit("hospital-a") / "local/privacy.json", fence)
    job = hospitals.home / "joins"
    changes = [*TINY, "method=newcomer", "study=late_too"]
    whose = {"begin": "first/latest", "sites": ["hospital-d"]}
    render(ROOT / "jobs/pfedsam", job, changes=changes, rounds=9, code=False, **whose)
    try:
        hospitals.start("hospital-d")
        outcome = hospitals.watch(job, Patience(poll=1, outside=2))
        found = json.loads((outcome.folder / "workspace/results.json").read_text())
    finally:
        hospitals.stop("hospital-d")
    assert outcome.ends == ("FINISHED:COMPLETED",)  # the others, connected all the time, were not asked
    assert found["begun_with"]["run"] == f"first/{first.run}"
    assert set(found["rounds"][0]["sites"]) == set(found["final"]["sites"]) == {"hospital-d"}


def test_masked_updates_are_summed_with_keys_that_each_kit_has_signed(hospitals: Federation) -> None:
    job = hospitals.render(
        ROOT / "jobs/pfedsam", *TINY, "study=masked", "server.secure=masks", "server.rule=mean", rounds=2
    )
    number = hospitals.submit(job)
    assert end_of(hospitals, number) == "FINISHED:COMPLETED"
    (found,) = hospitals.fetch(number).rglob("results.json")
    assert [set(r["sites"]) for r in json.loads(found.read_text())["rounds"]] == [SITES, SITES]
    for site in SITES:
        assert "no startup kit here" not in log_of(hospitals, site, number)
        (path,) = (hospitals.kit(site) / "pfedsam_store/masked").rglob("ledger.jsonl")
        out = [line for line in Ledger(path).lines() if line["direction"] == "out"]
        assert [line["task"] for line in out] == [*("keys", "shares", "train", "open") * 2, "validate"]
        assert all(line["bytes"] > 1000 for line in out if line["task"] == "keys")  # a certificate, and its signature
