"""Seconds of a step on a GPU, run directly and as a recording: benchmarks/recording.py --help. It needs a GPU."""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from machine import Table, keepable, publish
from training_step import batch, made

from pfedsam import methods
from pfedsam.config import Config, ModelConfig
from pfedsam.data.dataset import Batch
from pfedsam.model import weights
from pfedsam.model.backbones import BUILDERS
from pfedsam.model.prepared import round_matrices
from pfedsam.model.segmenter import Branches
from pfedsam.settings import from_dict
from pfedsam.train.loop import set_rate
from pfedsam.train.precision import computes_bf16
from pfedsam.train.step import Steps

STEPS, WARM = 20, 3
TINY = {"backbone": "tiny_vit", "image_size": 256, "lora_on": "linear"}  # as the real jobs
VIT_B = {"backbone": "vit_b", "image_size": 1024}
CASES = [
    ("fedavg", TINY, 2),
    ("pfedsam", TINY, 2),
    ("pfedsam", TINY, 8),
    ("fedavg", VIT_B, 2),
    ("pfedsam", VIT_B, 2),
    ("fedms_sam", TINY, 2),
    ("iat", TINY, 2),
]

COLUMNS = {
    "method": "",
    "model": "",
    "batch": "d",
    "as it stands, ms": ".1f",
    "recorded, ms": ".1f",
    "times as fast": ".2f",
    "losses apart": ".1e",
}


def main() -> None:
    """Measure, print one table, and keep it if asked."""
    options = keepable(argparse.ArgumentParser(description=__doc__)).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("expected a GPU; came none; to mend it: run this where torch.cuda.is_available() is true")
    lines = []
    for case in CASES:
        lines.append(line(*case))
        print(lines[-1], file=sys.stderr, flush=True)  # as they come: a GPU may be lent for minutes
    title = f"A recorded step: {torch.cuda.get_device_name()}"
    publish(title, Table(COLUMNS, lines), keep=options.keep)


def line(method: str, model: dict[str, object], size: int) -> list[str | float]:
    """One row: the median of the steps after the first few, and the largest relative difference of their losses."""
    shape = f"{model['backbone']}, {model['image_size']} px"
    batches = [batch(int(str(model["image_size"])), size, seed) for seed in range(STEPS)]
    found = {}
    for record in (False, True):
        train = {"batch_size": size, "record": record, "lr": 1e-3, "lr_decoder": 1e-4}
        found[record] = run(from_dict({"method": method, "model": model, "train": train}), batches)
        torch.cuda.empty_cache()
    (slow, expected), (fast, came) = found[False], found[True]
    apart = max(abs(a / b - 1) for a, b in zip(came, expected, strict=True))
    return [method, shape, size, slow * 1e3, fast * 1e3, slow / fast, apart]


def run(config: Config, batches: list[Batch]) -> tuple[float, list[float]]:
    """The median seconds of a step after the first few, and the losses of all steps."""
    take, seconds, losses = steps(config), [], []
    for one in batches:
        began = time.perf_counter()
        losses.append(take(one))
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[WARM:])[len(seconds[WARM:]) // 2], losses


def steps(config: Config, prepare: Callable[[Branches], None] = lambda _: None) -> Callable[[Batch], float]:
    """A method's step with a new model on the GPU. The step returns the sum of its losses.

    Args:
        prepare: called with the model before its first step.
    """
    torch.manual_seed(0)
    state = weights.read(ModelConfig(backbone="tiny_vit")) if config.model.backbone == "tiny_vit" else None
    parts = BUILDERS[config.model.backbone](config.model.image_size, state)
    method = methods.get(config.method)
    if not method.trains and computes_bf16(torch.device("cuda"), config.train.precision):
        round_matrices(parts.encoder)
    model, optimisers = made(parts, config, "cuda")
    prepare(model)
    take = Steps(model, method.loss, config)
    for optimiser in optimisers.values():
        set_rate(optimiser, 1.0, 0)

    def one(batch: Batch) -> float:
        with take.stream():
            return sum(value.item() for value in take(batch, optimisers).values())

    return one


if __name__ == "__main__":
    main()
