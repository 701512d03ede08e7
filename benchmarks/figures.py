"""The pictures of what sweep.py ran: benchmarks/figures.py OUT FOLDER; per task a dumbbell plot and the curves.

benchmarks/figures.py --kept FOLDER     Dice beside megabytes, of the runs in evidence/
"""

import argparse
import statistics as st
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from boards import dice_interval, mean_dice, patients
from kept import Kept, earlier
from suites import Row
from sweep import rows
from tables import branches, by_site, read_homes, runs

from pfedsam.errors import UserFault

MARKS = {"local": ("local only", "#999999"), "global": ("global", "#0072B2"), "personal": ("personal", "#D55E00")}
DASHES = ("-", "--", ":")
DOTS = {  # by row: its name, a colour that the colour-blind tell apart, its mark or line, and how far beside its size
    "pfedsam": ("pFedSAM", "#D55E00", "o", 0.72),
    "lean": ("pFedSAM, lean decoder", "#D55E00", "P", 1.12),
    "fedavg": ("FedAvg", "#0072B2", "s", 0.86),
    "ditto": ("Ditto", "#009E73", "^", 1.04),
    "fedmsa": ("FedMSA", "#CC79A7", "v", 1.18),
    "fedms_sam": ("FedSAM (FedFMS)", "#56B4E9", "X", 1.0),
    "fedper": ("FedPer", "#E69F00", "D", 0.94),
    "local": ("local only, sends nothing", "#555555", ":", 1.0),
    "pooled": ("pooled, sends nothing", "#000000", "--", 1.0),
}


def main() -> None:
    """Two files a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kept", action="store_true", help="of the runs in evidence/; then without OUT")
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei", "polyp"])
    options = parser.parse_args()
    if options.kept:
        return dice_by_megabytes(options.folder / "dice_by_megabytes.png")
    if options.out is None:
        parser.error("OUT is missing")
    try:
        figures(options.tasks, options.out, options.folder)
    except UserFault as fault:
        sys.exit(f"{fault}")


def figures(tasks: list[str], out: Path, folder: Path) -> None:
    """Those of each task of which something ran.

    Raises:
        UserFault: a task's data are not at hand, or a run has other settings than its row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        if (out / task).is_dir():
            methods = rows(["methods"], task)
            dumbbells(task, methods, out, folder / f"{task}_sites.png")
            curves(task, methods, out, folder / f"{task}_curves.png")


def dumbbells(task: str, methods: list[Row], out: Path, path: Path) -> None:
    """Per site: local training, then pFedSAM's two branches; large: mean over seeds, small: each seed."""
    homes = read_homes(task)
    named = {row.name: runs(out, task, row).values() for row in methods if row.name in ("local", "pfedsam")}
    local = [by_site(run, "personal", homes) for run in named["local"]]
    both = {role: [by_site(run, role, homes) for run in named["pfedsam"]] for role in ("global", "personal")}
    found = {"local": local, **both}
    if not any(found.values()):
        return
    sites = sorted({home.site for home in homes.values()})
    figure, axes = plt.subplots(figsize=(7, 0.6 * len(sites) + 1.5), layout="constrained")
    for line, site in enumerate(sites):
        dice = {name: [run[site]["dice"] for run in of_runs] for name, of_runs in found.items() if of_runs}
        means = [st.mean(values) for values in dice.values()]
        axes.plot([min(means), max(means)], [line, line], color="#cccccc", zorder=1)
        for name, values in dice.items():
            label, color = MARKS[name]
            axes.scatter(values, [line] * len(values), s=8, color=color, alpha=0.5, zorder=2)
            axes.scatter(st.mean(values), line, color=color, label=label if line == 0 else None, zorder=3)
    axes.set(yticks=range(len(sites)), yticklabels=sites, xlabel="Dice, test split", title=task)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(MARKS))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(task: str, methods: list[Row], out: Path, path: Path) -> None:
    """Validation Dice by round of what each method predicts with, mean over sites and seeds.

    The start may be cut, and what stays far below all others.
    """
    lines = {row: means for row in methods if (means := by_round(row, task, out))}
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (row, means) in enumerate(lines.items()):
        style = DASHES[number // 10 % len(DASHES)]  # matplotlib has ten colours
        width = 2.5 if row.name == "pfedsam" else 1
        axes.plot(range(1, len(means) + 1), means, label=row.label, linewidth=width, linestyle=style)
    late = sorted(dice for means in lines.values() for dice in means[len(means) // 3 :])
    bottom, top = late[len(late) // 10] - 0.05, late[-1] + 0.02
    axes.set(xlabel="round", ylabel="Dice, validation split", title=task, ylim=(bottom, top))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_round(row: Row, task: str, out: Path) -> list[float]:
    """A row's validation Dice after each round that all its runs have."""
    found = [run.validation for run in runs(out, task, row).values()]
    return [st.mean(of_runs) for of_runs in zip(*found, strict=False)]


def dice_by_megabytes(path: Path, tasks: Sequence[str] = ("brain_mri", "nuclei")) -> None:
    """Test Dice with its interval beside the megabytes of a message, a field a task; what sends nothing as lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, fields = plt.subplots(1, len(tasks), figsize=(12, 6), layout="constrained")
    for axes, task in zip(fields, tasks, strict=True):
        dots(axes, earlier(task))
    named = {label: line for axes in fields for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=5, fontsize=12, frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def dots(axes: Any, task: Kept) -> None:
    """A task's field. Points of one size are drawn apart, each beside its size."""
    names = [name for name in DOTS if name in task.runs]
    for name in names:
        label, color, mark, beside = DOTS[name]
        runs = task.runs[name]
        role = branches(runs)[-1]
        dice, (low, high) = mean_dice(task, runs, role), dice_interval(task, runs, role)
        sent = next(iter(runs.values())).megabytes[0]
        if not sent:
            axes.axhline(dice, color=color, linestyle=mark, linewidth=2, label=label)
            continue
        reach = [[dice - low], [high - dice]]
        axes.errorbar(sent * beside, dice, reach, fmt=mark, color=color, markersize=9, capsize=4, label=label)
    seeds = len(task.seeds())
    axes.set_title(f"{task.task}: {patients(task)} test patients, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=14)
    axes.set_xlabel("MB a message (log scale)", fontsize=13)
    axes.set_ylabel("Dice on the test split, 95 % interval", fontsize=13)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 15, 40], ["0.5", "1", "2", "5", "15", "40"])
    axes.minorticks_off()
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
