"""A site's FLARE tasks: train, validate, the steps of a masked sum. It translates, calls `Site`, translates back."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log
from pfedsam.bounds import parse_count
from pfedsam.errors import ClassesDiffer, Diverged, UserFault
from pfedsam.exchange.masked_site import MaskedSite
from pfedsam.exchange.roster import STEPS
from pfedsam.exchange.schema import REPORT, STAMP
from pfedsam.files import parsed, write_json
from pfedsam.flare.context import (
    BACK,
    CLASSES_DIFFER,
    DIVERGED,
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
from pfedsam.flare.filters import OnlyDeclaredEnters
from pfedsam.flare.gate import close_early, federated
from pfedsam.flare.identity import identity_of
from pfedsam.flare.policy import ask_fences, fences
from pfedsam.flare.process import set_up
from pfedsam.flare.steps import facts_of, masked, step_dxo
from pfedsam.layout import OWN
from pfedsam.names import one_name
from pfedsam.quiet import quiet
from pfedsam.record.back import line_in
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.site import Site
from pfedsam.tensors import Tensors
from pfedsam.train.evaluate import fewest_shown
from pfedsam.train.loop import Progress, patients_seen, slices_seen
from pfedsam.train.precision import best_device

CODES = {ClassesDiffer: CLASSES_DIFFER, Diverged: DIVERGED}
MOST_TESTS = 3  # a job asks one. If the answer is lost with a connection or a process, FLARE asks again. Our choice
LINE_EVERY, LINE_EVERY_SIMULATED = 5.0, 60.0  # seconds between progress lines; the simulator shows all sites' on one


class PFedSAMExecutor(Executor):  # type: ignore[misc]
    """Runs any method of `pfedsam.methods` at one site.

    All that must outlive a task is on the site's disk. With fewer threads than sites the simulator
    starts a new process for every task, and a hospital's machine may restart.
    """

    def __init__(self) -> None:
        super().__init__()
        close_early()
        quiet()
        self._site: Site | None = None
        self._tested: Callable[[], int]  # reads all masks, so once a process

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Prepare the job's process, before it takes a message."""
        if event_type == EventType.START_RUN and not federated(fl_ctx):
            set_up(fl_ctx)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Serve one task. A user's fault is one clear line in the log, without a traceback."""
        serve: dict[str, Callable[[Site, Shareable, FLContext, Signal], Shareable]] = {
            AppConstants.TASK_TRAIN: self._train,
            AppConstants.TASK_VALIDATION: self._validate,
            **dict.fromkeys(STEPS, partial(self._step, task_name)),
        }
        if task_name not in serve:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            OnlyDeclaredEnters().process(shareable, fl_ctx)  # a job may lack the filter
            return serve[task_name](self._open(fl_ctx), shareable, fl_ctx, abort_signal)
        except (UserFault, ContentBlockedException) as fault:
            log.error("[%s] %s", fl_ctx.get_identity_name(), fault)
            return make_reply(CODES.get(type(fault), ReturnCode.EXECUTION_EXCEPTION))

    def _open(self, fl_ctx: FLContext) -> Site:
        if self._site is None:
            torch.set_num_threads(_threads(fl_ctx))
            torch.use_deterministic_algorithms(best_device().type == "cpu")
            name, config = str(fl_ctx.get_identity_name()), job_config(fl_ctx)
            self._site = Site(name, config, places(fl_ctx, name, config))
            self._tested = cache(partial(_tested, self._site))
        return self._site

    def _train(self, site: Site, shareable: Shareable, fl_ctx: FLContext, stop: Signal) -> Shareable:
        wire, turn = _asked(shareable, fl_ctx)
        member = _member(site, fl_ctx) if masked(site.config) else None
        attempt = str(facts_of(shareable).get("attempt", ""))
        if member:
            member.ready(attempt)  # else the training would be in vain
        train = site.data["train"]
        images = len(train.labelled()) or len(train)  # one with a label among others shows most
        slices = slices_seen(train, site.config, site.seed, turn.round, site.method.phase)
        seen = {"seen": len(slices), "patients": patients_seen(train, slices)}
        ask_fences(fl_ctx, site.config, images=images, **seen, tested=self._tested)
        every = LINE_EVERY_SIMULATED if simulated(fl_ctx) else LINE_EVERY
        progress = _Progress(site.name, turn, _started(run_dir(fl_ctx), turn.round), every)
        update, report = serve_round(site, wire, turn, progress=progress, stop=lambda: bool(stop.triggered))
        if update.report.stopped:
            return make_reply(ReturnCode.TASK_ABORTED)
        meta = {
            MetaKey.NUM_STEPS_CURRENT_ROUND: update.samples,
            MetaKey.INITIAL_METRICS: selected_by(report),
            STAMP: asdict(site.stamp(turn.round)),
            REPORT: report,
        }
        sent = member.mask(attempt, update.wire) if member else update.wire
        return DXO(DataKind.WEIGHT_DIFF, data=sent, meta=meta).to_shareable()

    def _step(self, step: str, site: Site, shareable: Shareable, fl_ctx: FLContext, _: Signal) -> Shareable:
        """A step of a masked sum: this site's keys, its sealed shares, or those that it opens."""
        fl_ctx.set_prop(RUN, str(shareable.get_header(RUN) or ""), private=True, sticky=False)  # for the ledger
        tensors, told, member = _model_in(shareable).data, facts_of(shareable), _member(site, fl_ctx)
        attempt = str(told.get("attempt", ""))
        if step == "keys":
            reply = member.keys(attempt, len(site.data["train"]))
        elif step == "shares":
            reply = member.deal(attempt, tensors)
        else:
            reply = member.open(attempt, tensors, told.get("there", []))
        return step_dxo(step, reply, site.stamp(shareable.get_header(AppConstants.CURRENT_ROUND, -1))).to_shareable()

    def _validate(self, site: Site, shareable: Shareable, fl_ctx: FLContext, _: Signal) -> Shareable:
        wire, turn = _asked(shareable, fl_ctx)
        for fence in fences(fl_ctx):
            fence.require_tested(self._tested)
        _count_test(run_dir(fl_ctx) / "tests.json")
        folder = run_dir(fl_ctx) / OWN
        metrics = serve_test(site, wire, turn, folder)
        log.info("[%s] tested; its own files: %s", site.name, folder)
        return DXO(DataKind.METRICS, data=metrics).to_shareable()


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


