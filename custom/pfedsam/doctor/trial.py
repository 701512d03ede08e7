"""A small real run of a configuration in a separate process: the cost of a step, a score and a round here.

A real run's own functions do all the work. Guard, ledger, the server's mean and its checkpoint are left out: they are
small beside a round of steps, and `needs` counts them by the message's bytes.
"""

import copy
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import psutil
import torch

from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, Dataset, View
from pfedsam.exchange.aggregate import apply
from pfedsam.exchange.codec import wire_schema
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.server import begin_state, contribution, message
from pfedsam.layout import Places
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.site import Site
from pfedsam.study import down_schema, up_schema
from pfedsam.tensors import Tensors
from pfedsam.train.patients import patients_of
from pfedsam.train.precision import best_device
from pfedsam.train.prefix import prefix

RUN, ROUNDS = "trial", 3  # one to warm up, and two that count
CASES = 4  # scored cases of a split
GPU = best_device().type == "cuda"
WARM_UP = 4 if GPU else 2  # steps of the first round; a GPU runs its first two unrecorded, and records them
FEWEST, MOST = (32, 64) if GPU else (2, 16)  # steps of a measured round; a GPU records anew in each


@dataclass(frozen=True)
class Trial:
    """What one process measured, in seconds and bytes.

    Attributes:
        ready: from the process's start until the site can serve.
        slices: the number of all slices in each split.
        step_new, step: a training step whose images are not yet in the cache of the frozen front, and a later one;
            equal without such a cache.
        validation, final: scoring one slice in a round, and in the final test with distances.
        round: a round's other work at the site, besides training and scoring.
        test: the final test's other work, besides scoring: pictures, private part.
        entry: bytes of one view in the cache of the frozen front; 0 without a cache.
        private: bytes of one generation in the site store.
        memory: bytes of the server rule's memory: independent of the number of sites, and per site.
        idle: memory after imports, without mapped files.
        peak, vram: the highest memory use, in RAM and on the GPU.
        mapped: the mapped files in the peak (libraries, the base). All processes of one machine share them.
        got: the share of processor time that its threads got; about 1 on an otherwise idle machine.
        patients: the number of training patients.
    """

    ready: float
    slices: dict[str, int]
    step_new: float = 0.0
    step: float = 0.0
    validation: float = 0.0
    final: float = 0.0
    round: float = 0.0
    test: float = 0.0
    entry: int = 0
    private: int = 0
    memory: tuple[int, int] = (0, 0)
    idle: int = 0
    mapped: int = 0
    peak: int = 0
    vram: int = 0
    got: float = 1.0
    patients: int = 0


