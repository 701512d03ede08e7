"""The fences: what may leave a site, what may enter it, what may enter the server."""

from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants

from pfedsam import log
from pfedsam.config import Config
from pfedsam.exchange.guard import Accepted, Rejected, Verdict, check, check_samples
from pfedsam.exchange.schema import Stamp, shared_schema
from pfedsam.flare.context import REJECTED, REPORT, STAMP, job_config, ledger, stamp_of

TENSORS = (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF)


class OnlySharedLeaves(Filter):  # type: ignore[misc]
    """At the site, on results: exactly the declared shared tensors, or metrics, leave; each is in the ledger.

    Fails closed: anything else is blocked. The schema is built here from the job's settings, not
    taken from the executor, so a mistake there cannot let a private tensor out.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same message, or a blocked one with the reason in the log."""
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        config, dxo = job_config(fl_ctx), leaving(shareable)
        tensors = dxo.data if dxo.data_kind in TENSORS else {}
        stamp = stamp_of(dxo, -1)
        if dxo.data_kind in TENSORS:
            demand(well_formed(dxo, stamp, config))
        facts = {"metrics": dxo.data} if dxo.data_kind == DataKind.METRICS else _facts(dxo)
        task = str(fl_ctx.get_prop("__task_name__") or dxo.data_kind)
        ledger(fl_ctx, config).note("out", tensors, task=task, round_=stamp.round, facts=facts)
        return shareable


class OnlyDeclaredEnters(Filter):  # type: ignore[misc]
    """At the site, on tasks: exactly the declared tensors, finite, of this job's settings; noted in the ledger."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same message, or a blocked one with the reason in the log."""
        if shareable.get_header(ReservedHeaderKey.CONTENT_TYPE) != "DXO":
            return shareable
        config, dxo = job_config(fl_ctx), _dxo(shareable)
        round_ = shareable.get_header(AppConstants.CURRENT_ROUND, -1)
        stamp = stamp_of(dxo, round_)
        expected = Stamp(stamp.round, config.digest(), stamp.base)
        demand(check(dxo.data, stamp, schema=shared_schema(config), expected=expected, number=config.wire.down))
        task = str(fl_ctx.get_prop("__task_name__") or "task")
        ledger(fl_ctx, config).note("in", dxo.data, task=task, round_=round_, facts={})
        return shareable


class UpdateGuard(Filter):  # type: ignore[misc]
    """At the server, on results: refuses an update that is not exactly what was declared.

    A refused site is out for this round; FLARE goes on while enough remain. The reason is logged
    and stands in results.json.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same message; raises where the guard rejects it."""
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        verdict = judge(shareable, fl_ctx)
        if isinstance(verdict, Rejected):
            site = shareable.get_peer_prop("__identity_name__", "?")
            log.error("update of %s refused: %s", site, verdict.reason)
            self.fire_event_with_data(REJECTED, fl_ctx, REJECTED, {"site": site, "reason": verdict.reason})
            raise ContentBlockedException(f"update of {site} refused: {verdict.reason}")
        return shareable


def judge(shareable: Shareable, fl_ctx: FLContext) -> Verdict:
    """The guard's verdict on a site's training result, at the server."""
    config = job_config(fl_ctx)
    try:
        dxo = _dxo(shareable)
    except ContentBlockedException as fault:
        return Rejected(str(fault))
    if dxo.data_kind != DataKind.WEIGHT_DIFF:
        return Rejected(f"expected {DataKind.WEIGHT_DIFF}, came {dxo.data_kind}")
    base = fl_ctx.get_engine().get_component("persistor").base
    expected = Stamp(int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, -1)), config.digest(), base)
    schema = shared_schema(config)
    verdict = check(dxo.data, stamp_of(dxo, -1), schema=schema, expected=expected, number=config.wire.up)
    if isinstance(verdict, Accepted):
        return check_samples(dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND))
    return verdict


def _dxo(shareable: Shareable) -> DXO:
    try:
        return from_shareable(shareable)
    except ValueError as fault:
        raise ContentBlockedException(f"expected a DXO, came something else: {fault}") from None


def leaving(shareable: Shareable) -> DXO:
    """What a site's result holds, if it is of a kind that may leave: tensors or metrics."""
    dxo = _dxo(shareable)
    if dxo.data_kind not in (*TENSORS, DataKind.METRICS):
        raise ContentBlockedException(f"expected tensors or metrics to leave, came {dxo.data_kind}")
    return dxo


def well_formed(dxo: DXO, stamp: Stamp, config: Config) -> Verdict:
    """Whether a message's tensors are those declared, in the format of their kind: an update's, or the model's."""
    number = config.wire.up if dxo.data_kind == DataKind.WEIGHT_DIFF else config.wire.down
    return check(dxo.data, stamp, schema=shared_schema(config), expected=stamp, number=number)


def demand(verdict: Verdict) -> None:
    """Block the message that the guard rejected."""
    if isinstance(verdict, Rejected):
        raise ContentBlockedException(verdict.reason)


def _facts(dxo: DXO) -> dict[str, Any]:
    meta = dxo.get_meta_props() or {}
    return {key: meta[key] for key in (MetaKey.NUM_STEPS_CURRENT_ROUND, STAMP, REPORT) if key in meta}
