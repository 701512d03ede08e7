"""Charts of a run as inline SVG."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pfedsam.record.results import ROLES, sites_of
from pfedsam.report.look import COLOURS, ROLE_LINES, chart, series
from pfedsam.report.words import SiteRow

Entry = dict[str, Any]  # of one round in results.json
Line = tuple[str, str, Callable[[Entry], float]]  # text after a site's name in the legend, style, value of a report


def dice_chart(rounds: list[Entry]) -> str:
    """Validation Dice of both branches by round, with one colour and marker per site."""
    lines: list[Line] = [(f", {role}", style, partial(_dice, role)) for role, style in ROLE_LINES.items()]
    return _by_round("dice", rounds, lines, ylabel="Dice, validation split", ylim=(0, 1))


def loss_chart(rounds: list[Entry]) -> str:
    """Sum of the training losses by round, with one colour and marker per site."""
    lines: list[Line] = [("", "-", lambda of: sum(of["losses"].values()))]
    return _by_round("loss", rounds, lines, ylabel="training loss, all branches")


def final_chart(rows: list[SiteRow]) -> str:
    """Dice on the test split by site: before, global, personal, with intervals if known."""

    def draw(axes: Any) -> None:
        for i, role in enumerate(ROLES):
            points = {n + 0.18 * (i - 1): row for n, row in enumerate(rows) if row.means[role].get("dice") is not None}
            if points:
                dice = [row.means[role]["dice"] for row in points.values()]
                axes.plot(list(points), dice, linestyle="", **series(i), label=role)
            for x, row in points.items():
                if span := row.spans.get(role, {}).get("dice"):
                    axes.plot([x, x], span, "-", color=COLOURS[i])
        axes.set(ylabel="Dice, test split", ylim=(0, 1), xlim=(-0.6, len(rows) - 0.4))
        axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=30 * (len(rows) > 5))

    return chart("final", draw)


def _by_round(key: str, rounds: list[Entry], lines: list[Line], **axis: Any) -> str:
    """A chart of each site's lines over its rounds."""

    def draw(axes: Any) -> None:
        for i, site in enumerate(sites_of(rounds)):
            for label, style, value in lines:
                points = [(e["round"] + 1, value(e["sites"][site])) for e in rounds if site in e["sites"]]
                axes.plot(*zip(*points, strict=True), style, **series(i), label=site + label)
        axes.set(xlabel="round", **axis)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return chart(key, draw)


def _dice(role: str, report: Entry) -> float:
    value = (report["val"].get(role) or {}).get("dice")
    return float("nan") if value is None else float(value)
