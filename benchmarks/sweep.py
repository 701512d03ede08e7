"""Rows x tasks x seeds, each run in one process: benchmarks/sweep.py OUT --suite NAME ... It resumes where it stopped.

On a GPU many runs fit side by side (`--lanes`), because none of them keeps it busy.

It needs PFEDSAM_WEIGHTS and PFEDSAM_DATA_ROOT, with a folder for each task that holds manifest.csv. Each run writes
OUT/TASK/ROW/SEED/results.json, like a job through FLARE. `tables.py` makes the tables from these files.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from suites import ALL, NAMES, Row, Sizes, rows_of

from pfedsam import methods
from pfedsam.config import Config, to_dict
from pfedsam.data.records import raw_rows
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.federation import OTHER, RUN, Plan, federate
from pfedsam.jobs import read_job
from pfedsam.layout import Places
from pfedsam.report.gather import read_results
from pfedsam.study import same_settings

ROOT = Path(__file__).parent.parent
FOLDERS = {"polyp_hospitals": "polyp", "mixed": "nuclei"}  # tasks whose data are in another task's folder
ONE_RATE = "train.lr_private=null"
PLAIN = ("server.rule=mean", "server.most_share=1000000")  # methods are compared with the mean of their papers
WHOLE = ("model.decoder=full", "wire.up=fp32", "wire.down=fp32")  # of the papers: what is smaller is a row of its own
LAUNCHES = "train.record"  # only changes how a GPU gets a step; the step is the same


@dataclass(frozen=True)
class Run:
    """One row on one task with one seed."""

    task: str
    row: Row
    seed: int

    def folder(self, out: Path) -> Path:
        """The folder of its results."""
        return out / self.task / self.row.name / str(self.seed)

    def ended(self, out: Path) -> bool:
        """Whether its results are there."""
        return (self.folder(out) / "results.json").exists()

    def source(self, out: Path) -> Path | None:
        """The folder of the run that it starts from, or that it tests anew."""
        other = self.row.begins or self.row.tests
        return out / self.task / other / str(self.seed) if other else None

    def ready(self, out: Path) -> bool:
        """Whether the run that it starts from has ended, and has tensors if it starts from them."""
        if (source := self.source(out)) is None:
            return True
        return (source / "results.json").exists() and (bool(self.row.tests) or (source / "store").exists())


def main() -> None:
    """Run what is missing, `--lanes` at a time, and print how long the rest will take. Returns 1 if a run failed."""
    try:
        sys.exit(int(sweep(arguments()) > 0))
    except UserFault as fault:
        sys.exit(f"{fault}")


def sweep(options: argparse.Namespace) -> int:
    """The number of failed runs, after doing what the command line asks for.

    Raises:
        UserFault: the suite has no such row, or runs that are there had other settings.
    """
    for name in methods.names():
        methods.get(name)  # before lanes are forked, so that all run today's code
    tables = {task: rows(options.suite, task) for task in options.tasks}
    names = {row.name for of_task in tables.values() for row in of_task}
    if unknown := sorted(set(options.rows or ()) - names):
        raise UserFault(expected=f"rows among {', '.join(sorted(names))}", came=", ".join(unknown), do="correct --rows")
    runs = [run for run in in_order(options) if not options.rows or run.row.name in options.rows]
    missing = [run for run in runs if not done(run, options.out, options.rounds)]
    for run in missing:
        for row in [row for row in tables[run.task] if row.name in (run.row.begins, run.row.tests)]:
            done(replace(run, row=row), options.out, options.rounds)
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are there", flush=True)
    return work(missing, options)


def rows(suites: list[str], task: str) -> list[Row]:
    """The rows of all suites. A row in several suites runs once."""
    found = [row for suite in suites for row in rows_of(suite, task, sizes(task))]
    return list({row.name: row for row in found}.values())


def in_order(options: argparse.Namespace) -> list[Run]:
    """All runs, each once: suite by suite, so that what is named last is missing if time runs out."""
    order = product(options.suite, options.seeds, options.tasks)
    runs = [Run(task, row, seed) for suite, seed, task in order for row in rows([suite], task)]
    return list({(run.task, run.row.name, run.seed): run for run in runs}.values())


def done(run: Run, out: Path, rounds: int | None) -> bool:
    """Whether a run ended. It raises what `record_of` raises."""
    return run.ended(out) and bool(record_of(run, out, rounds))


def record_of(run: Run, out: Path, rounds: int | None) -> dict[str, Any]:
    """The content of an ended run's results.json.

    Raises:
        UserFault: the run had other settings, other sites or another number of rounds.
    """
    folder = run.folder(out)
    config, rounds = settings(run, rounds)
    record = read_results(folder / "results.json")
    same_settings(config, record["config"], f"the run in {folder}", OTHER, lambda name: name != LAUNCHES)
    if len(record["rounds"]) != rounds:
        came = str(len(record["rounds"]))
        raise UserFault(expected=f"{rounds} rounds in {folder}", came=came, do="name another folder")
    if (names := sites(run, config)) != sorted(record["final"]["sites"]):
        came = ", ".join(sorted(record["final"]["sites"]))
        raise UserFault(expected=f"sites {', '.join(names)} in {folder}", came=came, do="name another folder")
    return record


def sites(run: Run, config: Config) -> list[str]:
    """The sites of a run."""
    return ["pooled"] if config.data.pool else sorted(run.row.sites or sizes(run.task))


def places(run: Run, out: Path) -> Places:
    """The folders of all sites of a run, by name."""
    folder, weights = run.folder(out), Path(os.environ["PFEDSAM_WEIGHTS"])
    return Places(data_of(run.task), folder / "store", weights, cache=out / "prepared", scratch=folder / "scratch")


def settings(run: Run, rounds: int | None) -> tuple[Config, int]:
    """A run's settings and its number of rounds: the given number, or that of its task's job; 1 of a row at once.

    The job's rate and share of private parts are for experts. A row of a method without them has a rate of its own, or
    one for all parts, and takes all of its private part. The decoder is whole and messages are float32, whatever the
    job has, unless the row says otherwise.
    """
    other = any(change.startswith("method=") and change != "method=newcomer" for change in run.row.changes)
    first = [*PLAIN, *WHOLE, *([ONE_RATE, ALL] if other else []), *joined_of(run.task, run.row)]
    path, changes = ROOT / "jobs" / f"{run.task}.json", [*first, *run.row.changes, f"seed={run.seed}"]
    job = read_job(path, changes)
    if not run.row.at_once:
        return job.config, rounds or job.rounds
    epochs = job.config.train.epochs * job.rounds
    return read_job(path, [*changes, f"train.epochs={epochs}"]).config, rounds or 1


def joined(task: str) -> dict[str, list[str]]:
    """The sites that the task's job joins of several of its manifest."""
    return read_job(ROOT / "jobs" / f"{task}.json", []).config.data.joined


