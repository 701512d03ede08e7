"""Rows x tasks x seeds, in one process a run: benchmarks/sweep.py OUT --suite NAME ...; resumes where it stopped.

Needs PFEDSAM_DATA_ROOT (a folder a task, each with manifest.csv) and PFEDSAM_WEIGHTS. Each run writes
OUT/TASK/ROW/SEED/results.json, as a job through FLARE would; `tables.py` makes the tables of them.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from suites import SUITES, Row

from pfedsam.federation import Plan, federate
from pfedsam.jobs import settings_of
from pfedsam.site import Places

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Run:
    """One row on one task with one seed."""

    task: str
    row: Row
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its results lie."""
        return out / self.task / self.row.name / str(self.seed)

    def done(self, out: Path) -> bool:
        """Whether it ended."""
        return (self.folder(out) / "results.json").exists()


def main() -> None:
    """Run what is missing, so many at a time, and tell how long the rest will take."""
    options = arguments()
    runs = [Run(task, row, seed) for seed in options.seeds for task in options.tasks for row in SUITES[options.suite]]
    runs = [run for run in runs if not options.rows or run.row.name in options.rows]
    if options.one:
        return one(runs[0], options.out, options.rounds)
    missing = [run for run in runs if not run.done(options.out)]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are there", flush=True)
    work(missing, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--suite", choices=tuple(SUITES), required=True)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri"])
    parser.add_argument("--rows", nargs="+", help="these rows of the suite alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, help="another number than the task's job has")
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--one", action="store_true", help="the first run, in this process")
    return parser.parse_args()


def one(run: Run, out: Path, rounds: int | None) -> None:
    """One run, to its end."""
    torch.set_num_threads(int(os.environ.get("PFEDSAM_THREADS", "1")))
    config, usual = settings_of(ROOT / "jobs" / f"pfedsam_{run.task}", [*run.row.changes, f"seed={run.seed}"])
    data, weights = Path(os.environ["PFEDSAM_DATA_ROOT"]) / run.task, Path(os.environ["PFEDSAM_WEIGHTS"])
    folder = run.folder(out)
    names = ["pooled"] if config.data.pool else sites(data)
    here = Places(data, folder / "store", weights, cache=out / "prepared", scratch=folder / "scratch")
    federate(Plan(config, dict.fromkeys(names, here), rounds or usual, folder), told)


def told(entry: dict[str, object]) -> None:
    """A line a round."""
    reports = entry["sites"]
    assert isinstance(reports, dict)
    dice = [report["val"]["personal"]["dice"] or 0.0 for report in reports.values()]
    print(
        f"round {entry['round']} in {entry['seconds']:.0f} s, validation Dice {sum(dice) / len(dice):.3f}", flush=True
    )


def sites(data: Path) -> list[str]:
    """The sites that a task's manifest names."""
    with (data / "manifest.csv").open() as file:
        return sorted({row["site"] for row in csv.DictReader(file)})


def work(missing: list[Run], options: argparse.Namespace) -> None:
    """Run all, `lanes` at a time."""
    began, waiting, ended = time.monotonic(), iter(missing), 0
    live = [lane for _ in range(options.lanes) if (lane := begin(waiting, options))]
    while live:
        time.sleep(1)
        for lane in [lane for lane in live if lane[1].poll() is not None]:
            live.remove(lane)
            ended += 1
            left = (time.monotonic() - began) / ended * (len(missing) - ended)
            how = "done" if lane[1].returncode == 0 else f"FAILED ({lane[1].returncode})"
            print(f"{lane[0].folder(options.out)} {how}; about {left / 60:.0f} min left", flush=True)
            live += [following] if (following := begin(waiting, options)) else []


def begin(waiting: Iterator[Run], options: argparse.Namespace) -> tuple[Run, subprocess.Popen[bytes]] | None:
    """The next run in a process of its own, its lines in its folder."""
    run = next(waiting, None)
    if run is None:
        return None
    folder = run.folder(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    which = ["--suite", options.suite, "--tasks", run.task, "--rows", run.row.name, "--seeds", str(run.seed)]
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    command = [sys.executable, __file__, str(options.out), "--one", *which, *rounds]
    with (folder / "log.txt").open("ab") as log:
        return run, subprocess.Popen(command, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
