"""What each part of a trained model is worth: benchmarks/parts.py OUT --task TASK --row ROW [--seed SEED].

It measures the personal branch's Dice on the validation split after taking a part out of the trained model. Nothing is
trained again. The parts are the private part, and the encoder's shared LoRAs by their layer. OUT is a folder of
sweep.py, which must still have the run's store.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from reopened import reopened
from suites import NAMES
from sweep import Run, done, rows

from pfedsam.errors import UserFault
from pfedsam.model.lora import Adapted, LoRA
from pfedsam.model.watch import without_experts
from pfedsam.site import Site


def main() -> None:
    """Print a table of a run, with a line for each site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--row", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        print("\n".join(table(options.out, options.task, options.row, options.seed)))
    except UserFault as fault:
        sys.exit(f"{fault}")


def table(out: Path, task: str, row: str, seed: int) -> list[str]:
    """The lines of the table.

    Raises:
        UserFault: there is no such row or run, or its store is gone.
    """
    known = {found.name: found for found in rows(list(NAMES), task)}
    if row not in known:
        raise UserFault(expected=f"a row among {', '.join(known)}", came=row, do="correct --row")
    run = Run(task, known[row], seed)
    done(run, out, None)  # raises if it had other settings
    found = {site.name: worth(site) for site, _ in reopened(run, out)}
    head = ["", *next(iter(found.values()))]
    cells = [[name, *(f"{dice:.3f}" for dice in of_site.values())] for name, of_site in found.items()]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in cells)]


def worth(site: Site) -> dict[str, float]:
    """Dice of a site's personal branch without one of its parts, by what was taken out."""
    by_layer: dict[str, list[LoRA]] = {}
    personal = site.model[site.method.personal]
    for name, module in personal.encoder.named_modules():
        if isinstance(module, Adapted):
            by_layer.setdefault(name.rsplit(".", 1)[-1], []).append(module.lora)
    every = [lora for of_layer in by_layer.values() for lora in of_layer]
    found = {"as trained": dice(site)}
    with without_experts(personal):
        found["without the private part"] = dice(site)
    for layer, loras in by_layer.items():
        with without(loras):
            found[f"without LoRA at {layer}"] = dice(site)
        with without([lora for lora in every if lora not in loras]):
            found[f"with LoRA at {layer} alone"] = dice(site)
    with without(every):
        found["without any"] = dice(site)
    return found


def dice(site: Site) -> float:
    """Dice of the personal branch on the validation split. 0 if nothing could be scored."""
    return float(site.summary("val", "personal")["dice"] or 0.0)


@contextmanager
def without(loras: Sequence[LoRA]) -> Iterator[None]:
    """Within the context, these LoRAs add nothing."""
    held = [lora.b.weight.detach().clone() for lora in loras]
    with torch.no_grad():
        for lora in loras:
            lora.b.weight.zero_()
        yield
        for lora, weight in zip(loras, held, strict=True):
            lora.b.weight.copy_(weight)


if __name__ == "__main__":
    main()
