"""The rounds of a run: FLARE's ScatterAndGather, begun where the run stands."""

from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from pfedsam import log
from pfedsam.flare.context import CLASSES_DIFFER, REASON, REJECTED, RUN, TRAINED, due, trained

TOLD = {  # what a site answers without an update, in words
    CLASSES_DIFFER: "its masks number the classes otherwise than the job (data.classes); the site's own log names both"
}


class Rounds(ScatterAndGather):  # type: ignore[misc]
    """`num_rounds` rounds in all, those before counted that the run's earlier jobs have finished.

    Quorum and deadline are FLARE's: a round ends when every site has answered, or
    `wait_time_after_min_received` seconds after `min_clients` have, or after `train_timeout`.
    """

    _start_round: int
    _current_round: int
    _num_rounds: int

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Load the model; begin after the rounds that the run has done."""
        self._all_rounds = self._num_rounds
        super().start_controller(fl_ctx)
        self._start_round = self.persistor.done
        self._num_rounds = max(self._all_rounds - self._start_round, 0)
        fl_ctx.set_prop(AppConstants.START_ROUND, self._start_round, private=True, sticky=True)
        fl_ctx.set_prop(AppConstants.CURRENT_ROUND, self._start_round, private=True, sticky=True)

    def broadcast_and_wait(self, task: Task, fl_ctx: FLContext, min_responses: int = 1, **options: Any) -> None:
        """As FLARE's, to the sites whose turn it is."""
        targets = due(fl_ctx, self._current_round)
        if targets == []:
            reason = f"round {self._current_round}: expected a site whose turn it is among those connected, came none"
            self.system_panic(f"{reason}; correct every", fl_ctx)
            return
        fewest = min_responses if targets is None else min(min_responses, len(targets))
        super().broadcast_and_wait(task=task, fl_ctx=fl_ctx, targets=targets, min_responses=fewest, **options)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """As FLARE's; booked under the name that the site's certificate gives it, whatever name its message says.

        A site that was refused, or answered without an update, stands in results.json with the reason.
        """
        result.set_peer_props({**(result.get_peer_props() or {}), ReservedKey.IDENTITY_NAME: client_name})
        code, reason = result.get_return_code(), fl_ctx.get_prop(REASON)
        if code != ReturnCode.OK and (reason or not is_unknown_task):  # a late update is refused by the guard
            reason = reason or TOLD.get(str(code), f"no update came: {code}; the site's own log says why")
            log.error("update of %s not counted: %s", client_name, reason)
            self.fire_event_with_data(REJECTED, fl_ctx, REJECTED, {"site": client_name, "reason": reason})
            if code == CLASSES_DIFFER and not self._current_round:  # later the site is out, and no round is lost
                self.system_panic(f"{client_name}: {reason}", fl_ctx)
        return bool(super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task))

    def _prepare_train_task_data(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        client_task.task.data.set_header(AppConstants.NUM_ROUNDS, self._all_rounds)
        client_task.task.data.set_header(RUN, self.persistor.run)
        client_task.task.data.set_header(TRAINED, trained(fl_ctx))
        super()._prepare_train_task_data(client_task, fl_ctx)
