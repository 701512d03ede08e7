"""A model file: one safetensors file with a site's whole model. Export writes it, and prediction reads it."""

from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import Schema, misfits, schema_of
from pfedsam.files import write_atomic
from pfedsam.inference.facts import NOT_ONE, ModelFacts, header, read_facts, roles_of
from pfedsam.model import build
from pfedsam.model.backbones import Backbone
from pfedsam.model.prepared import state_of
from pfedsam.study import private_schema, shared_schema
from pfedsam.tensors import Tensors, below, digest, not_finite, pack, under, unpack

SHARED, PRIVATE, BASE = "shared/", "private/", "base/"  # before a tensor's name in the file
MOST_DRAWN = 2**30  # most values that a header alone may make the reader allocate; a whole ViT-H has 0.6 of it


def write_model(
    path: Path, facts: ModelFacts, shared: Tensors, private: Tensors | None = None, *, base: Backbone | None = None
) -> None:
    """Write one model file, atomically. It sets `facts.with_base`, `.versions` and `.sha256`.

    Args:
        shared: tensors by wire name.
        private: tensors by name in the model. None: the file has only the global branch.
        base: the unrounded frozen base, if it goes into the file too.

    Raises:
        UserFault: names or shapes do not match the settings, or the disk forbids writing.
    """
    check_tensors(facts.config, shared, private)
    tensors = under(SHARED, shared) | under(PRIVATE, private or {}) | under(BASE, state_of(base) if base else {})
    written = header(replace(facts, with_base=base is not None), digest(tensors))
    write_atomic(path, pack(tensors, written))


def read_tensors(path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """The shared part, the private part and the base's state in a model file. The last two may be empty.

    Raises:
        UserFault: the file is damaged.
    """
    try:
        tensors, _ = unpack(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserFault(
            expected=f"{NOT_ONE}, undamaged, at {path}", came=str(fault), do="copy the file again, or export it again"
        ) from None
    shared, private, base = (below(prefix, tensors) for prefix in (SHARED, PRIVATE, BASE))
    return shared, private, base


def read_model(path: Path) -> tuple[ModelFacts, Tensors, Tensors, Tensors]:
    """What a model file says, its shared part, its private part and its base's state, all checked against each other.

    Raises:
        UserFault: the file is damaged, changed, of another kind or format, or holds another model than it says.
    """
    facts = read_facts(path)
    shared, private, base = read_tensors(path)
    check_tensors(facts.config, shared, private or None)
    roles = roles_of(facts.config, private=bool(private))
    if not facts.branches or not set(facts.branches) <= set(roles):
        raise _not_as_said(path, f"branches of {', '.join(roles) or 'none'}", ", ".join(facts.branches) or "none")
    if odd := misfits(base, base_schema(facts.config)) if facts.with_base or base else []:
        raise _not_as_said(path, f"the base {facts.config.model.backbone}", f"{len(odd)} odd tensors, e.g. {odd[0]}")
    if name := not_finite(shared | private | base):  # of known number formats: torch cannot ask this of each
        raise _not_as_said(path, "finite values", f"NaN or infinite at {name}")
    if facts.with_base != bool(base):
        raise _not_as_said(path, "a base only if its header says so", "a base" if base else "none")
    drawn = 0 if private else sum(prod(spec.shape) for spec in private_schema(facts.config).values())
    if drawn > MOST_DRAWN:
        most = f"at most {MOST_DRAWN // 10**6} million values in a private part that the file lacks"
        raise _not_as_said(path, most, f"{drawn // 10**6} million by its settings")
    return facts, shared, private, base


def base_schema(config: Config) -> Schema:
    """The schema of an unrounded base's state in a model file."""
    with torch.device("meta"):
        return schema_of(state_of(build.backbone(config.model, read=False)))


def _not_as_said(path: Path, expected: str, came: str) -> UserFault:
    return UserFault(expected=f"{expected} in {path}", came=came, do="export the model again")


def check_tensors(config: Config, shared: Tensors | None, private: Tensors | None) -> None:
    """Refuse tensors whose names, shapes or number formats do not match the settings. None: no such part.

    Raises:
        UserFault: a tensor does not match. It names the first one.
    """
    for what, tensors, schema in (("shared", shared, shared_schema), ("private", private, private_schema)):
        if tensors is not None and (odd := misfits(tensors, schema(config))):
            raise UserFault(
                expected=f"the {what} part that method {config.method} has with these settings",
                came=f"{len(odd)} tensor(s) that differ, the first is {odd[0]}",
                do="use tensors and settings of the same run",
            )
