"""The last step of a job: every site tests the final shared model and its own personal one."""

from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from pfedsam import log
from pfedsam.flare.answers import note_late, receive
from pfedsam.flare.context import REASON
from pfedsam.flare.sends import model_task
from pfedsam.record.said import tested_fault


class FinalEvaluation(Controller):  # type: ignore[misc]
    """Sends each site its final shared tensors as task "validate" and waits for its metrics.

    FLARE's CrossSiteModelEval would send every site's model to every other site. Here only the
    shared model is sent, and each personal model is tested at its own site.

    Args:
        grace: seconds for the other sites after as many have sent a valid report as trained in the last round.
        timeout: seconds that a site may take.
    """

    def __init__(self, grace: int, timeout: int) -> None:
        super().__init__()
        self.grace, self.timeout = grace, timeout

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: there is nothing to prepare."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Broadcast once, collect the answers, and end. `grace` begins as the class says."""
        engine = fl_ctx.get_engine()
        rounds: list[dict[str, Any]] = engine.get_component("results").results.get("rounds", [])
        trained = len(rounds[-1]["sites"]) if rounds else 0
        done = rounds[-1]["round"] + 1 if rounds else 0
        gone = engine.get_component("persistor").left_out
        here = [client.name for client in engine.get_clients() if client.name not in gone]
        self.broadcast_and_wait(
            task=model_task(AppConstants.TASK_VALIDATION, self._received, done, timeout=self.timeout, fl_ctx=fl_ctx),
            fl_ctx=fl_ctx,
            targets=here if gone else None,  # None: also a site that comes late
            min_responses=max(1, min(trained, len(here))),
            wait_time_after_min_received=self.grace,
            abort_signal=abort_signal,
        )

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: there is nothing to clean up."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Log a late answer and drop it."""
        note_late(client.name, task_name)

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        receive(client_task, fl_ctx, take=self._take, refuse=_refuse)

    def _take(self, site: str, result: Shareable, fl_ctx: FLContext) -> bool:
        if fault := tested_fault(from_shareable(result).data):
            fl_ctx.set_prop(REASON, fault, private=True, sticky=False)
            return False
        fl_ctx.set_prop(AppConstants.DATA_CLIENT, site, private=True, sticky=False)
        fl_ctx.set_prop(AppConstants.VALIDATION_RESULT, result, private=True, sticky=False)
        self.fire_event(AppEventType.VALIDATION_RESULT_RECEIVED, fl_ctx)
        return True


def _refuse(site: str, code: str, fl_ctx: FLContext) -> None:
    log.error("final test of %s failed: %s", site, fl_ctx.get_prop(REASON) or ascii(code)[:80])
