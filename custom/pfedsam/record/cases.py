"""A site's cases.json: what each test case scored. It never leaves the site."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.files import parsed
from pfedsam.record.measures import DISTANCES, METRICS, MIXED, unit_of

Groups = dict[str, list[float]]  # by patient (group): the values of its cases
Classes = list[Groups]  # of each class that was scored
ROLES = ("global", "personal")
Scores = dict[tuple[str, int], dict[str, float]]  # by case and class, the metrics that there are


@dataclass(frozen=True)
class Cases:
    """Test cases of one site.

    Attributes:
        scores: by role. A case has no row for a class with an empty reference.
        groups: the patient's number, by case. Empty if the file does not have it.
        run: the run of the final test. Empty if the file does not have it.
        unit: of the distances. "mixed" if cases differ, and then there are no distances. Empty if not known.
    """

    scores: dict[str, Scores]
    groups: dict[str, str]
    run: str = ""
    unit: str = ""

    def of_patients(self, role: str, metric: str) -> Classes:
        """A role's values by class and patient, or by case if patients are not known."""
        return gathered({key: row[metric] for key, row in self.scores[role].items() if metric in row}, self.groups)

    def gaps(self, metric: str) -> Classes:
        """The personal value minus the global one, of each case and class, by class and patient."""
        return gathered(less(self.scores["personal"], self.scores["global"], metric), self.groups)


def less(one: Scores, other: Scores, metric: str) -> dict[tuple[str, int], float]:
    """The values of `one` minus those of `other`, of each case and class that both have."""
    both = {key: (row, other[key]) for key, row in one.items() if key in other}
    return {key: row[metric] - of[metric] for key, (row, of) in both.items() if metric in row and metric in of}


def gathered(values: dict[tuple[str, int], float], groups: dict[str, str]) -> Classes:
    """The values by class and the case's group (or the case itself), from values by case and class."""
    found: dict[int, Groups] = {}
    for (case, cls), value in values.items():
        found.setdefault(cls, {}).setdefault(groups.get(case, case), []).append(value)
    return list(found.values())


def read_cases(path: Path) -> Cases:
    """The test cases in the file.

    Raises:
        UserFault: it is damaged.
    """
    try:
        site = parsed(path.read_bytes())
        unit = unit_of(site["scores"]["personal"]) or ""
        scores = {role: _of_classes(site["cases"], site["scores"][role], mixed=unit == MIXED) for role in ROLES}
        groups = {case: str(group) for case, group in zip(site["cases"], site.get("groups", []), strict=False)}
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as fault:
        raise UserFault(
            expected=f"{path} as a site's final test writes it",
            came=f"a damaged file ({type(fault).__name__})",
            do="use the folder that the site's last job wrote",
        ) from None
    return Cases(scores, groups, str(site.get("run", "")), unit)


def _of_classes(cases: list[str], rows: Sequence[dict[str, Any]], *, mixed: bool) -> Scores:
    """The metrics by case and class, without empty references and, if `mixed`, without distances."""
    each = len(rows) // len(cases)
    known = [(cases[i // each], row) for i, row in enumerate(rows) if row["dice"] is not None]
    names = [metric for metric in METRICS if not (mixed and metric in DISTANCES)]
    return {(case, row["cls"]): _values(row, names) for case, row in known}


def _values(row: dict[str, Any], names: list[str]) -> dict[str, float]:
    """The metrics of one class of one case. If nothing was found, an older version wrote the image's diagonal as
    distance, which is left out."""
    found = bool(row.get("found", True))
    told = {**row, "detected": float(found)} | ({} if found else {"hd95": None, "assd": None})
    return {name: float(told[name]) for name in names if told.get(name) is not None}
