"""FedMSA (FedFMS, arXiv 2403.05408): Medical SAM adapters in each encoder block and the decoder are trained and shared.

Adapters start alike at every site. By default they start at the pretrained model, our choice. With
`method.start=random` they start as in the release.
"""

from dataclasses import dataclass, replace

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.model.adapters import Start, adapt_blocks
from pfedsam.model.segmenter import Segmenter


@dataclass(frozen=True)
class Settings:
    """FedMSA's own settings."""

    start: Start = "zero"  # how adapters begin: zero is the pretrained model, our choice; random is as released


def adapters(branch: Segmenter, config: Config) -> None:
    """Put two adapters into each attention block of the encoder."""
    adapt_blocks(branch.encoder, config.own(Settings).start)


METHOD = replace(fedavg.METHOD, adapt=adapters, encoder_lora=False, settings=Settings)
