"""FLAP-SAM (arXiv 2407.21739): LoRA in the encoder, and of the decoder only what makes masks, are trained and shared.

That is the decoder's deconvolutions and hyper-networks. Its transformer, most of its size, stays pretrained. Our
choice: the tokens and last norms are trained too, 1 920 values at width 256, because they are one kind with the
deconvolutions' norm. The paper's other adapter, FacT, is not built.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import Declaration, Kind, Part


def declare(_: Config) -> Declaration:
    """The decoder's transformer is frozen, all else is shared."""
    return lambda _branch, kind: Part.FROZEN if kind is Kind.DECODER else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare, decoder_lora=False)
