"""The tables of what sweep.py ran: benchmarks/tables.py OUT --suite NAME; from results.json and each site's cases.json.

A row's score at a site is the mean over the site's test cases, then over seeds; "mean" is over sites. In brackets: a
site's test patients. The difference to the first row, or to the one named there, is paired by test case; its interval
is over the patients (groups) of a site, and the seeds where there are several. Runs of one table should be of one
code and machine: where they are not, a line says which is of which, by what stands in results.json.
"""

import argparse
import os
import statistics as st
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

from suites import NAMES, Row, rows_of
from sweep import Run, data_of, joined, record_of, sizes

from pfedsam import methods
from pfedsam.data.records import raw_rows
from pfedsam.errors import UserFault
from pfedsam.record.cases import ROLES, Cases, Classes, Scores, gathered, less, read_cases
from pfedsam.record.measures import DISTANCES, HIGHER_IS_BETTER, METRICS, MIXED, TITLES
from pfedsam.record.scores import DIGITS
from pfedsam.report.uncertainty import chance, holm, interval, mean_of
from pfedsam.settings import chosen_method

T = TypeVar("T")
REST = [metric for metric in METRICS if metric != "dice"]
MEASURES = ("mean Dice", "worst", *(TITLES[metric] for metric in REST), "MB up / down", "s a round", "less first row")
BUDGETS = (3, 30, 100, 300)  # MB
ROUNDED = 10**-DIGITS  # a site tells the server its scores with fewer digits than it keeps
ON_THE_WAY = "On the way through each run's schedule: a run made for a budget would have ended its schedule within it."


@dataclass(frozen=True)
class Home:
    """Where a test case is at home: its site, and the patient or image it belongs to."""

    site: str
    group: str


@dataclass(frozen=True)
class Found:
    """One finished run.

    Attributes:
        scores: by role; classes whose reference is empty in a case are left out there.
        megabytes: a site sends and receives in a round, in MB.
        seconds: of a round, median.
        validation: after each round, of the model that sites would go on with (`validation`).
        waits: for the mean of a round, which it predicts with: that comes with the next round's download.
        last: by site, of the model that the final test tested.
        last_global: the same of the global branch.
        ran: what ran where: the code's digest, torch's version, the device.
        pooled: one site held all data.
        units: of the sites' distances; nothing of those whose files do not say.
    """

    scores: dict[str, Scores]
    megabytes: tuple[float, float]
    seconds: float
    validation: list[float]
    waits: bool
    last: dict[str, float]
    ran: tuple[str, str, str] = ("", "", "")
    pooled: bool = False
    units: frozenset[str] = frozenset()
    last_global: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Print a table a task."""
    try:
        tables(arguments())
    except UserFault as fault:
        sys.exit(f"{fault}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--suite", choices=NAMES, required=True)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei", "polyp"])
    parser.add_argument("--rounds", type=int, help="that the runs have; another number than the task's job")
    return parser.parse_args()


def tables(options: argparse.Namespace) -> None:
    """The table of each task of which something ran.

    Raises:
        UserFault: a run has other settings, or another number of rounds, than its row.
    """
    for task in options.tasks:
        homes = read_homes(task)
        rows = rows_of(options.suite, task, sizes(task))
        found = {row: runs(options.out, task, row, options.rounds) for row in rows}
        if present := {row: of_seed for row, of_seed in found.items() if of_seed}:
            tested, ends = table(present | rival(present, homes), homes), [ON_THE_WAY, *codes(present)]
            views = [[caption(present, homes)], tested, budgets(present), ends]
            print(f"\n### {task}\n\n" + "\n\n".join("\n".join(lines) for lines in views))


def read_homes(task: str) -> dict[str, Home]:
    """Every test case's home, by its image, from the task's manifest. Sites that the job joins are one home."""
    data = data_of(task)
    rows = [row for row in raw_rows(data / "manifest.csv") if row["split"] == "test"]
    site = {part: site for site, parts in joined(task).items() for part in parts}
    homes = [Home(site.get(row["site"], row["site"]), row["group"]) for row in rows]
    return {os.path.relpath(data / row["image"], data): home for row, home in zip(rows, homes, strict=True)}


def runs(out: Path, task: str, row: Row, rounds: int | None = None) -> dict[int, Found]:
    """A row's finished runs by seed; raises as `record_of`."""
    seeds = sorted(int(path.parent.name) for path in (out / task / row.name).glob("*/results.json"))
    every = [Run(task, row, seed) for seed in seeds]
    return {run.seed: read(run.folder(out), record_of(run, out, rounds)) for run in every}


