"""Seconds until a run has 95 % of its final validation Dice: benchmarks/time_to_dice.py OUT [--here ROW ...] [--keep].

OUT is a folder of sweep.py. The Dice is that of the model that sites predict with, as in `tables.validation`. The
seconds are those of the rounds, all sites one after the other, on the cores that the run had.

With --here the seconds are the rounds of the runs in OUT, times the CPU seconds of a round that is run here with one
thread. Both are of one row with one kind of settings. That needs PFEDSAM_WEIGHTS and PFEDSAM_DATA_ROOT. With --demo and
no OUT the demonstration job runs here to its end, with one thread too.
"""

import argparse
import json
import statistics as st
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, Table, keepable, publish
from suites import SUITES, Row, rows_of
from sweep import Run, places, record_of, settings, sites
from tables import validation

from pfedsam.api import simulate
from pfedsam.errors import UserFault
from pfedsam.federation import Plan, federate, torch_as_it_was
from pfedsam.quiet import quietly

SHARE = 0.95
ROUNDS = 2  # that are run here; the last one counts
KNOWN = {"method": "", "seeds": "d", "final validation Dice": ".3f", "rounds to 95 % of it": ".1f"}
COLUMNS = {**KNOWN, "seconds to 95 % of it": ".0f", "seconds in all": ".0f"}
COLUMNS_DEMO = {**KNOWN, "CPU seconds to 95 %": ".0f", "CPU seconds in all": ".0f"}
COLUMNS_HERE = {**KNOWN, "CPU seconds of a round here": ".0f", "CPU seconds to 95 %": ".0f", "times the first": ".2f"}
ONE_THREAD = "CPU seconds of one thread. Other programs ran on the machine, and would count in seconds of the clock."
OWN = "The seconds are those that the runs took, all sites one after the other."
PRODUCT = [
    "No run was timed to its end here. The seconds are a product: the rounds that the kept runs needed, as a mean over "
    "their seeds, times the CPU seconds of one round on this machine. The kept runs ran on other machines, many at a "
    "time, so their own seconds say nothing of this one.",
    f"The round is number {ROUNDS} of the row's own job on the task's images, in one process like `pfedsam simulate`: "
    "all sites one after the other, with their scoring. The first round scores the test split too, so it does not "
    "count. Each row's round ran once.",
    ONE_THREAD,
]
WHOLE = (
    "The job ran here to its end, in one process like `pfedsam simulate`: all sites one after the other, with their "
    "scoring. The first round's seconds have the building of the sites and the scoring of the test split in them."
)


class EnoughError(Exception):
    """The rounds that were to be timed have ended."""


def main() -> None:
    """Print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/sweep"))
    parser.add_argument("--task", default="brain_mri")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--here", nargs="+", default=[], metavar="ROW", help="time a round of each of these rows here")
    which.add_argument("--demo", action="store_true", help="run the demonstration job here")
    options = keepable(parser).parse_args()
    if options.here or options.demo:
        torch.set_num_threads(1)
    if options.demo:
        title = "Time to a Dice: the demonstration job"
        publish(title, Table(COLUMNS_DEMO, [demo()]), notes=[WHOLE, ONE_THREAD], keep=options.keep)
        return
    lines, title = kept(options.out / options.task, options.here), f"Time to a Dice: {options.task}"
    if options.here:
        runs = {name: run_of(options.task, name) for name in options.here}
        for run in runs.values():
            demand_same(run, options.out)
        seconds = {name: cpu_seconds(run) for name, run in runs.items()}
        publish(title, Table(COLUMNS_HERE, products(lines, seconds)), notes=PRODUCT, keep=options.keep)
    else:
        publish(title, Table(COLUMNS, sorted(lines, key=lambda row: float(row[4]))), notes=[OWN], keep=options.keep)


def kept(folder: Path, asked: list[str]) -> list[list[Any]]:
    """The lines of the rows that are asked for, or of all that are there."""
    there = {path.parent.parent.name for path in folder.glob("*/*/results.json")}
    if not there or not there.issuperset(asked):
        wanted, came = ", ".join(asked) or "runs", ", ".join(sorted(there)) or "none"
        raise SystemExit(f"expected {wanted} in {folder}; came {came}; to mend it: run sweep.py there")
    return [line(folder / name) for name in asked or sorted(there)]


def line(row: Path) -> list[Any]:
    """A row of the table: means over the seeds of a row's runs."""
    records = [json.loads(path.read_text()) for path in sorted(row.glob("*/results.json"))]
    found = [reached(record) for record in records]
    return [row.name, len(records), *(st.mean(values) for values in zip(*found, strict=True))]


