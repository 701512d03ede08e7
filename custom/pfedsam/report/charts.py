"""Charts as inline SVG: for screen and print, light and dark, and eyes that see few colours."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

from pfedsam.record.results import ROLES, sites_of
from pfedsam.report.words import SiteRow

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#010203"  # stands for the page's own text colour, light or dark
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe-Ito, without yellow on white
MARKERS = "osD^vPX*"
STYLES = {"global": "--", "personal": "-"}
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "pfedsam",
}


def dice_chart(rounds: list[dict[str, Any]]) -> str:
    """Validation Dice of both branches by round, a colour and marker a site."""

    def draw(axes: Any) -> None:
        for i, site in enumerate(sites_of(rounds)):
            for role, style in STYLES.items():
                points = [(e["round"] + 1, _dice(e, site, role)) for e in rounds if site in e["sites"]]
                axes.plot(*zip(*points, strict=True), style, **_look(i), label=f"{site}, {role}")
        axes.set(xlabel="round", ylabel="Dice, validation split", ylim=(0, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _svg("dice", draw)


def loss_chart(rounds: list[dict[str, Any]]) -> str:
    """Sum of the training losses by round, a colour and marker a site."""

    def draw(axes: Any) -> None:
        for i, site in enumerate(sites_of(rounds)):
            points = [(e["round"] + 1, sum(e["sites"][site]["losses"].values())) for e in rounds if site in e["sites"]]
            axes.plot(*zip(*points, strict=True), "-", **_look(i), label=site)
        axes.set(xlabel="round", ylabel="training loss, all branches")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _svg("loss", draw)


def final_chart(rows: list[SiteRow]) -> str:
    """Dice on the test split by site: before, global, personal; with intervals where there are some."""

    def draw(axes: Any) -> None:
        for i, role in enumerate(ROLES):
            points = [
                (n, row.means[role]["dice"]) for n, row in enumerate(rows) if row.means[role].get("dice") is not None
            ]
            if points:
                x = [n + 0.18 * (i - 1) for n, _ in points]
                axes.plot(x, [y for _, y in points], linestyle="", **_look(i), label=role)
            for n, row in enumerate(rows):
                if span := row.spans.get(role, {}).get("dice"):
                    axes.plot([n + 0.18 * (i - 1)] * 2, span, "-", color=COLOURS[i])
        axes.set(ylabel="Dice, test split", ylim=(0, 1), xlim=(-0.6, len(rows) - 0.4))
        axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=30 * (len(rows) > 5))

    return _svg("final", draw)


def _svg(key: str, draw: Callable[[Any], None]) -> str:
    """An <svg> element whose ids are its own on a page of several."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        draw(axes)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, handlelength=3.5, loc="center left", bbox_to_anchor=(1, 0.5))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg).replace("url(#", f"url(#{key}-")
    return svg.replace(INK, "currentColor")


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}


def _dice(entry: dict[str, Any], site: str, role: str) -> float:
    value = (entry["sites"][site]["val"].get(role) or {}).get("dice")
    return float("nan") if value is None else float(value)
