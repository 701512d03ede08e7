"""The pictures of what sweep.py ran: benchmarks/figures.py OUT FOLDER; per task a dumbbell plot and the curves."""

import argparse
import statistics as st
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from suites import Row
from sweep import data_of, rows
from tables import by_site, read_homes, runs

from pfedsam.errors import UserFault

MARKS = {"local": ("local only", "#999999"), "global": ("global", "#0072B2"), "personal": ("personal", "#D55E00")}
DASHES = ("-", "--", ":")


def main() -> None:
    """Two files a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["brain_mri", "nuclei", "polyp"])
    options = parser.parse_args()
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
    homes = read_homes(data_of(task))
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


if __name__ == "__main__":
    main()
