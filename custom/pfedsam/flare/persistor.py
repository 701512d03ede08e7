"""The server's copy of the model: its first value, each round's value, and the best value. Only safetensors."""

import uuid
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

from pfedsam import log
from pfedsam.bounds import parse_count
from pfedsam.config import Config, to_dict
from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.server import ServerState, begin_state
from pfedsam.flare.context import cache, checkpoints, job_config, model_meta, run_dir, simulated, store, weights
from pfedsam.flare.gate import close_early, federated
from pfedsam.flare.process import set_up
from pfedsam.layout import MODELS
from pfedsam.record.back import came_from, go_back, left_out
from pfedsam.record.cards import write_part
from pfedsam.record.results import start
from pfedsam.study import down_schema, first_tensors, initial_shared, same_settings
from pfedsam.tensors import Tensors, not_finite


class SharedPersistor(ModelPersistor):  # type: ignore[misc]
    """Keeps the server's state: the shared part and the rule's memory. Never an expert, nor the frozen base.

    The job's run folder has the last and the best model, to be fetched. The server's store has a
    checkpoint of each round. If this job dies, another job continues from there.

    Args:
        run: the run's name. A run that has begun continues after its last finished round. Empty: a new run, named
            like the job.
        continues: refuse to begin a run. "latest" is then the run that wrote last.
        begin: "STUDY/RUN", another run whose last shared tensors a new run starts from. Empty: drawn from the seed.
        back: "RUN/ROUNDS": if `run` has not begun, it begins with RUN's last good model after at most so many rounds.
    """

    def __init__(self, run: str = "", continues: bool = False, begin: str = "", back: str = "") -> None:
        super().__init__()
        close_early()
        self.run, self.continues, self.begin, self.back = run, continues, begin, back
        self.base = ""
        self.state = ServerState({})
        self.begun: dict[str, Any] = {}  # the other run whose model this one began with, as in results.json
        self.point: Checkpoint | None = None
        self._best = float("-inf")
        self._candidate: tuple[Tensors, dict[str, str]] | None = None
        self._checkpoints: Checkpoints  # of the job's study, once the model is loaded

    @property
    def done(self) -> int:
        """The number of the run's rounds that were finished when this job began."""
        return self.point.done if self.point else 0

    @property
    def left_out(self) -> frozenset[str]:
        """The sites that the run goes on without, since it went back."""
        return left_out(self.point.results) if self.point else frozenset()

    @property
    def runs(self) -> frozenset[str]:
        """The names of the study's runs, and of those that this one went back from."""
        back = came_from(self.point.results) if self.point else ()
        return self._checkpoints.runs() | {self.run, *(one.run for one in back)}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Prepare the job's process, and keep the best model when FLARE's selector names one."""
        if federated(fl_ctx):
            return
        if event_type == EventType.START_RUN:
            set_up(fl_ctx, at_server=True)
        elif event_type == AppEventType.GLOBAL_BEST_MODEL_AVAILABLE:
            self._note_best(fl_ctx)

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The shared tensors to begin with: from the run's newest checkpoint, else from `begin` or the job's seed."""
        try:
            self._checkpoints = checkpoints(fl_ctx)
            shared, self.base = initial_shared(job_config(fl_ctx), weights(fl_ctx), cache(fl_ctx))
            self.state = self._begin(shared, fl_ctx)
        except UserFault as fault:
            log.error("[server] %s", fault)
            self.system_panic(str(fault), fl_ctx)
            return make_model_learnable({}, {})
        return self.model(fl_ctx)

    def model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The shared tensors in the form that FLARE's widgets expect of a model."""
        return make_model_learnable(self.state.shared, model_meta(fl_ctx, self.base))

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the round's shared tensors, their card and the checkpoint. If it cannot, the job stops."""
        try:
            _demand_finite(self.state.flat())
            round_, digest = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)), job_config(fl_ctx).digest()
            self._write(self.state.shared, fl_ctx, "shared", {"round": str(round_)})
            results = fl_ctx.get_engine().get_component("results").results
            self._save_best(fl_ctx)  # first: a repeated round does not score the model again that it began with
            self._checkpoints.save(Checkpoint(self.run, round_ + 1, digest, self.base, results, self.state))
        except UserFault as fault:
            log.error("[server] %s", fault)
            self.system_panic(str(fault), fl_ctx)

    def _begin(self, fresh: Tensors, fl_ctx: FLContext) -> ServerState:
        config, points = job_config(fl_ctx), self._checkpoints
        if self.back and not points.rounds(self.run):
            self._go_back()
        if self.continues:
            self.run = points.find(self.run)
        mark = f"-{uuid.uuid4().hex[:8]}" if simulated(fl_ctx) else ""  # all jobs of the simulator have one id
        self.run = self.run or f"{fl_ctx.get_job_id()}{mark}"
        points.begin(self.run)
        self.point = points.load(self.run)
        if self.point is None and (some := points.rounds(self.run)):
            raise UserFault(
                expected=f"one whole checkpoint of run {self.run}",
                came=f"{len(some)}, all damaged",
                do="bring them back from a backup, or begin a new run",
            )
        if self.point is None:
            self.point = self._first(fresh, fl_ctx)
            points.save(self.point)
        self.begun = {k: v for k, v in self.point.results.get("begun_with", {}).items() if k != "private"}
        _same_job(self.point, config, self.base)
        if self.done:
            log.info("[server] run %s continues after %d finished rounds", self.run, self.done)
            self._write(self.point.state.shared, fl_ctx, "shared", {"round": str(self.done - 1)})
        if best := points.load_best(self.run):
            self._best = float(best[1]["val_dice"])
            self._write(best[0], fl_ctx, "shared.best", best[1])
        return self.point.state

    def _go_back(self) -> None:
        run, _, most = self.back.rpartition("/")
        rounds = 0 if most == "0" else parse_count(most, "finished rounds")
        point = go_back(self._checkpoints, run, rounds, into=self.run)
        log.info("[server] run %s goes back to %d finished rounds, as run %s", run, point.done, self.run)

    def _first(self, fresh: Tensors, fl_ctx: FLContext) -> Checkpoint:
        """The run before its first round."""
        config = job_config(fl_ctx)
        first, begun = first_tensors(store(fl_ctx), self.begin, fresh, self.base, config)
        if begun:
            log.info("[server] begins with the model of run %(run)s after %(rounds)d rounds", begun)
        results = start(to_dict(config), config.digest(), self.base, begun)
        state = begin_state(first, down_schema(config))
        return Checkpoint(self.run, 0, config.digest(), self.base, results, state)

    def _note_best(self, fl_ctx: FLContext) -> None:
        """Hold the model that FLARE's selector names best: the one the round began with. It counts once the round does.

        If each site has its own model, no site has scored the shared one. Then no best model is kept.
        """
        if self.state.models:
            return
        dice = float(fl_ctx.get_prop(AppConstants.VALIDATION_RESULT))
        round_ = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND)) - 1  # that made the model; none made the first
        facts = {"val_dice": repr(dice), **({"round": str(round_)} if round_ >= 0 else {})}
        self._candidate = (self.state.shared, facts) if dice > self._best else None

    def _save_best(self, fl_ctx: FLContext) -> None:
        if self._candidate is None:
            return
        (tensors, facts), self._candidate = self._candidate, None
        self._checkpoints.save_best(self.run, tensors, facts)
        self._write(tensors, fl_ctx, "shared.best", facts)
        self._best = float(facts["val_dice"])

    def _write(self, tensors: Tensors, fl_ctx: FLContext, name: str, more: dict[str, str]) -> None:
        """Write shared tensors and their card. `more` names the round that made them. None made the first ones."""
        config = job_config(fl_ctx)
        facts = {"run": self.run, **more, "config": config.digest(), "base": self.base}
        if self.begun:
            facts["begun_with"] = "{run} after {rounds} rounds, {sha256}".format(**self.begun)
        write_part(run_dir(fl_ctx) / MODELS / name, "shared", tensors, config=config, facts=facts)


def _demand_finite(shared: Tensors) -> None:
    """Refuse a model with NaN or infinite values: finite updates may still add up to one."""
    if name := not_finite(shared):
        raise UserFault(
            expected="a finite model after the round",
            came=f"NaN or infinite values at {name}",
            do="look at the sites' losses in results.json. You can continue from the checkpoint of the round before",
        )


def _same_job(point: Checkpoint, config: Config, base: str) -> None:
    do = "continue with the job folder that the run began with, or start a new run without --continue"
    same_settings(config, point.results["config"], f"run {point.run}", do)
    if point.base != base:
        raise UserFault(expected=f"the base model of run {point.run} ({point.base[:12]})", came=base[:12], do=do)
