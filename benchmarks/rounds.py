"""Seconds of a round outside training, beside FLARE's own FedAvg recipe with the same tensors: rounds.py --help."""

import argparse
import json
import os
import re
import statistics as st
import subprocess
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from machine import ROOT, VIT_B, Table, keepable, publish, simulator
from nvflare.app_opt.pt.recipes import FedAvgRecipe
from nvflare.client.config import ExchangeFormat

from pfedsam.config import Config
from pfedsam.flare.recipe import render
from pfedsam.jobs import read_job
from pfedsam.layout import simulated_results
from pfedsam.study import shared_schema

SETTINGS = (*VIT_B, "model.image_size=64")
STARTED = re.compile(r"^(\S+ \S+) .*(?:Round \d+ started|Sampled clients)", re.MULTILINE)  # ours, the recipe's
STOCK_CARRIER = '''
import torch

class Carrier(torch.nn.Module):
    """Parameters of the given shapes."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))
'''
STOCK_CLIENT = """
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.5}, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""


def main() -> None:
    """Run each job with 2 and 4 sites, and print one table."""
    options = arguments()
    config = read_job(ROOT / "jobs/pfedsam", SETTINGS).config
    columns = {"sites": "d", "job": "", "a round outside training, median seconds": ".2f", "of stock": ".2f"}
    found = [row for sites in options.sites for row in rows(config, sites, options.rounds)]
    size = 4 * sum(torch.Size(spec.shape).numel() for spec in shared_schema(config).values()) / 1e6
    title = f"A round outside training: ViT-B's LoRA and decoder, {size:.1f} MB of float32 each way"
    publish(title, Table(columns, found), keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=8)
    return keepable(parser).parse_args()


def rows(config: Config, sites: int, rounds: int) -> list[list[str | float]]:
    """The table's rows for this number of sites."""
    jobs: dict[str, Callable[[Path, int, int], Path]] = {
        "FLARE's FedAvg recipe": partial(stock_job, config, exchange=ExchangeFormat.NUMPY),
        "FLARE's FedAvg recipe, torch tensors": partial(stock_job, config, exchange=ExchangeFormat.PYTORCH),
        "pfedsam": our_job,
    }
    took = {}
    for name, write in jobs.items():
        with tempfile.TemporaryDirectory() as folder:
            job = write(Path(folder), sites, rounds)
            took[name] = outside(simulate(job, Path(folder) / "ws", sites), Path(folder) / "ws")
    stock = next(iter(took.values()))
    return [[sites, name, seconds, seconds / stock] for name, seconds in took.items()]


def our_job(folder: Path, sites: int, rounds: int) -> Path:
    """The main job on ViT-B without pretrained weights, one step a round."""
    names = [f"site-{i + 1}" for i in range(sites)]
    render(ROOT / "jobs/pfedsam", folder / "job", changes=SETTINGS, rounds=rounds, sites=names)
    return folder / "job"


def stock_job(config: Config, folder: Path, sites: int, rounds: int, *, exchange: ExchangeFormat) -> Path:
    """FLARE's recipe. Its sites send back what they got, without any training."""
    shapes = {name.replace(".", "_"): list(spec.shape) for name, spec in shared_schema(config).items()}
    (folder / "carrier.py").write_text(STOCK_CARRIER)
    (folder / "client.py").write_text(STOCK_CLIENT)
    recipe = FedAvgRecipe(
        name="stock",
        model={"class_path": "carrier.Carrier", "args": {"shapes": shapes}},
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(folder / "client.py"),
        server_expected_format=exchange,
    )
    recipe.export(str(folder))
    for custom in folder.glob("stock/app*/custom"):
        (custom / "carrier.py").write_text(STOCK_CARRIER)
    return folder / "stock"


def simulate(job: Path, workspace: Path, sites: int) -> str:
    """The log of a job, after running it with a process for each site."""
    names = ",".join(f"site-{i + 1}" for i in range(sites))
    command = simulator(job, workspace, sites)
    done = subprocess.run(
        [*command, "-c", names], capture_output=True, text=True, env={**os.environ, "PFEDSAM_STORE": ""}
    )
    return done.stdout + done.stderr


def outside(log: str, workspace: Path) -> float:
    """The median seconds from a round's start to the next, minus the slowest site's training and scoring."""
    starts = [when(clock) for clock in STARTED.findall(log)]
    if len(starts) < 3:
        raise SystemExit(f"the job did not run:\n{log[-3000:]}")
    busy = training(workspace)
    return st.median(starts[r + 1] - starts[r] - busy.get(r, 0.0) for r in range(1, len(starts) - 1))


def training(workspace: Path) -> dict[int, float]:
    """The slowest site's seconds of training and scoring, for each of our rounds."""
    path = simulated_results(workspace)
    if not path.exists():
        return {}
    rounds = json.loads(path.read_text())["rounds"]
    return {r["round"]: max(s["seconds"] + s["scoring_seconds"] for s in r["sites"].values()) for r in rounds}


def when(clock: str) -> float:
    """A log line's date and time in seconds."""
    return datetime.strptime(clock, "%Y-%m-%d %H:%M:%S,%f").timestamp()


if __name__ == "__main__":
    main()
