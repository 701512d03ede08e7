"""Seconds of a training step beside SAM as published, and how far losses differ: benchmarks/training_step.py --help."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from machine import Table, interleaved, keepable, median, publish
from stock import State, StockSAM, adapted, random_state, start_like, stepper
from torch.profiler import ProfilerActivity, profile

from pfedsam import methods
from pfedsam.config import Config, ModelConfig
from pfedsam.data.dataset import Batch
from pfedsam.methods.base import Here
from pfedsam.model import weights
from pfedsam.model.backbones import BUILDERS, Backbone
from pfedsam.model.prepared import round_matrices
from pfedsam.model.segmenter import Branches
from pfedsam.settings import from_dict
from pfedsam.train.loop import make_optimisers
from pfedsam.train.precision import autocast, computes_bf16, has_bf16
from pfedsam.train.step import Optimisers, step

Stepper = Callable[[Batch], float]


@dataclass(frozen=True)
class Row:
    """What is trained and how. "auto" is bf16 if the hardware has it. `cached`: the frozen front's output is there."""

    method: str | dict[str, Any]
    precision: str = "auto"
    cached: bool = False
    model: dict[str, Any] = field(default_factory=dict)


POST = {"name": "pfedsam", "reading": "post"}
LAST = {"lora_last": 4}
OWN = {"lora_on": "linear", "experts": 0, "experts_rank": 8}  # the private adapter of the jobs on real data
ROWS = {
    "plain, float32": Row("fedavg", "fp32"),
    "plain": Row("fedavg"),
    "plain, lean decoder": Row("fedavg", model={"decoder": "lean"}),
    "plain, LoRA in the last 4 blocks": Row("fedavg", model=LAST),
    "two branches with mutual distillation": Row("pfedsam"),
    "two branches, private adapters on all linear layers": Row("pfedsam", model=OWN),
    "the same, decoder by LoRA: as the jobs": Row("pfedsam", model=OWN | {"decoder": "lora"}),
    "two branches, last 4 blocks": Row("pfedsam", model=LAST),
    "two branches, last 4 blocks, front cached": Row("pfedsam", model=LAST, cached=True),
    "two branches, last 2 blocks, front cached": Row("pfedsam", model={"lora_last": 2}, cached=True),
    "two branches, post-encoder reading, front cached": Row(POST, cached=True),
}
LOSS_STEPS = 20
PRODUCTS = {  # torch's kernels that multiply
    *(f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm")),
    *("aten::mkldnn_convolution", "aten::convolution_backward"),
}


@dataclass(frozen=True)
class Case:
    """A backbone at a size, with its tensors and its settings."""

    backbone: str
    size: int
    state: State

    def config(self, row: Row) -> Config:
        """Settings of one row."""
        shape = {"backbone": self.backbone, "image_size": self.size, **row.model}
        train = {"precision": row.precision}
        return from_dict({"method": row.method, "model": shape, "train": train})


def main() -> None:
    """Measure, print one table, and keep it if asked."""
    options = arguments()
    case = Case(options.backbone, options.size, state_of(options.backbone, options.size))
    batches = [batch(options.size, options.batch, seed) for seed in range(LOSS_STEPS)]
    title = f"A training step: {options.backbone}, {options.size} px, batch {options.batch}"
    table = timings(case, batches, options.runs)
    publish(title, table, notes=[*losses(case, batches), products(case, batches[0], table)], keep=options.keep)


def state_of(backbone: str, size: int) -> State:
    """MobileSAM's published tensors for tiny_vit, or drawn ones for vit_b."""
    return weights.read(ModelConfig(backbone=backbone)) if backbone == "tiny_vit" else random_state(size)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", choices=("vit_b", "tiny_vit"), default="vit_b")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    return keepable(parser).parse_args()


def timings(case: Case, batches: list[Batch], runs: int) -> Table:
    """The table: seconds and ratios. All rows are measured in turns."""
    steppers = {"stock, float32": stock(case)} | {label: ours(case, row) for label, row in ROWS.items()}
    took = median(interleaved({name: partial(one, batches[0]) for name, one in steppers.items()}, runs, before=1))
    slow, plain = took["stock, float32"], took["plain"]
    columns = {"step": "", "seconds (median)": ".3f", "times as fast as stock": ".2f", "in plain steps": ".2f"}
    return Table(columns, [[name, s, slow / s, s / plain] for name, s in took.items()])


def losses(case: Case, batches: list[Batch]) -> list[str]:
    """How far our losses are from stock's, over the same steps from the same start."""
    labels = ("plain, float32", "plain")
    rows = {"stock": stock(case)} | {label: ours(case, ROWS[label]) for label in labels}
    found = {name: [one(b) for b in batches] for name, one in rows.items()}
    apart = {n: max(abs(a / b - 1) for a, b in zip(found[n], found["stock"], strict=True)) for n in labels}
    told = "; ".join(f"{name} {value:.1e}" for name, value in apart.items())
    number = "bf16" if has_bf16(torch.device("cpu")) else "float32, because this processor has no bf16"
    return [
        f"Rows without a number format are in {number}. Of two steps in a row the second is timed, then another row's.",
        f"Largest relative difference of the loss from stock's over {len(batches)} steps: {told}.",
    ]


def products(case: Case, one: Batch, table: Table) -> str:
    """What bounds a step, in words: the share of its time that matrix products and convolutions take."""
    step = ours(case, ROWS["plain"])
    step(one)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(one)
    took = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    share = sum(time for name, time in took.items() if name in PRODUCTS) / sum(took.values())
    fast = next(float(row[2]) for row in table.rows if row[0] == "plain")
    return (
        f"Matrix products and convolutions are {share:.0%} of a plain step's time. If all else took none, it would be "
        f"{fast / share:.2f} times as fast as stock."
    )


def stock(case: Case) -> Stepper:
    """The reference, with the same start as ours."""
    config = case.config(Row("fedavg", "fp32"))
    model = adapted(StockSAM(case.backbone, case.size, case.state), config.model.lora_rank)
    start_like(model, branches(BUILDERS[case.backbone](case.size, case.state), config)["global"])
    return stepper(model, config)


def ours(case: Case, row: Row) -> Stepper:
    """A row of ours, with the base in the form of `model.prepared`."""
    parts = BUILDERS[case.backbone](case.size, case.state)
    config = case.config(row)
    if computes_bf16(torch.device("cpu"), config.train.precision):
        round_matrices(parts.encoder)
    return stepper_of(parts, config, cached=row.cached)


def stepper_of(parts: Backbone, config: Config, *, cached: bool = False) -> Stepper:
    """A training step of the method on a batch. The step returns the global branch's loss before it."""
    model, optimisers = made(parts, config)
    loss, both = methods.get(config.method).loss, list(optimisers.values())
    kept: dict[int, Batch] = {}

    def one(batch: Batch) -> float:
        if cached and id(batch) not in kept:
            with autocast(torch.device("cpu"), config.train.precision):
                kept[id(batch)] = Batch(model.stem(batch.image).bfloat16().float(), batch.label, stemmed=True)
        return step(model, kept.get(id(batch), batch), both, loss, config)["global"].item()

    return one


def made(parts: Backbone, config: Config, device: str = "cpu") -> tuple[Branches, Optimisers]:
    """The method's branches on a device, as at the start of its first round, and their optimisers."""
    method, model = methods.get(config.method), branches(parts, config)
    part = method.partition(model, config)
    model.to(device).train()
    method.merge(model, config, Here())
    return model, make_optimisers(model, part, config.train)


def branches(parts: Backbone, config: Config) -> Branches:
    """The method's branches. The job's seed draws what is not pretrained."""
    parts.encoder.requires_grad_(False)
    return methods.get(config.method).model(parts, config)


def batch(size: int, count: int, seed: int) -> Batch:
    """A batch of noise, with blobs as labels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, size, size, generator=generator)
    smooth = F.avg_pool2d(torch.randn(count, 1, 256, 256, generator=generator), 31, 1, 15)
    return Batch(image, (smooth[:, 0] > 0.02).long())


if __name__ == "__main__":
    main()
