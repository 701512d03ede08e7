"""FedSAM (FedFMS, arXiv 2403.05408): no adapters; every parameter of encoder and decoder is trained and shared.

SAM's IoU head and unused hyper-networks are left out, as everywhere here: the release sends them and never
trains them. Which parameters are averaged is declared, where the release asks site 0's `requires_grad`.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.partition import PRETRAINED
from pfedsam.model.segmenter import Segmenter


def nothing(_branch: Segmenter, _config: Config) -> None:
    """No adapters."""


METHOD = replace(fedavg.METHOD, adapt=nothing, trains=PRETRAINED)
