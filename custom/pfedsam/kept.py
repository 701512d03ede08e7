"""What a site keeps of its final test, from its live model and data."""

import os

from pfedsam.data.dataset import Dataset
from pfedsam.record.pictures import Gallery, Picture, picked_cases
from pfedsam.record.scores import CaseScore, dice_by_case
from pfedsam.record.site_files import Tested
from pfedsam.site import Site
from pfedsam.train.evaluate import find_masks, reference


def tested_site(site: Site, scores: dict[str, list[CaseScore]], trained: dict[str, str]) -> Tested:
    """What the site has at the end of its final test.

    Args:
        scores: on the test split, by role.
        trained: the run and the round in which the private part was last trained.
    """
    data, stamp = site.data["test"], site.stamp(-1)
    firsts = [data.slices[case[0]] for case in data.cases()]
    return Tested(
        config=site.config,
        stamp={"site": site.name, "run": trained["run"], "config": stamp.config, "base": stamp.base},
        trained=trained,
        shared=site.shared(),
        private=site.private(),
        files=case_files(data),
        patients=[s.group for s in firsts],
        scores=scores,
        gallery=_gallery(site, data, dice_by_case(scores["personal"], len(firsts))),
    )


def case_files(data: Dataset) -> list[tuple[str, str]]:
    """The image and the mask of each case, as paths below the data."""
    firsts = [data.slices[case[0]] for case in data.cases()]
    return [(os.path.relpath(s.image, data.root), os.path.relpath(s.mask, data.root)) for s in firsts if s.mask]


def _gallery(site: Site, data: Dataset, dice: list[float | None]) -> Gallery:
    note = " (synthetic data)" if site.config.data.source == "synthetic" else ""
    cases = list(data.cases())
    pictures = [_picture(site, data, cases[i], label) for label, i in picked_cases(dice).items()]
    return Gallery(f"{site.name}, test{note}", site.config.class_names, pictures)


def _picture(site: Site, data: Dataset, case: list[int], label: str) -> Picture:
    """The slice of a case with the most class pixels, and both roles' masks of it."""
    index = max(case, key=lambda i: int(reference(data, i).sum()))
    roles = {"global": site.method.global_, "personal": site.method.personal}
    branches = find_masks(site.model, data, [index], tuple(dict.fromkeys(roles.values())))
    found = {role: branches[name][..., 0] for role, name in roles.items()}
    return Picture(label, (data.picture(index) * 255).round().byte(), reference(data, index), found)
