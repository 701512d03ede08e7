"""What torch.compile would bring to a training step on a CPU, in a first process and in later ones: compiled.py --help.

A row is of two new processes with one folder of Inductor's caches: empty for the first, for the second as the first
left it. Each takes the step uncompiled too, so that a gain is a ratio within one process. They use one thread, and
times are CPU seconds where they can be, so that other programs on the machine change little. It needs a C++ compiler,
and PFEDSAM_WEIGHTS.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from machine import ROOT, Table, interleaved, keepable, median, publish
from torch import Tensor
from training_step import Case, Row, batch, made, state_of

from pfedsam import methods
from pfedsam.model.backbones import BUILDERS
from pfedsam.model.segmenter import Branches
from pfedsam.model.tinyvit import TinyViTBlock
from pfedsam.train.step import step

LIMIT = 600  # seconds of a process
LEAST_GAIN, MOST_SECONDS = 1.1, 10  # when `train.compile` would be offered
COLUMNS = {
    "method": "",
    "compiled": "",
    "first step, empty caches, s": ".0f",
    "first step, kept caches, s": ".1f",
    "in CPU s": ".1f",
    "step uncompiled, CPU s": ".3f",
    "step compiled, CPU s": ".3f",
    "times as fast": ".2f",
    "rule holds": "",
}
NOTES = [
    "The first step is timed after uncompiled ones in the same process: importing torch and reading the weights "
    "do not count, all of its compiling does.",
    "One thread. Other programs may have run beside it, so the rule compares CPU seconds. With empty caches compilers "
    "run in processes of their own, so that column has seconds of the clock.",
    "A later process also keeps the cache of torch's autograd graphs. Tracing the model again is what it still does.",
    "Each window's position terms are looked up by their size here. As the model does it, each look-up ends a graph.",
]


@dataclass(frozen=True)
class Timed:
    """What a process measured: seconds of the first compiled step, by clock and CPU; medians of later ones, by CPU."""

    first: float
    first_cpu: float
    plain: float
    compiled: float

    @property
    def gain(self) -> float:
        """How many times as fast the compiled step is."""
        return self.plain / self.compiled

    @property
    def offered(self) -> bool:
        """Whether a later process that measured this keeps the rule."""
        return self.first_cpu < MOST_SECONDS and self.gain >= LEAST_GAIN


def whole(model: Branches) -> None:
    """Compile all of the model's forward as one."""
    model.compile(dynamic=False)


def blocks(model: Branches) -> None:
    """Compile each unit of each encoder by itself, so that equal ones are compiled once."""
    for unit in (unit for name in model.names() for unit in model[name].encoder.units):
        unit.compile(dynamic=False)


WAYS: dict[str, Callable[[Branches], None]] = {"blocks": blocks, "whole": whole}
LABELS = {"blocks": "the encoder's blocks, one by one", "whole": "the whole model"}


def main() -> None:
    """Measure each row, print one table, and keep it if asked. A process that `main` started measures one row."""
    options = arguments()
    torch.set_num_threads(1)
    if options.one:
        case = Case(options.backbone, options.size, state_of(options.backbone, options.size))
        print(json.dumps(asdict(timed(*options.one, case=case, runs=options.runs))))
        return
    rows = [row(method, way, options) for method in options.methods for way in options.ways]
    title = f"Compiling a training step: {options.backbone}, {options.size} px, batch 1"
    publish(title, Table(COLUMNS, rows), notes=[*NOTES, verdict(rows)], keep=options.keep)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", choices=("vit_b", "tiny_vit"), default="tiny_vit")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--methods", nargs="+", default=["fedavg", "pfedsam"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--runs", type=int, default=61, help="steps whose median counts")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds after which a process is ended")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "WAY"), help="measure in this process, print JSON")
    return keepable(parser).parse_args()


