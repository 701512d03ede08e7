"""FedPer (Arivazhagan et al. 2019): the encoder's adapters are shared, the whole decoder is private.

It is the fair comparison for private experts. As much of the model is private, in the part where sites' habits differ.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import Declaration, Kind, Part

ENCODER = frozenset({Kind.LORA_A, Kind.LORA_B})


def declare(_: Config) -> Declaration:
    """LoRA is shared, decoder and head are private."""
    return lambda _branch, kind: Part.SHARED if kind in ENCODER else Part.PRIVATE


METHOD = replace(fedavg.METHOD, declare=declare, keeps=True)
