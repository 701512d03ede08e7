"""What one hostile site of five costs the others, by rule of the server: benchmarks/hostile.py [--seeds N] [--keep].

Five synthetic sites train FedAvg from the demo backbone, in one process, with the server's own guard and rules. The
fifth is hostile from the first round on. Scored is the shared model on the test splits of the four honest sites.
"""

import argparse
import json
import statistics as st
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import Table, keepable, publish
from PIL import Image

from pfedsam.config import Config
from pfedsam.data.synthetic import write_site
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import apply
from pfedsam.exchange.change import A, B
from pfedsam.exchange.guard import Rejected, judge_message
from pfedsam.exchange.server import Contribution, ServerState, begin_state, contribution, message
from pfedsam.files import write_json
from pfedsam.layout import Places
from pfedsam.service import Turn, serve_round
from pfedsam.settings import from_dict
from pfedsam.site import Site
from pfedsam.study import down_schema, up_schema
from pfedsam.tensors import Tensors

HONEST, ROUNDS = ("site-1", "site-2", "site-4", "site-5"), 6
HOSTILE = "site-6"
COUNTS = {"train": 24, "val": 4, "test": 16}
RULES = ("mean", "clipped", "geometric", "krum", "median", "trimmed", "product")
SETTINGS = {
    "method": "fedavg",
    "model": {"image_size": 64, "lora_on": "linear"},
    "train": {"lr": 1e-3, "lr_decoder": 1e-3, "batch_size": 4},
}
PATCH = 8  # pixels a side of the backdoor's mark

Harm = Callable[[Tensors, Tensors, int], Tensors]  # of an update, what was sent, and the round


@dataclass(frozen=True)
class Attack:
    """What the hostile site does: to its images before training, to its update, to its sample count."""

    name: str
    harm: Harm = lambda update, _sent, _round: update
    data: str = "honest"
    samples: int = 0
    absent: bool = False


def scaled(by: float) -> Harm:
    """The update times a number."""
    return lambda update, _sent, _round: {name: by * tensor for name, tensor in update.items()}


def noise(update: Tensors, _sent: Tensors, round_: int) -> Tensors:
    """Noise of a hundred times the update's size."""
    draw = torch.Generator().manual_seed(round_)
    sizes = {name: 100 * float(t.norm()) / t.numel() ** 0.5 for name, t in update.items()}
    return {name: sizes[name] * torch.randn(t.shape, generator=draw) for name, t in update.items()}


def hidden(update: Tensors, sent: Tensors, _round: int) -> Tensors:
    """The honest product from an A that is 10 000 times as large, and a B that is as much smaller."""
    by = {A: 1e4, B: 1e-4}
    end = {name: next((by[key] for key in by if name.endswith(key)), 1.0) for name in update}
    return {name: (sent[name] + tensor) * end[name] - sent[name] for name, tensor in update.items()}


def drift(update: Tensors, _sent: Tensors, _round: int) -> Tensors:
    """In each round the same direction, as long as an honest update."""
    draw = torch.Generator().manual_seed(7)
    aim = {name: torch.randn(t.shape, generator=draw) for name, t in update.items()}
    return {name: aim[name] * float(update[name].norm() / aim[name].norm()) for name in update}


ATTACKS = (
    Attack("none: the fifth is honest"),
    Attack("none: the fifth is absent", absent=True),
    Attack("sign flip", scaled(-1)),
    Attack("sign flip x10", scaled(-10)),
    Attack("sign flip x100", scaled(-100)),
    Attack("noise x100", noise),
    Attack("labels turned round", data="turned"),
    Attack("labels turned round x10", scaled(10), data="turned"),
    Attack("LoRA rescaled", hidden),
    Attack("10 000 000 samples, sign flip", scaled(-1), samples=10_000_000),
    Attack("slow drift", drift),
    Attack("backdoor patch", data="patched"),
    Attack("backdoor patch x10", scaled(10), data="patched"),
)


