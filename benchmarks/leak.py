"""What an update shows of a site's images: benchmarks/leak.py [--steps N] [--keep]. About half an hour of one core.

Gradient inversion (Geiping et al. 2020): images are sought whose gradient points as the update does, with a penalty on
total variation. The attacker is strong: it knows the model, the settings, the number of images and their true masks.
Scored is the structural similarity of the best pair of a sought and a training image. The control is the best pair
with as many of the same site's images that it never trained on. The first line has random values in the place of an
update: what the masks alone show. Membership inference: the loss of the exported personal model on training images
against that on test images, as the area under the ROC curve. 0.5 is guessing.
"""

import argparse
import statistics as st
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from machine import Table, keepable, publish
from monai.metrics import SSIMMetric
from torch import Tensor

from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, Batch, View
from pfedsam.data.synthetic import write_site
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.exchange.codec import decode
from pfedsam.exchange.server import begin_state, message
from pfedsam.exchange.store import LAST, Moment
from pfedsam.federation import RUN, Plan, federate
from pfedsam.layout import Places
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import down_schema, initial_shared, up_schema
from pfedsam.tensors import Tensors

SITE = "site-1"
VARIATIONS = (0.5, 3.0)  # weights of the total variation; the better one counts
MOST = 4  # images that are sought at once
FEDAVG = {"method": "fedavg", "model": {"image_size": 64, "experts": 0}}


@dataclass(frozen=True)
class Case:
    """A line of the first table: the site's training images and how it trains in the round."""

    name: str
    images: int
    train: dict[str, Any]
    privacy: dict[str, Any] | None = None
    sees: Literal["update", "gradient", "noise"] = "update"


USUAL = {"batch_size": 4}
PLAINLY = {"augment": False, "warmup": 0}
CASES = (
    Case("one image, random values", 1, {"batch_size": 1, "max_steps": 1, **PLAINLY}, sees="noise"),
    Case("four images, random values", 4, {"batch_size": 4, "max_steps": 1, **PLAINLY}, sees="noise"),
    Case("the bare gradient of one image", 1, {"batch_size": 1, "max_steps": 1, **PLAINLY}, sees="gradient"),
    Case("one image, one step", 1, {"batch_size": 1, "max_steps": 1, **PLAINLY}),
    Case("four images, one step", 4, {"batch_size": 4, "max_steps": 1, **PLAINLY}),
    Case("the floor: 8 images, 4 steps", 8, {"batch_size": 2, "max_steps": 4, **PLAINLY}),
    Case("the defaults: 48 images, 12 steps", 48, USUAL),
    Case("one image, one step, patient hidden", 1, {"batch_size": 1, "max_steps": 1, **PLAINLY}, {"unit": "patient"}),
    Case("the defaults, patient hidden", 48, USUAL, {"unit": "patient"}),
    Case("the defaults, site hidden", 48, USUAL, {"unit": "site"}),
)


def main() -> None:
    """Run all cases, print two tables, and keep them if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of the attack")
    options = keepable(parser).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines: list[list[str | float]] = [
            [case.name, *attacked(case, Path(folder) / str(n), options.steps)] for n, case in enumerate(CASES)
        ]
        members = [member(name, privacy, Path(folder) / name) for name, privacy in MEMBERS.items()]
    seen = Table({"the site's round": "", "best pair": ".3f", "control": ".3f"}, lines)
    told = Table({"trained": "", "epsilon": "", "Dice on test": ".3f", "AUC": ".3f"}, members)
    notes = ["Demo backbone, 64 pixels, synthetic images. Noise 1, clip 1 where something is hidden."]
    publish("Leak: what one update, and the exported model, show", seen, told, notes=notes, keep=options.keep)


def settings(train: dict[str, Any], privacy: dict[str, Any] | None) -> Config:
    """FedAvg on the demo backbone."""
    hidden = {"privacy": {"epsilon": 1e6, **privacy}} if privacy else {}
    return from_dict({**FEDAVG, "train": train, **hidden})


def attacked(case: Case, folder: Path, steps: int) -> tuple[float, float]:
    """The structural similarity of the best pair with a training image, and with a test image."""
    config = settings(case.train, case.privacy)
    count = max(case.images, 8)  # the test images are the control
    write_site(folder / SITE, SITE, {"train": count, "val": 1, "test": count}, config.seed)
    config = replace(config, data=replace(config.data, limit={SITE: case.images}))
    site = Site(SITE, config, Places(folder, folder / "store"))
    start = initial_shared(config)[0]
    update = observed(site, start, case.sees)
    site.receive(start)
    truth = site.data["train"]
    views = [View(i) for i in range(min(len(truth), MOST))]
    batch = truth.batch(views)
    sought = torch.cat(
        [invert(site, update, batch, steps, weight=weight, bare=case.sees == "gradient") for weight in VARIATIONS]
    )
    real, others = (torch.stack([site.data[split][i][0] for i in range(len(truth))]) for split in ("train", "test"))
    found = best_pair(sought, real), best_pair(sought, others)
    print(f"{case.name}: {found[0]:.3f}, control {found[1]:.3f}", flush=True)
    return found


def observed(site: Site, start: Tensors, sees: str) -> Tensors:
    """What leaves the site after its round. Or the gradient itself, turned as a step would be. Or random values."""
    down = down_schema(site.config)
    site.receive(decode(message(begin_state(start, down), site.name, site.config, down), down, "fp32"))
    if sees == "noise":
        draw = torch.Generator().manual_seed(1)
        return {name: torch.randn(tensor.shape, generator=draw) for name, tensor in start.items()}
    if sees == "update":
        return decode(site.train(0, 1).wire, up_schema(site.config), site.config.wire.up)
    return {name: -grad for name, grad in gradients(site, site.data["train"].batch([View(0, PLAIN)])).items()}


def gradients(site: Site, batch: Batch, *, graph: bool = False) -> Tensors:
    """The gradient of the method's loss in the shared tensors, by wire name."""
    live = {wire_name(name): t for name, t in tensors_of(site.model, site.part, Part.SHARED).items()}
    loss = torch.stack(list(site.method.loss(site.model, batch, site.config).values())).sum()
    found = torch.autograd.grad(loss, list(live.values()), create_graph=graph, allow_unused=True)
    return {name: one for name, one in zip(live, found, strict=True) if one is not None}


