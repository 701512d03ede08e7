"""The hospital's own fence: a filter of local/privacy.json, run before and whatever the job's own filters."""

import json

from nvflare.apis.dxo import DXO
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from pfedsam import log
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.flare.filters import OnlySharedLeaves, parts


class SitePolicy(OnlySharedLeaves):
    """On results, as the site's administrator set it: only shared tensors, numbers and short texts leave, up to a size.

    FLARE applies it to every job of the scope, before the job's filters; a job cannot leave it out, nor the line in
    the ledger. It holds for jobs of the installed package; a job that brings code can do whatever the site's
    process can, and a site that permits that trusts the submitter.

    Args:
        max_megabytes: the most that one message may carry, tensors and facts together.
    """

    def __init__(self, max_megabytes: float = 64.0) -> None:
        super().__init__()
        self.max_megabytes = max_megabytes

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts; raises, with the reason in the site's log, where it may not leave."""
        try:
            return super().process(shareable, fl_ctx)
        except ContentBlockedException as fault:
            log.error("[%s] site policy: %s; nothing was sent", fl_ctx.get_identity_name(), fault)
            raise

    def _allow(self, dxo: DXO) -> None:
        tensors, facts = parts(dxo)
        size = payload_bytes(tensors) + len(json.dumps(facts))
        if size > self.max_megabytes * 1e6:
            raise ContentBlockedException(
                f"expected at most {self.max_megabytes:g} MB to leave at once, came {size / 1e6:.1f} MB"
            )
