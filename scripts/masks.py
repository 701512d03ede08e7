"""Draw docs/pictures/masks.png from a demo run: a test image of two sites, before and after training.

Run `pfedsam simulate pfedsam --sites 4 --out RUN` first. All images are synthetic.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pfedsam import Model, Results
from pfedsam.layout import PICTURES
from pfedsam.record.pictures import Picture, read_gallery
from pfedsam.report.look import FOUND, TRUTH, panels

ROLES = ("before training", "global branch", "personal branch")


def main() -> None:
    """Draw the median test case of the named sites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sites", nargs="+", default=["site-2", "site-4"])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/masks.png"))
    options = parser.parse_args()
    first = Results(json.loads((options.run / "results.json").read_text()), options.run).before()
    cases = {site: _median(options.run / site / PICTURES) for site in options.sites}
    options.out.write_bytes(_drawn(cases, {site: _found(first, case) for site, case in cases.items()}))


def _median(path: Path) -> Picture:
    return next(one for one in read_gallery(path).pictures if one.label.startswith("median"))


def _found(first: Model, case: Picture) -> list[Tensor]:
    """(H, W) of bool in the order of ROLES: what the model finds."""
    before = torch.from_numpy(first.predict(case.image.permute(1, 2, 0).numpy()) > 0)
    return [before, case.found["global"][0], case.found["personal"][0]]


def _drawn(cases: dict[str, Picture], masks: dict[str, list[Tensor]]) -> bytes:
    def draw(grid: Any) -> None:
        for line, (site, case) in enumerate(cases.items()):
            for column, found in enumerate(masks[site]):
                axes = grid[line][column]
                axes.imshow(case.image.permute(1, 2, 0).numpy())
                for mask, colour in ((case.truth[0], TRUTH), (found, FOUND)):
                    if mask.any():
                        axes.contour(mask.numpy(), levels=[0.5], colors=[colour], linewidths=1.6)
                axes.set_title(ROLES[column] if line == 0 else "", fontsize=10)
                axes.set_ylabel(site if column == 0 else "", fontsize=10)

    return _small(panels(len(cases), len(ROLES), draw, "reference in blue, model in orange (synthetic test images)"))


def _small(picture: bytes) -> bytes:
    """The PNG with a palette of 128 colours: a third of the bytes."""
    data = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(128).save(data, "PNG", optimize=True)
    return data.getvalue()


if __name__ == "__main__":
    main()