def products(table: list[list[Any]], seconds: dict[str, float]) -> list[list[Any]]:
    """The table's rows with their rounds times a round's seconds, the quickest first."""
    rows = [[*row[:4], seconds[row[0]], row[3] * seconds[row[0]]] for row in table]
    rows.sort(key=lambda row: float(row[5]))
    return [[*row, row[5] / rows[0][5]] for row in rows]


def run_of(task: str, name: str) -> Run:
    """The run of a row of any suite whose rows do not depend on the task's sites, with the first seed."""
    found: dict[str, Row] = {}
    for row in (row for suite in SUITES for row in rows_of(suite, task, {})):
        found.setdefault(row.name, row)
    if name not in found:
        raise SystemExit(f"expected a row among {', '.join(found)}; came {name}; to mend it: correct --here")
    return Run(task, found[name], 0)


def demand_same(run: Run, out: Path) -> None:
    """Hold the settings of a row's ended runs against those that it would have here.

    Raises:
        SystemExit: they differ, so rounds of one model would be multiplied by the seconds of another.
    """
    try:
        for path in sorted((out / run.task / run.row.name).glob("*/results.json")):
            record_of(replace(run, seed=int(path.parent.name)), out, None)
    except UserFault as fault:
        sys.exit(f"{fault}")


def cpu_seconds(run: Run) -> float:
    """CPU seconds of a run's round number `ROUNDS`. The run then stops."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as name, quietly(), torch_as_it_was(), suppress(EnoughError):
        (config, rounds), out = settings(run, None), Path(name)
        here = dict.fromkeys(sites(run, config), places(run, out))
        federate(Plan(config, here, rounds, run.folder(out)), ticking(ends, ROUNDS))
    return ends[-1] - ends[-2]


def demo() -> list[Any]:
    """The demonstration job's row, of a whole run here."""
    ends = [time.process_time()]
    with tempfile.TemporaryDirectory() as name, torch_as_it_was():
        record = simulate(ROOT / "jobs/pfedsam", out=Path(name), on_round=ticking(ends)).record
    for entry, (began, ended) in zip(record["rounds"], pairwise(ends), strict=True):
        entry["seconds"] = ended - began
    return ["pfedsam", 1, *reached(record)]


def ticking(ends: list[float], most: float = inf) -> Callable[[dict[str, Any]], None]:
    """What a run is to call with each round: it adds the CPU seconds so far to `ends`. After `most` the run stops."""

    def tell(entry: dict[str, Any]) -> None:
        ends.append(time.process_time())
        print(f"round {entry['round'] + 1} in {entry['seconds']:.0f} s of the clock", file=sys.stderr, flush=True)
        if len(ends) == most:
            raise EnoughError

    return tell


def reached(record: dict[str, Any]) -> tuple[float, float, float, float]:
    """Final Dice, the rounds and the seconds until 95 % of it, and the seconds of all rounds."""
    dice, seconds = validation(record), list(accumulate(entry["seconds"] for entry in record["rounds"]))
    first = next(i for i, value in enumerate(dice) if value >= SHARE * dice[-1])
    return dice[-1], first + 1.0, seconds[first], seconds[-1]


if __name__ == "__main__":
    main()
