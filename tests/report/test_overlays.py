"""Pictures of masks: which cases, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfedsam.record.scores import CaseScore
from pfedsam.report.plots import FOUND, plot_overlays
from pfedsam.report.site_files import by_case, pick


def scored(cls: int, dice: float | None) -> CaseScore:
    return CaseScore(cls, dice, dice, 1.0, 1.0, found=True)


def test_a_case_s_dice_is_the_mean_over_its_classes() -> None:
    rows = [scored(1, 0.9), scored(2, 0.1), scored(1, 0.6), scored(2, None), scored(1, None), scored(2, None)]
    assert by_case(rows, 3) == [pytest.approx(0.5), 0.6, None]
    assert pick(by_case(rows, 3)) == {"best, personal Dice 0.60": 1, "worst, personal Dice 0.50": 0}


def drawn(found: np.ndarray, path: Path) -> int:
    """How many pixels the found outlines take."""
    row = {"image": np.zeros((64, 64, 3)), "truth": np.zeros_like(found), "found": {"global": found}, "label": ""}
    plot_overlays([row], path, "a site", [f"class {i + 1}" for i in range(len(found))])
    orange = np.array([int(FOUND[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - orange).max(-1) < 40).sum())


def test_each_class_has_its_outline(tmp_path: Path) -> None:
    """Of two halves that touch, the line between them is drawn, which a whole does not have."""
    halves = np.zeros((2, 64, 64), dtype=bool)
    halves[0, 16:48, 16:32] = halves[1, 16:48, 32:48] = True
    whole = halves.any(0, keepdims=True)
    assert drawn(halves, tmp_path / "halves.png") > 1.1 * drawn(whole, tmp_path / "whole.png") > 0
