"""The faults that stop a site's round, and what its engineer can do about them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pfedsam.config import MOST_ROUNDS, Config
from pfedsam.errors import Diverged, UserFault
from pfedsam.exchange.guard import names_fault, tensor_fault
from pfedsam.exchange.schema import EXTRA, Schema
from pfedsam.exchange.store import Moment
from pfedsam.methods.base import Method
from pfedsam.model.segmenter import Branches
from pfedsam.tensors import Tensors, not_finite


def require_fit(stored: Tensors, model: Tensors, facts: dict[str, str], *, base: str, folder: Path) -> None:
    """Raise UserFault if a stored private part belongs to another model than the job's, or to another base."""
    misfit = sorted(model.keys() ^ stored.keys()) or [n for n, t in model.items() if t.shape != stored[n].shape]
    if misfit or facts.get("base") != base:
        raise UserFault(
            expected=f"the private part of run {facts.get('run', '?')} in {folder} to fit this job",
            came=f"another model ({misfit[0]})" if misfit else "one trained on another base model",
            do="continue a run with the settings that it began with. begin_private must name a run of the same model",
        )


def require_kept(facts: dict[str, str], at: Moment | None, folder: Path) -> None:
    """Raise UserFault if the stored private part is not from the run, although the site has trained in it."""
    run = at.run if at else None
    if facts.get("run") not in (at.line if at else (None,)):
        raise UserFault(
            expected=f"this site's private part of run {run}, in which it trained, in {folder}",
            came="none that is undamaged",
            do="bring the store back (setting store, PFEDSAM_STORE), or begin a new run."
            f" To continue with a newly drawn private part, set PFEDSAM_FRESH={run} at this site",
        )


def require_base(servers: str, own: str) -> None:
    """Raise UserFault if the server's frozen base has another digest: the mean would be of different models."""
    if servers != own:
        raise UserFault(
            expected=f"the server's base model ({servers[:12]})",
            came=f"another at this site ({own[:12]})",
            do="use the server's weight file (setting weights, PFEDSAM_WEIGHTS) and"
            " its versions of segment-anything and timm",
        )


def require_turn(round_: Any, rounds: Any) -> None:
    """Raise UserFault if a message's round, counted from 0, is not a whole number within the run's `rounds`."""
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (round_, rounds))
    if not whole or not 0 <= round_ <= rounds <= MOST_ROUNDS or not rounds:
        raise UserFault(
            expected=f"a round within a run of 1 to {MOST_ROUNDS} rounds",
            came=f"round {str(round_)[:20]} of {str(rounds)[:20]}",
            do="ask the server's administrator. Nothing was trained",
        )


def require_finite_weights(trained: Tensors, round_: int) -> None:
    """Raise Diverged if the training diverged."""
    if name := not_finite(trained):
        raise Diverged(
            expected=f"finite weights after the training of round {round_ + 1}",
            came=f"NaN or infinite values at {name}",
            do="lower train.lr, or look at the images' values (data.scale). The store is as before the round",
        )


def require_declared(extras: Tensors, schema: Schema, private: Tensors, *, method: str) -> None:
    """Raise UserFault if a method would send what it does not declare, or an unchanged private tensor."""
    wanted = {name: spec for name, spec in schema.items() if name.startswith(EXTRA)}
    faults = [names_fault(extras, wanted)]
    faults += [tensor_fault(name, extras[name], wanted[name]) for name in extras.keys() & wanted.keys()]
    faults += [
        f"{own} of the private part as {name}"
        for name, tensor in extras.items()
        for own, kept in private.items()
        if tensor.shape == kept.shape and tensor.numel() > 1 and tensor.any() and torch.equal(tensor, kept)
    ]
    if fault := next(filter(None, faults), None):
        raise UserFault(
            expected=f"tell of method {method} to send only what the method declares in up",
            came=fault,
            do="correct the method's file, or ask its authors",
        )


def require_named(losses: Iterable[str], method: Method, *, name: str) -> None:
    """Raise UserFault if a method has a loss that it does not declare: the server would refuse the report."""
    if unknown := sorted(set(losses) - method.losses):
        raise UserFault(
            expected=f"losses of method {name} named {', '.join(sorted(method.losses))}",
            came=", ".join(unknown),
            do="add the name to terms of the method's METHOD, or ask its authors. Nothing of the round was kept",
        )


def require_prompts(method: Method, model: Branches, config: Config) -> None:
    """Raise UserFault if SAM should label the site's images and its weights have no prompt encoder."""
    if method.prompts and model.prompts is None:
        raise UserFault(
            expected=f"a SAM with its prompt encoder for {config.method}",
            came=f"{config.model.backbone} from a file without one",
            do="take another backbone, such as tiny_vit or vit_b, with the weights as published",
        )
