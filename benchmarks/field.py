"""Rows side by side, small: benchmarks/field.py [--suite NAME] [--task NAME] [--seed N] [--rows NAME ...] [--keep].

Small means MobileSAM at 128 pixels, sixteen training images a site and six rounds, in one process. Without a suite the
rows are all methods, at the rates of FedAvg. It shows that each does what it says, and which are worth a search of
their own. It is no leaderboard. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS.
"""

import argparse
import json
import os
import statistics as st
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import Table, keepable, publish
from suites import NAMES, Row, few, rows_of
from sweep import ONE_RATE, PLAIN, ROOT, data_of, sizes

from pfedsam import methods
from pfedsam.federation import Plan, federate
from pfedsam.files import write_json
from pfedsam.jobs import read_job
from pfedsam.layout import Places

ROUNDS, IMAGES = 6, 16
SMALL = ("model.image_size=128", *PLAIN)
OWN = {  # what a method needs beside its name
    "local": ("train.lr=3e-3",),
    "fedms_sam": ("train.lr=3e-4",),
    "fedbn": ("train.lr_private=3e-4",),
    "ditto": ("method.lam=0.1",),
    "fedadam": ("method.rate=1e-2",),
}
FIRST = ("pfedsam", "local", "fedavg")
NOT = ("newcomer", "furl", "cpss_adapt")  # which begin from another run, or end in one
COLUMNS = {
    "row": "",
    "own site": ".3f",
    "worst": ".3f",
    "global": ".3f",
    "validation": ".3f",
    "MB up": ".2f",
    "seconds": ".0f",
}
UNSEEN, AT = "unseen", "at "


def main() -> None:
    """Run every row that is not there yet, print a table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=NAMES, help="its rows instead of all methods")
    parser.add_argument("--task", default="nuclei_he")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=Path("runs/field"), help="holds what is done; it resumes")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.suite, options.task, small(options.task)) if options.suite else of_methods()
    rows = [row for row in rows if not options.rows or row.name in options.rows]
    out = options.out / options.task / str(options.seed)
    found = {row: line(row, options.task, options.seed, out) for row in rows}
    what = f"Suite {options.suite}" if options.suite else "Methods side by side"
    title = f"{what} on {options.task}: {IMAGES} images a site, 128 px, {ROUNDS} rounds"
    table = unseen(found) if options.suite == UNSEEN else as_table(found)
    publish(title, table, notes=notes(options.suite, options.task, options.seed), keep=options.keep)


def notes(suite: str | None, task: str, seed: int) -> list[str]:
    """What a reader has to know of the table."""
    own = "own site: test Dice of the branch that predicts at its own site. global: of the one for unknown sites."
    out = "Test Dice at the site that was left out: of the global branch, or of what the site made of it or alone."
    return [
        f"{out if suite == UNSEEN else own} Of {len(sizes(task))} sites, seed {seed}. One seed: differences below two"
        " points mean nothing.",
        "pFedSAM is the form of the task's job: one model with or without a plain private adapter (reading R2).",
        "All methods have FedAvg's rates and the plain mean; training alone has its own, lower rate.",
    ]


def small(task: str) -> dict[str, int]:
    """The sites of a task, with as many training images as they have here."""
    return {site: min(IMAGES, size) for site, size in sizes(task).items()}


def of_methods() -> list[Row]:
    """A row a method."""
    names = [*FIRST, *(name for name in methods.names() if name not in (*FIRST, *NOT))]
    return [Row(name, name, (f"method={name}", *OWN.get(name, ())) if name != "pfedsam" else ()) for name in names]


def as_table(found: dict[Row, dict[str, float]]) -> Table:
    """A line a row. Of methods the best comes first."""
    labelled = any(row.label != row.name for row in found)
    ranked = sorted(found.items(), key=lambda item: 0.0 if labelled else -item[1]["own site"])
    return Table(COLUMNS, [[row.label, *(one[cell] for cell in [*COLUMNS][1:])] for row, one in ranked])


def unseen(found: dict[Row, dict[str, float]]) -> Table:
    """A line a method, a column for each site that was left out, and their mean."""
    scores: dict[str, dict[str, float]] = {}
    for row, one in found.items():
        site = next(cell for cell in one if row.name.startswith(cell.replace(AT, f"{UNSEEN}_")))
        scores.setdefault(row.label, {})[site.removeprefix(AT)] = one["own site" if row.sites else site]
    outs = sorted({out for of in scores.values() for out in of})
    lines: list[list[str | float]] = [
        [label, *(of[out] for out in outs), st.fmean(of.values())] for label, of in scores.items()
    ]
    return Table({"row": "", **dict.fromkeys([*outs, "mean"], ".3f")}, lines)


def line(row: Row, task: str, seed: int, out: Path) -> dict[str, float]:
    """A row's cells, from its run or from what is there."""
    path = out / f"{row.name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run(row, task, seed, out))
    held: dict[str, float] = json.loads(path.read_text())
    print(row.name, held, flush=True)
    return held


def run(row: Row, task: str, seed: int, out: Path) -> dict[str, float]:
    """Train and test one row. Its run stays beside its cells, as others may begin from it."""
    named = small(task)
    own = any(change.startswith("method=") for change in row.changes)
    limit = few(named, IMAGES, IMAGES)
    changes = [*SMALL, *limit, *([ONE_RATE] if own else []), *row.changes, f"seed={seed}"]
    config = read_job(ROOT / "jobs" / f"{task}.json", changes).config
    folder, began = out / row.name, time.monotonic()
    cache = Path(tempfile.gettempdir()) / "pfedsam_prepared"
    here = Places(data_of(task), folder / "store", Path(os.environ["PFEDSAM_WEIGHTS"]), cache=cache)
    folder.mkdir(parents=True, exist_ok=True)
    places = dict.fromkeys(sorted(row.sites or named), here)
    record = federate(Plan(config, places, ROUNDS, folder, out / row.begins if row.begins else None))
    tested: dict[str, dict[str, Any]] = record["final"]["sites"]
    dice = {branch: [one[branch]["dice"] or 0.0 for one in tested.values()] for branch in ("personal", "global")}
    sent = [one["bytes_sent"] for one in record["rounds"][-1]["sites"].values()]
    return {
        "own site": st.fmean(dice["personal"]),
        "worst": min(dice["personal"]),
        "global": st.fmean(dice["global"]),
        "validation": st.fmean(one["val"]["personal"]["dice"] or 0.0 for one in tested.values()),
        "MB up": st.fmean(sent) / 1e6,
        "seconds": time.monotonic() - began,
        **{AT + site: score for site, score in zip(tested, dice["global"], strict=True)},
    }


if __name__ == "__main__":
    main()
