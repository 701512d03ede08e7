"""Seconds until a run has 95 % of its final validation Dice: benchmarks/time_to_dice.py OUT [--task TASK] [--keep].

OUT is a folder of sweep.py. The seconds are those of the rounds, all sites one after the other, on the cores that the
run had. The Dice is that of the model that sites predict with, as in `tables.validation`.
"""

import argparse
import json
import statistics as st
from itertools import accumulate
from pathlib import Path
from typing import Any

from machine import Table, keepable, publish
from tables import validation

SHARE = 0.95
COLUMNS = {
    "method": "",
    "seeds": "d",
    "final validation Dice": ".3f",
    "rounds to 95 % of it": ".1f",
    "seconds to 95 % of it": ".0f",
    "seconds in all": ".0f",
}


def main() -> None:
    """Print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", default="brain_mri")
    options = keepable(parser).parse_args()
    runs = {path.parent.parent for path in (options.out / options.task).glob("*/*/results.json")}
    if not runs:
        raise SystemExit(f"expected runs in {options.out / options.task}; came none; to mend it: run sweep.py there")
    rows = sorted(map(line, runs), key=lambda row: row[4])
    publish(f"Time to a Dice: {options.task}", Table(COLUMNS, rows), keep=options.keep)


def line(row: Path) -> list[Any]:
    """A row of the table: means over the seeds of a row's runs."""
    records = [json.loads(path.read_text()) for path in sorted(row.glob("*/results.json"))]
    found = [reached(record) for record in records]
    return [row.name, len(records), *(st.mean(values) for values in zip(*found, strict=True))]


def reached(record: dict[str, Any]) -> tuple[float, float, float, float]:
    """Final Dice, the rounds and the seconds until 95 % of it, and the seconds of all rounds."""
    dice, seconds = validation(record), list(accumulate(entry["seconds"] for entry in record["rounds"]))
    first = next(i for i, value in enumerate(dice) if value >= SHARE * dice[-1])
    return dice[-1], first + 1.0, seconds[first], seconds[-1]


if __name__ == "__main__":
    main()
