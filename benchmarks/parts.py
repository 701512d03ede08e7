"""What each part of a trained model is worth: benchmarks/parts.py OUT --task TASK --row ROW [--seed SEED].

Dice of the personal branch on the validation split, with a part taken out of the trained model and nothing trained
anew. The parts are the experts and, by the layer they stand beside, the LoRAs of the encoder. OUT is a folder of
sweep.py; the run's store has to be there still.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from suites import NAMES
from sweep import Run, places, record_of, rows, settings, sites

from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoints
from pfedsam.federation import RUN
from pfedsam.model.lora import LoRA, LoRALinear
from pfedsam.site import Site


def main() -> None:
    """Print a table of a run: a line a site."""
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
    folder = run.folder(out)
    config, _ = settings(run, None)
    point = Checkpoints(folder / "store", config.study).load(RUN) if run.ended(out) else None
    if point is None:
        raise UserFault(expected=f"an ended run with its store in {folder}", came="none", do="run it with sweep.py")
    record_of(run, out, None)
    here, found = places(run, out), {}
    for name in sites(run, config):
        site = Site(name, config, here)
        site.recall(point.state.shared, RUN)
        found[name] = worth(site)
    head = ["", *next(iter(found.values()))]
    cells = [[name, *(f"{dice:.3f}" for dice in of_site.values())] for name, of_site in found.items()]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in cells)]


def worth(site: Site) -> dict[str, float]:
    """Dice of a site's personal branch with its parts taken out, by what was done."""
    by_layer: dict[str, list[LoRA]] = {}
    for name, module in site.model[site.method.personal].encoder.named_modules():
        if isinstance(module, LoRALinear):
            by_layer.setdefault(name.rsplit(".", 1)[-1], []).append(module.lora)
    every = [lora for of_layer in by_layer.values() for lora in of_layer]
    found = {"as trained": dice(site)}
    with without_experts(every):
        found["without experts"] = dice(site)
    for layer, loras in by_layer.items():
        with without(loras):
            found[f"without LoRA at {layer}"] = dice(site)
        with without([lora for lora in every if lora not in loras]):
            found[f"with LoRA at {layer} alone"] = dice(site)
    with without(every):
        found["without any"] = dice(site)
    return found


def dice(site: Site) -> float:
    """Of the personal branch, validation split; 0 where nothing could be scored."""
    return float(site.summary("val", "personal")["dice"] or 0.0)


@contextmanager
def without(loras: Sequence[LoRA]) -> Iterator[None]:
    """Within: these LoRAs add nothing."""
    held = [lora.b.weight.detach().clone() for lora in loras]
    with torch.no_grad():
        for lora in loras:
            lora.b.weight.zero_()
        yield
        for lora, weight in zip(loras, held, strict=True):
            lora.b.weight.copy_(weight)


@contextmanager
def without_experts(loras: Sequence[LoRA]) -> Iterator[None]:
    """Within: the bottlenecks of these LoRAs have no experts."""
    held = [lora.mix for lora in loras]
    for lora in loras:
        lora.mix = None
    yield
    for lora, mix in zip(loras, held, strict=True):
        lora.mix = mix


if __name__ == "__main__":
    main()
