"""The method's rule over the sites' contributions, as a FLARE aggregator."""

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator

from pfedsam import log, methods
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import apply, far
from pfedsam.exchange.guard import Accepted, Rejected, Verdict
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.schema import REPORT
from pfedsam.exchange.server import Contribution, contribution
from pfedsam.flare.context import REASON, job_config
from pfedsam.flare.filters import judge
from pfedsam.flare.steps import masked
from pfedsam.study import down_schema, up_schema


class SharedAggregator(Aggregator):  # type: ignore[misc]
    """Holds a round's contributions in their wire format, so that integers on the wire stay integers here.

    It judges each update again, in case a job has lost its guard. What it refuses has its reason in the context.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Contribution] = {}
        self.hidden: MaskedSum | None = None  # the round's, if updates are masked
        self.sites: list[str] = []  # that could send one

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Whether the update counts. Only one update counts for each site and round."""
        site = str(shareable.get_peer_prop("__identity_name__", "?"))
        verdict = judge(shareable, fl_ctx)
        if site in self.given:
            verdict = Rejected("expected one update a round, came a second")
        if isinstance(verdict, Accepted):
            verdict = self._samples_verdict(site, shareable, fl_ctx)
        if isinstance(verdict, Rejected):
            fl_ctx.set_prop(REASON, verdict.reason, private=True, sticky=False)
            return False
        dxo, config = from_shareable(shareable), job_config(fl_ctx)
        samples, losses = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND), dxo.get_meta_prop(REPORT)["losses"]
        self.given[site] = contribution(dxo.data, samples, losses, config=config, up=up_schema(config))
        return True

    def _samples_verdict(self, site: str, shareable: Shareable, fl_ctx: FLContext) -> Verdict:
        """Whether the site claims as many samples as before: in its first round, and with its keys if it is masked."""
        came = from_shareable(shareable).get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
        if not masked(job_config(fl_ctx)):
            return self.as_before(site, came, fl_ctx)
        keys = self.hidden.roster.get(site) if self.hidden else None
        if keys is None or keys.samples != came:
            said = keys.samples if keys else "no"
            return Rejected(f"expected {said} samples as with the site's keys, came {came}")
        return self.as_before(site, came, fl_ctx)

    def as_before(self, site: str, came: int, fl_ctx: FLContext) -> Verdict:
        """Whether the site claims as many samples as in its first round of the run."""
        rounds = fl_ctx.get_engine().get_component("results").results.get("rounds", [])
        first = next((entry["sites"][site] for entry in rounds if site in entry["sites"]), None)
        if first is None or first["samples"] == came:
            return Accepted()
        return Rejected(f"expected {first['samples']} samples as in the site's first round of the run, came {came}")

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The shared tensors after the round. The persistor holds the whole state. If the rule fails, the job stops."""
        config, persistor = job_config(fl_ctx), fl_ctx.get_engine().get_component("persistor")
        rule, down = methods.get(config.method).rule, down_schema(config)
        try:
            given = {"sum": self.hidden.contribution(self.given, up_schema(config))} if self.hidden else self.given
            persistor.state = apply(rule, persistor.state, given, config=config, down=down, sites=self.sites)
        except UserFault as fault:
            log.error("[server] %s", fault)
            self.system_panic(str(fault), fl_ctx)
        return DXO(DataKind.WEIGHTS, data=persistor.state.shared).to_shareable()

    def far(self, fl_ctx: FLContext) -> dict[str, str]:
        """The sites that the round leaves out because of their update's length, with the reason."""
        return far(fl_ctx.get_engine().get_component("persistor").state, self.given, job_config(fl_ctx))

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round's contributions."""
        self.given, self.hidden = {}, None