def read(folder: Path, record: dict[str, Any]) -> Found:
    """One run's numbers: its results.json is `record`, the sites' case scores lie below `folder`.

    Raises:
        UserFault: a site's cases are missing, damaged or of another run.
    """
    scores: dict[str, Scores] = {role: {} for role in ROLES}
    units = set()
    for site, tested in sorted(record["final"]["sites"].items()):  # an order, so that draws come again
        cases = read_cases(folder / site / "cases.json")
        units |= {cases.unit} - {""}
        for role in ROLES:
            demand_own(cases, role, tested[role]["dice"], folder / site)
            scores[role] |= cases.scores[role]
    reports = [site for entry in record["rounds"] for site in entry["sites"].values()]
    pooled = record["config"]["data"]["pool"]
    sent = 0.0 if pooled else 1e-6  # pooled data's one site would send to nobody
    up, down = (sent * st.mean(report[key] for report in reports) for key in ("bytes_sent", "bytes_received"))
    seconds = st.median(entry["seconds"] for entry in record["rounds"])
    known = record.get("versions", {})
    ran = (known.get("code", "unknown"), f"torch {known.get('torch', 'unknown')}", record.get("device", ""))
    sites, waits = record["final"]["sites"], one_branch(record)
    last, last_global = of_sites(sites, "personal"), of_sites(sites, "global")
    dice = validation(record)
    return Found(scores, (up, down), seconds, dice, waits, last, ran, pooled, frozenset(units), last_global)


def demand_own(cases: Cases, role: str, dice: float | None, folder: Path) -> None:
    """Hold a site's case scores against what it told the server of the same test.

    Raises:
        UserFault: they are not of one test.
    """
    found = mean_of({"": cases.of_patients(role, "dice")}) if cases.scores[role] else None
    if (found is None) != (dice is None) or abs((found or 0.0) - (dice or 0.0)) > ROUNDED:
        came = f"{role} Dice {found} in cases.json, {dice} in results.json"
        raise UserFault(expected=f"cases of one run in {folder}", came=came, do="remove the run's folder, run it anew")


def one_branch(record: dict[str, Any]) -> bool:
    """Whether the run's method predicts everywhere with one branch."""
    method = methods.get(chosen_method(record["config"])[0])
    return method.personal == method.global_


def validation(record: dict[str, Any]) -> list[float]:
    """After each round, mean over sites of the Dice of the model that predicts at home, validation split.

    A method with one branch predicts with the mean of that round, which sites score as they get it in the next; one
    with a personal branch of its own with that, as it was trained. After the last round: what the final test tested.
    A site that took no part in a round counts with what it had last. Pooled training has one site: its mean is over all
    cases, whichever hospital's, and `budgets` says so.
    """
    rounds = record["rounds"]
    kept, role = (rounds[1:], "global") if one_branch(record) else (rounds[:-1], "personal")
    known: dict[str, float] = {}
    past = [_mean((known := known | of_sites(entry["sites"], role)).values()) for entry in kept]
    return [*past, _mean(of_sites(record["final"]["sites"], "personal").values())]


def _mean(values: Iterable[float]) -> float:
    """Not a number where no site could be scored."""
    known = list(values)
    return st.mean(known) if known else float("nan")


def rival(found: dict[Row, dict[int, Found]], homes: dict[str, Home]) -> dict[Row, dict[int, Found]]:
    """The row of what pFedSAM has to beat: of FedAvg and local training, at each site what validates higher there.

    Of their runs alone, nothing else is trained; {} where one of the two did not run.
    """
    named = {row.name: of_seed for row, of_seed in found.items()}
    fedavg, local = named.get("fedavg", {}), named.get("local", {})
    both = {seed: better(fedavg[seed], local[seed], homes) for seed in sorted(fedavg.keys() & local.keys())}
    return {Row("better", "FedAvg/local by validation"): both} if both else {}


def better(one: Found, other: Found, homes: dict[str, Home]) -> Found:
    """At each site the scores of that run which validates higher there; what ran is of both, all else of `one`."""
    validates = one.last.keys() | other.last.keys()
    take = {site: max((one, other), key=lambda run: run.last.get(site, -1.0)) for site in validates}
    runs = {key: take.get(homes[key[0]].site, one) for key in one.scores["personal"]}
    scores = {role: {key: run.scores[role][key] for key, run in runs.items()} for role in ROLES}
    last = {site: run.last[site] for site, run in take.items()}
    code, torch, device = (
        ", ".join(dict.fromkeys(filter(None, both))) for both in zip(one.ran, other.ran, strict=True)
    )
    validation = [_mean(last.values())]
    return replace(one, scores=scores, validation=validation, last=last, ran=(code, torch, device))


