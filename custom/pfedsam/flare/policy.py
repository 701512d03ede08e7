"""The hospital's own fence: a filter of local/privacy.json, run before and whatever the job's own filters."""

import json
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from pfedsam import log
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.flare.context import job_config, stamp_of
from pfedsam.flare.filters import TENSORS, demand, leaving, well_formed


class SitePolicy(Filter):  # type: ignore[misc]
    """On results, as the site's administrator set it: only shared tensors, numbers and short texts leave, up to a size.

    FLARE applies it to every job of the scope, before the job's filters; a job cannot leave it out.
    What leaves is put together anew from what was checked. It holds for jobs of the installed
    package; a job that brings code can do whatever the site's process can, and a site that permits
    that trusts the submitter.

    Args:
        max_megabytes: the most that one message may carry, tensors and facts together.
    """

    def __init__(self, max_megabytes: float = 64.0) -> None:
        super().__init__()
        self.max_megabytes = max_megabytes

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts; raises, with the reason in the site's log, where it may not leave."""
        if shareable.get_return_code() != ReturnCode.OK:
            return make_reply(shareable.get_return_code())
        try:
            return self._checked(leaving(shareable), fl_ctx)
        except ContentBlockedException as fault:
            log.error("[%s] site policy: %s; nothing was sent", fl_ctx.get_identity_name(), fault)
            raise

    def _checked(self, dxo: DXO, fl_ctx: FLContext) -> Shareable:
        if dxo.data_kind not in TENSORS:
            facts, size = plain(dxo.data)
            self._limit(size)
            return DXO(DataKind.METRICS, data=facts).to_shareable()
        demand(well_formed(dxo, stamp_of(dxo, -1), job_config(fl_ctx)))
        facts, size = plain(dxo.get_meta_props())
        self._limit(size + payload_bytes(dxo.data))
        return DXO(dxo.data_kind, data=dict(dxo.data), meta=facts).to_shareable()

    def _limit(self, size: int) -> None:
        if size > self.max_megabytes * 1e6:
            raise ContentBlockedException(
                f"expected at most {self.max_megabytes:g} MB to leave at once, came {size / 1e6:.1f} MB"
            )


def plain(facts: Any) -> tuple[Any, int]:
    """Facts as plain JSON values, and their length; blocks tensors, arrays and anything else."""
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError) as fault:
        raise ContentBlockedException(f"expected numbers and texts beside the tensors: {fault}") from None
    return json.loads(text), len(text)
