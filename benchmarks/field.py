"""Rows side by side, small: benchmarks/field.py [--suite NAME] [--task NAME] [--seeds N ...] [--rows NAME ...].

Small means MobileSAM at 128 pixels, sixteen training images a site and six rounds, in one process. Without a suite the
rows are all methods, at the rates of FedAvg. It shows that each does what it says, and which are worth a search of
their own. It is no leaderboard. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS.
"""

import argparse
import json
import statistics as st
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import Table, keepable, publish
from suites import NAMES, Row, few, rows_of
from sweep import Run, places, planned, settings, sites, sizes
from tables import Found, corrected, differences, in_words, read, read_homes, spread

from pfedsam import methods
from pfedsam.federation import federate
from pfedsam.files import write_json

ROUNDS, IMAGES = 6, 16
SMALL = "model.image_size=128"
OWN = {  # what a method needs beside its name
    "local": ("train.lr=3e-3",),
    "fedms_sam": ("train.lr=3e-4",),
    "fedbn": ("train.lr_private=3e-4",),
    "ditto": ("method.lam=0.1",),
    "dsfedmed": ("train.lr=3e-3",),
}
FIRST = ("pfedsam", "local", "fedavg")
NOT = ("newcomer", "furl", "cpss_adapt", "iscos")  # which want other labels, begin from another run, or end in one
MEANS = {"worst": ".3f", "global": ".3f", "validation": ".3f", "MB up": ".2f", "CPU s": ".0f"}
UNSEEN, AT = "unseen", "at "
RATES = (
    "pFedSAM is the form of the task's job, whose private part has a rate of 3e-3. All other methods have FedAvg's"
    " rates, 1e-2 also for LoRA that stays at a site, and the plain mean. Training alone has 3e-3."
)
OF_SUITE = {  # where this is not so
    "leading": "What stays at the site has the rate 3e-3 in all rows, but for whole decoders, and training alone"
    " too. Else all rows have FedAvg's rates, and the plain mean. A lean decoder has 3e-3.",
    "beside": "What stays at the site has the rate 3e-3 in all rows, but for whole decoders, and so have training alone"
    " and pooled. FedSAM has 3e-4. Else all rows have FedAvg's rates, and the plain mean.",
    "efficiency": "Each site has the row's number of images, and what stays there the rate 3e-3, but for whole"
    " decoders. Training alone has 3e-3. Else all rows have FedAvg's rates, and the plain mean.",
    "late": "A site that joins or trains alone has the row's number of images, and the others 16. The private part and"
    " training alone have the rate 3e-3. Else rows have FedAvg's rates, and the plain mean.",
    "bounds": "Both rows have FedAvg's rates. The defaults cut each update to the round's median length, and a site's"
    " share to one and a half equal shares.",
}
Cells = dict[str, float]  # of one run, by column


def main() -> None:
    """Run every row that is not there yet, print a table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=NAMES, help="its rows instead of all methods")
    parser.add_argument("--task", default="nuclei_he")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", help="only these, in this order; they are compared with the first")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="give each number another --out")
    parser.add_argument("--out", type=Path, default=Path("runs/field"), help="holds what is done; it resumes")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.suite, options.task, small(options.task)) if options.suite else of_methods()
    named = {row.name: row for row in rows}
    if unknown := [name for name in options.rows or () if name not in named]:
        parser.error(f"no row {', '.join(unknown)} among {', '.join(named)}")
    rows = [named[name] for name in options.rows] if options.rows else rows
    runs = {row: [Run(options.task, row, seed) for seed in options.seeds] for row in rows}
    found = {row: [line(run, options.out, options.rounds) for run in of_row] for row, of_row in runs.items()}
    some = f", {len(rows)} of them" if options.rows else ""
    what = f"Suite {options.suite}" if options.suite else f"Methods side by side{some}"
    title = f"{what} on {options.task}: {IMAGES} images a site, 128 px, {options.rounds} rounds"
    table = unseen(found) if options.suite == UNSEEN else as_table(found, differing(runs, options.out))
    publish(title, table, notes=notes(options.suite, options.task, options.seeds), keep=options.keep)


def notes(suite: str | None, task: str, seeds: list[int]) -> list[str]:
    """What a reader has to know of the table."""
    own = (
        "own site: test Dice of the branch that predicts at its own site. global: of the shared branch there. Where"
        " sites keep a part of it, or get a model each, a site that takes no part would get less."
    )
    out = "Test Dice at the site that was left out: of the global branch, or of what the site made of it or alone."
    pairs = "The difference is paired by patient and seed. p is of its bootstrap, corrected by Holm for all rows."
    one = "One seed: differences below two points mean nothing."
    return [
        f"{out if suite == UNSEEN else own} {len(sizes(task))} sites, seed {', '.join(map(str, seeds))}.",
        *([one] if len(seeds) == 1 else []),
        *([pairs] if suite != UNSEEN else []),
        OF_SUITE.get(suite or "", RATES),
    ]


def small(task: str) -> dict[str, int]:
    """The sites of a task, with as many training images as they have here."""
    return {site: min(IMAGES, size) for site, size in sizes(task).items()}


def of_methods() -> list[Row]:
    """A row a method."""
    names = [*FIRST, *(name for name in methods.names() if name not in (*FIRST, *NOT))]
    return [Row(name, name, (f"method={name}", *OWN.get(name, ())) if name != "pfedsam" else ()) for name in names]


def differing(runs: dict[Row, list[Run]], out: Path) -> dict[Row, tuple[str, str]]:
    """By row, the difference at the sites' own branches to the row that it is beside, its interval, and its p value."""
    task = next(iter(runs.values()))[0].task
    homes = read_homes(task)
    found = {row.name: {run.seed: ended(run, out) for run in of_row} for row, of_row in runs.items()}
    pairs = {row: beside for row in runs if (beside := beside_of(row, runs))}
    of = {row: differences(found[row.name], found[one.name], "personal", homes) for row, one in pairs.items()}
    gaps = {row: gap for row, gap in of.items() if gap}  # nothing where two rows have no site in common
    first = next(iter(runs))
    return {
        row: (in_words(gaps[row]) + (f", {pairs[row].label}" if pairs[row] != first else ""), f"{p:.3f}")
        for row, p in corrected(gaps).items()
    }


