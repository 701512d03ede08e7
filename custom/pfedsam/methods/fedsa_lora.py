"""FedSA-LoRA (Guo et al. 2025): A is shared, B is private. The decoder is shared."""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import Declaration, Kind, Part

B = frozenset({Kind.LORA_B, Kind.DECODER_LORA_B})


def declare(_: Config) -> Declaration:
    """B is private, all else is shared."""
    return lambda _branch, kind: Part.PRIVATE if kind in B else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare)
