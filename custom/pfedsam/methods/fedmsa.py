"""FedMSA (FedFMS, arXiv 2403.05408): Medical SAM adapters in each encoder block and the decoder are trained and shared.

Adapters start alike everywhere, at the pretrained model; `method.start=random` begins as the release does.
"""

from dataclasses import dataclass, replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.adapters import Start, adapt_blocks
from pfedsam.model.segmenter import Segmenter


@dataclass(frozen=True)
class Settings:
    """FedMSA's own."""

    start: Start = "zero"  # of the adapters: zero begins at the pretrained model; random as released


def adapters(branch: Segmenter, config: Config) -> None:
    """Two in each attention block of the encoder."""
    adapt_blocks(branch.encoder, config.own(Settings).start)


METHOD = replace(fedavg.METHOD, adapt=adapters, settings=Settings)
