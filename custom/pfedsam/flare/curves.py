"""A run's curves, for FLARE's receivers at the server: TensorBoard, MLflow and others. Sites send no events."""

from typing import Any

from nvflare.apis.analytix import AnalyticsData, AnalyticsDataType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext

CURVE = "fed.analytix_log_stats"  # the event that FLARE's receivers wait for


def tell_curves(site: str, report: dict[str, Any], round_: int, fl_ctx: FLContext) -> None:
    """Give the receivers a site's losses and validation Dice of a round, as FLARE's event that a site's curve came in.

    Args:
        site: FLARE's name of the site, from its certificate.
        report: what the site said of its round, after the guard.
    """
    values = {f"loss/{name}": value for name, value in report["losses"].items()}
    values |= {f"val_dice/{role}": row["dice"] for role, row in report["val"].items() if row["dice"] is not None}
    engine = fl_ctx.get_engine()
    with engine.new_context() as apart:  # a scope of its own, for nothing but these events
        apart.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
        for name, value in values.items():
            point = AnalyticsData(name, value, AnalyticsDataType.SCALAR, global_step=round_)
            data = point.to_dxo().to_shareable()
            data.set_header(FedEventHeader.DIRECTION, "in")  # FLARE then sends it to nobody
            data.set_peer_props({ReservedKey.IDENTITY_NAME: site})
            apart.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
            engine.fire_event(CURVE, apart)
