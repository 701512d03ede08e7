"""Memory and open files of server and sites over many rounds of a tiny model: growth.py --help."""

import argparse
import json
import statistics as st
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import ROOT, Table, keepable, publish, simulator

from pfedsam.flare.recipe import render
from pfedsam.layout import simulated_results

SITES = ["site-1", "site-2"]
SETTINGS = ("train.max_steps=1", "data.train=2", "data.val=1", "data.test=1", "model.image_size=64")
WARM = 0.1  # share of the rounds in which caches fill and allocators settle


@dataclass(frozen=True)
class Sample:
    """One process after `done` rounds: resident MiB and open files."""

    done: int
    mib: float
    files: int


COLUMNS = {
    "process": "",
    "MiB at the start": ".0f",
    "MiB at the end": ".0f",
    "MiB a round": ".3f",
    "open files at the start": "d",
    "open files at the end": "d",
}


def main() -> None:
    """Run the job, sample its processes after each round, and print one table."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        samples = watched(Path(folder), options.rounds)
    found = [line(name, rows, options.rounds) for name, rows in samples.items()]
    title = f"Growth over {options.rounds} rounds of a tiny model"
    publish(title, Table(COLUMNS, found), keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    return keepable(parser).parse_args()


def watched(folder: Path, rounds: int) -> dict[str, list[Sample]]:
    """The samples of each process of a simulated run."""
    render(ROOT / "jobs/pfedsam", folder / "job", changes=SETTINGS, rounds=rounds, sites=SITES)
    command = simulator(folder / "job", folder / "ws", len(SITES))
    samples: dict[str, list[Sample]] = {}
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
        while run.poll() is None:
            time.sleep(0.5)
            done = rounds_done(folder / "ws")
            for name, process in processes(run.pid).items():
                rows = samples.setdefault(name, [])
                if done and (not rows or rows[-1].done < done):
                    rows += sample(process, done)
    if rounds_done(folder / "ws") < rounds:
        raise SystemExit((folder / "log").read_text()[-3000:])
    return samples


def processes(parent: int) -> dict[str, Any]:
    """Each site's process, and the simulator's process that started them, which holds the server."""
    try:
        below = psutil.Process(parent).children(recursive=True)
        sites = {site: p for p in below for site in SITES if site in p.cmdline()}
        return {"server": next(iter(sites.values())).parent(), **sites} if sites else {}
    except psutil.NoSuchProcess:
        return {}


def sample(process: Any, done: int) -> list[Sample]:
    """A sample of a process. Empty if it has just ended."""
    try:
        return [Sample(done, process.memory_info().rss / 2**20, process.num_fds())]
    except psutil.Error:
        return []


def rounds_done(workspace: Path) -> int:
    """The number of rounds in results.json."""
    try:
        return len(json.loads((simulated_results(workspace)).read_text())["rounds"])
    except (OSError, ValueError):
        return 0


def line(name: str, rows: list[Sample], rounds: int) -> list[str | float]:
    """A process's row. A straight line is fitted to the samples after the first tenth."""
    late = [row for row in rows if row.done > WARM * rounds]
    slope = st.linear_regression([row.done for row in late], [row.mib for row in late]).slope
    first, last = late[0], late[-1]
    return [name, first.mib, last.mib, slope, first.files, last.files]


if __name__ == "__main__":
    main()
