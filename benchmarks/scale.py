"""Many sites on one machine, and the server's mean over many more: scale.py --help."""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import ROOT, VIT_B, Table, keepable, publish, simulator

from pfedsam.config import Config
from pfedsam.exchange.codec import encode
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.server import contribution, mean_update
from pfedsam.flare.recipe import render
from pfedsam.jobs import read_job
from pfedsam.layout import simulated_results
from pfedsam.study import shared_schema
from pfedsam.tensors import Tensors

SETTINGS = (*VIT_B, "model.image_size=256")
FORMATS = {
    "float32": (),
    "int8": ("wire.up=int8",),
    "lean, int8": ("model.decoder=lean", "wire.up=int8"),
}
EVERY = 1.0  # seconds between looks at memory
RUNS = {
    "sites": "d",
    "at a time": "d",
    "seconds a site and round": ".2f",
    "whole run, seconds": ".0f",
    "memory of all processes, peak GiB": ".1f",
}


def main() -> None:
    """Measure the simulated sites, then the mean, and print two tables."""
    options = arguments()
    found = []
    for sites in options.sites:
        found.append(simulated(sites, min(sites, options.threads), options.rounds))
        print(found[-1], file=sys.stderr, flush=True)
    title = f"Scale: ViT-B at 256 px, one step a round, {options.rounds} rounds and the final test, in the simulator"
    publish(title, Table(RUNS, found), means(options.means), keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="*", default=[2, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=8, help="most sites at a time: the simulator's -t")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--means", type=int, nargs="*", default=[10, 100, 1000])
    return keepable(parser).parse_args()


def simulated(sites: int, threads: int, rounds: int) -> list[str | float]:
    """The row of a run with this number of sites: its time and memory."""
    names = [f"site-{i + 1}" for i in range(sites)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render(ROOT / "jobs/pfedsam", folder / "job", changes=SETTINGS, rounds=rounds, sites=names)
        command = simulator(folder / "job", folder / "ws", threads)
        began = time.monotonic()
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as run,
        ):
            watch = Memory(run.pid)
            run.wait()
        whole = time.monotonic() - began
        record = simulated_results(folder / "ws")
        found = json.loads(record.read_text()) if record.exists() else {"final": {"sites": {}}}
        if len(found["final"]["sites"]) != sites:
            raise SystemExit(f"{len(found['final']['sites'])} of {sites} sites\n{(folder / 'log').read_text()[-3000:]}")
    took = sum(r["seconds"] for r in found["rounds"]) / rounds / sites
    return [sites, threads, took, whole, watch.peak()]


class Memory:
    """Watches the memory of a process and all below it. Common pages count once (PSS)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak = pid, 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> float:
        """The peak so far, in GiB."""
        return self._peak / 2**30

    def _watch(self) -> None:
        while psutil.pid_exists(self._pid):
            self._peak = max(self._peak, sum(pss(p) for p in tree(self._pid)))
            time.sleep(EVERY)


def tree(pid: int) -> list[Any]:
    """The process and all below it."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


def pss(process: Any) -> int:
    """A process's memory in bytes. A page that n processes map counts 1/n. 0 if the process has just ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def means(counts: list[int]) -> Table:
    """The second table: the server's memory for a round's mean, and how long the mean takes."""
    columns = {"sites": "d", "update": "", "the server holds, MB": ".1f", "mean over sites, seconds": ".2f"}
    rows: list[list[str | float]] = []
    for name, changes in FORMATS.items():
        config = read_job(ROOT / "jobs/pfedsam", [*SETTINGS, *changes]).config
        wire = update(config)
        for count in counts:
            began = time.perf_counter()
            one = contribution(wire, 1, {}, config=config, up=shared_schema(config))
            mean_update({f"site-{i}": one for i in range(count)})
            took = time.perf_counter() - began
            rows.append([count, name, count * payload_bytes(wire) / 1e6, took])
    return Table(columns, rows)


def update(config: Config) -> Tensors:
    """A site's encoded update."""
    shapes = shared_schema(config)
    return encode({name: torch.randn(spec.shape) for name, spec in shapes.items()}, config.wire.up)


if __name__ == "__main__":
    main()
