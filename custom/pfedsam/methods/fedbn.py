"""FedBN (Li et al. 2021): FedAvg, but each site keeps its own batch norms.

It needs a backbone with batch norms (TinyViT). Scales and shifts are trained and private. The statistics
stay the pretrained ones: our choice, because the statistics of a few images are not worth keeping.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.methods import fedavg
from pfedsam.model.backbones import TINY_VITS
from pfedsam.model.partition import Declaration, Kind, Part


def declare(config: Config) -> Declaration:
    """Norms are private, all else is shared.

    Raises:
        UserFault: the backbone has no batch norms.
    """
    if config.model.backbone not in TINY_VITS:
        raise UserFault(
            expected=f"a backbone with batch norms ({', '.join(TINY_VITS)}) for fedbn",
            came=config.model.backbone,
            do="set model.backbone to one of them, or use another method",
        )
    return lambda _branch, kind: Part.PRIVATE if kind is Kind.NORM else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare, trains=frozenset({Kind.NORM}))
