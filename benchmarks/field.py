"""Every method once, small: benchmarks/field.py [--task NAME] [--seed N] [--methods NAME ...] [--keep].

Small means MobileSAM at 128 pixels, sixteen training images a site and six rounds, in one process. All methods share
the rates of FedAvg. It shows that each does what it says, and which are worth a search of their own. It is no
leaderboard. It needs PFEDSAM_DATA_ROOT and PFEDSAM_WEIGHTS.
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
from suites import few
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
CELLS = ("dice", "worst", "validation", "mb", "seconds")
NOT = ("newcomer", "furl")  # which begin from another run, or end in one


def main() -> None:
    """Run every method that is not there yet, print a table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="nuclei_he")
    parser.add_argument("--seed", type=int, default=0)
    names = [*FIRST, *(name for name in methods.names() if name not in (*FIRST, *NOT))]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("runs/field"), help="holds what is done; it resumes")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    found = {name: line(name, options.task, options.seed, options.out) for name in options.methods}
    columns = {"method": "", "Dice": ".3f", "worst site": ".3f", "validation": ".3f", "MB up": ".2f", "seconds": ".0f"}
    rows = sorted(([name, *(one[cell] for cell in CELLS)] for name, one in found.items()), key=lambda row: -row[1])
    title = f"Methods side by side on {options.task}: {IMAGES} images a site, 128 px, {ROUNDS} rounds"
    notes = [
        f"Test Dice of the branch that predicts at its own site, the mean over {len(sizes(options.task))} sites, seed"
        f" {options.seed}. One seed: differences below two points mean nothing.",
        "pfedsam is the form of the task's job: one model with or without a plain private adapter (reading R2).",
        "All methods have FedAvg's rates and the plain mean; training alone has its own, lower rate.",
    ]
    publish(title, Table(columns, rows), notes=notes, keep=options.keep)


def line(name: str, task: str, seed: int, out: Path) -> dict[str, float]:
    """A method's cells, from its run or from what is there."""
    path = out / task / f"{name}.{seed}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run(name, task, seed))
    held: dict[str, float] = json.loads(path.read_text())
    print(name, held, flush=True)
    return held


def run(name: str, task: str, seed: int) -> dict[str, float]:
    """Train and test one method."""
    sites = sizes(task)
    limit = few(sites, IMAGES, IMAGES)
    other = (f"method={name}", ONE_RATE) if name != "pfedsam" else ()
    changes = [*SMALL, *limit, *other, *OWN.get(name, ()), f"seed={seed}"]
    config = read_job(ROOT / "jobs" / f"{task}.json", changes).config
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(tempfile.gettempdir()) / "pfedsam_prepared"
        here = Places(data_of(task), Path(folder) / "store", Path(os.environ["PFEDSAM_WEIGHTS"]), cache=cache)
        record = federate(Plan(config, dict.fromkeys(sites, here), ROUNDS, Path(folder)))
    tested: list[dict[str, Any]] = list(record["final"]["sites"].values())
    dice = [one["personal"]["dice"] or 0.0 for one in tested]
    sent = [one["bytes_sent"] for one in record["rounds"][-1]["sites"].values()]
    return {
        "dice": st.fmean(dice),
        "worst": min(dice),
        "validation": st.fmean(one["val"]["personal"]["dice"] or 0.0 for one in tested),
        "mb": st.fmean(sent) / 1e6,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()
