"""A site's FLARE tasks: train, validate, submit_model. It translates, calls `Site`, and translates back."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from pfedsam import log
from pfedsam.bounds import parse_count
from pfedsam.errors import ClassesDiffer, UserFault
from pfedsam.exchange.codec import encode
from pfedsam.exchange.schema import REPORT, STAMP
from pfedsam.files import Tensors, pack, unpack, write_atomic
from pfedsam.flare.context import (
    CLASSES_DIFFER,
    RUN,
    TRAINED,
    job_config,
    places,
    run_dir,
    selected_by,
    setting,
    simulated,
    stamp_of,
)
from pfedsam.flare.gate import close, federated
from pfedsam.flare.terminal import keep_calm
from pfedsam.layout import OWN
from pfedsam.names import one_name
from pfedsam.quiet import quiet
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.site import Site
from pfedsam.train.loop import Progress

LAST = "trained.safetensors"  # the shared part as this site last trained it, in its run folder
LINE_EVERY, LINE_EVERY_SIMULATED = 5.0, 60.0  # seconds between progress lines; the simulator shows all sites' on one


class PFedSAMExecutor(Executor):  # type: ignore[misc]
    """Runs any method of `pfedsam.methods` at one site.

    All that must outlive a task is on the site's disk. With fewer threads than sites the simulator
    starts a new process for every task, and a hospital's machine may restart.
    """

    def __init__(self) -> None:
        super().__init__()
        quiet()
        self._site: Site | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register the tensor codec and close the gate. Without the codec FLARE cannot read a message and waits."""
        if event_type == EventType.START_RUN and not federated(fl_ctx):
            close(fl_ctx)
            keep_calm(fl_ctx)
            fobs.register(TensorDecomposer)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Serve one task. A user's fault is one clear line in the log, without a traceback."""
        serve = {
            AppConstants.TASK_TRAIN: self._train,
            AppConstants.TASK_VALIDATION: self._validate,
            AppConstants.TASK_SUBMIT_MODEL: self._submit_model,
        }.get(task_name)
        if serve is None:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            return serve(self._open(fl_ctx), shareable, fl_ctx, abort_signal)
        except UserFault as fault:
            log.error("[%s] %s", fl_ctx.get_identity_name(), fault)
            differ = isinstance(fault, ClassesDiffer)
            return make_reply(CLASSES_DIFFER if differ else ReturnCode.EXECUTION_EXCEPTION)

    def _open(self, fl_ctx: FLContext) -> Site:
        if self._site is None:
            torch.set_num_threads(_threads(fl_ctx))
            torch.use_deterministic_algorithms(not torch.cuda.is_available())
            name, config = str(fl_ctx.get_identity_name()), job_config(fl_ctx)
            self._site = Site(name, config, places(fl_ctx, name, config))
        return self._site

    def _train(self, site: Site, shareable: Shareable, fl_ctx: FLContext, stop: Signal) -> Shareable:
        wire, turn = _asked(shareable, fl_ctx)
        every = LINE_EVERY_SIMULATED if simulated(fl_ctx) else LINE_EVERY
        progress = _Progress(site.name, turn, _started(run_dir(fl_ctx), turn.round), every)
        update, report = serve_round(site, wire, turn, progress=progress, stop=lambda: bool(stop.triggered))
        if update.report.stopped:
            return make_reply(ReturnCode.TASK_ABORTED)
        write_atomic(run_dir(fl_ctx) / LAST, pack(site.shared(), {"round": str(turn.round)}))
        meta = {
            MetaKey.NUM_STEPS_CURRENT_ROUND: update.samples,
            MetaKey.INITIAL_METRICS: selected_by(report),
            STAMP: asdict(site.stamp(turn.round)),
            REPORT: report,
        }
        return DXO(DataKind.WEIGHT_DIFF, data=update.wire, meta=meta).to_shareable()

    def _validate(self, site: Site, shareable: Shareable, fl_ctx: FLContext, _: Signal) -> Shareable:
        folder = run_dir(fl_ctx) / OWN
        metrics = serve_test(site, *_asked(shareable, fl_ctx), folder)
        log.info("[%s] tested; its own files: %s", site.name, folder)
        return DXO(DataKind.METRICS, data=metrics).to_shareable()

    def _submit_model(self, site: Site, _: Shareable, fl_ctx: FLContext, __: Signal) -> Shareable:
        """The shared part as this site last trained it, for FLARE's cross-site evaluation. Never experts."""
        path = run_dir(fl_ctx) / LAST
        if not path.exists():
            raise UserFault(expected="a model trained in this job", came="none yet", do="run the task train first")
        wire = encode(unpack(path.read_bytes())[0], site.config.wire.down)
        return DXO(DataKind.WEIGHTS, data=wire, meta={STAMP: asdict(site.stamp(-1))}).to_shareable()