def _member(site: Site, fl_ctx: FLContext) -> MaskedSite:
    """This site in masked sums. Its secrets are in the job's run folder until the sum is opened."""
    path = run_dir(fl_ctx) / "masks.json"
    server, least = site.config.server, site.config.privacy.sites
    return MaskedSite(site.name, server, path=path, identity=identity_of(fl_ctx), least=least)


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
    back, base = line_in(shareable.get_header(BACK)), stamp_of(dxo, round_).base
    turn = Turn(run, base, round_, rounds, trained and not lost, back)
    _require_one_run(run_dir(fl_ctx), turn)
    return dxo.data, turn


def _require_one_run(folder: Path, turn: Turn) -> None:
    """Check that all tasks of a job are of one run. Under a new name a server could send any model at any time.

    Raises:
        UserFault: the job's first task was of another run.
    """
    path, line = folder / "run.json", list(turn.at.line)
    if not path.exists():
        write_json(path, line)
    if (first := parsed(path.read_bytes())) != line:
        raise UserFault(
            expected=f"run {first[0]} in all tasks of the job",
            came=turn.run if turn.run != first[0] else "another line of runs that it went back from",
            do="ask the server's administrator. Nothing was trained",
        )


def _count_test(path: Path) -> None:
    """Count a final test of the job in the file. Each shows how one more model sees the same patients.

    Raises:
        UserFault: the site has answered as many as a job may ask.
    """
    done = parsed(path.read_bytes()) if path.exists() else 0
    if done >= MOST_TESTS:
        do = "ask the server's administrator what its models are. Nothing was tested"
        raise UserFault(expected=f"at most {MOST_TESTS} final tests in a job", came="one more", do=do)
    write_json(path, done + 1)


def _tested(site: Site) -> int:
    """The fewest patients that a score of the site is of, over splits and classes. 0 if nothing is scored."""
    return min(filter(None, (fewest_shown(site.data[split]) for split in ("val", "test"))), default=0)


def _model_in(shareable: Shareable) -> DXO:
    try:
        return from_shareable(shareable)
    except ValueError as fault:
        do = "ask the server's administrator. Nothing was trained"
        raise UserFault(expected="a task with the server's tensors", came=str(fault), do=do) from None


def _started(folder: Path, round_: int) -> tuple[float, int]:
    """The start of this site's first task of the job, in seconds since 1970, and its round.

    Only the estimate of the time left needs it. If the note cannot be written or read, the job counts from now.
    """
    path = folder / "started.json"
    try:
        if not path.exists():
            write_json(path, [time.time(), round_])
        clock, first = parsed(path.read_bytes())
        return float(clock), int(first)
    except (OSError, ValueError, TypeError):
        return time.time(), round_


def _threads(fl_ctx: FLContext) -> int:
    """Threads for torch: the site's setting, else one in the simulator and all cores in a deployment.

    If sites on one machine each use all cores, they slow down more than tenfold, as their OpenMP
    barriers spin. One thread each also makes results independent of the simulator's -t.
    """
    chosen = setting(fl_ctx, "threads")
    return parse_count(chosen, "threads") if chosen else 1 if simulated(fl_ctx) else os.cpu_count() or 1
