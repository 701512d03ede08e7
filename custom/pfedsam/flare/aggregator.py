"""The method's rule over the sites' contributions, as a FLARE aggregator."""

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator

from pfedsam import log, methods
from pfedsam.errors import UserFault
from pfedsam.exchange.guard import Rejected
from pfedsam.exchange.schema import REPORT
from pfedsam.exchange.server import Contribution, apply, contribution
from pfedsam.flare.context import job_config
from pfedsam.flare.filters import judge
from pfedsam.study import down_schema, up_schema


class SharedAggregator(Aggregator):  # type: ignore[misc]
    """Holds a round's contributions in their wire format, so that integers on the wire stay integers here.

    It judges each update again, in case a job has lost its guard.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Contribution] = {}

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Whether the update counts. Only one update counts for each site and round."""
        site = str(shareable.get_peer_prop("__identity_name__", "?"))
        verdict = judge(shareable, fl_ctx)
        if site in self.given:
            verdict = Rejected("expected one update a round, came a second")
        if isinstance(verdict, Rejected):
            log.error("update of %s not counted: %s", site, verdict.reason)
            return False
        dxo, config = from_shareable(shareable), job_config(fl_ctx)
        samples, losses = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND), dxo.get_meta_prop(REPORT)["losses"]
        self.given[site] = contribution(dxo.data, samples, losses, config=config, up=up_schema(config))
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The shared tensors after the round. The persistor holds the whole state. If the rule fails, the job stops."""
        config, persistor = job_config(fl_ctx), fl_ctx.get_engine().get_component("persistor")
        rule, down = methods.get(config.method).rule, down_schema(config)
        try:
            persistor.state = apply(rule, persistor.state, dict(self.given), config=config, down=down)
        except UserFault as fault:
            log.error("[server] %s", fault)
            self.system_panic(str(fault), fl_ctx)
        return DXO(DataKind.WEIGHTS, data=persistor.state.shared).to_shareable()

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round's contributions."""
        self.given = {}
