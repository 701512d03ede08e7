"""Cut a task's hospitals into parts, so that each part is a site: benchmarks/shards.py DATA OUT --parts 2.

This is for questions that need more sites than hospitals, such as a site whose masks lack a class. A hospital's parts
are alike, so such sites say nothing about different hospitals.
"""

import argparse
import os
import random
from pathlib import Path
from typing import Any

from pfedsam.data.cells import write_cells
from pfedsam.data.records import raw_rows

Row = dict[str, Any]
Home = tuple[str, str, str]  # what stays together: site, split, group


def main() -> None:
    """Write OUT/manifest.csv, which names the images at their present places."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a task's folder, with manifest.csv")
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shards(options.data, options.out, options.parts, options.seed)


def shards(data: Path, out: Path, parts: int, seed: int) -> None:
    """The rows with site NAME as NAME-1, NAME-2 and so on. A group (patient) stays in one part and keeps its split."""
    rows = raw_rows(data / "manifest.csv")
    out.mkdir(parents=True, exist_ok=True)
    where = os.path.relpath(data.resolve(), out.resolve())
    part = assigned(rows, parts, random.Random(seed))
    moved = [
        row
        | {"site": f"{row['site']}-{part[home(row)] + 1}"}
        | {key: f"{where}/{row[key]}" for key in ("image", "mask")}
        for row in rows
    ]
    with (out / "manifest.csv").open("w", newline="") as file:
        write_cells(file, list(moved[0]), moved, {"image", "mask"})


def home(row: Row) -> Home:
    """The site, split and group of a row."""
    return row["site"], row["split"], row["group"]


def assigned(rows: list[Row], parts: int, draw: random.Random) -> dict[Home, int]:
    """A part for every group, in turns within each site and split, so that parts have similar sizes."""
    groups: dict[tuple[str, str], list[Home]] = {}
    for key in sorted({home(row) for row in rows}):
        groups.setdefault(key[:2], []).append(key)
    found: dict[Home, int] = {}
    for keys in groups.values():
        draw.shuffle(keys)
        found |= {key: turn % parts for turn, key in enumerate(keys)}
    return found


if __name__ == "__main__":
    main()