def invert(site: Site, update: Tensors, batch: Batch, steps: int, *, weight: float, bare: bool) -> Tensor:
    """Images (N, 3, S, S) in 0..1 whose gradient points against the update, with the masks of `batch`.

    Args:
        weight: of the total variation.
        bare: whether the update is a gradient, not a step of AdamW.
    """
    torch.manual_seed(0)
    side = site.config.model.image_size
    raw = (0.1 * torch.randn(len(batch.label), 3, side, side)).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        image = raw.sigmoid()
        front = site.model[site.method.global_].encoder.stem(site.data["train"].normalise(image))  # with its gradient
        found = gradients(site, replace(batch, image=front, stemmed=True), graph=True)
        loss = apart(found if bare else taken(found), update) + weight * variation(image)
        (raw.grad,) = torch.autograd.grad(loss, [raw])
        optimiser.step()
        schedule.step()
    return raw.sigmoid().detach()


def taken(gradient: Tensors) -> Tensors:
    """About AdamW's first step, turned: the gradient's signs, softened so that they have a derivative."""
    return {name: one / (one.detach().abs().mean() + one.abs() + 1e-12) for name, one in gradient.items()}


def apart(found: Tensors, update: Tensors) -> Tensor:
    """1 minus the cosine of what was sought and what left, turned; the mean over tensors."""
    each = [1 + (one * update[name]).sum() / (one.norm() * update[name].norm() + 1e-12) for name, one in found.items()]
    return torch.stack(each).mean()


def variation(image: Tensor) -> Tensor:
    """The total variation, the mean over pixels times the number of images."""
    across, down = image.diff(dim=3).abs().mean(), image.diff(dim=2).abs().mean()
    return (across + down) * len(image)


def best_pair(sought: Tensor, real: Tensor) -> float:
    """The highest structural similarity of a sought and a real image, both grey."""
    measure = SSIMMetric(spatial_dims=2)
    grey = [images.mean(1, keepdim=True) for images in (sought, real)]
    return max(float(measure(one[None], other[None])) for one in grey[0] for other in grey[1])


MEMBERS: dict[str, dict[str, Any] | None] = {
    "without privacy": None,
    "noise 0.3": {"unit": "patient", "noise": 0.3},
    "noise 1": {"unit": "patient", "noise": 1.0},
}


def member(name: str, privacy: dict[str, Any] | None, folder: Path) -> list[str | float]:
    """A line of the second table: a personal model of pFedSAM after many epochs on few images."""
    hidden = {"privacy": {"epsilon": 1e6, **privacy}} if privacy else {}
    train = {"lr": 1e-3, "lr_decoder": 1e-3, "batch_size": 4, "epochs": 8, "augment": False}
    model = {"image_size": 64, "lora_on": "linear", "experts": 0}
    config = from_dict({"method": "pfedsam", "model": model, "train": train, **hidden})
    sites = ("site-1", "site-2", "site-3")
    for site in sites:
        write_site(folder / site, site, {"train": 24, "val": 4, "test": 48}, config.seed)
    places = {site: Places(folder, folder / "store") for site in sites}
    record = federate(Plan(config, places, 5, folder))
    point, areas = Checkpoints(folder / "store", config.study).load(RUN), []
    assert point is not None
    for site in sites:
        one = Site(site, config, places[site])
        one.recall(point.state.shared, Moment(RUN, LAST))
        areas.append(area(losses(one, "train"), losses(one, "test")))
    dice = st.fmean(of["personal"]["dice"] or 0.0 for of in record["final"]["sites"].values())
    spent = max(of.get("epsilon", 0.0) for of in record["rounds"][-1]["sites"].values())
    print(f"{name}: Dice {dice:.3f}, AUC {areas}", flush=True)
    return [name, f"{spent:.3g}" if privacy else "-", dice, st.fmean(areas)]


@torch.no_grad()
def losses(site: Site, split: str) -> list[float]:
    """The personal branch's loss on each image."""
    data, found = site.data[split], []
    site.model.eval()
    for i in range(len(data)):
        found.append(float(site.method.loss(site.model, data.batch([View(i)]), site.config)["personal"]))
    return found


def area(members: list[float], others: list[float]) -> float:
    """The chance that a member's loss is below another image's."""
    pairs: list[float] = [(one < other) + 0.5 * (one == other) for one in members for other in others]
    return st.fmean(pairs)


if __name__ == "__main__":
    main()
