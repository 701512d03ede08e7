"""A task for each site: FLARE's broadcast sends all sites the same, and a rule may make a model for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants

from pfedsam.config import Config
from pfedsam.exchange.schema import STAMP
from pfedsam.exchange.server import ServerState, message
from pfedsam.files import Tensors
from pfedsam.flare.context import RUN, TRAINED, job_config
from pfedsam.flare.presence import Clock
from pfedsam.record.results import sites_of
from pfedsam.study import down_schema

LOOK = 0.2  # seconds between two looks at what has come in; our choice, as FLARE's own
Received = Callable[[ClientTask, FLContext], None]


@dataclass(frozen=True)
class Patience:
    """How long a controller waits for its sites.

    Attributes:
        least: so many answers end the wait after `grace`; an error is an answer too.
        grace: seconds that the other sites may then still take.
        timeout: seconds after which the wait ends in any case; 0: never.
    """

    least: int
    grace: float
    timeout: int


def tell_each(
    controller: Controller, name: str, sites: list[str], received: Received, *, patience: Patience, fl_ctx: FLContext
) -> list[Task]:
    """Schedule the task `name` for each site, with the model that the site is to have."""
    found, each = [], _messages(sites, job_config(fl_ctx), fl_ctx)
    for site in sites:
        task = Task(name=name, data=each[site], timeout=patience.timeout, result_received_cb=received)
        controller.send(task=task, fl_ctx=fl_ctx, targets=[site])
        found.append(task)
    return found


def wait_for(
    controller: Controller,
    tasks: list[Task],
    patience: Patience,
    stop: Signal,
    *,
    clock: Clock = Clock(),  # noqa: B008 - frozen
) -> None:
    """Wait until each site has answered or is lost, or until patience ends; what is left then is cancelled."""
    enough = None
    while not stop.triggered and any(task.completion_status is None for task in tasks):
        now = clock.now()
        answers = sum(one.result_received_time is not None for task in tasks for one in list(task.client_tasks))
        if answers >= patience.least:
            enough = now if enough is None else enough
            if now - enough >= patience.grace:
                break
        clock.sleep(LOOK)
    for task in tasks:
        if task.completion_status is None:
            controller.cancel_task(task, fl_ctx=None)


def _messages(sites: list[str], config: Config, fl_ctx: FLContext) -> Mapping[str, Shareable]:
    """Each site's message; tensors that are the same for several sites are encoded once."""
    persistor = fl_ctx.get_engine().get_component("persistor")
    state: ServerState = persistor.state
    own = {site: message(state, site, config, down_schema(config)) for site in sites if site in state.models}
    shared = message(state, "", config, down_schema(config)) if len(own) < len(sites) else {}
    return {site: _shareable(own.get(site, shared), persistor, fl_ctx) for site in sites}


def _shareable(wire: Tensors, persistor: Any, fl_ctx: FLContext) -> Shareable:
    round_ = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
    meta = {STAMP: {"config": job_config(fl_ctx).digest(), "base": persistor.base}}
    found = DXO(DataKind.WEIGHTS, data=wire, meta=meta).to_shareable()
    found.set_header(AppConstants.CURRENT_ROUND, round_)
    found.set_header(AppConstants.NUM_ROUNDS, fl_ctx.get_prop(AppConstants.NUM_ROUNDS))
    found.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
    found.set_header(RUN, persistor.run)
    found.set_header(TRAINED, sites_of(fl_ctx.get_engine().get_component("results").results.get("rounds", [])))
    return found
