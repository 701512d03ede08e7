"""A site's cases.json: what each test case scored. It never leaves the site."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.report.bootstrap import Classes, Groups
from pfedsam.train.metrics import METRICS

ROLES = ("global", "personal")
Scores = dict[tuple[str, int], dict[str, float]]  # by case and class, the metrics


@dataclass(frozen=True)
class Cases:
    """Test cases of one site.

    Attributes:
        scores: by role; classes whose reference is empty in a case are left out there.
        groups: by case, the patient's number; empty where the file does not know.
        run: whose final test it was; empty where the file does not know.
    """

    scores: dict[str, Scores]
    groups: dict[str, str]
    run: str = ""

    def of_patients(self, role: str, metric: str) -> Classes:
        """A role's values by class and patient; by case where patients are not known."""
        return gathered({key: row[metric] for key, row in self.scores[role].items()}, self.groups)

    def gaps(self, metric: str) -> Classes:
        """Personal less global of each case and class, by class and patient."""
        return gathered(less(self.scores["personal"], self.scores["global"], metric), self.groups)


def less(one: Scores, other: Scores, metric: str) -> dict[tuple[str, int], float]:
    """One's values less the other's, of each case and class that both have."""
    return {key: row[metric] - other[key][metric] for key, row in one.items() if key in other}


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
        scores = {role: of_classes(site["cases"], site["scores"][role]) for role in ROLES}
        groups = {case: str(group) for case, group in zip(site["cases"], site.get("groups", []), strict=False)}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as fault:
        raise UserFault(
            expected=f"{path} as a site's final test writes it",
            came=f"a damaged file ({type(fault).__name__})",
            do="take the folder that the site's last job left",
        ) from None
    return Cases(scores, groups, str(site.get("run", "")))


def of_classes(cases: list[str], scores: Sequence[dict[str, Any]]) -> Scores:
    """The metrics by case and class; without those whose reference is empty."""
    each = len(scores) // len(cases)
    known = [(cases[i // each], row) for i, row in enumerate(scores) if row["dice"] is not None]
    return {(case, row["cls"]): {m: float(row[m] or 0.0) for m in METRICS} for case, row in known}
