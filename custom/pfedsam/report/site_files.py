"""What a site keeps of a finished job on its own disk: private model, scores per case, pictures."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pfedsam.files import SETTINGS, pack, write_atomic, write_json
from pfedsam.record.cards import private_card, shared_card
from pfedsam.record.scores import CaseScore
from pfedsam.report.plots import plot_overlays
from pfedsam.site import Site
from pfedsam.train.evaluate import find_masks, reference

Scores = dict[str, list[CaseScore]]


def write_site_files(site: Site, scores: Scores, folder: Path, trained: dict[str, str]) -> Path:
    """Write both parts of the tested model with their cards, cases.json and overlays.png below `folder`; returns it.

    Nothing of this is sent: images and case names stay at the site. The shared part is what came from the
    server, so that the site can export its model without asking for it again.

    Args:
        trained: the run, and the round in which the private part was last trained.
    """
    stamp = site.stamp(-1)
    facts = {"site": site.name, "run": trained["run"], "config": stamp.config, "base": stamp.base}
    settings = {SETTINGS: site.config.text()}
    if private := site.private():
        write_atomic(folder / "private.safetensors", pack(private, facts | trained | settings | {"part": "private"}))
        write_atomic(folder / "private.md", private_card(site.config, facts | trained, site.name).encode())
    if shared := site.shared():
        write_atomic(folder / "shared.safetensors", pack(shared, facts | settings | {"part": "shared"}))
        write_atomic(folder / "shared.md", shared_card(site.config, facts).encode())
    data = site.data["test"]
    firsts = [data.slices[case[0]] for case in data.cases()]
    cases = names([(os.path.relpath(s.image, data.root), os.path.relpath(s.mask, data.root)) for s in firsts])
    patients = list(dict.fromkeys(first.group for first in firsts))
    write_json(
        folder / "cases.json",
        {
            "run": trained["run"],
            "cases": cases,
            "groups": [patients.index(first.group) for first in firsts],
            "scores": {role: [asdict(s) for s in rows] for role, rows in scores.items()},
        },
    )
    picked = pick(by_case(scores["personal"], len(cases)))
    if picked:
        rows = [_row(site, index, label) for label, index in picked.items()]
        note = " (synthetic data)" if site.config.data.source == "synthetic" else ""
        plot_overlays(rows, folder / "overlays.png", f"{site.name}, test{note}", site.config.class_names)
    return folder


def names(pairs: list[tuple[str, str]]) -> list[str]:
    """Of cases, their images; with the mask where an image has several."""
    masks = Counter(image for image, _ in pairs)
    return [f"{image} ({mask})" if masks[image] > 1 else image for image, mask in pairs]


def by_case(scores: list[CaseScore], cases: int) -> list[float | None]:
    """Each case's Dice, mean over its classes; None where all references are empty."""
    each = len(scores) // cases
    of_case = [scores[start : start + each] for start in range(0, len(scores), each)]
    known = [[score.dice for score in rows if score.dice is not None] for rows in of_case]
    return [fmean(values) if values else None for values in known]


def pick(dice: list[float | None]) -> dict[str, int]:
    """Best, median and worst case by Dice, with their index; empty references left out."""
    order = sorted((d, i) for i, d in enumerate(dice) if d is not None)
    if not order:
        return {}
    marks = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    seen: dict[int, str] = {}
    for name, (d, i) in marks.items():
        seen.setdefault(i, f"{name}, personal Dice {d:.2f}")
    return {label: i for i, label in seen.items()}


def _row(site: Site, case: int, label: str) -> dict[str, Any]:
    data = site.data["test"]
    slices = list(data.cases())[case]
    index = max(slices, key=lambda i: int(reference(data, i).sum()))
    roles = {"global": site.method.global_, "personal": site.method.personal}
    branches = find_masks(site.model, data, [index], tuple(dict.fromkeys(roles.values())))
    return {
        "image": data.picture(index).permute(1, 2, 0).numpy(),
        "truth": reference(data, index).numpy(),
        "found": {role: branches[name][..., 0].numpy() for role, name in roles.items()},
        "label": label,
    }
