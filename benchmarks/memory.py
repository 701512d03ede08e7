"""Peak memory of training, each row in its own process: python benchmarks/memory.py --help."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from machine import Table, keepable, publish

FULL = "full fine-tuning, stock, float32"
ROWS = ("imports alone", FULL, "LoRA, stock, float32", "LoRA", "two branches")
STEPS = 3


def main() -> None:
    """Run every row, print one table, and keep it if asked."""
    options = arguments()
    if options.row:
        print(json.dumps(measured(options.row, options.base, options.size, options.batch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.safetensors"
        run([*sys.argv[1:], "--row", "prepare", "--base", str(base)])
        peak = {row: run([*sys.argv[1:], "--row", row, "--base", str(base)]) for row in options.rows}
    title = f"Memory of a step: vit_b, {options.size} px, batch {options.batch}"
    publish(title, table(peak), keep=options.keep)


def table(peak: dict[str, float]) -> Table:
    """The table of peaks, beside full fine-tuning's where that was measured."""
    columns, full = {"a process of": "", "peak MiB": ".0f"}, peak.get(FULL)
    if full is None:
        return Table(columns, [[*one] for one in peak.items()])
    return Table(columns | {"of full fine-tuning": ".2f"}, [[row, mib, mib / full] for row, mib in peak.items()])


def arguments() -> argparse.Namespace:
    """The command line. With --row and --base the script calls itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="only these")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    return keepable(parser).parse_args()


def run(arguments: list[str]) -> float:
    """Peak MiB of this script, run with these arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measured(row: str, base: Path, size: int, batch: int) -> float:
    """Peak MiB of this process after the work of `row`."""
    work = prepare if row == "prepare" else train if row.startswith(("LoRA", "two", "full")) else imports
    work(row, base, size, batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def imports(_row: str, _base: Path, _size: int, _batch: int) -> None:
    """Import what every training site needs."""
    import training_step  # noqa: F401


def prepare(_row: str, base: Path, size: int, _batch: int) -> None:
    """Write the base to disk as a site holds it, and once more as published."""
    import torch
    from safetensors.torch import save_file
    from stock import random_state

    from pfedsam.model.backbones import BUILDERS
    from pfedsam.model.prepared import write_base
    from pfedsam.train.precision import has_bf16

    state = random_state(size)
    save_file(state, base.with_suffix(".published"))
    write_base(base, BUILDERS["vit_b"](size, state), bf16=has_bf16(torch.device("cpu")))


def train(row: str, base: Path, size: int, batch: int) -> None:
    """A few steps."""
    import training_step

    step = (_stock if "stock" in row else _ours)(row, base, size)
    for number in range(STEPS):
        step(training_step.batch(size, batch, number))


def _stock(row: str, base: Path, size: int) -> Callable[..., float]:
    from safetensors.torch import load_file
    from stock import StockSAM, adapted, stepper

    from pfedsam.settings import from_dict

    model = StockSAM("vit_b", size, load_file(base.with_suffix(".published")))
    return stepper(adapted(model, 4) if row.startswith("LoRA") else model, from_dict({}))


def _ours(row: str, base: Path, size: int) -> Callable[..., float]:
    import training_step

    from pfedsam.model.prepared import read_base
    from pfedsam.settings import from_dict

    method = "pfedsam" if row.startswith("two") else "fedavg"
    shape = {"backbone": "vit_b", "image_size": size}
    config = from_dict({"method": method, "model": shape})
    found = read_base(base, config.model)
    if found is None:
        raise SystemExit(f"{base} cannot be read")
    return training_step.stepper_of(found[0], config)


if __name__ == "__main__":
    main()
