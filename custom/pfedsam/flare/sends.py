"""What sites are sent. FLARE's broadcast sends the same to all of them, but a rule may make a model for each."""

from collections.abc import Callable

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from pfedsam.exchange.server import message
from pfedsam.flare.context import BACK, RUN, TRAINED, job_config, model_meta
from pfedsam.record.back import came_from
from pfedsam.record.results import sites_of
from pfedsam.study import down_schema
from pfedsam.tensors import Tensors

Received = Callable[[ClientTask, FLContext], None]
SENT_TO = "pfedsam_sent_to"  # in the context of a site's request: FLARE's name of the site


def model_task(name: str, received: Received, round_: int, *, timeout: int, fl_ctx: FLContext) -> Task:
    """The task `name` with the shared model after `round_` rounds. `SitesOwnModel` may replace the model for a site."""
    engine = fl_ctx.get_engine()
    persistor, results = engine.get_component("persistor"), engine.get_component("results").results
    meta = model_meta(fl_ctx, persistor.base)
    data = DXO(DataKind.WEIGHTS, data=_tensors("", fl_ctx), meta=meta).to_shareable()
    data.set_header(AppConstants.CURRENT_ROUND, round_)
    data.set_header(AppConstants.NUM_ROUNDS, fl_ctx.get_prop(AppConstants.NUM_ROUNDS))
    data.add_cookie(AppConstants.CONTRIBUTION_ROUND, round_)
    data.set_header(RUN, persistor.run)
    data.set_header(BACK, [[one.run, one.round] for one in came_from(results)])
    data.set_header(TRAINED, sites_of(results.get("rounds", [])))
    return Task(name=name, data=data, timeout=timeout, before_task_sent_cb=_note_site, result_received_cb=received)


class SitesOwnModel(Filter):  # type: ignore[misc]
    """At the server, on tasks: if the rule made a model for a site, the site is sent that model."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The message, with the site's own tensors instead of the shared ones if it has some."""
        site = fl_ctx.get_prop(SENT_TO)
        if site not in fl_ctx.get_engine().get_component("persistor").state.models:
            return shareable
        dxo = from_shareable(shareable)
        dxo.data = _tensors(site, fl_ctx)
        return dxo.update_shareable(shareable)


def _tensors(site: str, fl_ctx: FLContext) -> Tensors:
    config, persistor = job_config(fl_ctx), fl_ctx.get_engine().get_component("persistor")
    return message(persistor.state, site, config, down_schema(config))


def _note_site(client_task: ClientTask, fl_ctx: FLContext) -> None:
    fl_ctx.set_prop(SENT_TO, client_task.client.name, private=True, sticky=False)
