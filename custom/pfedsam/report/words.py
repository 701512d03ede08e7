"""A run in plain words and rows: what it gained, where, and what to doubt."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pfedsam.config import names_of_classes
from pfedsam.record.cases import Cases, Classes
from pfedsam.record.measures import METRICS, MIXED, number
from pfedsam.record.results import ROLES, replanned, took_part
from pfedsam.report.bootstrap import interval
from pfedsam.report.gather import Material

FEW_CASES = 20  # below so many scored test cases a site's mean says little; our choice
FEW_ROUNDS = 5  # our choice
FEW_PATIENTS = 5  # fewer of them say nothing of others, whatever the interval; our choice
NAMES = {"before": "before training", "global": "global", "personal": "personal"}
Interval = tuple[float, float]


@dataclass(frozen=True)
class SiteRow:
    """One site on the test split.

    Attributes:
        means: by role and metric, as in results.json.
        spans: by role and metric, the 95 % interval; only where case scores lie in reach.
        cases: scored cases and classes; patients: drawn for the interval, None where they are not known.
        gap: personal less global in Dice; gap_span its interval.
        helped: what that says of personalisation.
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
    """A row for every site that the final test has scored, by name."""
    tested = material.results["final"]["sites"]
    return [site_row(name, tested[name], material.cases.get(name)) for name in sorted(tested)]


def site_row(name: str, roles: dict[str, Any], cases: Cases | None) -> SiteRow:
    """One site's row; intervals where its case scores are given."""
    means = {role: roles.get(role) or {} for role in ROLES}
    of_gap = cases.gaps("dice") if cases else []
    span, count = spread(of_gap), patients(of_gap)
    one, other = means["personal"].get("dice"), means["global"].get("dice")
    gap = None if one is None or other is None else one - other
    return SiteRow(
        name=name,
        means=means,
        spans=spans(cases) if cases else {},
        cases=int(means["personal"].get("scored") or 0),
        empty=int(means["personal"].get("empty") or 0),
        patients=count if cases and cases.groups else None,
        gap=gap,
        gap_span=span,
        helped=helped(
            gap,
            span if cases and cases.groups else None,
            alike=means["personal"] == means["global"],
            few=count < FEW_PATIENTS,
        ),
    )


def class_rows(material: Material) -> list[dict[str, Any]]:
    """Mean Dice by site and class, where case scores lie in reach; empty for a task of one class."""
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
    """The names that the job gives; empty where it gives none."""
    return settings.get("data", {}).get("classes") or []


def spans(cases: Cases) -> dict[str, dict[str, Interval]]:
    """The interval of each role and metric; those of one patient or none are left out."""
    return {
        role: {metric: span for metric in METRICS if (span := spread(cases.of_patients(role, metric)))}
        for role in cases.scores
    }


def spread(classes: Classes) -> Interval | None:
    """The 95 % interval of the mean; None of fewer than two patients."""
    return interval([{"": classes}]) if patients(classes) > 1 else None


def patients(classes: Classes) -> int:
    """How many there are."""
    return len({patient for groups in classes for patient in groups})


def helped(gap: float | None, span: Interval | None, *, alike: bool, few: bool = False) -> str:
    """What the difference between personal and global branch says; `few`: drawn from too few patients."""
    if gap is None:
        return "not scored"
    if alike:
        return "one model: both branches are the same"
    if span is None:
        return f"{'higher' if gap > 0 else 'lower'}; how surely is not known here"
    if few:
        return "too few patients to tell"
    return "helped" if span[0] > 0 else "hurt" if span[1] < 0 else "cannot be told from chance"


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
        return [*lines, "The final test has not been done: the run is not finished, or it was cut."]
    if outside := [row.name for row in rows if row.name not in sites]:
        lines.append(f"Tested only, without a round of its own: {', '.join(outside)}; left out of what follows.")
    inside = [row for row in rows if row.name in sites]
    return [*lines, gained(inside), *extremes(inside), *personal(inside)]


