"""The server's mean over sites, as a FLARE aggregator."""

from functools import partial

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log
from pfedsam.exchange.aggregate import weighted_mean
from pfedsam.exchange.codec import decode
from pfedsam.exchange.guard import Rejected
from pfedsam.files import Tensors
from pfedsam.flare.context import due, job_config
from pfedsam.flare.filters import judge
from pfedsam.study import shared_schema


class MeanOfSites(Aggregator):  # type: ignore[misc]
    """Sample-weighted mean of the shared part, bit-equal whatever the order of arrival.

    Holds the round's updates as they travelled, so that integers on the wire are integers here.
    Judges each update again, should a job have lost its guard.

    Args:
        min_sites: valid updates that a round needs; with fewer the job stops and says so.
    """

    def __init__(self, min_sites: int = 1) -> None:
        super().__init__()
        self.min_sites = min_sites
        self._updates: dict[str, tuple[Tensors, int]] = {}

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Whether the update counts; one a site and round."""
        site = str(shareable.get_peer_prop("__identity_name__", "?"))
        verdict = judge(shareable, fl_ctx)
        if site in self._updates:
            verdict = Rejected("expected one update a round, came a second")
        if isinstance(verdict, Rejected):
            log.error("update of %s not counted: %s", site, verdict.reason)
            return False
        dxo = from_shareable(shareable)
        self._updates[site] = dxo.data, dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """The mean update; stops the job where too few sites gave a valid one."""
        updates, self._updates = self._updates, {}
        meta = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.META]
        round_ = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        least = self._least(int(round_), fl_ctx)
        if len(updates) < least:
            reason = f"round {round_}: expected valid updates of {least} sites, came {len(updates)}"
            log.error("%s; the job stops. Each site's own log says what went wrong there", reason)
            self.system_panic(reason, fl_ctx)
            return DXO(DataKind.WEIGHT_DIFF, data={}, meta=meta).to_shareable()
        config = job_config(fl_ctx)
        opened = partial(decode, schema=shared_schema(config), number=config.wire.up)
        return DXO(DataKind.WEIGHT_DIFF, data=weighted_mean(updates, opened), meta=meta).to_shareable()

    def _least(self, round_: int, fl_ctx: FLContext) -> int:
        """`min_sites`, or as many as have their turn in the round, if these are fewer; at least one."""
        theirs = due(fl_ctx, round_)
        return self.min_sites if theirs is None else max(min(self.min_sites, len(theirs)), 1)

    def reset(self, fl_ctx: FLContext) -> None:
        """Forget the round's updates."""
        self._updates = {}
