"""A run in plain sentences and rows: what it gained, where, and what to doubt."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pfedsam.config import names_of_classes
from pfedsam.record.cases import Cases, Classes
from pfedsam.record.measures import DISTANCES, METRICS, MIXED, number
from pfedsam.record.results import ROLES, replanned, took_part
from pfedsam.report.experts import fallen_behind
from pfedsam.report.gather import Material
from pfedsam.report.uncertainty import interval

FEW_CASES = 20  # with fewer scored test cases a site's mean is unreliable; our choice
FEW_ROUNDS = 5  # our choice
FEW_PATIENTS = 5  # fewer patients say nothing about others, whatever the interval; our choice
NAMES = {"before": "before training", "global": "global", "personal": "personal"}
Interval = tuple[float, float]
RANGES: dict[str, Interval] = {metric: (0.0, math.inf if metric in DISTANCES else 1.0) for metric in METRICS}


@dataclass(frozen=True)
class SiteRow:
    """One site on the test split.

    Attributes:
        means: by role and metric, as in results.json.
        spans: by role and metric, the 95 % interval, if case scores were found.
        cases: scored cases, of the class that has most; patients: the number drawn for the interval, None if unknown.
        gap: Dice of the personal minus the global model; gap_span is its interval.
        helped: what the gap says about personalisation.
    """

    name: str
    means: dict[str, dict[str, Any]]
    spans: dict[str, dict[str, Interval]]
    cases: int
    empty: int
    patients: int | None
    gap: float | None
    gap_span: Interval | None
    helped: str


def site_rows(material: Material) -> list[SiteRow]:
    """One row for every site that the final test scored, by name."""
    tested = material.results["final"]["sites"]
    rounds = material.results["rounds"]
    kept = {name for entry in rounds for name, report in entry["sites"].items() if report.get("private")}
    classes = material.results["config"].get("model", {}).get("num_classes", 1)
    return [
        site_row(name, tested[name], material.cases.get(name), keeps=name in kept, classes=classes)
        for name in sorted(tested)
    ]


def site_row(name: str, roles: dict[str, Any], cases: Cases | None, *, keeps: bool, classes: int) -> SiteRow:
    """One site's row, with intervals if its case scores are given.

    Args:
        keeps: whether the site has a private part, so that its two branches are not one model.
        classes: number of classes, to count cases where only scores of cases and classes are known.
    """
    means = {role: roles.get(role) or {} for role in ROLES}
    of_gap = cases.gaps("dice") if cases else []
    span, count = spread(of_gap), patients(of_gap)
    one, other = means["personal"].get("dice"), means["global"].get("dice")
    gap = None if one is None or other is None else one - other
    return SiteRow(
        name=name,
        means=means,
        spans=spans(cases) if cases else {},
        cases=_cases(cases, int(means["personal"].get("scored") or 0), classes),
        empty=int(means["personal"].get("empty") or 0),
        patients=count if cases and cases.groups else None,
        gap=gap,
        gap_span=span,
        helped=helped(
            gap,
            span if cases and cases.groups else None,
            alike=means["personal"] == means["global"],
            keeps=keeps,
            few=count < FEW_PATIENTS,
        ),
    )


def _cases(cases: Cases | None, scored: int, classes: int) -> int:
    """The number of cases with a score: counted if they are at hand, else at least so many."""
    return len({case for case, _ in cases.scores["personal"]}) if cases else math.ceil(scored / classes)


def class_rows(material: Material) -> list[dict[str, Any]]:
    """Mean Dice by site and class, if case scores were found; empty for a task with one class."""
    settings = material.results["config"]
    named = names_of_classes(_classes(settings), settings.get("model", {}).get("num_classes", 1))
    found = []
    for site, cases in sorted(material.cases.items()) if len(named) > 1 else ():
        for cls, name in enumerate(named, 1):
            of_class = {role: [row for (_, of), row in cases.scores[role].items() if of == cls] for role in ROLES[1:]}
            means = {role: mean_of([row["dice"] for row in scored]) for role, scored in of_class.items()}
            found.append({"site": site, "class": name, "cases": len(of_class["personal"]), **means})
    return found


def _classes(settings: dict[str, Any]) -> list[str]:
    """The names in the job; empty if it gives none."""
    return settings.get("data", {}).get("classes") or []


def spans(cases: Cases) -> dict[str, dict[str, Interval]]:
    """The interval of each role and metric, if it has more than one patient."""
    return {
        role: {m: span for m in METRICS if (span := spread(cases.of_patients(role, m), RANGES[m]))}
        for role in cases.scores
    }


def spread(classes: Classes, within: Interval = (-1.0, 1.0)) -> Interval | None:
    """The 95 % interval of the mean, within the values' range; None with fewer than two patients."""
    return interval([{"": classes}], within=within) if patients(classes) > 1 else None


def patients(classes: Classes) -> int:
    """The number of patients."""
    return len({patient for groups in classes for patient in groups})


def helped(gap: float | None, span: Interval | None, *, alike: bool, keeps: bool, few: bool = False) -> str:
    """What the difference between personal and global branch says. `few`: there are too few patients."""
    if gap is None:
        return "not scored"
    if alike:
        return "both branches score the same" if keeps else "one model: both branches are the same"
    if span is None:
        return f"{'higher' if gap > 0 else 'lower'}; the uncertainty is unknown here"
    if few:
        return "too few patients to tell"
    return "helped" if span[0] > 0 else "hurt" if span[1] < 0 else "cannot be distinguished from chance"