def gained(rows: list[SiteRow]) -> str:
    """How Dice went, mean over sites."""
    mean = {role: mean_of([row.means[role].get("dice") for row in rows]) for role in ROLES}
    told = [f"{number(mean[role])} {NAMES[role]}" for role in ROLES if mean[role] is not None]
    over = "Mean Dice over sites on the test split" if len(rows) > 1 else "Dice on the test split"
    return f"{over}: {', '.join(told)}." if told else "Nothing could be scored on the test split."


def extremes(rows: list[SiteRow]) -> list[str]:
    """Best and worst site, by the personal branch."""
    scored = [
        (row.means["personal"]["dice"], row.name) for row in rows if row.means["personal"].get("dice") is not None
    ]
    if len(scored) < 2:
        return []
    (low, worst), (high, best) = min(scored), max(scored)
    return [f"Best site with its personal model: {best} ({number(high)}); worst: {worst} ({number(low)})."]


def personal(rows: list[SiteRow]) -> list[str]:
    """Where the personal model is better than the global one."""
    if all(row.helped.startswith("one model") for row in rows):
        return ["This method has one model a site: global and personal branch are the same."]
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row.helped, []).append(row.name)
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
    return [f"Personal against global model, Dice, by site: {told}."]


def doubts(material: Material, rows: list[SiteRow]) -> list[str]:
    """What a reader should not conclude from this run."""
    results = material.results
    untested = sorted(set(took_part(results)) - {row.name for row in rows})
    few = [f"{row.name} ({row.cases})" for row in rows if row.cases < FEW_CASES]
    no_cases = [row.name for row in rows if row.name not in material.cases]
    by_image = [row.name for row in rows if row.name in material.cases and row.patients is None]
    refused = sum(len(entry.get("rejected") or {}) for entry in results["rounds"])
    many = f"{', '.join(few)}: their means may move a lot with other cases."
    narrow = f"Intervals of {', '.join(by_image)} draw images, as the file does not say whose they are:"
    hidden = f"No interval for {', '.join(no_cases)}: a site's case scores never leave it."
    count, drawn, shares = len(results["rounds"]), results.get("synthetic"), results["method"] != "local"
    mixed = [row.name for row in rows if row.means["personal"].get("unit") == MIXED]
    old = any("hd95" in row.means["personal"] and "detected" not in row.means["personal"] for row in rows)
    found: list[tuple[str, Any]] = [
        ("The images are synthetic: the numbers say that the program works, nothing about patients.", drawn),
        (f"Fewer than {FEW_CASES} scored test cases at {many}", few),
        ("One seed: how far another start of the training would lie from this is not known.", True),
        (f"Only {count} round{'s' * (count != 1)}: the training may not have converged.", count < FEW_ROUNDS),
        ("This run does not train each site alone. To compare, run the same job with --set method=local.", shares),
        (f"{hidden} The site's own report has it.", no_cases),
        (f"{narrow} too narrow where a patient has several.", by_image),
        (replanned(results), replanned(results)),
        (f"The final test lacks {', '.join(untested)}.", untested),
        (f"{refused} update(s) were refused or did not come: see below.", refused),
        ("In HD95 and ASSD of this older run a case where nothing was found counts as the image's diagonal.", old),
        (f"Test cases of {', '.join(mixed)} are in millimetres and in pixels: see by_unit in results.json.", mixed),
    ]
    return [text for text, holds in found if holds]


def joined(names: list[str]) -> str:
    """Names in words."""
    sites = f"{len(names)} site{'s' * (len(names) != 1)}"
    return f"{sites} ({', '.join(names)})" if names else "No site"


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def shown(rows: list[SiteRow]) -> list[str]:
    """The metrics of which a row has a value; Dice always. Runs of older versions lack some."""
    known = {metric for row in rows for of in row.means.values() for metric in METRICS if of.get(metric) is not None}
    return [metric for metric in METRICS if metric in {"dice", *known}]


def duration(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def megabytes(size: float | None) -> str:
    """A size for people."""
    return "-" if size is None else f"{size / 1e6:.2f} MB"
