"""A site's answer to a task, at the server: it may be anything, and must not cost the other sites their task.

FLARE ends a task for all sites if its callback raises. It also counts each answer towards the number from which on the
other sites have only `grace`, a refused one too. Here only valid answers count.
"""

from collections.abc import Callable

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.bcast_manager import _KEY_MIN_RESPS as LEAST  # FLARE offers no other place
from nvflare.apis.shareable import Shareable

from pfedsam import log
from pfedsam.flare.context import REASON

LONGEST = 100  # most characters of a return code, FLARE's or ours

Take = Callable[[str, Shareable, FLContext], bool]  # whether an answer is valid: of the site's name and the answer
Refuse = Callable[[str, str, FLContext], object]  # for any other: the site's name and its return code


def receive(client_task: ClientTask, fl_ctx: FLContext, *, take: Take, refuse: Refuse) -> None:
    """Give a site's answer to `take`, under the name in its certificate, and to `refuse` if it is not valid.

    It does not raise. If `take` cannot judge the answer, that site is refused, with the reason in the context.
    """
    site, result, client_task.result = client_task.client.name, client_task.result, None
    try:
        code = code_of(result)
        if code == ReturnCode.OK and take(site, result, fl_ctx):
            return
    except Exception as fault:
        code, reason = ReturnCode.OK, f"expected an answer that can be judged, came one with {type(fault).__name__}"
        log.debug("the answer of %s could not be judged", site, exc_info=True)
        fl_ctx.set_prop(REASON, reason, private=True, sticky=False)
    wait_for(client_task.task, 1)
    refuse(site, code, fl_ctx)


def wait_for(task: Task, more: int) -> None:
    """Let `grace` begin so many answers later. If all sites have answered, FLARE waits for no other."""
    task.props[LEAST] += more


def code_of(result: Shareable) -> str:
    """The return code in a site's answer. Lists within lists cannot even be shown."""
    code = result.get_return_code()
    return code[:LONGEST] if isinstance(code, str) else "no return code"


def note_late(site: str, task: str) -> None:
    """Log an answer to no task of now. The task's name is the site's own text."""
    log.warning("the answer of %s to task %.60s came too late and was dropped", site, ascii(task))
