"""Writes datalist, names and report beside the images, and describes the labels in words."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.data.cells import write_cells
from pfedsam.data.classes import CLASSES_FILE
from pfedsam.data.datalist import Row, write_csv
from pfedsam.data.values import IGNORED
from pfedsam.prepare.found import Case
from pfedsam.prepare.labels import REST, WHITE, LabelRule, Values
from pfedsam.prepare.measurements import Measurements
from pfedsam.prepare.page import page
from pfedsam.prepare.patients import pseudonym
from pfedsam.prepare.walk import MARK

NAMES = ("case", "image", "mask", "patient", "group")  # the columns of names.csv


@dataclass(frozen=True)
class Prepared:
    """One prepared case: its source, its new name and files, its measurements, and the digest of its pixels."""

    case: Case
    name: str
    image: str
    mask: str
    facts: Measurements
    weak: str = ""
    fingerprint: str = ""


def write_down(
    folder: Path,
    done: Sequence[Prepared],
    splits: dict[str, str],
    report: dict[str, Any],
    pictures: list[tuple[str, bytes]],
) -> None:
    salt = secrets.token_bytes(32)
    groups = {patient: pseudonym(patient, salt) for patient in splits}
    rows = [Row(d.image, d.mask, splits[d.case.patient], groups[d.case.patient], d.weak) for d in done]
    write_csv(folder / "datalist.csv", rows)
    _private(folder / MARK).write_text(salt.hex() + "\n")
    with _private(folder / "names.csv").open("w", newline="", encoding="utf-8") as file:
        write_cells(file, NAMES, (_named(d, groups) for d in done), set())
    if report["class_names"]:
        named = {str(number): name for number, name in enumerate(report["class_names"], 1)}
        (folder / CLASSES_FILE).write_text(json.dumps(named, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _private(folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    _private(folder / "report.html").write_text(page(report, pictures), encoding="utf-8")


def _named(one: Prepared, groups: dict[str, str]) -> dict[str, object]:
    """A row of names.csv: which files and which patient a case is of."""
    case = one.case
    values = (one.name, case.image[0], "; ".join(map(str, case.masks)), case.patient.removeprefix("name:"))
    return dict(zip(NAMES, (*values, groups[case.patient]), strict=True))


def _private(path: Path) -> Path:
    """An empty file that only its owner may read."""
    path.touch(mode=0o600)
    return path


def labels_by(rule: LabelRule, segments: dict[str, int], values: Sequence[Values] = ()) -> str:
    """How mask values became classes, in words.

    Args:
        values: of each case's mask; empty where structures' names count instead.
    """
    plain = not segments or any(mask.keys() - {0, rule.ignore} for mask in values)
    if rule.ignore is None:
        return _classes_by(rule, segments, plain=plain)
    return (
        f"{_classes_by(rule, segments, plain=plain)} {rule.ignore} marks pixels that nobody labelled (--ignore);"
        f" they have the value {IGNORED} in the prepared masks."
    )


def _classes_by(rule: LabelRule, segments: dict[str, int], *, plain: bool) -> str:
    """The sentences on structures, if there are some, and on the numbers of `plain` masks."""
    parts = []
    if segments:
        told = (f"{label} is {number or 'left out'}" for label, number in segments.items())
        parts.append(f"Structures by their names in the files: {', '.join(told)}.")
    if rule.table is not None:
        told = (f"{'any other' if v == REST else v} is {c}" for v, c in sorted(rule.table.items()))
        parts.append(f"Mask values as --labels says: {', '.join(told)}.")
    elif plain and rule.classes == 1:
        parts.append(f"One class: 0 is the background, {WHITE if rule.white else 1} is the class.")
    elif plain:
        parts.append("Mask values are used as class numbers, unchanged.")
    return " ".join(parts)


def names_of(segments: dict[str, int]) -> dict[int, str]:
    """The names of each class. Spellings that differ only in case are one name."""
    names: dict[int, dict[str, str]] = {}
    for label, number in segments.items():
        names.setdefault(number, {}).setdefault(label.casefold(), label)
    return {number: " and ".join(of.values()) for number, of in names.items()}
