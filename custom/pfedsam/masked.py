"""What a masked sum can carry (`server.secure` masks), and what must refuse it in words."""

from collections.abc import Collection

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.roster import require_enough
from pfedsam.exchange.server import mean
from pfedsam.methods.base import no_extras


def check_masked(config: Config) -> None:
    """Check that the rule is a mean, the values are plain, and nothing travels beside the shared tensors.

    Raises:
        UserFault: it is not so, and the job wants masks.
    """
    if config.server.secure == "none":
        return
    method = methods.get(config.method)
    for broken, expected, came, do in (
        (config.server.rule != "mean", "server.rule mean", config.server.rule, "set server.rule to mean"),
        (config.wire.up != "fp32", "wire.up fp32", config.wire.up, "set wire.up to fp32: a masked value has 4 bytes"),
        (method.rule is not mean, "a method whose server takes the mean", config.method, "choose e.g. pfedsam"),
        (method.up is not no_extras, "a method that sends no extras", config.method, "choose e.g. pfedsam"),
    ):
        if broken:
            raise UserFault(expected=f"{expected} with server.secure masks", came=came, do=do)


def check_masked_sites(config: Config, sites: Collection[str], rounds: int) -> None:
    """Check that enough sites train in each round. Raise UserFault if not, and the job wants masks."""
    for round_ in range(rounds) if config.server.secure == "masks" else ():
        require_enough(sum(config.trains(site, round_) for site in sites))
