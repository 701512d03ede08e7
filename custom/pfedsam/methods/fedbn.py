"""FedBN (Li et al. 2021): FedAvg in which each site keeps its batch norms to itself.

Of backbones with batch norms alone (TinyViT). Scales and shifts are trained and private; the statistics
stay the pretrained ones: our choice, because a batch of a few images has none worth keeping.
"""

from dataclasses import replace

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.methods import fedavg
from pfedsam.model.backbones import TINY_VITS
from pfedsam.model.partition import Declaration, Kind, Part


def declare(config: Config) -> Declaration:
    """Norms private, all else shared.

    Raises:
        UserFault: the backbone has no batch norms.
    """
    if config.model.backbone not in TINY_VITS:
        raise UserFault(
            expected=f"a backbone with batch norms ({', '.join(TINY_VITS)}) for fedbn",
            came=config.model.backbone,
            do="take another",
        )
    return lambda _branch, kind: Part.PRIVATE if kind is Kind.NORM else Part.SHARED


METHOD = replace(fedavg.METHOD, declare=declare, trains=frozenset({Kind.NORM}))
