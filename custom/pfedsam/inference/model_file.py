"""A model file: one safetensors file with a site's whole model, written by export and read by all that predict."""

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
    """Write one model file, atomically; `facts.with_base`, `.versions` and `.sha256` are set here.

    Args:
        shared: by wire name.
        private: by name in the model; None: the global branch alone.
        base: the frozen base as read, exact, to go into the file too.

    Raises:
        UserFault: names or shapes are not those of the settings, or the disk forbids writing.
    """
    check_tensors(facts.config, shared, private)
    tensors = under(SHARED, shared) | under(PRIVATE, private or {}) | under(BASE, state_of(base) if base else {})
    written = header(replace(facts, with_base=base is not None), digest(tensors))
    write_atomic(path, pack(tensors, written))


def read_tensors(path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """The shared part, the private part and the base's state in a model file; the last two may be empty.

    Raises:
        UserFault: the file is damaged.
    """
    try:
        tensors, _ = unpack(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserFault(
            expected=f"{NOT_ONE}, whole, at {path}", came=str(fault), do="copy the file again, or export it again"
        ) from None
    shared, private, base = (below(prefix, tensors) for prefix in (SHARED, PRIVATE, BASE))
    return shared, private, base


def check_tensors(config: Config, shared: Tensors | None, private: Tensors | None) -> None:
    """Refuse tensors that are not, by name, shape and number format, those of the settings; None: no such part.

    Raises:
        UserFault: the first name that does not fit.
    """
    for what, tensors, schema in (("shared", shared, shared_schema), ("private", private, private_schema)):
        if tensors is not None and (odd := misfits(tensors, schema(config))):
            raise UserFault(
                expected=f"the {what} part that method {config.method} has with these settings",
                came=f"{len(odd)} tensor(s) otherwise, the first {odd[0]}",
                do="take tensors and settings of one run",
            )
