"""What becomes of a round: bounds on each site's contribution, then the method's rule or the job's robust one."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.exchange.bounded import MAJORITY, Sizes, clipped, fair, left_out, noted, sizes_of
from pfedsam.exchange.robust import RULES
from pfedsam.exchange.schema import EXTRA, Schema, misfits
from pfedsam.exchange.server import Contribution, Given, Rule, ServerState, mean
from pfedsam.tensors import under


def apply(
    rule: Rule,
    state: ServerState,
    contributions: Mapping[str, Contribution],
    *,
    config: Config,
    down: Schema,
    sites: Iterable[str] = (),
) -> ServerState:
    """The state after a round.

    Args:
        rule: the method's. Where it is the mean, `config.server.rule` may put another in its place.
        down: the schema of all that goes down to a site.
        sites: the names of all that could have answered, for the bounds of a round in which few did.

    Raises:
        UserFault: the job's rule needs more sites, or does not go with the method. Or the result lacks or changes
            tensors that the sites are sent.
    """
    part = [site for site in sites if config.every.get(site, 1)]
    known = max(state.sites, len(part), len(contributions))
    sizes = _bounded_sizes(state, contributions, config) if known >= MAJORITY else {}
    out = left_out(sizes, contributions, config)
    state = noted(state, sizes, known)
    given: Given = {site: one for site, one in contributions.items() if site not in out}
    given = fair(given, config.server.most_share, state.sites)
    given = clipped(state, given, sizes) if sizes else given
    after = replace(chosen(rule, config)(state, given, config), sites=state.sites, usual=state.usual)
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
    return left_out(_bounded_sizes(state, contributions, config), contributions, config)


def _bounded_sizes(state: ServerState, contributions: Mapping[str, Contribution], config: Config) -> Sizes:
    """The lengths of the updates. Empty under rules that do not bound them."""
    return sizes_of(state, contributions) if config.server.rule == "clipped" else {}


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
