"""A site's datalist: which image has which mask, in which split, of which patient.

CSV with a header, or JSON (a list of objects), columns `image`, `mask`, `split`, `group`; paths
are relative to the file. A column `site` is optional and lets one file serve several sites.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault

NAMES = ("datalist.csv", "datalist.json", "manifest.csv")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """One image or volume: paths relative to the datalist, split, and group (patient)."""

    image: str
    mask: str
    split: str
    group: str


def find(root: Path, site: str) -> Path:
    """The datalist of `site`: in `root/site`, else in `root` itself.

    Raises:
        UserFault: neither folder holds one.
    """
    for folder in (root / site, root):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    raise UserFault(
        expected=f"a datalist ({', '.join(NAMES)}) in {root / site} or {root}",
        came="none of them" if root.exists() else f"no folder {root}",
        do="name the site's data folder in PFEDSAM_DATA or in the site's settings",
    )


def read(path: Path, site: str | None = None) -> dict[str, list[Row]]:
    """The rows of each split, those of `site` alone where the file has a `site` column.

    Raises:
        UserFault: a column is missing, a split is unknown or empty, a file does not exist, or a
            group lies in two splits. Each message names the file and the row.
    """
    records = raw_rows(path)
    if site is not None and records and "site" in records[0]:
        records = [r for r in records if r["site"] == site]
    rows = [_row(path, i, record) for i, record in enumerate(records)]
    _check_groups(path, rows)
    _check_files(path, rows)
    splits = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split, found in splits.items():
        if not found:
            whose = f" for site {site}" if site else ""
            raise UserFault(
                expected=f"rows of split {split} in {path}{whose}", came="none", do="add some, split by patient"
            )
    return splits


def sites(path: Path) -> list[str]:
    """The sites that a datalist serves by its column `site`; none where it has no such column."""
    return sorted({str(record["site"]) for record in raw_rows(path) if record.get("site")})


def write_csv(path: Path, rows: Iterable[Row]) -> Path:
    """Write `rows` as a datalist; returns `path`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "mask", "split", "group"])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def raw_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a datalist as they stand, unchecked."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        records = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError) as error:
        raise UserFault(expected=f"a readable datalist at {path}", came=str(error), do="correct it") from None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise UserFault(expected=f"a list of objects in {path}", came="something else", do="see docs/data.md")
    return records


def _row(path: Path, index: int, record: dict[str, Any]) -> Row:
    missing = [key for key in ("image", "mask", "split", "group") if not record.get(key)]
    if missing:
        raise UserFault(
            expected=f"columns image, mask, split, group in row {index + 1} of {path}",
            came="nothing at " + ", ".join(missing),
            do="fill them; group is the patient",
        )
    if record["split"] not in SPLITS:
        raise UserFault(
            expected=f"split train, val or test in row {index + 1} of {path}", came=record["split"], do="correct it"
        )
    return Row(*(str(record[key]) for key in ("image", "mask", "split", "group")))


def _check_groups(path: Path, rows: list[Row]) -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        homes[row.group].add(row.split)
    torn = {group: splits for group, splits in homes.items() if len(splits) > 1}
    if torn:
        group, splits = next(iter(torn.items()))
        raise UserFault(
            expected=f"each group of {path} in one split",
            came=f"{len(torn)} in several, e.g. {group} in {' and '.join(sorted(splits))}",
            do="put all of a patient's images into one split",
        )


def _check_files(path: Path, rows: list[Row]) -> None:
    for what in ("image", "mask"):
        absent = [getattr(r, what) for r in rows if not (path.parent / getattr(r, what)).is_file()]
        if absent:
            raise UserFault(
                expected=f"each {what} of {path} to exist",
                came=f"{len(absent)} missing, e.g. {absent[0]}",
                do="correct the path (relative to the datalist) or drop the row",
            )
