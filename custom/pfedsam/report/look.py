"""The report's colours, markers, lines and axes, for screen and print, light and dark, and colour-blind readers."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLAIN_TEXT = {"text.parse_math": False}  # a class or a site may have any name, so no $ begins a formula
INK = "#010203"  # a placeholder for the page's text colour, light or dark
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe-Ito, without yellow
TRUTH, FOUND = COLOURS[:2]  # outlines of the reference and of the model's masks
MARKERS = "osD^vPX*"
ROLE_LINES = {"global": "--", "personal": "-"}
CLASS_LINES = ("solid", "dashed", "dotted", "dashdot")  # by class number
STYLE = {
    **PLAIN_TEXT,
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


def series(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series in a chart."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}


def chart(key: str, draw: Callable[[Any], None]) -> str:
    """An <svg> element of what `draw` puts on the axes. Its ids are unique on a page with several charts."""
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


def panels(lines: int, columns: int, draw: Callable[[Any], None], title: str) -> bytes:
    """A PNG of what `draw` puts on a grid of axes without ticks."""
    data = io.BytesIO()
    size = (2.6 * columns, 2.8 * lines + 0.5)
    with matplotlib.rc_context(PLAIN_TEXT):
        figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
        draw(grid)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
        figure.suptitle(title, fontsize=10)
        figure.savefig(data, dpi=110)
        plt.close(figure)
    return data.getvalue()
