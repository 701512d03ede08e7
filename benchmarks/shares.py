"""Where the seconds of a site's rounds go: benchmarks/shares.py TASK SITE [--rounds N] [--keep].

It needs PFEDSAM_WEIGHTS and PFEDSAM_DATA_ROOT, as sweep.py does. The first round scores the test split too, so only the
later ones count.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, Table, keepable, publish
from sweep import data_of

from pfedsam.data.dataset import Dataset
from pfedsam.exchange.aggregate import apply
from pfedsam.exchange.server import begin_state, contribution, message
from pfedsam.jobs import read_job
from pfedsam.layout import Places
from pfedsam.service import Turn, serve_round
from pfedsam.site import Site
from pfedsam.study import down_schema, up_schema
from pfedsam.train.step import Steps

PARTS = ("training step", "reading and augmenting", "scoring")


def main() -> None:
    """Measure, print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("site")
    parser.add_argument("--rounds", type=int, default=3)
    options = keepable(parser).parse_args()
    spent, whole = rounds(options.task, options.site, options.rounds)
    rows: list[list[str | float]] = [[part, spent[part], spent[part] / whole] for part in PARTS]
    rest = whole - sum(spent.values())
    columns = {"part": "", "seconds": ".1f", "share of the round": ".3f"}
    table = Table(columns, [*rows, ["everything else", rest, rest / whole]])
    publish(f"Shares of a round: {options.task}, {options.site}", table, keep=options.keep)


def rounds(task: str, site_name: str, count: int) -> tuple[dict[str, float], float]:
    """Seconds by part, and of all, in the rounds after the first."""
    torch.use_deterministic_algorithms(True)
    config = read_job(ROOT / "jobs" / f"{task}.json").config
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    Steps.__call__ = timed(Steps.__call__, spent, PARTS[0])  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        site = Site(site_name, config, Places(data_of(task), Path(folder), Path(os.environ["PFEDSAM_WEIGHTS"])))
        reading = timed(Dataset.batch, spent, PARTS[1])
        site._source = lambda data, *given: (reading if data.split == "train" else Dataset.batch)(data, *given)
        down, whole = down_schema(config), 0.0
        state = begin_state(site.shared(), down)
        for number in range(count):
            wire = message(state, site_name, config, down)
            if number == 1:
                spent.update(dict.fromkeys(PARTS, 0.0))
            began = time.perf_counter()
            update, report = serve_round(site, wire, Turn("run", site.base, number, count))
            whole += (time.perf_counter() - began) * (number > 0)
            spent[PARTS[2]] += report["scoring_seconds"] * (number > 0)
            found = contribution(update.wire, update.samples, {}, config=config, up=up_schema(config))
            state = apply(site.method.rule, state, {site_name: found}, config=config, down=down)
    return spent, whole


def timed(call: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    """`call`, whose seconds are added to a part."""

    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **options)
        finally:
            spent[part] += time.perf_counter() - began

    return run


if __name__ == "__main__":
    main()
