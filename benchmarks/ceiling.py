"""The score of a perfect learner of a task's labels on its test split: benchmarks/ceiling.py --tasks NAME ...

Labels have the model's size. Predictions are scored at the image's own size. There are two learners. One is sure of
each pixel of the labels that it saw, 0 or 1. The other knows each pixel's share of the class, and so where an edge
runs within it. A method may beat the first, because being sure costs score. The second is about the limit of the
model's size. It needs PFEDSAM_DATA_ROOT.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from sweep import ROOT, data_of, sizes
from torch import Tensor

from pfedsam.data.dataset import PLAIN, Dataset, View, label_size, open_site
from pfedsam.data.square import fit
from pfedsam.errors import UserFault
from pfedsam.jobs import read_job
from pfedsam.record.measures import HIGHER_IS_BETTER, METRICS, TITLES, number
from pfedsam.record.scores import CaseScore, summary
from pfedsam.train.evaluate import masks, reference
from pfedsam.train.losses import one_hot
from pfedsam.train.metrics import score

SURE = 20.0  # a logit that leaves no doubt


def main() -> None:
    """Print a line for each site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei", "polyp"])
    options = parser.parse_args()
    try:
        table(options.tasks)
    except UserFault as fault:
        sys.exit(f"{fault}")


def table(tasks: list[str]) -> None:
    """Print a line for each site. It raises what `data_of` raises."""
    of_each = [f"{TITLES[metric]}, {learner}" for learner in LEARNERS for metric in METRICS]
    print(f"| task | site | {' | '.join(of_each)} |\n" + "|---" * (len(of_each) + 2) + "|")
    for task in tasks:
        config = read_job(ROOT / "jobs" / f"{task}.json").config
        data = data_of(task)
        for site in sizes(task):
            test = open_site(data, site, config)["test"]
            found = [summary(perfect(test, learner)) for learner in LEARNERS.values()]
            cells = [number(one[name], 3 if HIGHER_IS_BETTER[name] else 2) for one in found for name in METRICS]
            print(f"| {task} | {site} | " + " | ".join(cells) + " |")


def perfect(data: Dataset, learner: Callable[[Dataset, int], Tensor]) -> list[CaseScore]:
    """The scores of a learner that knows the labels, slice by slice."""
    found = []
    for i, one in enumerate(data.slices):
        guess = masks(SURE * (2 * learner(data, i) - 1), data, i)
        found += score(guess, reference(data, i), one.spacing[:2], unit=one.unit)
    return found


def sure(data: Dataset, i: int) -> Tensor:
    """1 if the training label has the class, else 0: (outputs, L, L)."""
    m = data.config.model
    return one_hot(data.batch([View(i, PLAIN)]).label, m.num_classes, background=m.exclusive)[0].float()


def graded(data: Dataset, i: int) -> Tensor:
    """The share of each pixel that belongs to the class: (outputs, L, L)."""
    shares = fit(reference(data, i).float(), label_size(data.config))
    return torch.cat([1 - shares.sum(0, keepdim=True), shares]) if data.config.model.exclusive else shares


LEARNERS = {"labels as 0 or 1": sure, "graded": graded}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
