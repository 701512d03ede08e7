"""A site's datalist: the mask, split and patient of each image.

It is CSV with a header, or JSON (a list of objects), with the columns `image`, `mask`, `split`, `group`. Paths are
relative to the file. An optional column `site` lets one file serve several sites. In the training split, a row may
have no mask, and an optional column `weak` names a weak mask, which training reads instead. The case of column names
does not matter, nor do blanks around column names, split, group and site.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.data.cells import write_cells
from pfedsam.data.records import COLUMNS, PATHS, raw_rows, where
from pfedsam.errors import UserFault
from pfedsam.names import alike, spelling

NAMES = ("datalist.csv", "datalist.json", "manifest.csv")
SHOWN = 4  # sites that a message names, at most
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """One image or volume: paths relative to the datalist, split, and group (patient).

    Attributes:
        mask: empty for a training image without labels.
        weak: a mask in which only some pixels have a label. Empty: there is none.
    """

    image: str
    mask: str
    split: str
    group: str
    weak: str = ""

    @property
    def learned(self) -> str:
        """The mask that the row's split is read with: in training the weak one, if there is one. Empty: none."""
        return (self.split == "train" and self.weak) or self.mask


def find(root: Path, site: str) -> Path:
    """The datalist of `site`, in `root/site` or else in `root`.

    Raises:
        UserFault: neither folder contains one.
    """
    for folder in (root / site, root):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    others = sorted(path.parent.name for name in NAMES for path in root.glob(f"*/{name}"))
    came, do = "none of them" if root.exists() else f"no folder {root}", "name the site's data folder in PFEDSAM_DATA"
    if others:
        came = f"datalists of {', '.join(others[:SHOWN])}"
        do = f"render the job with --sites {','.join(others[:SHOWN])}"
    raise UserFault(
        expected=f"a datalist ({', '.join(NAMES)}) in {root / site} or {root}",
        came=came,
        do=f"{do}, or name the folder in the site's settings",
    )


def read(path: Path, *sites: str) -> dict[str, list[Row]]:
    """The rows of each split. If the file has a column `site` and `sites` are named, only the rows of these.

    A group has the spelling in which it comes first. Where none of several sites is named, its site stands before it:
    two hospitals may each have a patient 7.

    Raises:
        UserFault: a column is missing, a split is unknown or empty, a file does not exist, only some rows have a
            site, a site has two spellings or no row, or a group or an image is in two splits. Each message names the
            file and the row.
    """
    records = raw_rows(path)
    own = dict(_of_sites(path, records, sites))
    rows = [_row(path, number, record) for number, record in own.items()]
    rows = [replace(row, group=group) for row, group in zip(rows, alike(row.group for row in rows), strict=True)]
    _check_files(path, rows)
    pooled = len({record.get("site") for record in records}) > 1 and not sites
    groups = [f"{of['site']}/{row.group}" if pooled else row.group for row, of in zip(rows, own.values(), strict=True)]
    _check_splits(path, rows, groups)
    _check_elsewhere(path, rows, [record for i, record in enumerate(records, 1) if pooled or i not in own])
    rows = [replace(row, group=group) for row, group in zip(rows, groups, strict=True)]
    splits = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split, found in splits.items():
        if not found:
            whose = f" for site {', '.join(sites)}" if sites else ""
            raise UserFault(
                expected=f"rows of split {split} in {path}{whose}", came="none", do="add some, split by patient"
            )
    return splits


def sites(path: Path) -> list[str]:
    """The sites in a datalist's column `site`; empty without such a column."""
    return sorted({str(record["site"]) for record in raw_rows(path) if record.get("site")})


def write_csv(path: Path, rows: Iterable[Row]) -> Path:
    """Write `rows` as a datalist; returns `path`."""
    rows = list(rows)
    columns = [*COLUMNS, *(["weak"] if any(row.weak for row in rows) else [])]
    with path.open("w", newline="", encoding="utf-8") as file:
        write_cells(file, columns, ({name: asdict(row)[name] for name in columns} for row in rows), {*PATHS})
    return path


def _of_sites(path: Path, records: list[dict[str, Any]], sites: tuple[str, ...]) -> list[tuple[int, dict[str, Any]]]:
    """The records of `sites` with their numbers; all of them if no site is named here or in the file."""
    numbered = list(enumerate(records, 1))
    if not any(record.get("site") for record in records):
        return numbered
    if bare := next((number for number, record in numbered if not record.get("site")), None):
        raise UserFault(
            expected=f"a site in {where(path, bare)}, as in other rows",
            came="none",
            do="fill it in, or remove the column",
        )
    _check_sites(path, [record["site"] for record in records], sites)
    return [(number, record) for number, record in numbered if not sites or record["site"] in sites]