def of_sites(sites: dict[str, Any], role: str) -> dict[str, float]:
    """A role's validation Dice by site; without the sites where nothing could be scored."""
    dice = {name: site["val"][role]["dice"] for name, site in sites.items()}
    return {name: float(value) for name, value in dice.items() if value is not None}


def table(found: dict[Row, dict[int, Found]], homes: dict[str, Home]) -> list[str]:
    """The lines of one task's table: two a row where its branches differ."""
    patients = Counter(home.site for home in set(homes.values()))
    sites = sorted(patients)
    head = ["", "branch", "seeds", *(f"{site} ({patients[site]})" for site in sites), *MEASURES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, of_seed in found.items():
        one = next(iter(of_seed.values()))
        for role in branches(of_seed):
            means = [by_site(run, role, homes) for run in of_seed.values()]
            size = f"{one.megabytes[0]:.2f} / {one.megabytes[1]:.2f}"
            less = compared(row, role, found, homes)
            row_cells = [
                row.label,
                branch_of(of_seed, role),
                str(len(means)),
                *cells(means, sites),
                size,
                f"{one.seconds:.0f}",
                less,
            ]
            lines.append("| " + " | ".join(row_cells) + " |")
    return lines


def branches(runs: dict[int, Found]) -> tuple[str, ...]:
    """The branches that a row predicts with; of a method with one, "personal"."""
    one = next(iter(runs.values()))
    return ROLES if one.scores["global"] != one.scores["personal"] else ("personal",)


def branch_of(runs: dict[int, Found], role: str) -> str:
    """A branch's name in a table: "one" where the method has no other."""
    return role if len(branches(runs)) > 1 else "one"


def caption(found: dict[Row, dict[int, Found]], homes: dict[str, Home]) -> str:
    """What stands above a task's tables: the test patients of each site, and the distances' unit."""
    patients = Counter(home.site for home in set(homes.values()))
    told = ", ".join(f"{site} {count}" for site, count in sorted(patients.items()))
    units = sorted({unit for of_seed in found.values() for run in of_seed.values() for unit in run.units})
    distances = f" HD95 and ASSD in {' or '.join(units)}." if units else ""
    return f"Test patients: {told}.{distances}"


def compared(row: Row, role: str, found: dict[Row, dict[int, Found]], homes: dict[str, Home]) -> str:
    """The difference in Dice to the first row, or to the one that the row wants beside it, then named; else empty."""
    wanted = next(iter(found)).name if row.beside is None else row.beside
    other = next((other for other in found if other.name == wanted), row)
    less = "" if other == row else difference(found[row], found[other], role, homes)
    return f"{less}, {other.label}" if less and row.beside else less


def budgets(found: dict[Row, dict[int, Found]]) -> list[str]:
    """A second view: validation Dice after the last round that a budget of bytes allows a site, both directions."""
    lines = ["| validation Dice within | " + " | ".join(f"{size} MB" for size in BUDGETS) + " | all rounds |"]
    sizes = (*BUDGETS, float("inf"))
    lines.append("|---" * (len(sizes) + 1) + "|")
    for row, of_seed in ((row, runs) for row, runs in found.items() if not row.tests):  # that has another's rounds
        cells = [spread([d for run in of_seed.values() if (d := within(run, size)) is not None]) for size in sizes]
        pooled = all(run.pooled for run in of_seed.values())
        lines.append(f"| {row.label}{' (mean over cases)' if pooled else ''} | " + " | ".join(cells) + " |")
    return lines


def codes(found: dict[Row, dict[int, Found]]) -> list[str]:
    """A line that says what ran with which code, torch and device, if not all with the same."""
    ways: dict[tuple[str, ...], dict[Row, list[str]]] = {}
    for row, of_seed in found.items():
        for seed, run in of_seed.items():
            ways.setdefault(run.ran, {}).setdefault(row, []).append(str(seed))
    differ = [len(set(told)) > 1 for told in zip(*ways, strict=True)]
    told = []
    for ran, of in ways.items():
        labels = [r.label + (f" (seed {', '.join(s)})" if len(s) < len(found[r]) else "") for r, s in of.items()]
        told.append(", ".join([" ".join(filter(None, compress(ran, differ))), *labels]))
    return ["Code: " + "; ".join(told) + "."] if any(differ) else []


def within(run: Found, budget: float) -> float | None:
    """Of one run; None if the budget does not pay for a round, and for the download that brings its model."""
    size, rounds = sum(run.megabytes), len(run.validation)
    cost = [size * done + run.megabytes[1] * (run.waits or done == rounds) for done in range(1, rounds + 1)]
    paid = [dice for dice, megabytes in zip(run.validation, cost, strict=True) if megabytes <= budget]
    return paid[-1] if paid else None


def by_site(run: Found, role: str, homes: dict[str, Home]) -> dict[str, dict[str, float]]:
    """Mean metrics of each hospital's test cases, whichever simulated site held them."""
    rows = run.scores[role].items()
    found = {m: by_home({key: row[m] for key, row in rows if m in row}, homes) for m in METRICS}
    known = [m for m in METRICS if not (m in DISTANCES and (len(run.units) > 1 or MIXED in run.units))]
    return {site: {m: mean_of({site: found[m][site]}) for m in known if site in found[m]} for site in found["dice"]}


def by_home(values: dict[tuple[str, int], float], homes: dict[str, Home]) -> dict[str, Classes]:
    """Values of case and class, by hospital, class and patient."""
    of_site: dict[str, dict[tuple[str, int], float]] = {}
    for (case, cls), value in values.items():
        of_site.setdefault(homes[case].site, {})[case, cls] = value
    groups = {case: home.group for case, home in homes.items()}
    return {site: gathered(found, groups) for site, found in of_site.items()}


def cells(runs: list[dict[str, dict[str, float]]], sites: list[str]) -> list[str]:
    """Dice per site, mean Dice, worst site's Dice, then the other metrics' means; of the sites that took part."""
    dice = [spread([run[s]["dice"] for run in runs if s in run]) for s in sites]
    mean = spread([st.mean(found["dice"] for found in run.values()) for run in runs])
    worst = min(sites, key=lambda site: st.fmean([run[site]["dice"] for run in runs if site in run] or [1.0]))
    low = spread([run[worst]["dice"] for run in runs if worst in run])
    return [*dice, mean, low, *(rest(runs, metric) for metric in REST)]


def rest(runs: list[dict[str, dict[str, float]]], metric: str) -> str:
    """A metric's mean over the sites that have it; empty where none has, as distances of several units."""
    means = [st.mean(values) for run in runs if (values := [of[metric] for of in run.values() if metric in of])]
    return spread(means, 3 if HIGHER_IS_BETTER[metric] else 1)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and standard deviation where there is more than one value; empty if there is none."""
    if not values:
        return ""
    tail = f" ± {st.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{st.mean(values):.{digits}f}{tail}"


def difference(these: dict[int, Found], those: dict[int, Found], role: str, homes: dict[str, Home]) -> str:
    """Mean over sites of the paired difference in Dice, with its 95 % interval; over the seeds that both have.

    If `these` have more seeds, it says how many both have. Paired by case and class: a class that one row's site does
    not annotate is left out.
    """
    gaps = differences(these, those, role, homes)
    return in_words(gaps) + (f" ({counted(len(gaps))})" if 0 < len(gaps) < len(these) else "")


def counted(seeds: int) -> str:
    """A number of seeds in words."""
    return f"{seeds} seed{'s' * (seeds > 1)}"


def in_words(runs: list[dict[str, Classes]]) -> str:
    """The mean of paired differences, with its 95 % interval. Empty if there are none."""
    if not runs:
        return ""
    low, high = interval(runs)
    return f"{st.mean(map(mean_of, runs)):+.3f} ({low:+.3f} to {high:+.3f})"


def with_chances(gaps: dict[T, list[dict[str, Classes]]]) -> dict[T, str]:
    """Each row's paired differences in words, with its p value as `corrected` has it."""
    return {row: f"{in_words(gaps[row])}, {in_words_p(p)}" for row, p in corrected(gaps).items()}


def in_words_p(p: float) -> str:
    """A p value with three digits."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def corrected(gaps: dict[T, list[dict[str, Classes]]]) -> dict[T, float]:
    """The p value of each row's paired differences, corrected by Holm for all of them."""
    return dict(zip(gaps, holm([chance(gap) for gap in gaps.values()]), strict=True))


def differences(
    these: dict[int, Found], those: dict[int, Found], role: str, homes: dict[str, Home]
) -> list[dict[str, Classes]]:
    """The paired differences in Dice by site, class and patient, of each seed that both have.

    Of sites that both scored in all of these.
    """
    pairs = [(these[seed].scores[role], those[seed].scores[role]) for seed in sorted(these.keys() & those.keys())]
    found = [gaps for one, other in pairs if (gaps := by_home(less(one, other, "dice"), homes))]
    everywhere = [site for site in found[0] if all(site in gaps for gaps in found)] if found else []
    return [{site: gaps[site] for site in everywhere} for gaps in found]


if __name__ == "__main__":
    main()
