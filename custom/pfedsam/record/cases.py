"""A site's cases.json: what each test case scored. It never leaves the site."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.record.measures import DISTANCES, METRICS, MIXED, unit_of

Groups = dict[str, list[float]]  # by patient (group): the values of its cases
Classes = list[Groups]  # of each class that was scored
ROLES = ("global", "personal")
Scores = dict[tuple[str, int], dict[str, float]]  # by case and class, the metrics that there are


@dataclass(frozen=True)
class Cases:
    """Test cases of one site.

    Attributes:
        scores: by role; classes whose reference is empty in a case are left out there.
        groups: by case, the patient's number; empty where the file does not know.
        run: whose final test it was; empty where the file does not know.
        unit: of the distances; "mixed" where cases differ, which then have none here; empty where it is not known.
    """

    scores: dict[str, Scores]
    groups: dict[str, str]
    run: str = ""
    unit: str = ""

    def of_patients(self, role: str, metric: str) -> Classes:
        """A role's values by class and patient; by case where patients are not known."""
        return gathered({key: row[metric] for key, row in self.scores[role].items() if metric in row}, self.groups)

    def gaps(self, metric: str) -> Classes:
        """Personal less global of each case and class, by class and patient."""
        return gathered(less(self.scores["personal"], self.scores["global"], metric), self.groups)


def less(one: Scores, other: Scores, metric: str) -> dict[tuple[str, int], float]:
    """One's values less the other's, of each case and class that both have."""
    both = {key: (row, other[key]) for key, row in one.items() if key in other}
    return {key: row[metric] - of[metric] for key, (row, of) in both.items() if metric in row and metric in of}


def gathered(values: dict[tuple[str, int], float], groups: dict[str, str]) -> Classes:
    """Values of case and class, by class and the case's group (or the case itself)."""
    found: dict[int, Groups] = {}
    for (case, cls), value in values.items():
        found.setdefault(cls, {}).setdefault(groups.get(case, case), []).append(value)
    return list(found.values())


def read_cases(path: Path) -> Cases:
    """What the file holds.

    Raises:
        UserFault: it is damaged.
    """
    try:
        site = json.loads(path.read_text())
        unit = unit_of(site["scores"]["personal"]) or ""
        scores = {role: _of_classes(site["cases"], site["scores"][role], mixed=unit == MIXED) for role in ROLES}
        groups = {case: str(group) for case, group in zip(site["cases"], site.get("groups", []), strict=False)}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as fault:
        raise UserFault(
            expected=f"{path} as a site's final test writes it",
            came=f"a damaged file ({type(fault).__name__})",
            do="take the folder that the site's last job left",
        ) from None
    return Cases(scores, groups, str(site.get("run", "")), unit)


def _of_classes(cases: list[str], rows: Sequence[dict[str, Any]], *, mixed: bool) -> Scores:
    """The metrics by case and class; without those whose reference is empty, and `mixed` units' distances."""
    each = len(rows) // len(cases)
    known = [(cases[i // each], row) for i, row in enumerate(rows) if row["dice"] is not None]
    names = [metric for metric in METRICS if not (mixed and metric in DISTANCES)]
    return {(case, row["cls"]): _values(row, names) for case, row in known}


def _values(row: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Of one class of one case. An older version wrote the image's diagonal as distance where nothing was found."""
    found = bool(row.get("found", True))
    told = {**row, "detected": float(found)} | ({} if found else {"hd95": None, "assd": None})
    return {name: float(told[name]) for name in names if told.get(name) is not None}
