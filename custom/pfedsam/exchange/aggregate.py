"""What becomes of a round: bounds on each site's contribution, then the method's rule or the job's robust one."""

from collections.abc import Mapping

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.bounded import clipped, fair, left_out
from pfedsam.exchange.robust import RULES
from pfedsam.exchange.schema import EXTRA, Schema, misfits
from pfedsam.exchange.server import Contribution, Rule, ServerState, mean
from pfedsam.files import under


def apply(
    rule: Rule, state: ServerState, contributions: Mapping[str, Contribution], *, config: Config, down: Schema
) -> ServerState:
    """The state after a round.

    Args:
        rule: the method's. Where it is the mean, `config.server.rule` may put another in its place.
        down: the schema of all that goes down to a site.

    Raises:
        UserFault: the job's rule needs more sites, or does not go with the method. Or the result lacks or changes
            tensors that the sites are sent.
    """
    out = far(state, contributions, config)
    given = fair({site: one for site, one in contributions.items() if site not in out}, config.server.most_share)
    if config.server.rule == "clipped":
        given = clipped(state, given)
    after = chosen(rule, config)(state, given, config)
    sent = {name: tensor for name, tensor in under(EXTRA, after.memory).items() if name in down}
    for tensors in (after.shared | sent, *(model | sent for model in after.models.values())):
        if wrong := misfits(tensors, down):
            raise UserFault(
                expected=f"the rule of method {config.method} to keep the shape of all that sites are sent",
                came=f"{len(wrong)} tensors that are missing or different, e.g. {wrong[0]}",
                do="correct the method's file, or ask its authors",
            )
    return after


def far(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> dict[str, str]:
    """The sites that the round leaves out because of their update's length, with the reason. None under other rules."""
    return left_out(state, contributions, config) if config.server.rule == "clipped" else {}


def chosen(rule: Rule, config: Config) -> Rule:
    """The rule of a job's rounds: the method's, or in the place of a mean the one that `config.server.rule` names.

    Raises:
        UserFault: the job names one, but the method's is no mean.
    """
    if config.server.rule not in RULES:
        return rule
    if rule is not mean:
        raise UserFault(
            expected=f"server.rule clipped or mean with {config.method}, whose server has a rule of its own",
            came=config.server.rule,
            do="leave server.rule out, or choose a method that averages",
        )
    return RULES[config.server.rule]
