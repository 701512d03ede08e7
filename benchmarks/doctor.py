"""The estimates of `pfedsam doctor` beside what a run then takes: doctor.py --help."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import ROOT, VIT_B, Table, keepable, publish, simulator
from scale import pss, tree

from pfedsam.config import Config
from pfedsam.doctor.examine import Diagnosis, Here, examine
from pfedsam.doctor.needs import Setting
from pfedsam.doctor.trial import peak
from pfedsam.federation import Plan, federate
from pfedsam.flare.recipe import render
from pfedsam.jobs import read_job
from pfedsam.layout import Places, simulated_results

ROWS = {
    "demo at 128 px": (),
    "tiny_vit at 256 px": (
        "model.backbone=tiny_vit",
        "model.pretrained=false",
        "model.image_size=256",
        "train.epochs=1",
    ),
    "vit_b at 256 px, a step a round": (*VIT_B, "model.image_size=256"),
}
EVERY = 0.5  # seconds between looks at memory
MEASURES = ("seconds a round", "seconds, whole run", "bytes a round, both ways", "memory of a site, MB")
WHOLE = "memory of all, MB"
WORK = "processor seconds, whole run"  # of one process, so that other work on the machine does not change it


@dataclass(frozen=True)
class Case:
    """One row of the table: settings, rounds, sites on this machine, through FLARE or in one process."""

    name: str
    rounds: int
    sites: int
    flare: bool

    @property
    def config(self) -> Config:
        """The demonstration's settings, with the row's changes."""
        return read_job(ROOT / "jobs/pfedsam", ROWS[self.name]).config


def main() -> None:
    """For every row call the doctor, run, and call the doctor again. Print one table."""
    options = arguments()
    if options.alone:
        return alone(Case(options.alone, options.rounds, 1, False), Path(os.environ["PFEDSAM_STORE"]))
    columns = dict.fromkeys(("job", "carried by", "what", "estimated", "measured"), "")
    lines: list[list[str | float]] = []
    for name in options.jobs:
        for case in (Case(name, options.rounds, 1, False), Case(name, options.rounds, options.sites, True)):
            found = rows(case)
            lines += found
            print(*found, sep="\n", file=sys.stderr, flush=True)
    load = f"{os.getloadavg()[0]:.1f} processes ran beside it at its end."
    table = Table(columns | {"estimated of measured": ".2f"}, lines)
    publish("Doctor: what it says and what then is", table, notes=[load], keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line. With --alone the script calls itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", type=int, default=2, help="number of sites in the simulated runs")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return keepable(parser).parse_args()


def rows(case: Case) -> list[list[str | float]]:
    """A case's rows. The doctor runs before and after the run, so that a slow minute slows both."""
    before, found, after = asked(case), measured(case), asked(case)
    how = f"FLARE's simulator, {case.sites} sites" if case.flare else "one process, one site"
    lines: list[list[str | float]] = []
    for what in found:
        estimate, real = (before[what] + after[what]) / 2, found[what]
        digits = None if estimate > 100 else 2
        lines.append([case.name, how, what, round(estimate, digits), round(real, digits), estimate / real])
    return lines


def asked(case: Case) -> dict[str, float]:
    """The doctor's estimates."""
    here = Here(None, None, Path(tempfile.gettempdir()), threads=1)
    found: Diagnosis = examine(case.config, here, Setting(case.rounds, case.sites, flare=case.flare))
    values = (found.seconds.round, found.seconds.run, found.wire.up + found.wire.down, found.memory.site / 1e6)
    more = {WHOLE: found.memory.all / 1e6, WORK: found.seconds.run * found.got}
    return dict(zip(MEASURES, values, strict=True)) | more


def measured(case: Case) -> dict[str, float]:
    """The measured values of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record, memory = (simulated if case.flare else in_process)(case, folder)
    later = [entry for entry in record["rounds"] if entry["round"] > 0]
    report = next(iter(later[-1]["sites"].values()))
    took = sum(entry["seconds"] for entry in later) / len(later)
    exchanged = report["bytes_sent"] + report["bytes_received"]
    return dict(zip(MEASURES, (took, record["seconds"], exchanged, memory.pop("site")), strict=True)) | memory


def in_process(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The record and the peak memory of a federation of one site, in its own process."""
    command = [sys.executable, __file__, "--alone", case.name, "--rounds", str(case.rounds)]
    subprocess.run(command, check=True, env={**os.environ, "PFEDSAM_STORE": str(folder)})
    record: dict[str, Any] = json.loads((folder / "results.json").read_text())
    own = json.loads((folder / "own.json").read_text())
    return record, {"site": own["peak"] / 1e6, WORK: own["processor"]}


def alone(case: Case, folder: Path) -> None:
    """Run a federation of the demonstration's first site."""
    import torch

    from pfedsam.data.synthetic import write_site

    torch.set_num_threads(1)
    config = case.config
    write_site(folder / "data", "site-1", config.data.counts, config.seed)
    began = time.process_time()
    federate(Plan(config, {"site-1": Places(folder / "data", folder / "store")}, case.rounds, folder))
    (folder / "own.json").write_text(json.dumps({"peak": peak(), "processor": time.process_time() - began}))


def simulated(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The record of a run in the simulator, and the peak memory of the largest site's process and of all together."""
    names = [f"site-{i + 1}" for i in range(case.sites)]
    render(ROOT / "jobs/pfedsam", folder / "job", changes=ROWS[case.name], rounds=case.rounds, sites=names)
    environment = {**os.environ, "PFEDSAM_STORE": "", "PFEDSAM_CACHE": ""}
    with (folder / "log").open("w") as log:
        command = simulator(folder / "job", folder / "ws", case.sites)
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as run:
            watch = Watch(run.pid)
            run.wait()
    record = simulated_results(folder / "ws")
    if not record.exists():
        raise SystemExit((folder / "log").read_text()[-3000:])
    return json.loads(record.read_text()), {"site": watch.site / 1e6, WHOLE: watch.all / 1e6}


class Watch:
    """Watches a simulator's processes: the peak of a site's process, and of all together. Common pages count once."""

    def __init__(self, pid: int) -> None:
        self.site = self.all = 0
        self._pid = pid
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while psutil.pid_exists(self._pid):
            found = tree(self._pid)
            self.all = max(self.all, sum(pss(process) for process in found))
            self.site = max([self.site, *(most(process) for process in found if is_site(process))])
            time.sleep(EVERY)


def is_site(process: Any) -> bool:
    """Whether the process is a simulated site's own."""
    return bool(quietly(lambda: any("simulator_worker" in part for part in process.cmdline())))


def most(process: Any) -> int:
    """The process's peak memory in bytes, as Linux counts it."""
    lines = quietly(lambda: Path(f"/proc/{process.pid}/status").read_text().splitlines()) or []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def quietly(look: Callable[[], Any]) -> Any:
    """What `look` returns. None if the process has just ended."""
    try:
        return look()
    except (psutil.Error, OSError):
        return None


if __name__ == "__main__":
    main()
