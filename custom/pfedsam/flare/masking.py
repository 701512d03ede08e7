"""The server's part in masked sums: before a round the sites agree on masks, and after it they open the sum."""

from collections.abc import Collection
from functools import partial

from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log
from pfedsam.exchange.guard import Rejected
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.roster import LEAST, keys_of, new_attempt
from pfedsam.flare.answers import Refuse, receive
from pfedsam.flare.context import REASON, job_config
from pfedsam.flare.filters import judge_step
from pfedsam.flare.identity import keys_fault
from pfedsam.flare.steps import step_task

TRIES = 3  # attempts at a round's keys: a site that is lost between two steps costs one
GRACE = 120  # most seconds for the other sites in a step: it needs no training


class Masking:
    """Asks sites for the steps of a masked sum, through a controller.

    Args:
        controller: broadcasts the tasks.
        grace: seconds for the other sites after enough have sent a valid message, at most `GRACE`.
        timeout: seconds that a step may take.
        refuse: called for a site whose message is refused before the round.
    """

    def __init__(self, controller: Controller, *, grace: int, timeout: int, refuse: Refuse) -> None:
        self._controller, self._grace, self._timeout, self._refuse = controller, min(grace, GRACE), timeout, refuse

    def agree(self, sites: Collection[str], least: int, stop: Signal, fl_ctx: FLContext) -> MaskedSum | None:
        """A sum whose sites have all sealed their shares. None: fewer than `least` have.

        If a site is lost between its keys and its shares, the others begin again without it, with fresh keys.
        """
        run, round_ = fl_ctx.get_engine().get_component("persistor").run, fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        least = max(least, LEAST, job_config(fl_ctx).privacy.sites)
        for _ in range(TRIES):
            hidden = MaskedSum(new_attempt(run, round_), job_config(fl_ctx).server)
            self._ask("keys", hidden, sites, least, stop, fl_ctx)
            if len(hidden.roster) >= least:
                self._ask("shares", hidden, sorted(hidden.roster), least, stop, fl_ctx)
            if stop.triggered or len(hidden.dealt) < least:
                return None
            if hidden.complete:
                return hidden
            lost, sites = ", ".join(sorted(hidden.roster.keys() - set(hidden.dealt))), hidden.dealt
            log.warning("%s sealed no shares in time: the others begin again with fresh keys", lost)
        return None

    def open(self, hidden: MaskedSum, there: Collection[str], stop: Signal, fl_ctx: FLContext) -> bool:
        """Whether enough of the sites whose updates came have opened their shares."""
        self._ask("open", hidden, there, hidden.least, stop, fl_ctx)
        return len(hidden.opened) >= hidden.least and not stop.triggered

    def _ask(
        self, step: str, hidden: MaskedSum, sites: Collection[str], least: int, stop: Signal, fl_ctx: FLContext
    ) -> None:
        received, there = partial(self._received, step, hidden), sites if step == "open" else ()
        self._controller.broadcast_and_wait(
            task=step_task(step, hidden, there=there, received=received, timeout=self._timeout, fl_ctx=fl_ctx),
            fl_ctx=fl_ctx,
            targets=list(sites),
            min_responses=min(least, len(sites)),
            wait_time_after_min_received=self._grace,
            abort_signal=stop,
        )

    def _received(self, step: str, hidden: MaskedSum, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Keep a site's message of a step under the name in its certificate."""
        refuse = _not_opened if step == "open" else self._refuse  # its update is in the sum, and others may open it

        def take(site: str, result: Shareable, fl_ctx: FLContext) -> bool:
            if reason := self._fault(step, hidden, site, result, fl_ctx):
                fl_ctx.set_prop(REASON, reason, private=True, sticky=False)
            return reason is None

        receive(client_task, fl_ctx, take=take, refuse=refuse)

    def _fault(self, step: str, hidden: MaskedSum, site: str, result: Shareable, fl_ctx: FLContext) -> str | None:
        """Why a site's message of a step does not count, or None if it does."""
        verdict = judge_step(result, fl_ctx, step)
        if isinstance(verdict, Rejected):
            return verdict.reason
        tensors = from_shareable(result).data
        if step == "keys":
            aggregator, keys = fl_ctx.get_engine().get_component("aggregator"), keys_of(tensors)
            if fault := keys_fault(hidden.attempt, site, keys, fl_ctx):
                return fault
            verdict = aggregator.as_before(site, keys.samples, fl_ctx)
        return verdict.reason if isinstance(verdict, Rejected) else hidden.take(step, site, tensors)


def _not_opened(site: str, code: str, fl_ctx: FLContext) -> None:
    log.error("%s did not open its shares: %s", site, fl_ctx.get_prop(REASON) or ascii(code)[:80])
