"""What hiding single updates from the server costs: benchmarks/secure.py [--sites N] [--runs N] [--keep].

Each way is measured on messages alone, without FLARE and without training. CKKS is measured where `tenseal` can be
imported (pip install tenseal), with the parameters of FLARE's HEBuilder and in the form in which FLARE sends it. This
package does not use it.
"""

import argparse
import importlib
import os
import statistics as st
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import add
from types import ModuleType
from typing import Any

import torch
from machine import ROOT, Table, keepable, publish

from pfedsam.config import Config
from pfedsam.exchange.codec import encode
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.masked_round import MaskedRound
from pfedsam.exchange.roster import new_attempt
from pfedsam.exchange.server import Contribution, contribution, mean_update
from pfedsam.jobs import read_job
from pfedsam.study import shared_schema, up_schema
from pfedsam.tensors import Tensors

MODELS = {
    "tiny_vit, 256 px": ("model.backbone=tiny_vit", "model.image_size=256"),
    "vit_b": ("model.backbone=vit_b", "model.image_size=1024"),
}
WAYS = {
    "plain": (),
    "lean": ("model.decoder=lean",),
    "int8": ("wire.up=int8",),
    "lean, int8": ("model.decoder=lean", "wire.up=int8"),
    "masks": ("server.rule=mean", "server.secure=masks"),
    "lean, masks": ("model.decoder=lean", "server.rule=mean", "server.secure=masks"),
}
HE = {"CKKS": (), "lean, CKKS": ("model.decoder=lean",)}
HE_NOTE = (
    "CKKS has FLARE's default parameters: a ring of 8192, moduli of 60, 40 and 40 bits, scale 2^40. FLARE sends the"
    " public context with each tensor, about 1 MB. The sum goes down encrypted too, in as many bytes as a site sends."
)
NAMES = [f"site-{i}" for i in range(1, 100)]


@dataclass(frozen=True)
class Cost:
    """What one round costs: bytes that a site sends, seconds at each site, and seconds at the server."""

    up: int
    site: float
    server: float


def main() -> None:
    """Measure each way, print one table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    options = keepable(parser).parse_args()
    tenseal = _tenseal()
    found = [row for model in MODELS for row in rows(model, options.sites, options.runs, tenseal)]
    columns = {"model": "", "way": "", "MB from a site": ".2f", "of plain": ".2f", "s at a site": ".3f"}
    table = Table({**columns, "s at the server": ".3f"}, found)
    notes = [HE_NOTE] if tenseal else ["tenseal is not installed here, so CKKS was not measured."]
    title = f"Secure aggregation: bytes and seconds of a round, {options.sites} sites, LoRA and decoder"
    publish(title, table, notes=notes, keep=options.keep)


def _tenseal() -> ModuleType | None:
    try:
        return importlib.import_module("tenseal")
    except ImportError:
        return None


def rows(model: str, sites: int, runs: int, tenseal: ModuleType | None) -> list[list[str | float]]:
    """The rows of a model's shared tensors."""
    costs: dict[str, Cost] = {}
    for way, changes in WAYS.items():
        config = read_job(ROOT / "jobs/pfedsam", [*MODELS[model], *changes]).config
        of = masks if config.server.secure == "masks" else plain
        costs[way] = _middle([of(config, updates(config, sites)) for _ in range(runs)])
    for way, changes in HE.items() if tenseal else ():
        config = read_job(ROOT / "jobs/pfedsam", [*MODELS[model], *changes]).config
        costs[way] = encrypted(tenseal, next(iter(updates(config, 1).values())), sites)
    least = costs["plain"].up
    return [[model, way, one.up / 1e6, one.up / least, one.site, one.server] for way, one in costs.items()]


def _middle(found: list[Cost]) -> Cost:
    return Cost(found[0].up, st.median(one.site for one in found), st.median(one.server for one in found))


def updates(config: Config, sites: int) -> dict[str, Tensors]:
    """An update of each site, with values of a usual size."""
    schema = shared_schema(config)
    return {site: {name: torch.randn(spec.shape) * 1e-3 for name, spec in schema.items()} for site in NAMES[:sites]}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def plain(config: Config, sent: dict[str, Tensors]) -> Cost:
    """A round with updates that the server sees, in the job's number format."""
    wires, spent = {}, 0.0
    for site, update in sent.items():
        wires[site], seconds = timed(partial(encode, update, config.wire.up))
        spent += seconds
    given = {site: contribution(wire, 48, {}, config=config, up=up_schema(config)) for site, wire in wires.items()}
    _, server = timed(lambda: mean_update(given))
    return Cost(payload_bytes(next(iter(wires.values()))), spent / len(sent), server)


def masks(config: Config, sent: dict[str, Tensors]) -> Cost:
    """A masked round, with all its steps; no site is lost. Its bytes are those of all messages of a site."""
    samples = dict.fromkeys(sent, 48)
    hidden, agreeing = timed(lambda: MaskedRound(new_attempt("run", 0), config.server, samples))
    words, spent = {}, 0.0
    for site, update in sent.items():
        words[site], seconds = timed(partial(hidden.masked, site, update))
        spent += seconds
    given = {site: Contribution(48, partial(dict, one)) for site, one in words.items()}
    _, server = timed(lambda: hidden.opened(given, up_schema(config)))
    site = next(iter(sent))
    steps = hidden.sum.question("shares"), hidden.sum.question("open"), hidden.sum.opened
    small = sum(payload_bytes(one) for one in steps) // len(sent)
    return Cost(payload_bytes(words[site]) + small, (agreeing + spent) / len(sent), server)


def encrypted(tenseal: Any, update: Tensors, sites: int) -> Cost:
    """A round under CKKS: a site encrypts and decrypts, the server adds. One site is measured, and one addition."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40])
    context.generate_relin_keys()
    context.global_scale = 2**40
    head, up, site, server = len(context.serialize()), 0, 0.0, 0.0
    for tensor in update.values():
        values = tensor.flatten().double().numpy()
        with silent():
            vector, seconds = timed(partial(tenseal.ckks_vector, context, values))
        packed, packing = timed(vector.serialize)
        total, adding = timed(partial(add, vector, vector))
        _, opening = timed(total.decrypt)
        up, server = up + len(packed) + head, server + adding * (sites - 1)
        site += seconds + packing + opening
    return Cost(up, site, server)


@contextmanager
def silent() -> Iterator[None]:
    """Drop what compiled code prints: tenseal warns of each vector that is longer than one ciphertext."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    main()
