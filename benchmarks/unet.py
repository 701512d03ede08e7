"""A U-Net of nnU-Net's size, trained from scratch: what a user would pick instead of SAM, in the same federations.

    python benchmarks/unet.py --task nuclei_he [--ways local pooled fedavg fedbn] [--seeds 0] [--small] [--keep]

The net is MONAI's DynUNet with the stages that nnU-Net plans for this size, deep supervision, nnU-Net's kinds of
augmentation, and its SGD with a polynomial schedule. Images, splits and scoring are those of `sweep.py`, whose runs in
--out it is compared with. With --small they are those of `field.py`: run that with more --rounds, as SAM has not seen
enough after six. Name its --out here too. The best turn by validation is tested. It needs PFEDSAM_DATA_ROOT and
PFEDSAM_WEIGHTS.
"""

import argparse
import copy
import json
import statistics as st
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from field import IMAGES, ONE_SEED, ROUNDS, SMALL, ended, small
from machine import Table, keepable, publish
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    RandZoomd,
)
from suites import Row, Sizes, few, rows_of
from sweep import Run, data_of, settings, sizes
from tables import Found, differences, in_words, read_homes, spread, with_chances
from tables import runs as kept_runs
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR

from pfedsam.config import Config
from pfedsam.data.dataset import Batch, Dataset, View, open_site
from pfedsam.exchange.server import weighted
from pfedsam.files import seed_of, write_json
from pfedsam.kept import case_files
from pfedsam.model.build import outputs
from pfedsam.model.encoder import Encoder
from pfedsam.model.segmenter import Branches, Segmenter
from pfedsam.record.scores import summary
from pfedsam.record.site_files import case_names
from pfedsam.train.evaluate import evaluate
from pfedsam.train.losses import segmentation_loss
from pfedsam.train.precision import autocast

WAYS = {
    "local": "U-Net, each site alone",
    "pooled": "U-Net, one site holds all",
    "fedavg": "U-Net, FedAvg",
    "fedbn": "U-Net, FedBN: norms stay at the site",
}
FILTERS = (32, 64, 128, 256, 512, 512, 512)  # nnU-Net's 2-D plan for 256 px: at most 512 channels, down to 4 x 4 pixels
SMALL_FILTERS = FILTERS[:-1]  # for 128 px
TURNS, BATCH, RATE = 20, 4, 0.01
CHANCE = ", with p corrected by Holm for the whole table"
BRANCH = "global"


@dataclass
class Learner:
    """A net and where it learns.

    Attributes:
        branch: the net, as the harness scores it.
        train: what it learns from: one site's images, or all sites'.
    """

    branch: Branches
    train: list[Dataset]
    optimiser: torch.optim.Optimizer
    schedule: PolynomialLR
    generator: torch.Generator


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="nuclei_he")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1600, help="of each site in all; pooled, of each site's images")
    parser.add_argument("--beside", nargs="*", default=["own", "local", "fedavg"], help="rows of the suite leading")
    parser.add_argument("--small", action="store_true", help="few small images, as in field.py")
    parser.add_argument("--out", type=Path, help="holds what is done, and the SAM runs")
    options = keepable(parser).parse_args()
    options.out = options.out or Path("runs/field" if options.small else "runs/sweep")
    torch.set_num_threads(1)
    found = {WAYS[way]: [trained(way, seed, options) for seed in options.seeds] for way in options.ways}
    size = f"{IMAGES} images a site, 128 px" if options.small else "all images, 256 px"
    publish(
        f"A U-Net from scratch on {options.task}: {size}",
        table(found, options),
        notes=[
            "Test Dice at the sites' own images, mean of the sites; the worst site. Differences are the SAM row less"
            f" the U-Net, paired by patient and seed{'' if len(options.seeds) == 1 else CHANCE}.",
            *([ONE_SEED] if len(options.seeds) == 1 else []),
            f"Seeds {', '.join(map(str, options.seeds))}. U-Net: {options.steps} steps of {BATCH} images at each site, "
            f"{sum(p.numel() for p in net(1, filters(options)).parameters()) / 1e6:.0f} million values.",
        ],
        keep=options.keep,
    )