def _check_sites(path: Path, known: list[str], wanted: tuple[str, ...]) -> None:
    """Refuse two spellings of one site, and a wanted site without rows."""
    if twice := next((pair for pair in zip(alike(known), known, strict=True) if pair[0] != pair[1]), None):
        raise UserFault(
            expected=f"one spelling of each site in {path}",
            came=" and ".join(twice),
            do="write it in one way; two sites need names that differ in more than capitals",
        )
    if absent := [site for site in wanted if site not in known]:
        raise UserFault(
            expected=f"rows of site {absent[0]} in {path}",
            came=f"rows of {', '.join(sorted({*known})[:SHOWN])}",
            do="correct the site's name in the column site or in the job (its sites, data.joined)",
        )


def _row(path: Path, number: int, record: dict[str, Any]) -> Row:
    needed = [key for key in COLUMNS if key != "mask" or record.get("split") != "train"]
    missing = [key for key in needed if not record.get(key)]
    if missing:
        raise UserFault(
            expected=f"columns image, mask, split, group in {where(path, number)}",
            came="nothing in " + ", ".join(missing),
            do="fill them in, or remove the row; group is the patient",
        )
    if record["split"] not in SPLITS:
        raise UserFault(
            expected=f"split train, val or test in {where(path, number)}",
            came=record["split"],
            do="write one of these three",
        )
    return Row(*(str(record.get(key) or "") for key in (*COLUMNS, "weak")))


def _check_splits(path: Path, rows: list[Row], groups: list[str]) -> None:
    """A patient, in any spelling, and an image, by any path to it, belong to one split. A case is listed once.

    All files are there: a name that no file can have, such as one with a zero byte, has no real path.
    """
    files = [os.path.realpath(path.parent / row.image) for row in rows]
    cases = Counter((file, row.split, row.mask, row.weak, row.group) for file, row in zip(files, rows, strict=True))
    if twice := next((image for (image, *_), count in cases.items() if count > 1), None):
        raise UserFault(expected=f"each case once in {path}", came=f"{twice} twice", do="keep one of its rows")
    patients = [spelling(group) for group in groups]
    for what, things, do in (
        ("group", patients, "put all of a patient's images into one split"),
        ("image", files, "keep it only in the split of its patient"),
    ):
        homes: dict[str, set[str]] = defaultdict(set)
        for thing, row in zip(things, rows, strict=True):
            homes[thing].add(row.split)
        if torn := [thing for thing, splits in homes.items() if len(splits) > 1]:
            came = f"{len(torn)} in several, e.g. {torn[0]} in {' and '.join(sorted(homes[torn[0]]))}"
            raise UserFault(expected=f"each {what} of {path} in one split", came=came, do=do)


def _check_elsewhere(path: Path, rows: list[Row], others: list[dict[str, Any]]) -> None:
    """An image is in no other split at another site. A group of the same name is told: it may be another patient.

    Args:
        rows: the site's own.
        others: those of other sites, unchecked, or those of all. Their files need not be there.
    """
    others = [record for record in others if record.get("split") in SPLITS]
    own = {os.path.realpath(path.parent / row.image): row for row in rows}
    for record in others:
        row = own.get(_place(path.parent, str(record.get("image") or "")))
        if row and row.split != record["split"]:
            came = f"{row.image} in {row.split}, and in {record['split']} at site {record['site']}"
            do = "keep it only in the split of its patient"
            raise UserFault(expected=f"each image of {path} in one split at all sites", came=came, do=do)
    splits = {spelling(row.group): row.split for row in rows}
    known = [(spelling(str(record.get("group") or "")), record) for record in others]
    homes = [(key, record["site"]) for key, record in known if splits.get(key, record["split"]) != record["split"]]
    if homes:
        log.warning(
            "%d group(s) of the datalist are in another split at other sites (%s). If these are the same patients, put"
            " all of a patient's images into one split; otherwise write the site before each group",
            len({key for key, _ in homes}),
            ", ".join(sorted({site for _, site in homes})[:SHOWN]),
        )


def _place(folder: Path, image: str) -> str:
    """The real path of an image, or nothing if no file can have its name."""
    return "" if "\0" in image else os.path.realpath(folder / image)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long for any file
        return False


def _check_files(path: Path, rows: list[Row]) -> None:
    for what in PATHS:
        named = [name for row in rows if (name := getattr(row, what))]
        absent = [name for name in named if not _is_file(path.parent / name)]
        if absent:
            raise UserFault(
                expected=f"each {what} of {path} to exist",
                came=f"{len(absent)} missing, e.g. {absent[0]}",
                do="correct the path (relative to the datalist), or remove the row",
            )
