"""FFA-LoRA (Sun et al. 2024): A stays as drawn, alike everywhere; B is trained and shared. So is the decoder."""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import Declaration, Kind, Part


def declare(_: Config) -> Declaration:
    """A frozen, all else shared."""
    return lambda _branch, kind: Part.FROZEN if kind is Kind.LORA_A else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare)