def table(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> Table:
    """A line for each way, with the SAM rows' differences to it."""
    homes = read_homes(options.task)
    rows = [row for row in rows_of("leading", options.task, sizes_of(options)) if row.name in options.beside]
    runs = {row: of_sam(row, options) for row in rows}
    gaps = {
        (way, row): differences(of_row, as_found(tries, options.seeds), "personal", homes)
        for way, tries in found.items()
        for row, of_row in runs.items()
    }
    told = {pair: in_words(gap) for pair, gap in gaps.items()} if len(options.seeds) == 1 else with_chances(gaps)
    lines: list[list[str | float]] = [
        [
            way,
            spread([st.fmean(one["dice"].values()) for one in tries]),
            st.fmean(min(one["dice"].values()) for one in tries),
            st.fmean(one["validation"] for one in tries),
            st.fmean(one["CPU s"] for one in tries),
            *(told[way, row] for row in rows),
        ]
        for way, tries in found.items()
    ]
    columns = {"row": "", "own site": "", "worst": ".3f", "validation": ".3f", "CPU s": ".0f"}
    return Table({**columns, **{f"{row.label}, less the U-Net": "" for row in rows}}, lines)


def of_sam(row: Row, options: argparse.Namespace) -> dict[int, Found]:
    """A row's runs by seed, of field.py with --small, else of sweep.py."""
    if options.small:
        return {seed: ended(Run(options.task, row, seed), options.out) for seed in options.seeds}
    found = kept_runs(options.out, options.task, row)
    return {seed: found[seed] for seed in options.seeds}


def as_found(tries: list[dict[str, Any]], seeds: list[int]) -> dict[int, Found]:
    """The runs by seed, as `differences` wants them."""
    scores = [
        {(case, int(cls)): {"dice": dice} for case, of in one["cases"].items() for cls, dice in of.items()}
        for one in tries
    ]
    return {seed: Found({"personal": of}, (0, 0), 0, [], False, {}) for seed, of in zip(seeds, scores, strict=True)}


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The task's sites, with their training images."""
    return small(options.task) if options.small else sizes(options.task)


def trained(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a run found, after it ran. It resumes from no point within a run."""
    size = "small." if options.small else ""
    path = options.out / options.task / f"unet_{way}" / str(seed) / f"{size}{options.steps}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, learnt(way, seed, options))
    held: dict[str, Any] = json.loads(path.read_text())
    print(way, {key: held[key] for key in ("dice", "validation", "turns", "CPU s")}, flush=True)
    return held


def learnt(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one way with one seed. The best turn by validation is tested, once."""
    began, named, steps = time.process_time(), sizes_of(options), options.steps
    row = Row(way, way, ("method=fedavg", *((SMALL, *few(named, IMAGES, IMAGES)) if options.small else ())))
    config, _ = settings(Run(options.task, row, seed), ROUNDS)
    places = data_of(options.task)
    data = {site: open_site(places, site, config) for site in sorted(named)}
    train = {site: [splits["train"]] for site, splits in data.items()}
    if way == "pooled":
        train, steps = {way: [one for of in train.values() for one in of]}, steps * len(data)
    torch.manual_seed(seed)
    first = net(outputs(config.model), filters(options))
    learners = {site: learner(site, of, seed, copy.deepcopy(first)) for site, of in train.items()}
    at = {site: learners.get(site) or learners[way] for site in data}
    best, kept, turns = -1.0, [copy.deepcopy(one.branch.state_dict()) for one in learners.values()], []
    for turn in range(TURNS):
        for one in learners.values():
            learn(one, steps // TURNS, config)
            one.schedule.step()
        if way.startswith("fed"):
            average(list(learners.values()), keep_norms=way == "fedbn")
        turns.append(st.fmean(dice(at[site], splits["val"])[0] for site, splits in data.items()))
        spent = f"{time.process_time() - began:.0f} CPU s"
        print(f"{way} {turn + 1}/{TURNS}: validation {turns[-1]:.3f}, {spent}", flush=True)
        if turns[-1] > best:
            best, kept = turns[-1], [copy.deepcopy(one.branch.state_dict()) for one in learners.values()]
    for one, state in zip(learners.values(), kept, strict=True):
        one.branch.load_state_dict(state)
    tested = {site: dice(at[site], splits["test"]) for site, splits in data.items()}
    return {
        "dice": {site: score for site, (score, _) in tested.items()},
        "cases": {case: of for _, cases in tested.values() for case, of in cases.items()},
        "validation": best,
        "turns": turns,
        "CPU s": time.process_time() - began,
    }


def filters(options: argparse.Namespace) -> Sequence[int]:
    """The stages that nnU-Net plans for the images' size."""
    return SMALL_FILTERS if options.small else FILTERS


def net(outputs: int, filters: Sequence[int], *, deep: bool = True) -> nn.Module:
    """The U-Net: a stage for each number of filters, each of half the size, and deep supervision of all but two."""
    kernels, strides = [3] * len(filters), [1, *[2] * (len(filters) - 1)]
    losses = {"deep_supervision": True, "deep_supr_num": len(filters) - 3} if deep else {}
    made: nn.Module = DynUNet(2, 3, outputs, kernels, strides, strides[1:], filters=list(filters), **losses)
    return made


def learner(site: str, train: list[Dataset], seed: int, made: nn.Module) -> Learner:
    """A net at its start, with nnU-Net's optimiser."""
    bare = Encoder([nn.Identity()], channels=3, patch=1)
    branch = Branches(**{BRANCH: Segmenter(bare, made)}).to(device())
    optimiser = torch.optim.SGD(branch.parameters(), RATE, momentum=0.99, nesterov=True, weight_decay=3e-5)
    schedule = PolynomialLR(optimiser, TURNS, 0.9)
    return Learner(branch, train, optimiser, schedule, torch.Generator().manual_seed(seed_of(f"{seed}/{site}")))


@cache
def device() -> torch.device:
    """A GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learn(one: Learner, steps: int, config: Config) -> None:
    """So many steps on random images."""
    one.branch.train()
    for _ in range(steps):
        batch = drawn(one)
        with autocast(device(), config.train.precision):
            maps = one.branch[BRANCH](batch.image)
        one.optimiser.zero_grad()
        supervised(maps.float(), batch, config).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(one.branch.parameters(), 12)
        one.optimiser.step()


def drawn(one: Learner) -> Batch:
    """Random images of all that it learns from, each in a view of its own."""
    places = [(data, i) for data in one.train for i in range(len(data))]
    numbers = torch.randint(2**31, (2, BATCH), generator=one.generator).tolist()
    chosen = [(*places[i % len(places)], view) for i, view in zip(*numbers, strict=True)]
    parts = [data.batch([View(i, view)], augmented) for data, i, view in chosen]
    images, labels = torch.cat([part.image for part in parts]), torch.cat([part.label for part in parts])
    return Batch(images.to(device()), labels.to(device()), annotated=parts[0].annotated, ignores=parts[0].ignores)


def supervised(maps: Tensor, batch: Batch, config: Config) -> Tensor:
    """The loss of all depths, (B, depths, outputs, S, S). Each depth counts half of the one above it."""
    losses = [segmentation_loss(maps[:, depth], batch, config.train) / 2**depth for depth in range(maps.shape[1])]
    return torch.stack(losses).sum() / sum(2.0**-depth for depth in range(len(losses)))


def augmented(image: Tensor, mask: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """A view with nnU-Net's kinds of change and their strengths."""
    CHANGES.set_random_state(seed=seed_of(f"{view.slice}/{view.number}"))
    out = CHANGES({"image": image, "mask": mask[None].float()})
    return torch.as_tensor(out["image"]).clamp(0, 1), torch.as_tensor(out["mask"])[0].round().long()


BOTH, MODES = ("image", "mask"), ("bilinear", "nearest")
CHANGES = Compose(
    [
        RandRotated(BOTH, prob=0.2, range_x=torch.pi, mode=MODES, padding_mode="zeros"),
        RandZoomd(BOTH, prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=MODES, padding_mode="constant"),
        RandGaussianNoised(BOTH[0], prob=0.1, std=0.1),
        RandGaussianSmoothd(BOTH[0], prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
        RandScaleIntensityd(BOTH[0], factors=0.25, prob=0.15),
        RandAdjustContrastd(BOTH[0], prob=0.15, gamma=(0.75, 1.25)),
        RandSimulateLowResolutiond(BOTH[0], prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bicubic"),
        RandAdjustContrastd(BOTH[0], prob=0.3, gamma=(0.7, 1.5)),
        RandFlipd(BOTH, prob=0.5, spatial_axis=0),
        RandFlipd(BOTH, prob=0.5, spatial_axis=1),
    ]
)


def average(learners: list[Learner], *, keep_norms: bool) -> None:
    """FedAvg by the number of images. With `keep_norms` the norms' values stay at their sites."""
    states = {str(place): one.branch.state_dict() for place, one in enumerate(learners)}
    counts = [sum(map(len, one.train)) for one in learners]
    shares = {place: count / sum(counts) for place, count in zip(states, counts, strict=True)}
    mean = weighted(shares, states.__getitem__)
    for one in learners:
        one.branch.load_state_dict(
            {name: tensor for name, tensor in mean.items() if not (keep_norms and ".norm" in name)}, strict=False
        )


def dice(one: Learner, data: Dataset) -> tuple[float, dict[str, dict[int, float]]]:
    """Mean Dice of a split, and each case's by class. Cases are named as in cases.json."""
    scores = evaluate(one.branch, data, (BRANCH,))[BRANCH]
    cases = case_names(case_files(data))
    each = len(scores) // len(cases)
    found: dict[str, dict[int, float]] = {}
    for case, of_case in zip(cases, batches(scores, each), strict=True):
        found[case] = {score.cls: score.dice for score in of_case if score.dice is not None}
    return summary(scores)["dice"] or 0.0, {case: of for case, of in found.items() if of}


def batches(values: list[Any], size: int) -> Iterable[list[Any]]:
    """The values in groups of that size."""
    return (values[start : start + size] for start in range(0, len(values), size))


if __name__ == "__main__":
    main()
