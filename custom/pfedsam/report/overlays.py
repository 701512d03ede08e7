"""Pictures of a site's test, with masks over the images."""

from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedsam.record.pictures import Gallery, read_gallery
from pfedsam.report.look import CLASS_LINES, FOUND, TRUTH, panels


def overlays(path: Path) -> bytes:
    """A PNG of the pictures that a site's final test left at `path`. Older versions left a finished PNG.

    Raises:
        UserFault: the file is damaged.
    """
    return path.read_bytes() if path.suffix == ".png" else drawn(read_gallery(path))


def drawn(gallery: Gallery) -> bytes:
    """A PNG with one column per case and one line style per class: outlines of the reference and the finding."""
    pictures = gallery.pictures
    roles = list(pictures[0].found)

    def draw(grid: Any) -> None:
        for column, one in enumerate(pictures):
            for line, role in enumerate(roles):
                axes = grid[line][column]
                axes.imshow(one.image.permute(1, 2, 0).numpy())
                _outlines(axes, one.truth, TRUTH)
                _outlines(axes, one.found[role], FOUND)
                axes.set_title(one.label if line == 0 else "", fontsize=8)
                axes.set_ylabel(role if column == 0 else "", fontsize=9)

    return panels(
        len(roles), len(pictures), draw, f"{gallery.title}: blue reference, orange found{_lines(gallery.classes)}"
    )


def _outlines(axes: Any, masks: Tensor, colour: str) -> None:
    for mask, line in zip(masks, cycle(CLASS_LINES)):
        if mask.any() and not mask.all():
            axes.contour(mask.numpy(), levels=[0.5], colors=[colour], linewidths=1.2, linestyles=line)


def _lines(classes: list[str]) -> str:
    """The line style of each class; empty if there is one class."""
    named = [f"{name} {line}" for name, line in zip(classes, cycle(CLASS_LINES))]
    return f"; {', '.join(named)}" if len(classes) > 1 else ""
