"""Draw docs/pictures/masks.png from a demo run: one test image of each site, before and after training.

Run `pfedsam simulate jobs/pfedsam --sites 4 --out RUN` first. All images are synthetic.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from pfedsam.jobs import read_job
from pfedsam.layout import PICTURES
from pfedsam.record.pictures import Picture, read_gallery
from pfedsam.report.look import FOUND, TRUTH, panels
from pfedsam.site import Places, Site
from pfedsam.study import initial_shared
from pfedsam.train.evaluate import find_masks

ROLES = ("before training", "global branch", "personal branch")


def main() -> None:
    """Draw the median test case of the named sites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sites", nargs="+", default=["site-2", "site-4"])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/masks.png"))
    options = parser.parse_args()
    cases = {site: _median(options.run / site / PICTURES) for site in options.sites}
    masks = {site: {ROLES[0]: _before(options.run, site, case), **_after(case)} for site, case in cases.items()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(_drawn(cases, masks))


def _median(path: Path) -> Picture:
    return next(one for one in read_gallery(path).pictures if one.label.startswith("median"))


def _after(case: Picture) -> dict[str, Tensor]:
    return dict(zip(ROLES[1:], (case.found["global"], case.found["personal"]), strict=True))


def _before(run: Path, name: str, case: Picture) -> Tensor:
    """(classes, H, W) of bool: what the global branch finds before any training."""
    config = read_job(Path("jobs/pfedsam")).config
    with tempfile.TemporaryDirectory() as store:
        site = Site(name, config, Places(run / name / "synthetic_data", Path(store), cache=run / "prepared"))
        site.recall(initial_shared(config)[0])
        data = site.data["test"]
        index = next(i for i in range(len(data)) if (data.picture(i) * 255).round().byte().equal(case.image))
        branch = site.method.global_
        return find_masks(site.model, data, [index], (branch,))[branch][..., 0]


def _drawn(cases: dict[str, Picture], masks: dict[str, dict[str, Tensor]]) -> bytes:
    def draw(grid: Any) -> None:
        for line, (site, case) in enumerate(cases.items()):
            for column, (role, found) in enumerate(masks[site].items()):
                axes = grid[line][column]
                axes.imshow(case.image.permute(1, 2, 0).numpy())
                for mask, colour in ((case.truth[0], TRUTH), (found[0], FOUND)):
                    if mask.any():
                        axes.contour(mask.numpy(), levels=[0.5], colors=[colour], linewidths=1.6)
                axes.set_title(role if line == 0 else "", fontsize=10)
                axes.set_ylabel(site if column == 0 else "", fontsize=10)

    return panels(len(cases), len(ROLES), draw, "reference in blue, model in orange (synthetic test images)")


if __name__ == "__main__":
    main()
