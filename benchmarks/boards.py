"""The tables of the pages in results/, of kept runs: a task's leaderboard, a question's rows, the README's summary."""

import statistics as st
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kept import Fault, Kept, Runs, codes_of, commits, device_of, faults, kept, note_of
from machine import markdown
from suites import Row
from tables import (
    Found,
    branch_of,
    branches,
    by_home,
    by_site,
    caption,
    compared,
    corrected,
    counted,
    differences,
    in_words_p,
    spread,
)

from pfedsam.record.cases import Classes, less
from pfedsam.report.uncertainty import interval, mean_of

Gap = list[dict[str, Classes]]  # a paired difference of each seed, by site
RARE = 0.05  # a p value below it has a star
Named = dict[str, dict[int, Found]]  # a table's runs, by row's name and seed
BOARD = ("method", "branch", "Dice", "95 % interval", "worst site", "MB a message", "seeds")
UNKNOWN = "code not known"
NO_COMMIT = (
    "What ran is of no commit. How it differed from the commits around it is not known, so nobody can repeat it."
)
STAR = "`*`: the runs' JSON names no device. It is taken from the notes of that day in [history.md](history.md)."
MAIN = {  # the summary's rows: row, branch, and how it is called there
    ("pfedsam", "personal"): "pFedSAM, personal",
    ("pfedsam", "global"): "pFedSAM, global",
    ("lean", "personal"): "pFedSAM, lean",
    ("fedavg", "personal"): "FedAvg",
    ("fedper", "personal"): "FedPer",
    ("ditto", "personal"): "Ditto",
    ("fedmsa", "personal"): "FedMSA",
    ("fedms_sam", "personal"): "FedSAM (FedFMS)",
    ("local", "personal"): "local only",
    ("pooled", "personal"): "pooled",
}


def leaderboard(task: Kept) -> list[str]:
    """A task's methods, the best first, with code and status; below it what each status means."""
    found = task.suite(task.main)
    ranked = sorted(pairs(found), key=lambda pair: -mean_dice(task, found[pair[0]], pair[1]))
    device = devices(found)
    rows, met = [], dict[str, str]()
    for row, role in ranked:
        runs = list(found[row].values())
        gap = compared(row, role, found, task.homes)
        marks = statuses(task, row, runs)
        met |= marks
        status = ", ".join(marks) or "valid"
        rows.append([*cells(task, row, found[row], role), *device(row), gap, commits_of(runs), status])
    notes = [line for name, says in met.items() for line in ["", *wrapped(f"**{name.split(': ')[-1]}**: {says}")]]
    less = f"less {next(iter(found)).label}, paired"
    return [*markdown([*BOARD, *device(None), less, "commit", "status"], rows), *notes]


def pairs(found: Runs) -> list[tuple[Row, str]]:
    """Each row with each of its branches."""
    return [(row, role) for row, runs in found.items() for role in branches(runs)]


def statuses(task: Kept, row: Row, runs: list[Found]) -> dict[str, str]:
    """What speaks against a row's runs, with an explanation; {} where it is valid."""
    found = {f"{fault.status}: {fault.name}": fault.told() for fault in faults() if has(task, row, runs, fault)}
    return found | ({} if all(commits()[code] for code in codes_of(runs)) else {UNKNOWN: NO_COMMIT})


def devices(found: Runs) -> Callable[[Row | None], list[str]]:
    """Of a table's rows the cell that names the device, and of None its head; no cell where all ran on one."""
    told = {row: _device(runs) for row, runs in found.items()}
    mixed = len(set(told.values())) > 1
    return lambda row: [] if not mixed else ["device"] if row is None else [told[row]]


def _device(runs: dict[int, Found]) -> str:
    ways: dict[str, list[int]] = {}
    for seed, run in runs.items():
        ways.setdefault(short_device(run), []).append(seed)
    if len(ways) == 1:
        return next(iter(ways))
    return ", ".join(f"{way} (seed {', '.join(map(str, seeds))})" for way, seeds in ways.items())


def short_device(run: Found) -> str:
    """GPU or CPU, where the device is known; both of a row that is of two runs."""
    return ", ".join(sorted({"GPU" if one.startswith("NVIDIA") else one for one in device_of(run).split(", ")}))


