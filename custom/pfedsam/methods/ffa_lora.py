"""FFA-LoRA (Sun et al. 2024): A keeps its start values, the same at every site. B and the decoder are shared."""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import Declaration, Kind, Part

A = frozenset({Kind.LORA_A, Kind.DECODER_LORA_A})


def declare(_: Config) -> Declaration:
    """A is frozen, all else is shared."""
    return lambda _branch, kind: Part.FROZEN if kind in A else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare, drawn=True)
