"""FLAP-SAM (arXiv 2407.21739): LoRA in encoder and decoder, and what makes masks, are trained and shared.

The decoder's LoRA is on the query and value projections of each attention. What makes masks is its deconvolutions,
hyper-networks and mask tokens. Its transformer, most of its size, stays pretrained. Our choices: the encoder's LoRA is
the job's, and the IoU token and the transformer's last norm are trained too, 768 values at width 256, because they are
one kind with the mask tokens. The paper's other adapter, FacT, is not built.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg, iat
from pfedsam.model.partition import Declaration, Kind, Part


def declare(_: Config) -> Declaration:
    """The decoder's pretrained transformer is frozen, all else is shared."""
    return lambda _branch, kind: Part.FROZEN if kind is Kind.DECODER else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare, adapt=iat.adapters, decoder_lora=False)
