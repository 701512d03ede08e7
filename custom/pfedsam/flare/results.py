"""Keeps results.json up to date while the job runs, and ends it with a table."""

import time
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.widget import Widget

from pfedsam import log
from pfedsam.config import to_dict
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import REPORT
from pfedsam.files import write_json
from pfedsam.flare.context import REJECTED, job_config, run_dir
from pfedsam.flare.curves import tell_curves
from pfedsam.flare.gate import federated
from pfedsam.record.results import as_known, finish, private_begun, replanned, start, versions
from pfedsam.record.said import tested_fault
from pfedsam.record.table import final_table


class ResultsWriter(Widget):  # type: ignore[misc]
    """Listens to the workflow's events. It holds only numbers, never a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}
        self._done = 0  # rounds whose checkpoint is on the disk
        self._round: dict[str, Any] = {"sites": {}, "rejected": {}}
        self._round_began = time.time()
        self._began = self._round_began  # minus the seconds that the run's jobs before this one took

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Call the method that serves FLARE's event. If the disk is full, one line says so and the run continues."""
        serve = {
            AppEventType.INITIAL_MODEL_LOADED: self._start,
            AppEventType.ROUND_STARTED: self._round_started,
            AppEventType.AFTER_CONTRIBUTION_ACCEPT: self._contribution,
            REJECTED: self._rejected,
            AppEventType.BEFORE_LEARNABLE_PERSIST: self._close_round,
            AppEventType.ROUND_DONE: self._round_done,
            AppEventType.VALIDATION_RESULT_RECEIVED: self._final,
            EventType.ABOUT_TO_END_RUN: self._end,
        }.get(event_type)
        try:
            if serve is not None and not federated(fl_ctx):
                serve(fl_ctx)
        except UserFault as fault:
            log.error("[server] %s", fault)

    def _start(self, fl_ctx: FLContext) -> None:
        """Begin the record, or continue that of the run's checkpoint."""
        config, persistor = job_config(fl_ctx), fl_ctx.get_engine().get_component("persistor")
        fresh = start(to_dict(config), config.digest(), persistor.base, persistor.begun)
        past = persistor.point.results if persistor.point else {}
        jobs, ran = [*past.get("jobs", []), str(fl_ctx.get_job_id())], versions(past.get("versions"))
        planned = _planned(past, int(fl_ctx.get_prop(AppConstants.NUM_ROUNDS)))
        begun = past.get("begun_with", fresh["begun_with"])
        gone = {"run": persistor.run, "jobs": jobs, "versions": ran, "rounds": list(past.get("rounds", []))}
        gone |= {"back": past["back"]} if "back" in past else {}
        self.results = {**fresh, **gone, "begun_with": begun, "planned": planned}
        self._done = len(gone["rounds"])
        if doubt := replanned(self.results):
            log.warning("[server] %s", doubt)
        self._began -= past.get("seconds", 0.0)

    def _round_started(self, fl_ctx: FLContext) -> None:
        self._round = {"sites": {}, "rejected": {}}
        self._round_began = time.time()

    def _contribution(self, fl_ctx: FLContext) -> None:
        if fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED):
            result = fl_ctx.get_prop(AppConstants.TRAINING_RESULT)
            site, report = result.get_peer_prop("__identity_name__", "?"), from_shareable(result).get_meta_prop(REPORT)
            known = fl_ctx.get_engine().get_component("persistor").runs | {job_config(fl_ctx).begin_private}
            self._round["sites"][site] = as_known(report, known)
            tell_curves(site, report, int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)), fl_ctx)

    def _rejected(self, fl_ctx: FLContext) -> None:
        refusal = fl_ctx.get_prop(REJECTED)
        self._round["rejected"][refusal["site"]] = refusal["reason"]

    def _close_round(self, fl_ctx: FLContext) -> None:
        """Add the round to the record, before the checkpoint is written."""
        number = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
        now = time.time()
        done = {"round": number, "seconds": now - self._round_began, **self._round}
        begun, rounds = private_begun(self.results, self._round["sites"]), [*self.results["rounds"], done]
        self.results = {**self.results, "begun_with": begun, "rounds": rounds, "seconds": now - self._began}

    def _round_done(self, fl_ctx: FLContext) -> None:
        self._done = len(self.results["rounds"])
        self._write(fl_ctx)
        last = self.results["rounds"][-1]
        dice = [site["val"]["personal"]["dice"] for site in last["sites"].values()]
        scored = [d for d in dice if d is not None]
        mean = sum(scored) / len(scored) if scored else float("nan")
        line = "round %d done in %.0f s: %d sites, mean validation Dice (personal) %.3f"
        log.info(line, last["round"] + 1, last["seconds"], len(dice), mean)

    def _final(self, fl_ctx: FLContext) -> None:
        site = fl_ctx.get_prop(AppConstants.DATA_CLIENT)
        tested = from_shareable(fl_ctx.get_prop(AppConstants.VALIDATION_RESULT)).data
        if fault := tested_fault(tested):
            log.error("final test of %s left out: %s", site, fault)
        else:
            self.results["final"]["sites"][site] = tested

    def _end(self, fl_ctx: FLContext) -> None:
        if not self._done:
            return
        self.results["rounds"] = self.results["rounds"][: self._done]  # not one whose checkpoint could not be written
        self.results = finish(self.results, time.time() - self._began)
        path = self._write(fl_ctx)
        table = final_table(self.results).replace("%", "%%")  # in the message itself, whose line breaks stay
        log.info(f"the run is done\n{table}\nresults: %s", path.parent)

    def _write(self, fl_ctx: FLContext) -> Any:
        path = run_dir(fl_ctx) / "results.json"
        write_json(path, self.results)
        return path


def _planned(past: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The planned number of rounds. "earlier" has the numbers that the run's earlier jobs planned, if they differ."""
    began = past.get("planned", {})
    earlier = began.get("earlier", []) + ([began["rounds"]] if began.get("rounds", rounds) != rounds else [])
    return {"rounds": rounds, "earlier": earlier}