def joined_of(task: str, row: Row) -> list[str]:
    """The setting for those of them that a row takes. A pooled row has all rows at one site, and joins none."""
    known, pooled = joined(task), "data.pool=true" in row.changes
    kept = {site: list(parts) for site, parts in known.items() if not pooled and (not row.sites or site in row.sites)}
    return [f"data.joined={json.dumps(kept)}"] if len(kept) < len(known) else []


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--suite", nargs="+", choices=NAMES, required=True)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri"])
    parser.add_argument("--rows", nargs="+", help="only these rows of the suites")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, help="number of rounds, instead of the task's own")
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--recorded", action="store_true", help="on a GPU, replay each step as a CUDA graph")
    return parser.parse_args()


def one(run: Run, options: argparse.Namespace) -> None:
    """Do one run to its end. Its output goes to the log in its folder."""
    out: Path = options.out
    if options.recorded:
        run = replace(run, row=replace(run.row, changes=(*run.row.changes, f"{LAUNCHES}=true")))
    with (run.folder(out) / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(int(os.environ.get("PFEDSAM_THREADS", "1")))
    config, rounds = settings(run, options.rounds)
    here = dict.fromkeys(sites(run, config), places(run, out))
    try:
        federate(planned(run, out, config, here, rounds), told)
    except UserFault as fault:
        sys.exit(f"{fault}")


def planned(run: Run, out: Path, config: Config, here: dict[str, Places], rounds: int) -> Plan:
    """The plan of a run, after taking over what it tests anew, if that is still there. Otherwise it trains."""
    source = run.source(out)
    if source and run.row.tests and run.ready(out) and (source / "store").exists():
        trained_before(run.folder(out), source, config)
    return Plan(config, here, rounds, run.folder(out), source if run.row.begins else None)


def trained_before(folder: Path, source: Path, config: Config) -> None:
    """Take over the store of an ended run, as if it had been trained with these settings."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    shutil.copytree(source / "store", folder / "store")
    point = (checkpoints := Checkpoints(folder / "store", config.study)).load(RUN)
    assert point is not None
    results = {**point.results, "config": to_dict(config), "config_hash": config.digest()}
    checkpoints.save(replace(point, config=config.digest(), results=results))


def told(entry: dict[str, object]) -> None:
    """A line a round."""
    reports = entry["sites"]
    assert isinstance(reports, dict)
    dice = [report["val"]["personal"]["dice"] or 0.0 for report in reports.values()]
    print(
        f"round {entry['round']} in {entry['seconds']:.0f} s, validation Dice {sum(dice) / len(dice):.3f}", flush=True
    )


def data_of(task: str) -> Path:
    """The folder of a task's data.

    Raises:
        UserFault: there is none.
    """
    root = os.environ.get("PFEDSAM_DATA_ROOT")
    folder = FOLDERS.get(task, task)
    if not root or not (Path(root) / folder / "manifest.csv").is_file():
        raise UserFault(
            expected=f"{folder}/manifest.csv in PFEDSAM_DATA_ROOT",
            came=root or "no such setting",
            do=f"set it, or leave {task} out",
        )
    return Path(root) / folder


def sizes(task: str) -> Sizes:
    """The sites of a task, with their training rows: its job's if the manifest has them all, else the manifest's."""
    rows = Counter(row["site"] for row in raw_rows(data_of(task) / "manifest.csv") if row["split"] == "train")
    job = read_job(ROOT / "jobs" / f"{task}.json", [])
    joined = job.config.data.joined
    parts = {site: joined.get(site, [site]) for site in job.sites}
    if not joined and not rows.keys() >= set(job.sites):  # as fundus, whose parts `shards.py` makes
        parts = {site: [site] for site in rows}
    return {site: sum(rows[name] for name in of) for site, of in sorted(parts.items())}


def work(missing: list[Run], options: argparse.Namespace) -> int:
    """The number of failed runs, after running all, `lanes` at a time. A run that starts from another waits for it."""
    began, waiting, ended, failed, total = time.monotonic(), list(missing), 0, 0, len(missing)
    live: list[tuple[Run, ForkProcess]] = []
    while waiting or live:
        ready = [run for run in waiting if run.ready(options.out)][: options.lanes - len(live)]
        live += [(run, begin(run, options)) for run in ready]
        waiting = [run for run in waiting if run not in ready]
        if not live:
            raise SystemExit(f"{len(waiting)} runs start from missing runs: leave --rows out, or add the missing ones")
        time.sleep(1)
        for lane in [lane for lane in live if lane[1].exitcode is not None]:
            live.remove(lane)
            ended, failed = ended + 1, failed + (lane[1].exitcode != 0)
            left = (time.monotonic() - began) / ended * (total - ended)
            how = "done" if lane[1].exitcode == 0 else f"FAILED ({lane[1].exitcode})"
            print(f"{lane[0].folder(options.out)} {how}; about {left / 60:.0f} min left", flush=True)
    return failed


def begin(run: Run, options: argparse.Namespace) -> ForkProcess:
    """A run in its own process, forked from this one, so that nothing needs to be imported again."""
    run.folder(options.out).mkdir(parents=True, exist_ok=True)
    lane = get_context("fork").Process(target=one, args=(run, options))
    lane.start()
    return lane


if __name__ == "__main__":
    main()
