"""Golden figures: two small federations reach the Dice that they reached before. A change that halves it fails.

Both run on one core with a fixed seed, so that on one machine the figures come again exactly; `NEAR` is for others.
"""

from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import tiny
from pfedsam.data.synthetic import write_site
from pfedsam.federation import Plan, federate
from pfedsam.layout import Places

NEAR = 0.1
SITES = ("site-1", "site-2")
SPLITS = {"train": 8, "val": 2, "test": 6}
TRAIN = {"batch_size": 2, "epochs": 4, "max_steps": None, "lr": 2e-3, "lr_private": 5e-3, "schedule": "cosine"}


def demo(root: Path) -> None:
    """The demo's synthetic sites, with fewer images."""
    for site in SITES:
        write_site(root / site, site, SPLITS, seed=0)


def ellipses(root: Path) -> None:
    """Ellipses on textured noise: brighter than the ground at one site, darker at the other."""
    for seed, (site, contrast) in enumerate(zip(SITES, (60.0, -60.0), strict=True), 1):
        rng = np.random.default_rng(seed)
        lines = ["image,mask,split,group"]
        for name in [f"{split}_{i}" for split, count in SPLITS.items() for i in range(count)]:
            for kind, pixels in zip(("images", "masks"), ellipse(rng, contrast), strict=True):
                (root / site / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / site / kind / f"{name}.png")
            lines.append(f"images/{name}.png,masks/{name}.png,{name.split('_')[0]},{name}")
        (root / site / "datalist.csv").write_text("\n".join(lines) + "\n")


def ellipse(rng: np.random.Generator, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, (64, 64)."""
    (row, column), (high, wide) = rng.uniform(20, 44, 2), rng.uniform(7, 14, 2)
    drawn = Image.new("L", (64, 64))
    ImageDraw.Draw(drawn).ellipse((row - high, column - wide, row + high, column + wide), fill=1)
    mask = np.array(drawn)
    texture = np.kron(rng.normal(size=(16, 16)) * 12, np.ones((4, 4))) + rng.normal(size=(64, 64)) * 8
    return np.clip(120 + texture + contrast * mask, 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize(("draw", "golden"), [(demo, (0.438, 0.462)), (ellipses, (0.481, 0.870))])
def test_a_small_federation_learns_as_well_as_before(draw, golden: tuple[float, float], tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    draw(tmp_path / "data")
    places = dict.fromkeys(SITES, Places(tmp_path / "data", tmp_path / "sites"))
    tested = federate(Plan(tiny(train=TRAIN), places, 2, tmp_path / "run"))["final"]["sites"]
    reached = tuple(mean(tested[site][role]["dice"] for site in SITES) for role in ("global", "personal"))
    assert reached == pytest.approx(golden, abs=NEAR)
    if draw is ellipses:  # the sites contradict each other: what differs is in the experts
        assert tested["site-1"]["personal"]["dice"] - tested["site-1"]["experts"]["dice_without"] > 0.3
