"""FedSAM (FedFMS, arXiv 2403.05408): no adapters. Every parameter of encoder and decoder is trained and shared.

SAM's IoU head and unused hyper-networks are left out, as in every method here. The release sends them and never
trains them. The method declares which parameters are averaged. In the release, site 0's `requires_grad` decides.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import PRETRAINED
from pfedsam.model.segmenter import Segmenter


def nothing(_branch: Segmenter, _config: Config) -> None:
    """Add no adapters."""


METHOD = replace(fedavg.METHOD, adapt=nothing, encoder_lora=False, trains=PRETRAINED, decoder_lora=False)