def wrapped(text: str, indent: str = "") -> list[str]:
    """Text in lines of at most 118 characters."""
    return textwrap.wrap(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def has(task: Kept, row: Row, runs: list[Found], fault: Fault) -> bool:
    """Whether a row's runs have a fault."""
    config = task.configs.get(row.name, {})
    return fault.touches(task.task, config, codes_of(runs))


def board(task: Kept, found: Runs, against: str = "less the first row, paired") -> list[str]:
    """Rows of one question, in their order; the last column is the paired difference."""
    device = devices(found)
    rows = [
        [*cells(task, row, found[row], role), *device(row), compared(row, role, found, task.homes)]
        for row, role in pairs(found)
    ]
    return [*wrapped(caption(found, task.homes)), "", *markdown([*BOARD, *device(None), against], rows)]


def cells(task: Kept, row: Row, runs: dict[int, Found], role: str) -> list[str]:
    """A line's cells under `BOARD`."""
    one = next(iter(runs.values()))
    low, high = dice_interval(task, runs, role)
    site, worst = worst_of(task, runs, role)
    dice = means(sites_of(task, runs, role))
    range_ = f"{low:.3f} to {high:.3f}"
    return [
        row.label,
        branch_of(runs, role),
        spread(dice),
        range_,
        f"{worst:.3f}, {site}",
        megabytes(one),
        str(len(runs)),
    ]


def mean_dice(task: Kept, runs: dict[int, Found], role: str) -> float:
    """Over cases, then sites, then seeds."""
    return st.mean(means(sites_of(task, runs, role)))


def sites_of(task: Kept, runs: dict[int, Found], role: str) -> list[dict[str, dict[str, float]]]:
    """Each run's metrics by site."""
    return [by_site(run, role, task.homes) for run in runs.values()]


def means(runs: list[dict[str, dict[str, float]]]) -> list[float]:
    """Each run's mean Dice over its sites."""
    return [st.mean(of["dice"] for of in run.values()) for run in runs]


def dice_interval(task: Kept, runs: dict[int, Found], role: str) -> tuple[float, float]:
    """Of the mean Dice, over patients, and over seeds where there are several."""
    dice = [{key: row["dice"] for key, row in run.scores[role].items() if "dice" in row} for run in runs.values()]
    return interval([by_home(of, task.homes) for of in dice], within=(0, 1))


def worst_of(task: Kept, runs: dict[int, Found], role: str) -> tuple[str, float]:
    """The site with the lowest Dice in the mean over seeds, and that Dice."""
    found = sites_of(task, runs, role)
    dice = {site: st.mean(run[site]["dice"] for run in found) for site in found[0]}
    return min(dice.items(), key=lambda one: one[1])


def megabytes(run: Found) -> str:
    """What a site sends in a round; both ways where they differ."""
    up, down = (f"{size:.2f}" for size in run.megabytes)
    return "none" if not any(run.megabytes) else up if up == down else f"{up} up, {down} down"


def commits_of(runs: Iterable[Found]) -> str:
    """The commits that runs ran, oldest first."""
    return ", ".join(commits()[code] or f"none ({code})" for code in codes_of(runs))


def beside(task: Kept) -> list[str]:
    """Each row's Dice at its sites, and its difference to the first row, with p corrected by Holm for all rows.

    A single seed has no p: it would know of patients alone.
    """
    first, *others = (found := task.suite(task.main)).items()
    gaps = {row: differences(runs, first[1], "personal", task.homes) for row, runs in others}
    chances = corrected({row: gap for row, gap in gaps.items() if len(gap) > 1})
    told = {row: in_points(gap, chances[row]) if row in chances else points(gap) for row, gap in gaps.items()}
    rows = [
        [
            row.label if len(runs) == len(first[1]) else f"{row.label} ({counted(len(runs))})",
            short(task, runs, "personal")[0],
            f"{worst_of(task, runs, 'personal')[1]:.3f}",
            told.get(row, ""),
            megabytes(next(iter(runs.values()))),
        ]
        for row, runs in found.items()
    ]
    head = f"{task.task}: {patients(task)} test patients, {counted(len(task.seeds()))}"
    return markdown([head, "Dice", "worst site", "points less pFedSAM", "MB"], rows)


def together(tasks: Sequence[Kept], told: Callable[[Gap, float], str]) -> list[str]:
    """The trained rows that most of the tasks have with all seeds: by task, and the difference to the first.

    `told` puts a difference and its p value into words. It is of all sites of the tasks that have the row.
    """
    found = [(task, {row.name: runs for row, runs in task.suite(task.main).items()}) for task in tasks]
    labels = {row.name: row.label.split(":")[0] for task in tasks for row in task.suite(task.main) if not row.tests}
    first = next(iter(labels))
    of_row = {name: [one for one in found if complete(name, one[1], first)] for name in labels}
    shown = {name: of for name, of in of_row.items() if 2 * len(of) > len(tasks)}
    gaps = {name: apart(of, name, first) for name, of in shown.items() if name != first}
    differ = {name: told(gaps[name], p) for name, p in corrected(gaps).items()}
    rows = [
        [
            labels[name],
            *(both(task, table[name]) if complete(name, table, first) else "not run" for task, table in found),
            differ.get(name, ""),
            megabytes(next(iter(of[0][1][name].values()))),
        ]
        for name, of in shown.items()
    ]
    head = [f"{task.task} ({patients(task)})" for task in tasks]
    return markdown(["Dice, worst", *head, "points less pFedSAM", "MB"], rows)


def carried(task: Kept) -> list[str]:
    """Of the first row, by site: its Dice with what stays there, the same model's without it, and the gain in points.

    In reading R2 the branches are one model: the global one is the personal one without its private part.
    """
    runs = next(iter(task.suite(task.main).values()))
    gaps = [by_home(less(run.scores["personal"], run.scores["global"], "dice"), task.homes) for run in runs.values()]
    both = [sites_of(task, runs, role) for role in ("personal", "global")]
    tested = Counter(home.site for home in set(task.homes.values()))
    rows = [
        [
            f"{site} ({count})",
            *(spread([of[site]["dice"] for of in found]) for found in both),
            points([{site: gap[site]} for gap in gaps]),
        ]
        for site, count in sorted(tested.items())
    ]
    rows += [["all sites", *(spread(means(found)) for found in both), points(gaps)]]
    return markdown([f"{task.name} (test patients)", "with the private part", "without it", "points gained"], rows)


def between(tasks: Sequence[Kept]) -> list[str]:
    """Of each task's first row: the Dice if a rule chooses between a site's two branches.

    The first rule can be followed. The other two know the test's scores: no rule by site, or by image, gets above them.
    """
    head = ["task", "personal", "global", *CHOICES]
    rows = []
    for task in tasks:
        runs = next(iter(task.suite(task.main).values()))
        both = [sites_of(task, runs, role) for role in ("personal", "global")]
        ruled = [
            sites_of(task, {seed: by(task, run) for seed, run in runs.items()}, "personal") for by in CHOICES.values()
        ]
        rows.append([task.name, *(spread(means(found)) for found in both + ruled)])
    return markdown(head, rows)


def by_validation(task: Kept, run: Found) -> Found:
    """A run whose sites each predict with the branch that validates higher there; with equal ones, the personal."""
    return choosing(run, lambda key: run.last_global.get(site := task.homes[key[0]].site, 0) > run.last.get(site, 0))


def by_test(task: Kept, run: Found) -> Found:
    """The same, but each site knows which branch has the higher test Dice there."""
    ours, others = (by_site(run, role, task.homes) for role in ("personal", "global"))
    return choosing(run, lambda key: others[site := task.homes[key[0]].site]["dice"] > ours[site]["dice"])


def by_image(_task: Kept, run: Found) -> Found:
    """The same, but for each image and class."""
    return choosing(run, lambda key: run.scores["global"][key]["dice"] > run.scores["personal"][key]["dice"])


CHOICES = {
    "what validates higher at the site": by_validation,
    "what tests higher at the site": by_test,
    "what tests higher for the image": by_image,
}


def choosing(run: Found, takes_global: Callable[[tuple[str, int]], bool]) -> Found:
    """The run with the global branch's scores as the personal's, wherever the rule says so."""
    ours, others = run.scores["personal"], run.scores["global"]
    chosen = {key: others[key] if takes_global(key) else scores for key, scores in ours.items()}
    return replace(run, scores=run.scores | {"personal": chosen})


def points(gap: Gap) -> str:
    """A paired difference in points of Dice, with its interval."""
    low, high = interval(gap)
    return f"{100 * st.mean(map(mean_of, gap)):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def in_points(gap: Gap, p: float) -> str:
    """The same with its p value."""
    return f"{points(gap)}, {in_words_p(p)}"


def with_median(gap: Gap, p: float) -> str:
    """The same with the median over sites of their differences."""
    sites = [st.mean(mean_of({site: seed[site]}) for seed in gap) for site in gap[0]]
    return f"{in_points(gap, p)}; median site {100 * st.median(sites):+.1f}"


def starred(gap: Gap, p: float) -> str:
    """The same with a star if chance alone would hardly do that."""
    return points(gap) + " *" * (p < RARE)


def complete(name: str, table: Named, first: str) -> bool:
    """Whether a table has a row, with all seeds of the first one."""
    return name in table and table[name].keys() == table[first].keys()


def apart(tables: Sequence[tuple[Kept, Named]], name: str, first: str) -> Gap:
    """The paired differences between two rows, of each seed, at the sites of all tasks."""
    found = [differences(table[name], table[first], "personal", task.homes) for task, table in tables]
    return [
        {f"{task.task} {site}": of for (task, _), sites in zip(tables, seed, strict=True) for site, of in sites.items()}
        for seed in zip(*found, strict=True)
    ]


def both(task: Kept, runs: dict[int, Found]) -> str:
    """The mean Dice of a row's own branches, and that of the worst site."""
    return f"{mean_dice(task, runs, 'personal'):.3f}, {worst_of(task, runs, 'personal')[1]:.3f}"


def shown(task: Kept) -> Runs:
    """The runs that the summary shows of a task."""
    return task.suite(task.main) if task.main == "leading" else task.of(*(name for name, _ in MAIN))


def summary() -> list[str]:
    """The main methods on all tasks whose runs have earlier defaults, with the test patients in the head."""
    tasks = {name: task for name, task in kept().items() if task.past}
    head = [""]
    for name, task in tasks.items():
        head += [f"{name} ({patients(task)})", "worst"]
    rows = []
    for (name, role), label in MAIN.items():
        line, size = [label], "none"
        for task in tasks.values():
            runs = task.runs.get(name)
            line += short(task, runs, role) if runs else ["not run", ""]
            size = megabytes(next(iter(runs.values()))) if runs else size
        rows.append([*line, size])
    return markdown([*head, "MB"], rows)


def short(task: Kept, runs: dict[int, Found], role: str) -> list[str]:
    """Dice with its interval, and the worst site's."""
    low, high = dice_interval(task, runs, role)
    return [f"{mean_dice(task, runs, role):.3f} ({low:.2f} to {high:.2f})", f"{worst_of(task, runs, role)[1]:.2f}"]


def patients(task: Kept) -> int:
    """Test patients of all sites."""
    return len(set(task.homes.values()))


def of_sites(task: Kept) -> str:
    """Test patients (or images, where these are not known) of each site, in words."""
    found = Counter(home.site for home in set(task.homes.values()))
    return ", ".join(f"{site} {count}" for site, count in sorted(found.items()))


def ran_on(found: Runs) -> str:
    """Whether rows ran on a GPU, a CPU or both, in a sentence."""
    known = sorted({one for runs in found.values() for run in runs.values() for one in short_device(run).split(", ")})
    return f"Ran on a {' and a '.join(known)}."


def ran(task: Kept) -> list[str]:
    """Which code, torch and device ran what."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row, runs in task.suite(task.main).items():
        known = {seed: (*run.ran[:2], device_of(run) + "*" * (not run.ran[2])) for seed, run in runs.items()}
        ways = {way: [seed for seed, other in known.items() if other == way] for way in known.values()}
        for way, of in ways.items() if row.name in task.runs else ():
            some = f" (seed {', '.join(map(str, of))})" if len(of) < len(runs) else ""
            found.setdefault(way, []).append(row.label + some)
    order = list(commits())
    rows = [
        [
            ", ".join(commits()[part] or "none" for part in code.split(", ")),
            code,
            torch,
            device,
            "; ".join(labels),
            note_of(code),
        ]
        for (code, torch, device), labels in sorted(
            found.items(), key=lambda one: order.index(one[0][0].split(", ")[0])
        )
    ]
    stars = ["", *wrapped(STAR)] if any("*" in row[3] for row in rows) else []
    return [*markdown(["commit", "code", "torch", "device", "rows", "note"], rows), *stars]


def rates(task: Kept, names: list[str]) -> list[str]:
    """Rows at several rates: the validation Dice that chooses between them, and test Dice, of the first seed."""
    rows = []
    for row, runs in task.of(*names).items():
        seed, one = next(iter(runs.items()))
        lr = f"{task.configs[row.name]['train']['lr']:g}"
        label = row.label.split(",")[0]
        rows.append([label, lr, f"{one.validation[-1]:.3f}", f"{mean_dice(task, {seed: one}, 'personal'):.3f}"])
    return [f"**{task.task}, seed 0.**", "", *markdown(["method", "rate", "validation Dice", "test Dice"], rows)]


def seeds(task: Kept) -> str:
    """How many seeds its methods have, in a sentence."""
    count = len(task.seeds())
    return f"{count} seeds." if count > 1 else "One seed: intervals know nothing of other seeds."


def seeds_apart(task: Kept) -> list[str]:
    """Of each method with several seeds: each seed's mean Dice, and their standard deviation."""
    rows, squares = [], []
    found = task.suite(task.main)
    device = devices(found)
    for row, runs in found.items():
        for role in branches(runs):
            dice = [mean_dice(task, {seed: run}, role) for seed, run in runs.items()]
            deviation = st.stdev(dice)
            rows.append([row.label, branch_of(runs, role), *(f"{one:.3f}" for one in dice), f"{deviation:.3f}"])
            rows[-1] += device(row)
            squares += [deviation**2] * (row.name != "fedmsa_released")
    whole = st.mean(squares) ** 0.5
    head = ["method", "branch", *(f"seed {seed}" for seed in task.seeds()), "standard deviation", *device(None)]
    told = f"Root mean square of the last column, without FedMSA with random adapters: {whole:.3f}."
    return [f"**{task.name}.**", "", *markdown(head, rows), "", told]