def beside_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row that a row is compared with: the one that it names if that runs too, else the first. None: no row."""
    first, *_ = named = {one.name: one for one in rows}
    return None if row.beside == "" or row.name == first else named.get(row.beside or first, named[first])


def ended(run: Run, out: Path) -> Found:
    """An ended run."""
    return read(run.folder(out), json.loads((run.folder(out) / "results.json").read_text()))


def as_table(found: dict[Row, list[Cells]], differ: dict[Row, tuple[str, str]]) -> Table:
    """A line a row. Of methods the best comes first."""
    labelled = any(row.label != row.name for row in found)
    ranked = sorted(found, key=lambda row: 0.0 if labelled else -mean(found[row], "own site"))
    lines: list[list[str | float]] = [
        [
            row.label,
            spread([one["own site"] for one in found[row]]),
            *(mean(found[row], cell) for cell in MEANS),
            *differ.get(row, ("", "")),
        ]
        for row in ranked
    ]
    first = next(iter(found)).label
    return Table({"row": "", "own site": "", **MEANS, f"less {first}": "", "p": ""}, lines)


def mean(runs: Sequence[Cells], cell: str) -> float:
    """A cell's mean over seeds."""
    return st.fmean(one[cell] for one in runs)


def unseen(found: dict[Row, list[Cells]]) -> Table:
    """A line a method, a column for each site that was left out, and their mean."""
    scores: dict[str, Cells] = {}
    for row, runs in found.items():
        site = max((cell for cell in runs[0] if row.name.startswith(cell.replace(AT, f"{UNSEEN}_"))), key=len)
        scores.setdefault(row.label, {})[site.removeprefix(AT)] = mean(runs, "own site" if row.sites else site)
    outs = sorted({out for of in scores.values() for out in of})
    lines: list[list[str | float]] = [
        [label, *(of[out] for out in outs), st.fmean(of.values())] for label, of in scores.items()
    ]
    return Table({"row": "", **dict.fromkeys([*outs, "mean"], ".3f")}, lines)


def line(run: Run, out: Path, rounds: int) -> Cells:
    """A run's cells. It is trained and tested if it is not there yet, and stays beside them: others begin from it."""
    path = run.folder(out) / "cells.json"
    if not path.exists():
        run.folder(out).mkdir(parents=True, exist_ok=True)
        write_json(path, cells(run, out, rounds))
    held: Cells = json.loads(path.read_text())
    print(run.row.name, held, flush=True)
    return held


def cells(run: Run, out: Path, rounds: int) -> Cells:
    """Train and test one row, small."""
    named = {site: size for site, size in small(run.task).items() if site in (run.row.sites or sizes(run.task))}
    row = replace(run.row, changes=(SMALL, *few(named, IMAGES, IMAGES), *run.row.changes))
    config, rounds = settings(replace(run, row=row), rounds)
    here, began = dict.fromkeys(sites(run, config), places(run, out)), time.process_time()
    record = federate(planned(run, out, config, here, rounds))
    tested: dict[str, dict[str, Any]] = record["final"]["sites"]
    dice = {branch: [one[branch]["dice"] or 0.0 for one in tested.values()] for branch in ("personal", "global")}
    sent = [one["bytes_sent"] for one in record["rounds"][-1]["sites"].values()]
    return {
        "own site": st.fmean(dice["personal"]),
        "worst": min(dice["personal"]),
        "global": st.fmean(dice["global"]),
        "validation": st.fmean(one["val"]["personal"]["dice"] or 0.0 for one in tested.values()),
        "MB up": st.fmean(sent) / 1e6,
        "CPU s": time.process_time() - began,
        **{AT + site: score for site, score in zip(tested, dice["global"], strict=True)},
    }


if __name__ == "__main__":
    main()
