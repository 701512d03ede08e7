"""The hospital's own fence: a filter of local/privacy.json, run before and whatever the job's own filters."""

import json

from nvflare.apis.dxo import DXO
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from pfedsam import log
from pfedsam.exchange.guard import check
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.schema import shared_schema
from pfedsam.flare.context import job_config, stamp_of
from pfedsam.flare.filters import TENSORS, demand, leaving


class SitePolicy(Filter):  # type: ignore[misc]
    """On results, as the site's administrator set it: only shared tensors and metrics leave, up to a size.

    FLARE applies it to every job of the scope, before the job's filters; a job cannot leave it out.
    It is the installed package's, for FLARE puts a job's code behind what the site has installed.

    Args:
        max_megabytes: the most that one message may carry, tensors and facts together.
    """

    def __init__(self, max_megabytes: float = 64.0) -> None:
        super().__init__()
        self.max_megabytes = max_megabytes

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same message; raises, with the reason in the site's log, where it may not leave."""
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        try:
            self._judge(leaving(shareable), fl_ctx)
        except ContentBlockedException as fault:
            log.error("[%s] site policy: %s; nothing was sent", fl_ctx.get_identity_name(), fault)
            raise
        return shareable

    def _judge(self, dxo: DXO, fl_ctx: FLContext) -> None:
        tensors = dxo.data if dxo.data_kind in TENSORS else {}
        stamp = stamp_of(dxo, -1)
        if dxo.data_kind in TENSORS:
            demand(check(tensors, stamp, schema=shared_schema(job_config(fl_ctx)), expected=stamp))
        facts = dxo.get_meta_props() if dxo.data_kind in TENSORS else dxo.data
        size = payload_bytes(tensors) + len(json.dumps(facts, default=str))
        if size > self.max_megabytes * 1e6:
            raise ContentBlockedException(
                f"expected at most {self.max_megabytes:g} MB to leave at once, came {size / 1e6:.1f} MB"
            )
