"""Rows x tasks x seeds, in one process a run: benchmarks/sweep.py OUT --suite NAME ...; resumes where it stopped.

Needs PFEDSAM_DATA_ROOT (a folder a task, each with manifest.csv) and PFEDSAM_WEIGHTS. Each run writes
OUT/TASK/ROW/SEED/results.json, as a job through FLARE would; `tables.py` makes the tables of them.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from suites import NAMES, Row, Sizes, rows_of

from pfedsam.data.datalist import raw_rows
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

    def begins(self, out: Path) -> Path | None:
        """The folder of the run that it starts from."""
        return out / self.task / self.row.begins / str(self.seed) if self.row.begins else None

    def ready(self, out: Path) -> bool:
        """Whether the run that it starts from has ended."""
        source = self.begins(out)
        return source is None or (source / "results.json").exists()


def main() -> None:
    """Run what is missing, so many at a time, and tell how long the rest will take."""
    options = arguments()
    tables = {task: rows_of(options.suite, sizes(data_of(task))) for task in options.tasks}
    runs = [Run(task, row, seed) for seed in options.seeds for task in options.tasks for row in tables[task]]
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
    parser.add_argument("--suite", choices=NAMES, required=True)
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
    data, weights = data_of(run.task), Path(os.environ["PFEDSAM_WEIGHTS"])
    folder = run.folder(out)
    names = ["pooled"] if config.data.pool else run.row.sites or list(sizes(data))
    here = Places(data, folder / "store", weights, cache=out / "prepared", scratch=folder / "scratch")
    federate(Plan(config, dict.fromkeys(names, here), rounds or usual, folder, run.begins(out)), told)


def told(entry: dict[str, object]) -> None:
    """A line a round."""
    reports = entry["sites"]
    assert isinstance(reports, dict)
    dice = [report["val"]["personal"]["dice"] or 0.0 for report in reports.values()]
    print(
        f"round {entry['round']} in {entry['seconds']:.0f} s, validation Dice {sum(dice) / len(dice):.3f}", flush=True
    )


def data_of(task: str) -> Path:
    """The folder of a task's data."""
    return Path(os.environ["PFEDSAM_DATA_ROOT"]) / task


def sizes(data: Path) -> Sizes:
    """The sites that a task's manifest names, with their training rows."""
    rows = Counter(row["site"] for row in raw_rows(data / "manifest.csv") if row["split"] == "train")
    return dict(sorted(rows.items()))


def work(missing: list[Run], options: argparse.Namespace) -> None:
    """Run all, `lanes` at a time; one that starts from another waits for it."""
    began, waiting, ended, total = time.monotonic(), list(missing), 0, len(missing)
    live: list[tuple[Run, subprocess.Popen[bytes]]] = []
    while waiting or live:
        ready = [run for run in waiting if run.ready(options.out)][: options.lanes - len(live)]
        live += [(run, begin(run, options)) for run in ready]
        waiting = [run for run in waiting if run not in ready]
        if not live:
            raise SystemExit(f"{len(waiting)} runs start from runs that are not there: leave --rows out, or add those")
        time.sleep(1)
        for lane in [lane for lane in live if lane[1].poll() is not None]:
            live.remove(lane)
            ended += 1
            left = (time.monotonic() - began) / ended * (total - ended)
            how = "done" if lane[1].returncode == 0 else f"FAILED ({lane[1].returncode})"
            print(f"{lane[0].folder(options.out)} {how}; about {left / 60:.0f} min left", flush=True)


def begin(run: Run, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A run in a process of its own, its lines in its folder."""
    folder = run.folder(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    which = ["--suite", options.suite, "--tasks", run.task, "--rows", run.row.name, "--seeds", str(run.seed)]
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    command = [sys.executable, __file__, str(options.out), "--one", *which, *rounds]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