def timed(method: str, way: str, *, case: Case, runs: int) -> Timed:
    """The seconds of steps in this process. The first compiles. The second, which may compile more, is left out."""
    plain, compiled = take(method, lambda _: None, case), take(method, WAYS[way], case)
    clock, cpu = time.perf_counter(), time.process_time()
    compiled()
    first, first_cpu = time.perf_counter() - clock, time.process_time() - cpu
    took = median(interleaved({"plain": plain, "compiled": compiled}, runs, clock=time.process_time))
    return Timed(first, first_cpu, took["plain"], took["compiled"])


def take(method: str, prepare: Callable[[Branches], None], case: Case) -> Callable[[], object]:
    """A step of a method on one image, after one uncompiled step. `prepare` may then compile the model."""
    config = case.config(Row(method))
    model, optimisers = made(BUILDERS[case.backbone](case.size, case.state), config)
    one = batch(case.size, 1, 0)
    take = partial(step, model, one, list(optimisers.values()), methods.get(method).loss, config)
    take()
    for block in (module for module in model.modules() if isinstance(module, TinyViTBlock)):
        look_up(block)
    prepare(model)
    return take


def look_up(block: TinyViTBlock) -> None:
    """Let a block find its frozen position terms, which it has made by now, by the window's size alone."""
    found: dict[tuple[object, ...], Tensor] = {key[:2]: value for key, value in block._frozen.items()}
    block._bias = lambda height, width: found[height, width]  # type: ignore[method-assign]


def row(method: str, way: str, options: argparse.Namespace) -> list[str | float]:
    """A row of the table: a process with empty caches, and if it ended in time, one with those that it left."""
    with tempfile.TemporaryDirectory() as caches:
        cold = process(method, way, Path(caches), options)
        warm = cold and process(method, way, Path(caches), options)
    print(f"{method}, {way}: {cold}, {warm}", file=sys.stderr, flush=True)  # as they come: a row takes minutes
    first = cold.first if cold else f"over {options.limit}"
    if warm is None:
        return [method, LABELS[way], first, *[""] * 5, "no"]
    steps = [warm.first, warm.first_cpu, warm.plain, warm.compiled, warm.gain]
    return [method, LABELS[way], first, *steps, "yes" if warm.offered else "no"]


def process(method: str, way: str, caches: Path, options: argparse.Namespace) -> Timed | None:
    """What a new process measured with these caches. None: it took longer than the limit, and was ended."""
    given = ["--backbone", options.backbone, "--size", str(options.size), "--runs", str(options.runs)]
    command = [sys.executable, __file__, "--one", method, way, *given]
    pipe, env = subprocess.PIPE, environment(caches)
    child = subprocess.Popen(command, env=env, stdout=pipe, text=True, start_new_session=True)
    try:
        out, _ = child.communicate(timeout=options.limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with its compilers
        child.communicate()
        return None
    if child.returncode:
        raise SystemExit(f"{method}, {way}: the process ended with {child.returncode}; what it said is above")
    return Timed(**json.loads(out.splitlines()[-1]))


def environment(caches: Path) -> dict[str, str]:
    """That of a process which keeps what Inductor makes in a folder, with this checkout's package."""
    path = os.pathsep.join([str(ROOT / "custom"), os.environ.get("PYTHONPATH", "")])
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(caches), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    return {**os.environ, **kept, "TORCHINDUCTOR_AUTOGRAD_CACHE": "1", "PYTHONPATH": path}


def verdict(rows: list[list[str | float]]) -> str:
    """Whether a row keeps the rule, in words."""
    held = [f"{row[0]}, {row[1]}" for row in rows if row[-1] == "yes"]
    told = f"The rule holds for {'; '.join(held)}." if held else "The rule holds for no row, so it is not offered."
    return (
        f"The rule: `train.compile` is offered if the first step of a later process takes less than {MOST_SECONDS} s "
        f"and a step is {LEAST_GAIN} times as fast or more. {told}"
    )


if __name__ == "__main__":
    main()