def summary(material: Material, rows: list[SiteRow]) -> list[str]:
    """The run in a few sentences."""
    results = material.results
    sites = took_part(results)
    who = f"This is site {material.own}'s own view of the run." if material.own else f"{joined(sites)} took part."
    count = len(results["rounds"])
    time = f" in {duration(results['seconds'])}" if results.get("seconds") else ""
    lines = [f"{who} Method {results['method']}, {count} round{'s' * (count != 1)}{time}."]
    if named := _classes(results["config"]):
        lines.append("Classes: " + ", ".join(f"{cls} {name}" for cls, name in enumerate(named, 1)) + ".")
    if not rows:
        return [*lines, "The final test has not been done: the run is unfinished, or it was interrupted."]
    if outside := [row.name for row in rows if row.name not in sites]:
        lines.append(f"Tested only, without a training round: {', '.join(outside)}. This is left out below.")
    inside = [row for row in rows if row.name in sites]
    return [*lines, gained(inside), *extremes(inside), *personal(inside)]


def gained(rows: list[SiteRow]) -> str:
    """The Dice of each role, as the mean over sites."""
    mean = {role: mean_of([row.means[role].get("dice") for row in rows]) for role in ROLES}
    told = [f"{number(mean[role])} {NAMES[role]}" for role in ROLES if mean[role] is not None]
    over = "Mean Dice over sites on the test split" if len(rows) > 1 else "Dice on the test split"
    return f"{over}: {', '.join(told)}." if told else "Nothing could be scored on the test split."


def extremes(rows: list[SiteRow]) -> list[str]:
    """The best and worst site by the personal branch."""
    scored = [
        (row.means["personal"]["dice"], row.name) for row in rows if row.means["personal"].get("dice") is not None
    ]
    if len(scored) < 2:
        return []
    (low, worst), (high, best) = min(scored), max(scored)
    return [f"Best site with its personal model: {best} ({number(high)}); worst: {worst} ({number(low)})."]


def personal(rows: list[SiteRow]) -> list[str]:
    """At which sites the personal model is better than the global one."""
    if all(row.helped.startswith("one model") for row in rows):
        return ["This method has one model per site: the global and personal branch are the same."]
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row.helped, []).append(row.name)
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
    return [f"Dice of the personal model compared with the global one, by site: {told}."]


def doubts(material: Material, rows: list[SiteRow]) -> list[str]:
    """What a reader should not conclude from this run."""
    results = material.results
    untested = sorted(set(took_part(results)) - {row.name for row in rows})
    few = [f"{row.name} ({row.cases})" for row in rows if row.cases < FEW_CASES]
    no_cases = [row.name for row in rows if row.name not in material.cases]
    by_image = [row.name for row in rows if row.name in material.cases and row.patients is None]
    refused = sum(len(entry.get("rejected") or {}) for entry in results["rounds"])
    many = f"{', '.join(few)}: other cases could change their means a lot."
    narrow = f"Intervals of {', '.join(by_image)} draw images, because the file does not name patients."
    hidden = f"No interval for {', '.join(no_cases)}: a site's case scores never leave it."
    count, drawn, shares = len(results["rounds"]), results.get("synthetic"), results["method"] != "local"
    mixed = [row.name for row in rows if row.means["personal"].get("unit") == MIXED]
    old = any("hd95" in row.means["personal"] and "detected" not in row.means["personal"] for row in rows)
    found: list[tuple[str, Any]] = [
        ("The images are synthetic: the numbers show that the program works. They say nothing about patients.", drawn),
        (f"Fewer than {FEW_CASES} scored test cases at {many}", few),
        ("This is one seed: how much another training run would differ is not known.", True),
        (f"Only {count} round{'s' * (count != 1)}: the training may not have converged.", count < FEW_ROUNDS),
        ("This run does not train each site alone. To compare, run the same job with --set method=local.", shares),
        (f"{hidden} The site's own report shows it.", no_cases),
        (f"{narrow} They are too narrow if a patient has several images.", by_image),
        (replanned(results), replanned(results)),
        (f"The final test lacks {', '.join(untested)}.", untested),
        (f"{refused} update(s) were refused or did not arrive: see below.", refused),
        ("In this older run, HD95 and ASSD count a case without a finding as the image's diagonal.", old),
        (
            f"{', '.join(mixed)}: some test cases are in millimetres, others in pixels. See by_unit in results.json.",
            mixed,
        ),
    ]
    return [*fallen_behind(results), *(text for text, holds in found if holds)]


def joined(names: list[str]) -> str:
    """The number of sites and their names, in words."""
    sites = f"{len(names)} site{'s' * (len(names) != 1)}"
    return f"{sites} ({', '.join(names)})" if names else "No site"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def shown(rows: list[SiteRow]) -> list[str]:
    """The metrics with a value in a row, and always Dice. Runs of older versions lack some."""
    known = {metric for row in rows for of in row.means.values() for metric in METRICS if of.get(metric) is not None}
    return [metric for metric in METRICS if metric in {"dice", *known}]


def duration(seconds: float | None) -> str:
    """A time in words."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def megabytes(size: float | None) -> str:
    """A size in words."""
    return "-" if size is None else f"{size / 1e6:.2f} MB"
