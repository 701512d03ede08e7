"""What a perfect learner of a task's labels would score on its test split: benchmarks/ceiling.py --tasks NAME ...

Labels are taken at the model's size, predictions scored at the image's own: what lies between is lost to every method.
Needs PFEDSAM_DATA_ROOT.
"""

import argparse
import sys

import torch
from sweep import ROOT, data_of, sizes

from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, Dataset, View, open_site
from pfedsam.errors import UserFault
from pfedsam.jobs import settings_of
from pfedsam.train.evaluate import masks, reference
from pfedsam.train.losses import one_hot
from pfedsam.train.metrics import METRICS, CaseScore, score, summary

SURE = 20.0  # a logit that leaves no doubt


def main() -> None:
    """Print a line a site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei", "polyp"])
    options = parser.parse_args()
    try:
        table(options.tasks)
    except UserFault as fault:
        sys.exit(f"{fault}")


def table(tasks: list[str]) -> None:
    """A line a site; raises as `data_of`."""
    print("| task | site | Dice | IoU | HD95 | ASSD |\n|---|---|---|---|---|---|")
    for task in tasks:
        config, _ = settings_of(ROOT / "jobs" / f"pfedsam_{task}")
        data = data_of(task)
        for site in sizes(data):
            found = summary(perfect(open_site(data, site, config, mean=(0,) * 3, std=(1,) * 3)["test"], config))
            cells = [f"{found[name]:.3f}" if name in METRICS[:2] else f"{found[name]:.2f}" for name in METRICS]
            print(f"| {task} | {site} | " + " | ".join(cells) + " |")


def perfect(data: Dataset, config: Config) -> list[CaseScore]:
    """Scores of the labels themselves, as if a model had learned them, slice by slice."""
    found = []
    for i, one in enumerate(data.slices):
        label = data.batch([View(i, PLAIN)]).label
        outputs = one_hot(label, config.model.num_classes, background=config.model.exclusive)[0]
        truth = reference(data, i)
        found += score(masks(SURE * (2 * outputs.float() - 1), data, i), truth, one.spacing[:2])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
