"""What a study's settings mean: which tensors are shared, what a run begins with, and if two mean one model."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.masks import masked_schema
from pfedsam.exchange.schema import EXTRA, Schema, schema_of
from pfedsam.methods.base import Extras
from pfedsam.model import build
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import prepared
from pfedsam.names import one_name
from pfedsam.settings import from_record
from pfedsam.tensors import Tensors, digest, under

OF_EXPERTS = [
    "experts",
    "experts_rank",
    "experts_share",
    "expert",
    "experts_in",
    "top_k",
    "gate",
    "gate_multiplied",
    "route",
    "interpolation",
]
UNREAD = {f"model.{name}" for name in OF_EXPERTS}  # by the shared part of a model that was trained


@lru_cache(maxsize=4)
def shared_schema(config: Config) -> Schema:
    """The schema of `config`'s shared tensors. It needs no weights and is the same on site and server."""
    return schema_of({wire_name(name): tensor for name, tensor in _tensors(config, Part.SHARED).items()})


@lru_cache(maxsize=4)
def up_schema(config: Config) -> Schema:
    """The schema of what a site sends after a round: its update, and what the method declares beside it."""
    return _with_extras(config, methods.get(config.method).up)


@lru_cache(maxsize=4)
def sent_schema(config: Config) -> Schema:
    """The schema of what a site's message has after a round, before the codec: `up_schema`, or its masked words."""
    plain = up_schema(config)
    return masked_schema(plain) if config.server.secure == "masks" else plain


@lru_cache(maxsize=4)
def down_schema(config: Config) -> Schema:
    """The schema of what a site is sent: the shared tensors, and what the method declares beside them."""
    return _with_extras(config, methods.get(config.method).down)


def _with_extras(config: Config, declared: Extras) -> Schema:
    shared = shared_schema(config)
    return shared | under(EXTRA, dict(sorted(declared(dict(shared), config).items())))


@lru_cache(maxsize=4)
def private_schema(config: Config) -> Schema:
    """The schema of what a site keeps under `config`, by name in the model. No message contains it."""
    return schema_of(_tensors(config, Part.PRIVATE))


def _tensors(config: Config, part: Part) -> Tensors:
    method = methods.get(config.method)
    with torch.device("meta"):
        parts = build.backbone(config.model, read=False)
        model = method.model(parts, config)
    return tensors_of(model, method.partition(model, config), part)


def initial_shared(config: Config, weights: Path | None = None, cache: Path | None = None) -> tuple[Tensors, str]:
    """The server's first shared tensors and the base model's digest.

    Args:
        weights: folder of pretrained weight files. None reads PFEDSAM_WEIGHTS.
        cache: folder of prepared base models. None: the base is read and digested each time.
    """
    method = methods.get(config.method)
    bf16 = methods.base_in_bf16(method, torch.device("cpu"), config)
    parts, base = prepared(config.model, weights, cache, bf16=bf16)
    model = method.model(parts, config)
    shared = tensors_of(model, method.partition(model, config), Part.SHARED)
    return {wire_name(name): t.detach().clone().contiguous() for name, t in shared.items()}, base


def first_tensors(root: Path, begin: str, fresh: Tensors, base: str, config: Config) -> tuple[Tensors, dict[str, Any]]:
    """What a new run begins with: its own first tensors, or the last shared tensors of another run.

    Args:
        root: the folder of all studies' checkpoints.
        begin: "STUDY/RUN" or "STUDY/latest". Empty: no other run.
        fresh, base, config: the new run's own first tensors, its base and its settings.

    Returns:
        The tensors, and their origin for results.json: `run`, its finished `rounds`, `sha256`. Empty if fresh.

    Raises:
        UserFault: there is no such run, it trained another model, or the method needs a run and none is named.
    """
    if not begin:
        if methods.get(config.method).joins:
            do = "render with --begin STUDY/RUN, a run of the federation to join"
            raise UserFault(expected=f"a trained model for {config.method} to begin with", came="none", do=do)
        return fresh, {}
    study, _, name = begin.partition("/")
    point = _trained(Checkpoints(root, one_name(study, "study")), name)
    run, do = f"{study}/{point.run}", "use the model's settings and the data.scale of that run's job"
    drawn = {"seed"} if methods.get(config.method).drawn else set()
    held = partial(_tells, besides=drawn)
    same_settings(config, point.results["config"], f"run {run}, whose model this begins with", do, held)
    shared = point.state.shared
    if point.base != base or schema_of(shared) != schema_of(fresh):
        came = "another base" if point.base != base else "other shared tensors"
        raise UserFault(expected=f"the model of run {run} to be that of this job", came=came, do=do)
    return shared, {"run": run, "rounds": point.done, "sha256": digest(shared)}


def _trained(checkpoints: Checkpoints, name: str) -> Checkpoint:
    point = checkpoints.load(checkpoints.find(name, trained=True))
    if point is None or not point.done:
        raise UserFault(expected=f"a finished round of run {name}", came="none", do="name a run that has trained")
    return point


def same_settings(
    config: Config, began: dict[str, Any], run: str, do: str, held: Callable[[str], bool] = lambda _: True
) -> None:
    """Check a job's settings against those that a run began with. Settings unknown to an older version are defaults.

    Args:
        run, do: the run and the remedy, for the message.
        held: whether a setting, by its dotted name, must be the same.

    Raises:
        UserFault: they differ.
    """
    others = {name: value for name, value in config.unlike(from_record(began)).items() if held(name)}
    if others:
        came = "others (there: " + ", ".join(f"{name} {value}" for name, value in others.items()) + ")"
        raise UserFault(expected=f"the settings of {run}", came=came, do=do)


def _tells(name: str, besides: set[str]) -> bool:
    """Whether a setting changes the meaning of a trained shared part: with another value the model is another one."""
    return (
        name in besides
        or name in ("data.scale", "data.plane", "data.classes")
        or (name.startswith("model.") and name not in UNREAD)
    )
