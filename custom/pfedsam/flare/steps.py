"""The messages around a masked sum: a kind of their own, which the fences know and write into the ledger."""

from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from pfedsam.config import Config
from pfedsam.exchange.guard import Accepted, Rejected, Verdict, facts_fault, stamp_fault
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.roster import step_fault
from pfedsam.exchange.schema import STAMP, Stamp
from pfedsam.flare.context import RUN, job_config, stamp_of
from pfedsam.tensors import Tensors

STEP = "pfedsam_step"  # in a message: which step it is of
ATTEMPT = "pfedsam_attempt"  # in a task: the attempt at a masked sum
THERE = "pfedsam_there"  # in a task: the sites whose updates came


def masked(config: Config) -> bool:
    """Whether a job's updates are masked."""
    return config.server.secure == "masks"


def step_dxo(step: str, tensors: Tensors, stamp: Stamp) -> DXO:
    """A message of a step, to or from a site. It holds nothing else."""
    return DXO(DataKind.APP_DEFINED, data=dict(tensors), meta={STEP: step, STAMP: asdict(stamp)})


def is_step(dxo: DXO, config: Config) -> bool:
    """Whether a message is of a step, in a job that has steps."""
    return masked(config) and dxo.data_kind == DataKind.APP_DEFINED


def step_of(dxo: DXO) -> str:
    """The step that a message says that it is of."""
    return str(dxo.get_meta_prop(STEP))


def step_verdict(dxo: DXO, expected: Stamp, *, up: bool) -> Verdict:
    """Whether a message is one of a step, and of this job and round.

    Args:
        up: whether it goes from a site to the server.
    """
    reason = stamp_fault(stamp_of(dxo, -1), expected) or step_fault(step_of(dxo), dxo.data, up=up)
    return Accepted() if reason is None else Rejected(reason)


def facts_of(task: Shareable) -> dict[str, Any]:
    """What a task says of a masked sum beside its tensors. ValueError if it is not of the right form."""
    attempt, there = task.get_header(ATTEMPT, ""), task.get_header(THERE, [])
    texts = isinstance(attempt, str) and isinstance(there, list) and all(isinstance(site, str) for site in there)
    fault = facts_fault([attempt, there]) if texts else "expected an attempt's name and a list of sites"
    if fault:
        raise ValueError(fault)
    return {"attempt": attempt, "there": there} if attempt else {}


def step_task(
    step: str,
    hidden: MaskedSum,
    *,
    there: Collection[str],
    received: Callable[[ClientTask, FLContext], None],
    timeout: int,
    fl_ctx: FLContext,
) -> Task:
    """The task of a step, to be broadcast.

    Args:
        there: for the step "open", the sites whose updates came.
    """
    round_, persistor = fl_ctx.get_prop(AppConstants.CURRENT_ROUND), fl_ctx.get_engine().get_component("persistor")
    stamp = Stamp(round_, job_config(fl_ctx).digest(), persistor.base)
    data = step_dxo(step, hidden.question(step), stamp).to_shareable()
    data.set_header(AppConstants.CURRENT_ROUND, round_)
    data.set_header(RUN, persistor.run)
    data.set_header(ATTEMPT, hidden.attempt)
    data.set_header(THERE, sorted(there))
    return Task(name=step, data=data, timeout=timeout, result_received_cb=received)
