"""What every speed table needs: the machine in words, its peaks measured in the same run, fair timing, a record."""

import argparse
import json
import os
import platform
import re
import statistics as st
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pfedsam.train.precision import has_bf16

ROOT = Path(__file__).parent.parent
SYSTEMS = ROOT / "benchmarks/results/systems"


VIT_B = (  # settings of a job on ViT-B without a weight file, one step a round
    "model.backbone=vit_b",
    "model.pretrained=false",
    "train.max_steps=1",
    "train.batch_size=1",
    "data.train=2",
    "data.val=1",
    "data.test=1",
)


def simulator(job: Path, workspace: Path, threads: int) -> list[str]:
    """The command that runs a job in FLARE's simulator."""
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace)]
    return [*command, "-t", str(threads)]


def interleaved(
    actions: dict[str, Callable[[], object]],
    runs: int,
    warmup: int = 1,
    *,
    before: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action in each run; the actions take turns, so that a slow minute slows them all.

    Args:
        before: how often an action runs untimed in its turn, first: its data are in the cache then, as in a series.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(warmup + runs):
        for name, action in actions.items():
            for _ in range(before):
                action()
            began = clock()
            action()
            if run >= warmup:
                seconds[name].append(clock() - began)
    return seconds


def median(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The middle of each row."""
    return {name: st.median(row) for name, row in seconds.items()}


def peaks(size: int = 2048, runs: int = 5) -> str:
    """Matrix product and memory copy, in words, measured now. bfloat16 only where there is hardware for it."""
    a = torch.randn(size, size)
    b, block = a.bfloat16(), torch.empty(64 * 2**20)
    ways: dict[str, Callable[[], object]] = {"float32": lambda: a @ a, "copy": lambda: block.clone()}
    if bf16 := has_bf16(torch.device("cpu")):
        ways["bfloat16"] = lambda: b @ b
    took = median(interleaved(ways, runs))
    rate = {name: 2 * size**3 / took[name] / 1e9 for name in ways if name != "copy"}
    other = f"{rate['bfloat16']:.0f} bfloat16" if bf16 else "no bfloat16 hardware"
    return (
        f"matrix product {rate['float32']:.0f} GFLOP/s float32, {other}; "
        f"memory {2 * block.nbytes / took['copy'] / 1e9:.1f} GB/s"
    )


@dataclass(frozen=True)
class Table:
    """A measured table: its columns with the format of their numbers ("" for words), and its rows."""

    columns: dict[str, str]
    rows: Sequence[Sequence[str | float]]

    def lines(self) -> list[str]:
        """The table in Markdown."""
        told = [[shown(*cell) for cell in zip(row, self.columns.values(), strict=True)] for row in self.rows]
        return markdown(list(self.columns), told)


def shown(value: str | float, form: str) -> str:
    """A cell's value in words."""
    return value if isinstance(value, str) else format(value, form)


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    first, *rest = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [first, "|---" * len(head) + "|", *rest]


def keepable(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with --keep, which all of these scripts have."""
    parser.add_argument("--keep", action="store_true", help=f"write a record into {SYSTEMS.relative_to(ROOT)}")
    return parser


def publish(title: str, *tables: Table, notes: Sequence[str] = (), keep: bool = False, folder: Path = SYSTEMS) -> None:
    """Print what was measured; where it is to be kept, write it as a record of its own, of which a page is made.

    Args:
        title: what was measured, the same each time that it is.
        notes: sentences below the tables.
    """
    print("\n".join([title, *(line for table in tables for line in ["", *table.lines()]), "", *notes]))
    if keep:
        date = time.strftime("%Y-%m-%d")
        found = {"title": title, "date": date, "commit": commit(), "machine": machine(), "command": command()}
        measured = {"tables": [asdict(table) for table in tables], "notes": [*notes]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{slug(title)}.{date}.json").write_text(json.dumps(found | measured, indent=1) + "\n")


def slug(title: str) -> str:
    """A title as a piece of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower())[:48].strip("_")


def commit() -> str:
    """This checkout's, as git describes it."""
    asked = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def command() -> str:
    """What was typed, from the checkout's root."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(a for a in sys.argv[1:] if a != "--keep")])


def machine() -> str:
    """This machine and its peaks, in words."""
    threads = torch.get_num_threads()
    taken = f"{threads} thread{'s' * (threads > 1)} of {os.cpu_count()} cores"
    where = f"{taken}, {_processor()}, torch {torch.__version__}"
    return f"{where}; {peaks()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    extras = [flag for flag in ("avx512_bf16", "amx_bf16") if any(f" {flag}" in line for line in lines)]
    return " with ".join([name, *extras])
