"""FedMSA (FedFMS, arXiv 2403.05408): Medical SAM adapters in each encoder block and the decoder are trained and shared.

Adapters start alike everywhere, at the pretrained model; `model.adapter_start=random` begins as the release does.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.adapters import adapt_blocks
from pfedsam.model.segmenter import Segmenter


def adapters(branch: Segmenter, config: Config) -> None:
    """Two in each attention block of the encoder."""
    adapt_blocks(branch.encoder, config.model.adapter_start)


METHOD = replace(fedavg.METHOD, adapt=adapters)