def begin(flare: bool) -> None:
    """Start a new process: silence it, and import what a site's job process imports."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os.dup2(silence, sys.stderr.fileno())
    if flare:
        import_module("pfedsam.flare.executor")


def tried(name: str, config: Config, places: Places, *, threads: int, seconds: float) -> Trial:
    """What a site with this configuration needs in this process.

    Args:
        places: the data and weights. The other folders belong to the trial.
        threads: torch threads.
        seconds: about how long training may take. With 0 the site is only opened, which prepares the base model.
    """
    idle = psutil.Process().memory_info().rss - _mapped()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not GPU)
    began, worked = time.monotonic(), time.process_time()
    site = Site(name, config, places)
    ready = time.time() - psutil.Process().create_time()
    counts, patients = {split: len(data) for split, data in site.data.items()}, len(patients_of(site.data["train"]))
    opened = Trial(ready, counts, idle=idle, patients=patients)
    found = rehearse(site, opened, seconds) if seconds else opened
    got = min(1.0, (time.process_time() - worked) / (time.monotonic() - began) / threads)
    vram = torch.cuda.max_memory_reserved() if GPU else 0
    found = replace(found, mapped=_mapped(), peak=peak(), vram=vram, got=got)
    return replace(found, memory=server_memory(site)) if seconds else found  # last: a site does not need it


def rehearse(site: Site, opened: Trial, seconds: float) -> Trial:
    """A warm-up round, two that count, and the final test."""
    train, folder = site.data["train"], site.store.folder
    site.data |= {split: cut(site.data[split], few(site.data[split])) for split in ("val", "test")}
    down = down_schema(site.config)
    wire = message(begin_state(site.shared(), down), site.name, site.config, down)
    cold = one_round(site, wire, 0, WARM_UP)
    steps = max(FEWEST, min(MOST, int(seconds / 2 / cold.step)))
    met = min(len(train), steps * site.config.train.batch_size)
    site.data["train"] = cut(train, list(range(met)))  # so that the second round uses them again
    one, two = one_round(site, wire, 1, steps), one_round(site, wire, 2, steps)
    entry = entry_bytes(site, folder / "probe")
    new, step = (one.step, two.step) if entry else ((one.step + two.step) / 2,) * 2
    scoring, final = min(one.scoring, two.scoring), _took(lambda: site.scores("test"))
    site.validations.clear()
    tested = _took(lambda: serve_test(site, wire, Turn(RUN, site.base, ROUNDS, ROUNDS), folder / "final"))
    return replace(
        opened,
        step_new=new,
        step=step,
        validation=scoring / len(site.data["val"]),
        final=final / len(site.data["test"]),
        round=min(one.rest, two.rest),
        test=max(0.0, tested - final - scoring),
        entry=entry,
        private=max((path.stat().st_size for path in folder.glob("private.*")), default=0),
    )


def server_memory(site: Site) -> tuple[int, int]:
    """Bytes of the method rule's memory: independent of the number of sites, and per site."""
    config, up, down = site.config, up_schema(site.config), down_schema(site.config)
    plain = replace(config, server=replace(config.server, rule="mean"))  # robust ones keep nothing, and want more sites
    begun = begin_state(site.shared(), down)
    nothing = {name: spec.zeros() for name, spec in wire_schema(up, config.wire.up).items()}
    one = contribution(nothing, 1, {}, config=config, up=up)
    sizes = [
        payload_bytes(apply(site.method.rule, begun, dict.fromkeys(names, one), config=plain, down=down).flat())
        for names in ("a", "ab")
    ]
    each = sizes[1] - sizes[0]
    return sizes[0] - each - payload_bytes(begun.shared), each


@dataclass(frozen=True)
class Timed:
    """Seconds of a round: a training step, all scoring, and the rest."""

    step: float
    scoring: float
    rest: float


def one_round(site: Site, wire: Tensors, number: int, steps: int) -> Timed:
    """The seconds of a real round with `steps` steps."""
    full = site.config
    views = 1 if full.train.views else None  # so that a later round finds an earlier round's views in the cache
    train = replace(full.train, max_steps=steps, epochs=max(full.train.epochs, steps), views=views)
    site.config = replace(full, train=train)
    up_schema(site.config), down_schema(site.config)  # kept for the next call
    site.validations.pop(site.method.global_, None)  # a real round brings another model
    began = time.monotonic()
    _, report = serve_round(site, wire, Turn(RUN, site.base, number, ROUNDS))
    rest = time.monotonic() - began - report["seconds"] - report["scoring_seconds"]
    site.config = full
    return Timed(report["seconds"] / steps, report["scoring_seconds"], rest)


def few(data: Dataset) -> list[int]:
    """The slices of the split's first cases and of its largest one, which needs the most memory."""
    cases = list(data.cases())
    largest = max(cases, key=lambda case: len(case) * data.slices[case[0]].shape[0] * data.slices[case[0]].shape[1])
    return sorted({i for case in (*cases[: CASES - 1], largest) for i in case})


def cut(data: Dataset, keep: list[int]) -> Dataset:
    """The split with only these slices."""
    part = copy.copy(data)
    part.slices = [data.slices[i] for i in keep]
    return part


def entry_bytes(site: Site, folder: Path) -> int:
    """Bytes of one view in the cache of the frozen front; 0 if the job has none."""
    front = prefix(site.model, site.config, folder)
    if front is None:
        return 0
    front.batch(site.data["train"], [View(0, PLAIN)], None)
    return front.shelf.used


def peak() -> int:
    """The highest memory use of this process, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _mapped() -> int:
    """Bytes of mapped files in this process's memory; 0 if the system does not say (all but Linux)."""
    return int(getattr(psutil.Process().memory_info(), "shared", 0))


def _took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
