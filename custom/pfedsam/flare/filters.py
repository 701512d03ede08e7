"""The filters: what may leave a site, what may enter it, and what may enter the server."""

import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log, methods
from pfedsam.config import MOST_ROUNDS, Config
from pfedsam.errors import UserFault
from pfedsam.exchange.guard import Accepted, Rejected, Verdict, facts_fault, judge_message, judge_samples
from pfedsam.exchange.masks import unmasked_fault
from pfedsam.exchange.roster import STEPS
from pfedsam.exchange.schema import REPORT, STAMP, Stamp
from pfedsam.flare.context import REASON, RUN, job_config, ledger, selected_by, stamp_of
from pfedsam.flare.steps import facts_of, is_step, masked, step_dxo, step_of, step_verdict
from pfedsam.names import one_name
from pfedsam.record.said import report_fault
from pfedsam.study import down_schema, sent_schema
from pfedsam.tensors import Tensors

UPDATE_FACTS = (MetaKey.NUM_STEPS_CURRENT_ROUND, MetaKey.INITIAL_METRICS, REPORT)  # beside an update and its stamp
NOTED, ENTERED = "pfedsam_noted", "pfedsam_entered"  # in FLARE's context: the message that the ledger has, out and in


class OnlySharedLeaves(Filter):  # type: ignore[misc]
    """At the site, on results: only the declared shared tensors, or metrics, leave. The ledger notes each message.

    It fails closed: anything else is blocked, and the sent message is built again from the checked parts. The schema is
    built here from the job's settings. So a mistake in the executor cannot let a private tensor out.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts. It raises if there is anything else. If the ledger cannot be written, nothing
        is sent."""
        if shareable.get_return_code() != ReturnCode.OK:
            return make_reply(shareable.get_return_code())
        config = job_config(fl_ctx)
        dxo = sealed(shareable, config)
        self._allow(dxo, config)
        out = dxo.to_shareable()
        tensors, facts = parts(dxo)
        task, run = str(fl_ctx.get_prop("__task_name__") or dxo.data_kind), str(fl_ctx.get_prop(RUN) or "")
        round_ = stamp_of(dxo, -1).round
        try:
            if fl_ctx.get_prop(NOTED) is not shareable:
                ledger(fl_ctx, config).note("out", tensors, task=task, round_=round_, facts=facts, run=run)
        except UserFault as fault:
            log.error("[%s] nothing was sent: %s", fl_ctx.get_identity_name(), fault)
            return make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
        fl_ctx.set_prop(NOTED, out, private=True, sticky=False)
        return out

    def _allow(self, dxo: DXO, config: Config) -> None:
        """Raise if the site does not let this message out, even if it is well formed."""


