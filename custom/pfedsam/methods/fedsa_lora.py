"""FedSA-LoRA (Guo et al. 2025): A is shared, B is each site's own. The decoder is shared."""

from pfedsam.config import Config
from pfedsam.methods import fedavg
from pfedsam.methods.base import Method
from pfedsam.model.partition import Declaration, Kind, Part


def declare(_: Config) -> Declaration:
    """B private, all else shared."""
    return lambda _branch, kind: Part.PRIVATE if kind is Kind.LORA_B else Part.SHARED


METHOD = Method(fedavg.branches, declare, fedavg.losses, fedavg.merge, personal="global", global_="global")
