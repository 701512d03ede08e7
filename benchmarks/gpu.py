"""A training step on a GPU, each way of taking it beside SAM as published in float32: benchmarks/gpu.py --help.

It needs a GPU. `make bench-gpu` runs it and recording.py. What does not gain stays off, or goes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import attention
import torch
from machine import Table, interleaved, keepable, median, publish
from recording import TINY, VIT_B, steps
from stock import StockSAM, adapted, stepper
from torch import Tensor, nn
from training_step import batch, state_of

from pfedsam.config import Config
from pfedsam.data.dataset import Batch
from pfedsam.model import moe, vit
from pfedsam.model.segmenter import Branches
from pfedsam.settings import from_dict

Stepper = Callable[[Batch], float]


@dataclass(frozen=True)
class Way:
    """How a step is taken: the method, changes of `train` and `model`, and the names of `SWITCHES` that are on."""

    method: str = "fedavg"
    train: dict[str, object] = field(default_factory=dict)
    model: dict[str, object] = field(default_factory=dict)
    switches: tuple[str, ...] = ()


RECORDED: dict[str, object] = {"record": True}
PLAIN: dict[str, object] = {"experts": 0, "experts_rank": 8}  # a private adapter, as the jobs have it
CONVS: dict[str, object] = {"experts": 4, "expert": "conv"}
WAYS = {
    "plain, float32": Way(train={"precision": "fp32"}),
    "plain, bf16": Way(),
    "plain, recorded": Way(train=RECORDED),
    "plain, fused attention": Way(switches=("fused",)),
    "two branches": Way("pfedsam", model=PLAIN),
    "two branches, recorded": Way("pfedsam", RECORDED, PLAIN),
    "two branches, recorded, fused attention": Way("pfedsam", RECORDED, PLAIN, ("fused",)),
    "two branches, four experts": Way("pfedsam"),
    "two branches, four experts, recorded": Way("pfedsam", RECORDED),
    "two branches, four convolutions": Way("pfedsam", model=CONVS),
    "two branches, four convolutions, only the chosen run": Way("pfedsam", model=CONVS, switches=("chosen",)),
    "plain, compiled": Way(switches=("compiled",)),  # the last, as it takes minutes
}


def main() -> None:
    """Measure, print a table for each model, and keep them if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600, help="begin no row after so many")
    options = keepable(parser).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("expected a GPU; came none; to mend it: run this where torch.cuda.is_available() is true")
    until = time.monotonic() + options.seconds
    for model in (TINY, VIT_B):
        where = f"batch {options.batch}, {torch.cuda.get_device_name()}"
        title = f"A training step on a GPU: {shape_of(model)}, {where}"  # a record's name has only a title's beginning
        publish(title, table(model, options.batch, options.runs, until), keep=options.keep)


def table(model: dict[str, object], size: int, runs: int, until: float) -> Table:
    """Milliseconds of a step and how many times as fast as stock, of the rows that begin before that time."""
    shape = shape_of(model)
    one = batch(int(str(model["image_size"])), size, 0)
    took: dict[str, float] = {}
    names = [name for name in WAYS if model is VIT_B or "fused" not in WAYS[name].switches]  # TinyViT's has a mask
    for name in ("stock, float32", *names):
        if took and time.monotonic() > until:
            print(f"{shape}: no time for {name}", file=sys.stderr, flush=True)
            continue
        with ExitStack() as stack:
            take = ours(model, name, size, stack) if name in WAYS else stock(model)
            took[name] = median(interleaved({name: partial(finished, take, one)}, runs, warmup=4))[name]
        print(f"{shape}, {name}: {took[name] * 1e3:.1f} ms", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    slow = took["stock, float32"]
    columns = {shape: "", "ms": ".1f", "times as fast as stock": ".2f"}
    return Table(columns, [[name, s * 1e3, slow / s] for name, s in took.items()])


def shape_of(model: dict[str, object]) -> str:
    """A model in words."""
    return f"{model['backbone']}, {model['image_size']} px"


def finished(take: Stepper, one: Batch) -> None:
    """A step, waited for."""
    take(one)
    torch.cuda.synchronize()


def stock(model: dict[str, object]) -> Stepper:
    """SAM as published, with the same LoRA."""
    config = from_dict({"method": "fedavg", "model": model})
    return stepper(adapted(published(config), config.model.lora_rank, on=config.model.lora_on).cuda(), config)


def published(config: Config) -> StockSAM:
    """SAM's published modules on MobileSAM's weights, or on drawn ones."""
    backbone, size = config.model.backbone, config.model.image_size
    return StockSAM(backbone, size, state_of(backbone, size))


def ours(model: dict[str, object], name: str, size: int, stack: ExitStack) -> Stepper:
    """One of `WAYS`. Its switches hold until `stack` is closed."""
    way = WAYS[name]
    train = {"batch_size": size, **way.train}
    config = from_dict({"method": way.method, "model": {**model, **way.model}, "train": train})
    for switch in set(way.switches) & SWITCHES.keys():
        stack.enter_context(SWITCHES[switch]())
    return steps(config, compiled if "compiled" in way.switches else lambda _: None)


@contextmanager
def fused() -> Iterator[None]:
    """Torch's fused attention at any number of keys."""
    with patch.object(vit, "attended", attention.fused):
        yield


@contextmanager
def chosen() -> Iterator[None]:
    """Each expert on the images that chose it, which waits for the GPU, instead of all experts on all images.

    In float32 without casts, as all experts run on a GPU: else the row would differ in its precision too.
    """
    mix = moe.mix

    def in_float32(h: Tensor, experts: Iterable[nn.Module], weights: Tensor, who: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            return mix(h.float(), experts, weights, who).to(h.dtype)

    with patch.object(moe, "runs_all", lambda _: False), patch.object(moe, "mix", in_float32):
        yield


def compiled(model: Branches) -> None:
    """Compile the encoder's blocks and the decoder, each by itself, so that equal blocks are compiled once."""
    for branch in (model[name] for name in model.names()):
        for part in (*branch.encoder.units, branch.decoder):
            part.compile(dynamic=False)


SWITCHES = {"fused": fused, "chosen": chosen}

if __name__ == "__main__":
    main()
