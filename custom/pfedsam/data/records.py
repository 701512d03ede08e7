"""A datalist's records as its file has them, CSV or JSON: plain names of columns, nothing else checked."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.files import parsed

COLUMNS = ("image", "mask", "split", "group")
PATHS = ("image", "mask", "weak")
WORDS = ("split", "group", "site")  # columns of words; the others hold paths, in which blanks count
SIGNS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # that other programs put between columns


def raw_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a datalist, with plain column names and words without blanks around them, otherwise unchecked.

    Raises:
        UserFault: it is not a list of objects, or has a column twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # csv distinguishes line breaks in quotes
            records = parsed(file.read()) if path.suffix == ".json" else _table(path, csv.DictReader(file))
    except UserFault:
        raise
    except UnicodeError:
        raise UserFault(
            expected=f"text in UTF-8 in {path}",
            came="another encoding, such as UTF-16 or Latin-1",
            do="save it as UTF-8, which Excel calls CSV UTF-8",
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserFault(expected=f"a readable datalist at {path}", came=str(error), do="correct the file") from None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise UserFault(expected=f"a list of objects in {path}", came="something else", do="see docs/data.md")
    return [_plain(path, record) for record in records]


def _table(path: Path, reader: "csv.DictReader[str]") -> list[dict[str, Any]]:
    """A CSV's rows. The columns are looked at first, because a row cannot hold one name twice."""
    names = _columns(path, list(reader.fieldnames or ()))
    if len(names) == 1 and (came := next((said for sign, said in SIGNS.items() if sign in names[0]), None)):
        raise UserFault(expected=f"commas between the columns of {path}", came=came, do="save it as CSV with commas")
    if lacking := [name for name in COLUMNS if name not in names]:
        raise UserFault(
            expected=f"columns {', '.join(COLUMNS)} in the first line of {path}",
            came=f"no {', '.join(lacking)} in {','.join(names)!r}",
            do="write these names into the first line, with commas between them",
        )
    records = list(reader)
    while records and not any(records[-1].values()):  # a spreadsheet's empty last rows
        records.pop()
    rest = (n for n, record in enumerate(records, 1) if any(record.get(None) or ()))
    if long := next(rest, None):
        raise UserFault(
            expected=f"{len(names)} cells, as many as columns, in {where(path, long)}",
            came=str(len(names) + len(records[long - 1][None])),
            do="put a cell that has a comma in it into quotation marks, or remove the extra cell",
        )
    return records


def _columns(path: Path, names: Sequence[object]) -> list[str]:
    """The columns' plain names. UserFault if two are alike."""
    plain = [str(name).strip().casefold() for name in names]
    if twice := next((name for name in plain if plain.count(name) > 1), None):
        came = f"{plain.count(twice)}"
        raise UserFault(expected=f"one column {twice} in {path}", came=came, do="keep only the right one")
    return plain


def where(path: Path, number: int) -> str:
    """The place of a record, as a message names it."""
    return f"object {number} of {path}" if path.suffix == ".json" else f"row {number} below the header of {path}"


def _plain(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    plain = dict(zip(_columns(path, list(record)), record.values(), strict=True))
    return plain | {key: "" if plain[key] is None else str(plain[key]).strip() for key in WORDS if key in plain}
