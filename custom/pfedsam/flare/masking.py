"""The server's part in masked sums: before a round the sites agree on masks, and after it they open the sum."""

from collections.abc import Callable, Collection
from functools import partial

from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log
from pfedsam.exchange.guard import Rejected
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.roster import LEAST, keys_of, new_attempt
from pfedsam.flare.context import REASON, job_config
from pfedsam.flare.filters import judge_step
from pfedsam.flare.steps import step_task

TRIES = 3  # attempts at a round's keys: a site that is lost between two steps costs one
GRACE = 120  # most seconds for the other sites in a step: it needs no training

Refuse = Callable[[str, str, FLContext], object]  # records a site's refusal: its name and its return code


class Masking:
    """Asks sites for the steps of a masked sum, through a controller.

    Args:
        controller: broadcasts the tasks.
        grace: seconds for the other sites after enough have answered, at most `GRACE`.
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
        least = max(least, LEAST)
        for _ in range(TRIES):
            hidden = MaskedSum(new_attempt(run, round_), job_config(fl_ctx).server)
            self._ask("keys", hidden, sites, least, stop, fl_ctx)
            if len(hidden.roster) >= least:
                self._ask("shares", hidden, sorted(hidden.roster), len(hidden.roster), stop, fl_ctx)
            if stop.triggered or len(hidden.dealt) < least:
                return None
            if hidden.complete:
                return hidden
            sites = hidden.dealt
            log.warning("a site was lost before it sealed its shares: the others begin again with fresh keys")
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
        site, result, client_task.result = client_task.client.name, client_task.result, None
        code, reason = str(result.get_return_code()), None
        if code == ReturnCode.OK:
            reason = self._take(step, hidden, site, result, fl_ctx)
        if code == ReturnCode.OK and reason is None:
            return
        if reason:
            fl_ctx.set_prop(REASON, reason, private=True, sticky=False)
        if step == "open":  # its update is in the sum, and others may open it
            log.error("%s did not open its shares: %s", site, fl_ctx.get_prop(REASON) or ascii(code)[:80])
        else:
            self._refuse(site, code, fl_ctx)

    def _take(self, step: str, hidden: MaskedSum, site: str, result: object, fl_ctx: FLContext) -> str | None:
        """Why a site's message of a step does not count, or None if it does."""
        verdict = judge_step(result, fl_ctx, step)
        if isinstance(verdict, Rejected):
            return verdict.reason
        tensors = from_shareable(result).data
        if step == "keys":
            aggregator = fl_ctx.get_engine().get_component("aggregator")
            verdict = aggregator.as_before(site, keys_of(tensors).samples, fl_ctx)
        return verdict.reason if isinstance(verdict, Rejected) else hidden.take(step, site, tensors)