class OnlyDeclaredEnters(Filter):  # type: ignore[misc]
    """At the site, on tasks: only the declared tensors enter, finite and of this job's settings. The ledger notes them.

    The executor asks it too, because a job may leave its filters out. A message that has entered is not noted again.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same message, or a blocked one with the reason in the log."""
        if shareable.get_header(ReservedHeaderKey.CONTENT_TYPE) != "DXO" or fl_ctx.get_prop(ENTERED) is shareable:
            return shareable  # without tensors; a task that needs some is refused by the executor
        try:
            return self._entering(shareable, fl_ctx)
        except ContentBlockedException:
            raise
        except Exception as fault:  # a message can be anything
            came = f"one with {type(fault).__name__}"
            raise ContentBlockedException(f"expected a message that can be judged, came {came}") from None

    def _entering(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        config, dxo = job_config(fl_ctx), _dxo(shareable)
        if dxo.data_kind != DataKind.WEIGHTS and not is_step(dxo, config):
            raise ContentBlockedException(f"expected the server's model, came {_kind(dxo)}")
        round_ = shareable.get_header(AppConstants.CURRENT_ROUND, -1)
        if type(round_) is not int or not -1 <= round_ <= MOST_ROUNDS:
            raise ContentBlockedException(f"expected a round within a run, came {ascii(round_)[:40]}")
        demand(_entering(dxo, stamp_of(dxo, round_), config))
        task, run = str(fl_ctx.get_prop("__task_name__") or "task"), shareable.get_header(RUN)
        try:
            told, run = facts_of(shareable), one_name(str(run), "run") if run else ""
            ledger(fl_ctx, config).note("in", dxo.data, task=task, round_=round_, facts=told, run=run)
        except ValueError as fault:  # of the facts, the name, or the ledger
            log.error("[%s] the received message is not used: %s", fl_ctx.get_identity_name(), fault)
            raise ContentBlockedException(str(fault)) from None
        fl_ctx.set_prop(ENTERED, shareable, private=True, sticky=False)
        return shareable


def _entering(dxo: DXO, stamp: Stamp, config: Config) -> Verdict:
    """Whether a task's message may enter a site: the server's model, or a step of a masked sum."""
    expected = Stamp(stamp.round, config.digest(), stamp.base)
    if is_step(dxo, config):
        return step_verdict(dxo, expected, up=False)
    return judge_message(dxo.data, stamp, schema=down_schema(config), expected=expected, number=config.wire.down)


class UpdateGuard(Filter):  # type: ignore[misc]
    """At the server, on results: refuses an update that is not exactly what was declared.

    A refused site is out for this round. FLARE continues while enough sites remain. `Rounds` records the reason, under
    FLARE's name of the site. An accepted message is built again from the checked parts, because FLARE's widgets read
    more of it than the rule does, such as the name that a site gives itself.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """A message of the checked parts. It raises if the guard rejects it."""
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
        verdict = judge_step(shareable, fl_ctx, task) if task in STEPS else judge(shareable, fl_ctx)
        if isinstance(verdict, Rejected):
            fl_ctx.set_prop(REASON, verdict.reason, private=True, sticky=False)
            raise ContentBlockedException(f"update refused: {verdict.reason}")
        dxo = _dxo(shareable)
        stamp = stamp_of(dxo, -1)
        new = (step_dxo(task, dxo.data, stamp) if task in STEPS else _update(dxo, stamp)).to_shareable()
        new.set_peer_props(shareable.get_peer_props() or {})  # FLARE's own, not the message's
        new.add_cookie(AppConstants.CONTRIBUTION_ROUND, stamp.round)
        return new


def _update(dxo: DXO, stamp: Stamp) -> DXO:
    """An update with the facts beside it that the guard checks, and no other."""
    facts = {key: dxo.get_meta_prop(key) for key in UPDATE_FACTS}
    return DXO(DataKind.WEIGHT_DIFF, data=dict(dxo.data), meta={**facts, STAMP: asdict(stamp)})


def judge_step(shareable: Shareable, fl_ctx: FLContext, step: str) -> Verdict:
    """The guard's verdict on a site's message of a step around a masked sum, at the server."""
    try:
        dxo, config = _dxo(shareable), job_config(fl_ctx)
        if not is_step(dxo, config) or step_of(dxo) != step:
            return Rejected(f"expected a message of step {step}, came {_kind(dxo)}")
        return step_verdict(dxo, _expected(config, fl_ctx), up=True)
    except Exception as fault:  # as for an update
        return Rejected(f"expected a message that can be judged, came one with {type(fault).__name__}")


def judge(shareable: Shareable, fl_ctx: FLContext) -> Verdict:
    """The guard's verdict on a site's training result, at the server. What it cannot judge it refuses."""
    try:
        return _judge(shareable, fl_ctx)
    except Exception as fault:  # a message can be anything, and each refusal has its reason in the record
        return Rejected(f"expected a message that can be judged, came one with {type(fault).__name__}")


def _judge(shareable: Shareable, fl_ctx: FLContext) -> Verdict:
    config = job_config(fl_ctx)
    try:
        dxo = _dxo(shareable)
    except ContentBlockedException as fault:
        return Rejected(str(fault))
    if dxo.data_kind != DataKind.WEIGHT_DIFF:
        return Rejected(f"expected {DataKind.WEIGHT_DIFF}, came {_kind(dxo)}")
    verdict = _judge_tensors(dxo, _expected(config, fl_ctx), config)
    if isinstance(verdict, Accepted):
        verdict = judge_samples(dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))
    if isinstance(verdict, Accepted) and (told := _said_fault(dxo, methods.get(config.method).losses)):
        return Rejected(told)
    return verdict


def _expected(config: Config, fl_ctx: FLContext) -> Stamp:
    """The stamp of the round in progress, at the server."""
    base = fl_ctx.get_engine().get_component("persistor").base
    return Stamp(int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, -1)), config.digest(), base)


def _judge_tensors(dxo: DXO, expected: Stamp, config: Config) -> Verdict:
    """Whether an update has exactly the declared tensors. A masked one must look random."""
    stamp, schema = stamp_of(dxo, -1), sent_schema(config)
    verdict = judge_message(dxo.data, stamp, schema=schema, expected=expected, number=config.wire.up)
    if isinstance(verdict, Accepted) and masked(config) and (fault := unmasked_fault(dxo.data)):
        return Rejected(fault)
    return verdict


def _said_fault(dxo: DXO, losses: Collection[str]) -> str | None:
    """Why an update's facts cannot enter the record or choose the best model, or None if they can.

    Args:
        losses: the names that the losses of the job's method may have.
    """
    report, metrics = dxo.get_meta_prop(REPORT), dxo.get_meta_prop(MetaKey.INITIAL_METRICS)
    fault = report_fault(report, losses)
    samples = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
    if not fault and samples != report["samples"]:
        return f"expected the {report['samples']} samples of the report as weight, came {samples}"
    if fault or metrics == (wanted := selected_by(report)):
        return fault
    return f"expected {wanted} as metric for choosing the best model, came {str(metrics)[:80]}"


def _dxo(shareable: Shareable) -> DXO:
    try:
        return from_shareable(shareable)
    except ValueError as fault:
        raise ContentBlockedException(f"expected a DXO, came something else: {fault}") from None


def _kind(dxo: DXO) -> str:
    """What a message says that it is, for a reason: it may be any text."""
    return ascii(dxo.data_kind)[:40]


def sealed(shareable: Shareable, config: Config) -> DXO:
    """The part of a site's result that may leave, built again: declared tensors or metrics, numbers and short texts."""
    dxo = _dxo(shareable)
    if dxo.data_kind == DataKind.METRICS:
        return DXO(DataKind.METRICS, data=_plain(dxo.data))
    stamp = stamp_of(dxo, -1)
    if is_step(dxo, config):
        demand(step_verdict(dxo, stamp, up=True))
        return step_dxo(step_of(dxo), dxo.data, stamp)
    if dxo.data_kind != DataKind.WEIGHT_DIFF:
        raise ContentBlockedException(f"expected an update or metrics to leave, came {_kind(dxo)}")
    demand(_judge_tensors(dxo, stamp, config))
    return DXO(dxo.data_kind, data=dict(dxo.data), meta=_plain(dxo.get_meta_props()))


def demand(verdict: Verdict) -> None:
    """Block the message if the guard rejected it."""
    if isinstance(verdict, Rejected):
        raise ContentBlockedException(verdict.reason)


def parts(dxo: DXO) -> tuple[Tensors, dict[str, Any]]:
    """A sealed message's tensors, and its facts beside them."""
    if dxo.data_kind == DataKind.METRICS:
        return {}, {"metrics": dxo.data}
    return dxo.data, dxo.get_meta_props() or {}


def _plain(facts: Any) -> Any:
    """Facts as plain JSON values. It blocks tensors, arrays, long texts and anything else."""
    if fault := facts_fault(facts):
        raise ContentBlockedException(fault)
    return json.loads(json.dumps(facts))
