"""A site's cases.json: what each test case scored. It never leaves the site."""

import json
import statistics as st
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.report.bootstrap import Groups
from pfedsam.train.metrics import METRICS

ROLES = ("global", "personal")


@dataclass(frozen=True)
class Cases:
    """Test cases of one site.

    Attributes:
        scores: by role and case, the metrics' means over classes; cases with empty references alone are left out.
        groups: by case, the patient's number; empty where the file does not know.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    groups: dict[str, str]

    def of_patients(self, role: str, metric: str) -> Groups:
        """A role's values by patient; by case where patients are not known."""
        return self._gathered({case: row[metric] for case, row in self.scores[role].items()})

    def gaps(self, metric: str) -> Groups:
        """Personal less global of each case, by patient."""
        one, other = self.scores["personal"], self.scores["global"]
        return self._gathered({case: row[metric] - other[case][metric] for case, row in one.items() if case in other})

    def _gathered(self, values: dict[str, float]) -> Groups:
        found: Groups = {}
        for case, value in values.items():
            found.setdefault(self.groups.get(case, case), []).append(value)
        return found


def read_cases(path: Path) -> Cases:
    """What the file holds.

    Raises:
        UserFault: it is damaged.
    """
    try:
        site = json.loads(path.read_text())
        scores = {role: of_cases(site["cases"], site["scores"][role]) for role in ROLES}
        groups = {case: str(group) for case, group in zip(site["cases"], site.get("groups", []), strict=False)}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as fault:
        raise UserFault(
            expected="the cases.json that a site's final test writes",
            came=f"a damaged file ({type(fault).__name__})",
            do="take the folder that the site's last job left",
        ) from None
    return Cases(scores, groups)


def of_cases(cases: list[str], scores: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per case the metrics' means over its classes; without cases whose references are all empty."""
    rows: dict[str, list[dict[str, float]]] = {}
    for (case, _), row in of_classes(cases, scores).items():
        rows.setdefault(case, []).append(row)
    return {case: {m: st.mean(row[m] for row in of_case) for m in METRICS} for case, of_case in rows.items()}


def of_classes(cases: list[str], scores: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, float]]:
    """The metrics by case and class; without those whose reference is empty."""
    each = len(scores) // len(cases)
    known = [(cases[i // each], row) for i, row in enumerate(scores) if row["dice"] is not None]
    return {(case, row["cls"]): {m: float(row[m] or 0.0) for m in METRICS} for case, row in known}