class _Progress:
    """A line in the log at a round's end, and before that one each `every` seconds: step, loss, seconds left."""

    def __init__(self, site: str, turn: Turn, started: tuple[float, int], every: float) -> None:
        self._site, self._round, self._rounds = site, turn.round, turn.rounds
        self._started, self._first = started
        self._every, self._last = every, time.monotonic() - LINE_EVERY

    def __call__(self, now: Progress) -> None:
        if time.monotonic() - self._last < self._every and now.step < now.steps:
            return
        self._last = time.monotonic()
        share = (self._round - self._first + now.step / now.steps) / (self._rounds - self._first)
        left = (time.time() - self._started) * (1 / share - 1)
        losses = " ".join(f"{name} {value:.3f}" for name, value in now.losses.items())
        where = f"round {self._round + 1}/{self._rounds} step {now.step}/{now.steps}"
        log.info("[%s] %s loss %s, about %.0f s left", self._site, where, losses, left)


def _asked(shareable: Shareable, fl_ctx: FLContext) -> tuple[Tensors, Turn]:
    """A task's tensors, and what it asks of this site. FLARE's own workflows name no run: then each job is a run.

    A site may set `fresh` to continue with a new private part, drawn from the seed.
    """
    dxo, run = _model_in(shareable), one_name(str(shareable.get_header(RUN) or fl_ctx.get_job_id()), "run")
    fl_ctx.set_prop(RUN, run, private=True, sticky=False)  # for the ledger
    round_, rounds = (shareable.get_header(k, 0) for k in (AppConstants.CURRENT_ROUND, AppConstants.NUM_ROUNDS))
    sites = shareable.get_header(TRAINED)
    trained = isinstance(sites, list) and str(fl_ctx.get_identity_name()) in sites
    lost = setting(fl_ctx, "fresh") == run
    return dxo.data, Turn(run, stamp_of(dxo, round_).base, round_, rounds, trained and not lost)


def _model_in(shareable: Shareable) -> DXO:
    try:
        return from_shareable(shareable)
    except ValueError as fault:
        do = "ask the server's administrator. Nothing was trained"
        raise UserFault(expected="a task with the server's model", came=str(fault), do=do) from None


def _started(folder: Path, round_: int) -> tuple[float, int]:
    """The start of this site's first task of the job, in seconds since 1970, and its round."""
    path = folder / "started.json"
    if not path.exists():
        path.write_text(json.dumps([time.time(), round_]))
    clock, first = json.loads(path.read_text())
    return float(clock), int(first)


def _threads(fl_ctx: FLContext) -> int:
    """Threads for torch: the site's setting, else one in the simulator and all cores in a deployment.

    If sites on one machine each use all cores, they slow down more than tenfold, as their OpenMP
    barriers spin. One thread each also makes results independent of the simulator's -t.
    """
    chosen = setting(fl_ctx, "threads")
    return parse_count(chosen, "threads") if chosen else 1 if simulated(fl_ctx) else os.cpu_count() or 1
