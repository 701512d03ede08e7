"""Cells of tables that a spreadsheet may open."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with one of these a cell begins that a spreadsheet computes


def inert(text: object, mark: str = "'") -> str:
    """A cell's text that no spreadsheet computes: before one that could be a formula is a mark.

    Args:
        mark: what a spreadsheet shows as text. A path takes `./`, with which it is still the same path.
    """
    return f"{mark}{text}" if str(text).startswith(FORMULA) else str(text)


def write_cells(file: TextIO, columns: Sequence[str], rows: Iterable[Mapping[str, object]], paths: set[str]) -> None:
    """Write a table as CSV, with its columns' names as first row. None of its cells is a formula.

    Args:
        paths: the columns of paths that are read back.
    """
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: inert(row[name], "./" if name in paths else "'") for name in columns})