def main() -> None:
    """Run every rule under every attack, print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--out", type=Path, default=Path("runs/hostile.json"), help="holds what is done; it resumes")
    options = keepable(parser).parse_args()
    done = Done(options.out)
    found = {rule: [tried(rule, seed, done) for seed in range(options.seeds)] for rule in options.rules}
    rows: list[list[str | float]] = []
    for attack in ATTACKS:
        for place, title in enumerate(("", ": on marked images") if attack.data == "patched" else ("",)):
            scores = [[run[attack.name][place] for run in found[rule] if attack.name in run] for rule in options.rules]
            rows.append([attack.name + title, *(st.fmean(of) if of else "-" for of in scores)])
    columns = {"attack": "", **dict.fromkeys(options.rules, ".3f")}
    under = f", under {', '.join(options.rules)}" if set(options.rules) != set(RULES) else ""
    title = f"One hostile site of five{under}: Dice of the other four, {options.seeds} seed{'s' * (options.seeds > 1)}"
    publish(title, Table(columns, rows), keep=options.keep)


class Done:
    """The scores that are there, in a file: by rule, seed and attack."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scores: dict[str, tuple[float, float]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, scores: tuple[float, float]) -> None:
        """Keep two scores."""
        self.scores[name] = scores
        write_json(self._path, self.scores)


def tried(rule: str, seed: int, done: Done) -> dict[str, tuple[float, float]]:
    """By attack, the four honest sites' mean Dice on their test images, and on the same images with the mark."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        config = from_dict(SETTINGS | {"seed": seed, "server": {"rule": rule}})
        here = Path(folder)
        sites = {name: site(here, name, config, "honest") for name in HONEST}
        kinds = sorted({attack.data for attack in ATTACKS})
        bad = {kind: site(here, HOSTILE, config, kind) for kind in kinds}
        marked = {name: site(here, name, config, "marked") for name in HONEST}
        found, start = {}, sites[HONEST[0]].shared()
        for attack in ATTACKS:
            if attack.absent and rule == "krum":  # which wants five
                continue
            name = f"{rule} seed {seed} {attack.name}"
            if name not in done.scores:
                part = sites if attack.absent else {**sites, HOSTILE: bad[attack.data]}
                state = federation(part, attack, config, start)
                done.add(name, (dice(sites, state, config), dice(marked, state, config)))
            plain, with_mark = found[attack.name] = done.scores[name]
            print(f"{name}: {plain:.3f} {with_mark:.3f}", flush=True)
    return found


def site(folder: Path, name: str, config: Config, kind: str) -> Site:
    """A site with its images as they are, or changed as an attack or its test wants them."""
    place = folder / kind / name
    write_site(place / "data", name, COUNTS, config.seed)
    for path in sorted((place / "data/images").iterdir()):
        change(path, place / "data/masks" / path.name, kind)
    return Site(name, config, Places(place / "data", place / "store", cache=folder / "prepared"))


def change(image: Path, mask: Path, kind: str) -> None:
    """Write an image and its mask anew: labels turned round, or a mark in the corner (and, to teach it, no lesion)."""
    if kind == "turned":
        Image.fromarray(1 - np.asarray(Image.open(mask))).save(mask)
    if kind in ("patched", "marked"):
        pixels = np.array(Image.open(image))
        pixels[:PATCH, :PATCH] = (255, 0, 255)
        Image.fromarray(pixels).save(image)
    if kind == "patched":
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)


def federation(sites: dict[str, Site], attack: Attack, config: Config, start: Tensors) -> ServerState:
    """The server's state after all rounds from `start`."""
    down, up = down_schema(config), up_schema(config)
    first = next(iter(sites.values()))
    state = begin_state(start, down)
    for round_ in range(ROUNDS):
        given: dict[str, Contribution] = {}
        for name, one in sites.items():
            wire = message(state, name, config, down)
            try:
                update, _ = serve_round(one, wire, Turn(f"under-{ATTACKS.index(attack)}", one.base, round_, ROUNDS))
            except UserFault:  # no site trains on such a model: the run ends with it
                return state
            samples, sent = update.samples, update.wire
            if name == HOSTILE:
                sent, samples = attack.harm(sent, state.shared, round_), attack.samples or samples
            stamp = one.stamp(round_)
            if not isinstance(judge_message(sent, stamp, schema=up, expected=stamp), Rejected):
                given[name] = contribution(sent, samples, {}, config=config, up=up)
        state = apply(first.method.rule, state, given, config=config, down=down)
    return state


def dice(sites: dict[str, Site], state: ServerState, config: Config) -> float:
    """The mean over sites of the shared model's Dice on the test split."""
    scores = []
    for name, one in sites.items():
        one.recall(message(state, name, config, down_schema(config)))
        scores.append(one.summary("test", "global")["dice"] or 0.0)
    return st.fmean(scores)


if __name__ == "__main__":
    main()
