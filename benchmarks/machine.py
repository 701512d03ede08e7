"""What every speed table needs: the machine in words, its peaks measured in the same run, and fair timing."""

import os
import platform
import statistics as st
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


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


def interleaved(actions: dict[str, Callable[[], object]], runs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each action in each run; the actions take turns, so that a slow minute slows them all."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(warmup + runs):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if run >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def median(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The middle of each row."""
    return {name: st.median(row) for name, row in seconds.items()}


def peaks(size: int = 2048, runs: int = 5) -> str:
    """Matrix product in float32 and bfloat16 and memory copy, in words, measured now."""
    a = torch.randn(size, size)
    b, block = a.bfloat16(), torch.empty(64 * 2**20)
    took = median(interleaved({"fp32": lambda: a @ a, "bf16": lambda: b @ b, "copy": lambda: block.clone()}, runs))
    rate = {name: 2 * size**3 / took[name] / 1e9 for name in ("fp32", "bf16")}
    return (
        f"matrix product {rate['fp32']:.0f} GFLOP/s float32, {rate['bf16']:.0f} bfloat16; "
        f"memory {2 * block.nbytes / took['copy'] / 1e9:.1f} GB/s"
    )


def heading(title: str) -> str:
    """A section's first lines: title, date, commit, machine and its peaks."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    where = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {_processor()}, torch {torch.__version__}"
    return f"## {title}\n\n{time.strftime('%Y-%m-%d')}; commit {commit}; {where}; {peaks()}.\n"


def publish(text: str, append: Path | None) -> None:
    """Print a section, and put it at the end of the results file where one is named."""
    print(text)
    if append is not None:
        with append.open("a") as file:
            file.write("\n" + text.rstrip() + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    extras = [flag for flag in ("avx512_bf16", "amx_bf16") if any(f" {flag}" in line for line in lines)]
    return " with ".join([name, *extras])
