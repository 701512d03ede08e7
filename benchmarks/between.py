"""Weights between the branches of ended runs: benchmarks/between.py OUT TASK --rows NAME ... [--seeds N ...] [--keep].

A share of 0 is the global branch and 1 the personal one (WiSE-FT, Wortsman et al. 2022). Tensors that both have are
interpolated. An adapter that the personal branch alone has is scaled. OUT is a folder of sweep.py that still has its
stores.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
from machine import Table, keepable, publish
from reopened import reopened, restored
from suites import NAMES, rows_of
from sweep import Run, sizes
from tables import spread

from pfedsam.errors import UserFault
from pfedsam.model.lora import taking
from pfedsam.model.segmenter import Segmenter
from pfedsam.record.scores import summary
from pfedsam.site import Site
from pfedsam.train.evaluate import evaluate

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SPLITS = ("val", "test")
Dice = dict[str, list[float]]  # a share's, by split and by site


def main() -> None:
    """Score every share of every run, print a table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("task")
    parser.add_argument("--suite", choices=NAMES, default="leading")
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = keepable(parser).parse_args()
    rows = [row for row in rows_of(options.suite, options.task, sizes(options.task)) if row.name in options.rows]
    columns = {"row": "", "share": ".2f", "validation": "", "test": "", "worst site, test": ""}
    lines: list[list[str | float]] = []
    for row in rows:
        of_runs = [scored(Run(options.task, row, seed), options.out) for seed in options.seeds]
        for share in SHARES:
            dice = [run[share] for run in of_runs]
            means = [spread([fmean(one[split]) for one in dice]) for split in SPLITS]
            lines.append([row.label, share, *means, spread([min(one["test"]) for one in dice])])
    notes = [
        "Dice at the sites' own images. A share of 0 is the global branch, 1 the personal one as trained.",
        f"Seeds {', '.join(map(str, options.seeds))}. A share would have to be chosen on validation.",
    ]
    publish(f"Between the branches, {options.task}", Table(columns, lines), notes=notes, keep=options.keep)


def scored(run: Run, out: Path) -> dict[float, Dice]:
    """Each share's mean Dice at every site of an ended run, by split."""
    found: dict[float, Dice] = {share: {split: [] for split in SPLITS} for share in SHARES}
    for site, arrived in reopened(run, out):
        for share in SHARES:
            restored(site, arrived)
            for split, dice in at(site, share):
                found[share][split].append(dice)
    return found


@torch.no_grad()
def at(site: Site, share: float) -> Iterator[tuple[str, float]]:
    """A site's mean Dice by split, of the weights at a share of the way to its personal branch."""
    branch = site.method.personal
    draw_near(site.model[branch], site.model[site.method.global_], share)
    for split in SPLITS:
        yield split, summary(evaluate(site.model, site.data[split], (branch,))[branch])["dice"]


def draw_near(personal: Segmenter, other: Segmenter, share: float) -> None:
    """Move `personal` to `share` of its way from `other`, in place."""
    there = dict(other.named_parameters())
    for name, tensor in personal.named_parameters():
        if name in there:
            tensor.lerp_(there[name], 1 - share)
    taking(personal, share)


if __name__ == "__main__":
    try:
        main()
    except UserFault as fault:
        sys.exit(f"{fault}")
