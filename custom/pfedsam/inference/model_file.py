"""A model file: one safetensors file with a site's whole model. Export writes it, and prediction reads it."""

from dataclasses import replace
from pathlib import Path

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import misfits
from pfedsam.files import Tensors, below, digest, pack, under, unpack, write_atomic
from pfedsam.inference.facts import NOT_ONE, ModelFacts, header
from pfedsam.model.backbones import Backbone
from pfedsam.model.prepared import state_of
from pfedsam.study import private_schema, shared_schema

SHARED, PRIVATE, BASE = "shared/", "private/", "base/"  # before a tensor's name in the file


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
