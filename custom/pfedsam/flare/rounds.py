"""The rounds of a run: each site gets its model, and the rule makes the next model from the sites' updates."""

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.utils.memory_utils import cleanup_memory
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from pfedsam import log
from pfedsam.errors import UserFault, one_line
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.roster import LEAST
from pfedsam.flare.answers import code_of, note_late, receive, wait_for
from pfedsam.flare.context import CLASSES_DIFFER, DIVERGED, REASON, REJECTED, certified, job_config
from pfedsam.flare.ends import WHERE_DIVERGED
from pfedsam.flare.masking import Masking
from pfedsam.flare.sends import model_task
from pfedsam.flare.steps import ATTEMPT, masked

LONGEST = 300  # most characters of a reason in the log and the record
SITES_SAY = ". The job stops. Each site's own log says what went wrong there"
TOLD = {  # a site's answer without an update, in words
    CLASSES_DIFFER: "its masks use other class numbers than the job (data.classes). The site's own log names both",
    DIVERGED: "it could not train on from the server's model. The site's own log says why",
}


class Rounds(Controller):  # type: ignore[misc]
    """Runs the rounds until the run has `rounds`, counting those that its earlier jobs finished.

    Quorum and deadline are FLARE's: a round ends when every site has answered, or `grace` seconds after `min_sites`
    valid updates have come, or after `timeout` seconds. It fires the events of FLARE's own workflows, for FLARE's
    widgets and ours.

    Args:
        rounds: of the whole run.
        min_sites: the number of valid updates that a round needs. With fewer the job stops and says so. It also
            stops if the training diverged at more sites than it went well: then the model is bad.
        grace: seconds for the other sites after `min_sites` valid updates have come.
        timeout: seconds that a round may take.
    """

    def __init__(self, rounds: int, min_sites: int, grace: int, timeout: int) -> None:
        super().__init__()
        self.rounds, self.min_sites, self.grace, self.timeout = rounds, min_sites, grace, timeout
        self.round: int | None = None  # the one in progress, or the last
        self._failed: dict[str, str] = {}  # the sites without a valid update in this round, and their return codes
        self._came: dict[str, Shareable] = {}  # the updates that the aggregator has
        self._far: dict[str, str] = {}  # the sites whose update is left out for its length, with the reason
        self._asked, self._least = 0, min_sites
        self._masking = Masking(self, grace=grace, timeout=timeout, refuse=self._refuse)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Load the model. The first round is the one after the run's finished rounds."""
        engine = fl_ctx.get_engine()
        fl_ctx.get_prop(FLContextKey.RUNNER).ABORT_RETURN_CODES = []  # else one site's answer ends the job of all
        self.persistor, self.aggregator = engine.get_component("persistor"), engine.get_component("aggregator")
        _put(fl_ctx, AppConstants.GLOBAL_MODEL, self.persistor.load(fl_ctx))
        _put(fl_ctx, AppConstants.NUM_ROUNDS, max(self.rounds, self.persistor.done))  # a shorter job only tests
        _put(fl_ctx, AppConstants.START_ROUND, self.persistor.done)
        _put(fl_ctx, AppConstants.CURRENT_ROUND, self.persistor.done)
        self.fire_event(AppEventType.INITIAL_MODEL_LOADED, fl_ctx)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the remaining rounds."""
        self.fire_event(AppEventType.TRAINING_STARTED, fl_ctx)
        for round_ in range(self.persistor.done, self.rounds):
            if abort_signal.triggered:
                return
            self.round, self._failed, self._came, self._far = round_, {}, {}, {}
            _put(fl_ctx, AppConstants.CURRENT_ROUND, round_)
            self.fire_event(AppEventType.ROUND_STARTED, fl_ctx)
            if not self._gather(round_, abort_signal, fl_ctx):
                return
            self._end(abort_signal, fl_ctx)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: there is nothing to clean up."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Tell the administrator which round the run is in, if asked."""
        super().handle_event(event_type, fl_ctx)
        collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, None)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS and isinstance(collector, GroupInfoCollector):
            info = {"current_round": self.round, "num_rounds": self.rounds}
            collector.add_info(group_name=self.name, info=info)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop a late answer, because its round is over. What the guard refused is recorded."""
        if fl_ctx.get_prop(REASON):
            self._book(client.name, code_of(result), fl_ctx)
        note_late(client.name, task_name)

    def _gather(self, round_: int, stop: Signal, fl_ctx: FLContext) -> bool:
        """Whether the round has the updates that it needs. If not, the job stops."""
        config, clients = job_config(fl_ctx), fl_ctx.get_engine().get_clients()
        here = [client.name for client in clients if client.name not in self.persistor.left_out]
        sites = [name for name in here if config.trains(name, round_)]
        self.aggregator.sites = here
        turns = [name for name in here if config.trains(name, 0)]  # in this round or in another one
        self._asked, self._least = len(sites), self._quorum(len(sites), len(turns))
        if not sites:
            return self._stop(f"round {round_}: no connected site trains in it. Change the setting every", fl_ctx)
        task = model_task(AppConstants.TASK_TRAIN, self._received, round_, timeout=self.timeout, fl_ctx=fl_ctx)
        if masked(config):
            if (hidden := self._agree(sites, stop, fl_ctx)) is None:
                return False
            sites = sorted(hidden.roster)
            task.data.set_header(ATTEMPT, hidden.attempt)
        self.broadcast_and_wait(
            task=task,
            fl_ctx=fl_ctx,
            targets=sites,
            min_responses=min(self._least, len(sites)),
            wait_time_after_min_received=self.grace,
            abort_signal=stop,
        )
        if stop.triggered:
            return False
        with task.cb_lock:  # an answer may be under judgement as the task ends
            self._leave_out(fl_ctx)
        if fault := self._diverged() or self._too_few():
            return self._stop(fault, fl_ctx)
        return self._opened(stop, fl_ctx) and not stop.triggered

    def _agree(self, sites: list[str], stop: Signal, fl_ctx: FLContext) -> MaskedSum | None:
        """The masked sum on which sites have agreed. None: they are too few, and the job stops."""
        hidden = self._masking.agree(sites, self._least, stop, fl_ctx)
        if hidden is None:
            if not stop.triggered:
                least = max(self._least, LEAST)
                self._stop(
                    f"round {self.round}: expected keys and shares of {least} sites for a masked sum{SITES_SAY}", fl_ctx
                )
            return None
        self.aggregator.hidden = hidden
        self._asked, self._failed = len(hidden.roster), {}
        self._least = max(self._least, hidden.least)
        return hidden

    def _opened(self, stop: Signal, fl_ctx: FLContext) -> bool:
        """Whether the sum is plain, or can be made so. If not, the job stops, and the round is repeated with it."""
        hidden, there = self.aggregator.hidden, sorted(self.aggregator.given)
        if hidden is None or self._masking.open(hidden, there, stop, fl_ctx) or stop.triggered:
            return True
        wanted, came = f"shares of {hidden.least} sites to open the sum", len(hidden.opened)
        return self._stop(f"round {self.round}: expected {wanted}, came {came}{SITES_SAY}", fl_ctx)

    def _stop(self, reason: str, fl_ctx: FLContext) -> bool:
        """Stop the job for a reason. False."""
        log.error("%s", reason)
        self.system_panic(reason, fl_ctx)
        return False

    def _diverged(self) -> str:
        """Why no model is made of the round, if the training diverged at more sites than it went well. Else empty."""
        sites = sorted(site for site, code in self._failed.items() if code == DIVERGED)
        if len(sites) <= self._valid():
            return ""
        fault = UserFault(
            expected=f"the sites to train on from the model after {self.round} rounds",
            came=f"{len(sites)} of {self._asked} {WHERE_DIVERGED}: {', '.join(sites)}",
            do="go back to a model from before, with pfedsam back. Each site's own log says what went wrong there",
        )
        return f"[server] {fault}"

    def _too_few(self) -> str:
        """Why no model is made of the round, if it has too few valid updates. Else empty."""
        if (came := self._valid()) >= self._least:
            return ""
        return f"round {self.round}: expected valid updates of {self._least} sites, came {came}{SITES_SAY}"

    def _valid(self) -> int:
        """The number of updates that count in this round."""
        return len(self.aggregator.given) - len(self._far)

    def _leave_out(self, fl_ctx: FLContext) -> None:
        """Record the updates that are left out for their length, before anything is made of the others."""
        self._far = self.aggregator.far(fl_ctx)
        for site, reason in self._far.items():
            fl_ctx.set_prop(REASON, reason, private=True, sticky=False)
            self._book(site, ReturnCode.OK, fl_ctx)

    def _vote(self, fl_ctx: FLContext) -> None:
        """Tell FLARE's selector of the best model of the updates that count. It hears of no other."""
        for site, result in self._came.items():
            if site not in self._far:
                fl_ctx.set_peer_context(certified(site, result))
                self.fire_event(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, fl_ctx)
        self._came = {}
        fl_ctx.set_peer_context(None)  # it holds the last update

    def _end(self, stop: Signal, fl_ctx: FLContext) -> None:
        """Make the rule's result the model. It is on the disk before the round counts as done."""
        self._vote(fl_ctx)
        self.fire_event(AppEventType.BEFORE_AGGREGATION, fl_ctx)
        result = self.aggregator.aggregate(fl_ctx)
        self.aggregator.reset(fl_ctx)
        if stop.triggered:
            return
        self.fire_event_with_data(AppEventType.AFTER_AGGREGATION, fl_ctx, AppConstants.AGGREGATION_RESULT, result)
        _put(fl_ctx, AppConstants.GLOBAL_MODEL, self.persistor.model(fl_ctx))
        fl_ctx.sync_sticky()
        self.fire_event(AppEventType.BEFORE_LEARNABLE_PERSIST, fl_ctx)
        self.persistor.save(fl_ctx.get_prop(AppConstants.GLOBAL_MODEL), fl_ctx)
        if stop.triggered:
            return
        self.fire_event(AppEventType.AFTER_LEARNABLE_PERSIST, fl_ctx)
        self.fire_event(AppEventType.ROUND_DONE, fl_ctx)
        cleanup_memory()

    def _quorum(self, asked: int, connected: int) -> int:
        """`min_sites`. If so many are connected and some skip the round, no more than those that train in it.

        Args:
            connected: sites that train in this round or in another one.
        """
        skipped = asked < connected and connected >= self.min_sites
        return max(min(self.min_sites, asked), 1) if skipped else self.min_sites

    def _received(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        """Record a site's answer under the name in its certificate, whatever name its message says."""
        receive(client_task, fl_ctx, take=self._count, refuse=self._turn_down)
        self._wait_beyond(client_task.task, fl_ctx)

    def _wait_beyond(self, task: Task, fl_ctx: FLContext) -> None:
        """Keep updates that are left out for their length from starting `grace`, as far as those that came tell.

        It looks only as `grace` would begin: each look decodes all updates.
        """
        if self._valid() == self._least:
            far = self.aggregator.far(fl_ctx)
            wait_for(task, len(far) - len(self._far))
            self._far = far

    def _count(self, site: str, result: Shareable, fl_ctx: FLContext) -> bool:
        """Whether an update is accepted."""
        result.set_peer_props({**(result.get_peer_props() or {}), ReservedKey.IDENTITY_NAME: site})
        fl_ctx.set_peer_context(certified(site, result))
        fl_ctx.set_prop(AppConstants.TRAINING_RESULT, result, private=True, sticky=False)
        accepted = self.aggregator.accept(result, fl_ctx)
        if accepted:
            self._came[site] = result
        fl_ctx.set_prop(AppConstants.AGGREGATION_ACCEPTED, accepted, private=True, sticky=False)
        self.fire_event(AppEventType.AFTER_CONTRIBUTION_ACCEPT, fl_ctx)
        return bool(accepted)

    def _turn_down(self, site: str, code: str, fl_ctx: FLContext) -> None:
        """Refuse an answer. A second one takes nothing from the first."""
        (self._book if site in self.aggregator.given else self._refuse)(site, code, fl_ctx)

    def _refuse(self, site: str, code: str, fl_ctx: FLContext) -> None:
        """Record the refusal. If the other sites are too few for the round, the job stops at once.

        It also stops in the first round if half of the sites give class numbers another meaning: then the job's may be
        wrong. One site of three or more is only left out, because it may lie.

        If the training diverged, the other sites' answers tell whether the model is bad.
        """
        reason = self._book(site, code, fl_ctx)
        self._failed[site] = code
        codes = list(self._failed.values())
        at_odds = self.round == 0 and 2 * codes.count(CLASSES_DIFFER) >= self._asked  # later no round is lost
        too_few = self._asked - len(codes) < self._least
        if at_odds or (too_few and DIVERGED not in codes):
            self.system_panic(f"{site}: {reason}", fl_ctx)

    def _book(self, site: str, code: str, fl_ctx: FLContext) -> str:
        """Record in results.json, with the reason, a site that was refused or sent no update. Returns the reason."""
        told = TOLD.get(code, f"no update came: {ascii(code)[1:-1]}; the site's own log says why")
        reason = one_line(str(fl_ctx.get_prop(REASON) or told))[:LONGEST]
        log.error("update of %s not counted: %s", site, reason)
        self.fire_event_with_data(REJECTED, fl_ctx, REJECTED, {"site": site, "reason": reason})
        return reason


def _put(fl_ctx: FLContext, key: str, value: object) -> None:
    """Set a property for every later context of the job, at the server only."""
    fl_ctx.set_prop(key, value, private=True, sticky=True)
