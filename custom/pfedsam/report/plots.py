"""Pictures of a run: curves per round, and masks over images."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from pfedsam.record.results import sites_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRUTH, FOUND = "#0072B2", "#D55E00"  # Okabe-Ito: distinct for colour-blind eyes
LINES = ("solid", "dashed", "dotted", "dashdot")  # of the classes, by their number
STYLES = {"global": "--", "personal": "-"}


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Validation Dice of both branches and the training loss, per site and round."""
    figure, (dice, loss) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    sites = sites_of(results["rounds"])
    for i, site in enumerate(sites):
        rounds = [(r["round"] + 1, r["sites"][site]) for r in results["rounds"] if site in r["sites"]]
        x = [number for number, _ in rounds]
        for role, style in STYLES.items():
            values = [_number(row["val"][role]["dice"]) for _, row in rounds]
            dice.plot(x, values, style, color=f"C{i}", label=f"{site}, {role}")
        loss.plot(x, [sum(row["losses"].values()) for _, row in rounds], color=f"C{i}", label=site)
    note = " (synthetic data)" if results["synthetic"] else ""
    dice.set(xlabel="round", ylabel="Dice, validation split", title=f"{results['method']}{note}", ylim=(0, 1))
    loss.set(xlabel="round", ylabel="training loss, all branches", title="loss")
    dice.legend(fontsize=7)
    loss.legend(fontsize=7)
    for axes in (dice, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_overlays(rows: list[dict[str, Any]], path: Path, title: str, classes: list[str]) -> None:
    """Images with the reference's outlines and the found ones, a column a case, a line style a class.

    Args:
        rows: per case `image` (H, W, 3) of 0..1, `truth` (classes, H, W) bool, `found` {role: (classes, H, W) bool},
            and `label`, the text above it.
        classes: their names, in order.
    """
    roles = list(rows[0]["found"])
    shape = (len(roles), len(rows))
    figure, grid = plt.subplots(
        *shape, figsize=(2.6 * shape[1], 2.8 * shape[0] + 0.5), squeeze=False, layout="constrained"
    )
    for column, row in enumerate(rows):
        for line, role in enumerate(roles):
            axes = grid[line][column]
            axes.imshow(row["image"])
            _outlines(axes, row["truth"], TRUTH)
            _outlines(axes, row["found"][role], FOUND)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(row["label"] if line == 0 else "", fontsize=8)
            axes.set_ylabel(role if column == 0 else "", fontsize=9)
    figure.suptitle(f"{title}: blue reference, orange found{_lines(classes)}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _outlines(axes: Any, masks: NDArray[np.bool_], colour: str) -> None:
    for mask, line in zip(masks, cycle(LINES)):
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=line)


def _lines(classes: list[str]) -> str:
    """Which line is which class; empty where there is one."""
    named = [f"{name} {line}" for name, line in zip(classes, cycle(LINES))]
    return f"; {', '.join(named)}" if len(classes) > 1 else ""
