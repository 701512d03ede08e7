"""What differential privacy costs in Dice: benchmarks/privacy.py --tasks NAME ... [--seeds N] [--keep].

FedAvg on the demo backbone at 64 pixels, in one process. It trains fewer values than usual: noise grows with their
number. Each row has the rate that validates best of those that are tried. It needs PFEDSAM_DATA_ROOT.
"""

import argparse
import math
import statistics as st
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import Table, keepable, publish
from sweep import ROOT, data_of, sizes
from tables import counted

from pfedsam.config import Config
from pfedsam.federation import Plan, federate
from pfedsam.jobs import read_job
from pfedsam.layout import Places
from pfedsam.study import shared_schema

ROUNDS = 5
SMALL = (
    "method=fedavg",
    "model.experts=0",
    "model.backbone=demo",
    "model.image_size=64",
    "model.lora_rank=2",
    "model.decoder=lean",
    "train.lr_private=null",
    "train.batch_size=8",
    "train.epochs=4",
    "server.rule=mean",
)
RATES = ((0.01, 0.0003), (0.002, 0.002))  # of LoRA, and of the decoder
NO_LIMIT = 1e6  # of epsilon: the table says what was spent


@dataclass(frozen=True)
class Row:
    """A line of the table: what is hidden, and the noise on it."""

    unit: str
    noise: float = 0.0
    clip: float = 1.0

    @property
    def changes(self) -> list[str]:
        """The settings."""
        if self.unit == "none":
            return []
        said = {"unit": self.unit, "noise": self.noise, "clip": self.clip, "epsilon": NO_LIMIT}
        return [f"privacy.{name}={value}" for name, value in said.items()]


ROWS = (
    Row("none"),
    *(Row("patient", noise) for noise in (0.3, 1.0, 3.0)),
    *(Row("site", noise, 5.0) for noise in (0.1, 1.0)),
)


def main() -> None:
    """Run every row on every task, print a table for each task, and keep them if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", type=int, default=len(RATES), help="try only so many")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    for task in options.tasks:
        lines = [line(task, row, options.seeds, RATES[: options.rates]) for row in ROWS]
        values = sum(math.prod(spec.shape) for spec in shared_schema(config_of(task, ROWS[0], RATES[0], 0)).values())
        columns = {"hidden": "", "noise": "", "epsilon": "", "rate": "", "Dice": ".3f", "validation": ".3f"}
        title = f"Privacy on {task}: Dice of the shared model after {ROUNDS} rounds, {counted(options.seeds)}"
        before = st.fmean(one.pop("before") for one in lines)
        notes = [
            f"{len(sizes(task))} sites, {values} shared values, delta 1e-5, Renyi accounting.",
            f"Dice before training: {before:.3f}.",
        ]
        publish(title, Table(columns, [list(one.values()) for one in lines]), notes=notes, keep=options.keep)


def line(task: str, row: Row, seeds: int, among: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A row's cells, at the rate that validates best."""
    tried = {rates: [run(task, row, rates, seed) for seed in range(seeds)] for rates in among}
    best = max(among, key=lambda rates: st.fmean(one["val"] for one in tried[rates]))
    mean = {name: st.fmean(one[name] for one in tried[best]) for name in ("test", "val", "before", "epsilon")}
    spent = "-" if row.unit == "none" else f"{mean['epsilon']:.3g}"
    return {
        "hidden": row.unit,
        "noise": f"{row.noise:g}",
        "epsilon": spent,
        "rate": f"{best[0]:g}, {best[1]:g}",
        "test": mean["test"],
        "val": mean["val"],
        "before": mean["before"],
    }


def config_of(task: str, row: Row, rates: tuple[float, float], seed: int) -> Config:
    """A run's settings."""
    own = [f"train.lr={rates[0]}", f"train.lr_decoder={rates[1]}", f"seed={seed}"]
    return read_job(ROOT / "jobs" / f"{task}.json", [*SMALL, *row.changes, *own]).config


def run(task: str, row: Row, rates: tuple[float, float], seed: int) -> dict[str, float]:
    """The shared model's mean Dice over sites, and the most that a site has spent."""
    config = config_of(task, row, rates, seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Places(data_of(task), Path(folder) / "store", cache=Path(tempfile.gettempdir()) / "pfedsam_prepared")
        record = federate(Plan(config, dict.fromkeys(sizes(task), here), ROUNDS, Path(folder)))
    tested = record["final"]["sites"].values()
    found = {
        "test": st.fmean(one["global"]["dice"] or 0.0 for one in tested),
        "val": st.fmean(one["val"]["global"]["dice"] or 0.0 for one in tested),
        "before": st.fmean(one["before"]["dice"] or 0.0 for one in tested),
        "epsilon": max(one.get("epsilon", 0.0) for one in record["rounds"][-1]["sites"].values()),
    }
    print(f"{task} {row} {rates} seed {seed}: {found}", flush=True)
    return found


if __name__ == "__main__":
    main()
