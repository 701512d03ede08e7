"""FedSAM (FedFMS, arXiv 2403.05408): no adapters; every parameter of encoder and decoder is trained and shared.

SAM's IoU head and unused hyper-networks are left out, as everywhere here: the release sends them and never
trains them. Which parameters are averaged is declared, where the release asks site 0's `requires_grad`.
"""

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.methods.base import Method
from pfedsam.model.partition import PRETRAINED
from pfedsam.model.segmenter import Segmenter


def nothing(_branch: Segmenter, _config: Config) -> None:
    """No adapters."""


METHOD = Method(
    fedavg.branches,
    fedavg.declare,
    fedavg.losses,
    fedavg.merge,
    personal="global",
    global_="global",
    adapt=nothing,
    trains=PRETRAINED,
)
