"""The gate: which requests a FLARE process takes, and from whom. FLARE takes nearly all of them from every member.

Any member of a federation may send FLARE's events, its administrators' commands and its network commands to any other
member's processes. A run needs few of them: a site asks the server for tasks and gives its results, and nothing goes
from site to site. The gate refuses all else before FLARE acts on it, and logs each kind once.
"""

from dataclasses import dataclass

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ReservedTopic, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.download_service import OBJ_DOWNLOADER_CHANNEL
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, StreamHeaderKey

from pfedsam import log
from pfedsam.umask import private_files

SERVER = "server"  # the root of the name of each of the server's processes, in FLARE
ALL = frozenset({"*"})
KEYS = "credential_manager"  # FLARE's channel for the keys of encrypted messages
TRANSPORT = {  # how FLARE carries the parts of any message, and the replies
    STREAM_CHANNEL: ALL,
    CellChannel.RETURN_ONLY: ALL,
    CellChannel.CELLNET: ALL,
    OBJ_DOWNLOADER_CHANNEL: ALL,
    KEYS: ALL,
}
FROM_A_SITE = {  # what the server takes from a site, by channel
    **TRANSPORT,
    CellChannel.SERVER_MAIN: ALL,  # registration and signs of life; FLARE checks the site's token
    CellChannel.SERVER_COMMAND: frozenset({ServerCommandNames.GET_TASK, ServerCommandNames.SUBMIT_UPDATE}),
    CellChannel.AUX_COMMUNICATION: frozenset(
        {ReservedTopic.SYNC_RUNNER, ReservedTopic.JOB_HEART_BEAT, ReservedTopic.TASK_CHECK}
    ),
}
PERSON = "_admin_"  # how FLARE names a person's process; no site may have such a name
FROM_A_PERSON = {  # what the server takes from a person
    **TRANSPORT,
    CellChannel.SERVER_MAIN: ALL,  # logging in
    CellChannel.HCI: ALL,  # commands; FLARE checks the certificate and the role
    CellChannel.AUX_COMMUNICATION: frozenset({"ObjectStreamer.Request", "ObjectStreamer.Abort"}),  # a job's files
}
AUX_FROM_SERVER = frozenset({ReservedTopic.END_RUN})  # of FLARE's auxiliary messages, what a site takes
TOLD_MOST = 100  # kinds of refused requests that are logged


@dataclass(frozen=True)
class Request:
    """A request that reached a process: who sent it (a name of FLARE's, such as site-1.JOB), its channel and topic."""

    origin: str
    channel: str
    topic: str


def allowed(request: Request, home: str) -> bool:
    """Whether a process takes a request.

    Args:
        home: FLARE's name of the site whose process this is, or "server".
    """
    origin = f"{request.origin}."
    if origin.startswith(f"{home}."):
        return True
    if home == SERVER:
        known = FROM_A_PERSON if origin.startswith(PERSON) else FROM_A_SITE
        topics = known.get(request.channel, frozenset())
        return topics is ALL or request.topic in topics
    if not origin.startswith(f"{SERVER}."):
        return False
    return request.channel != CellChannel.AUX_COMMUNICATION or request.topic in AUX_FROM_SERVER


def close(fl_ctx: FLContext) -> None:
    """Put the gate before all that reaches this process, and let only its user read the files that it makes.

    FLARE's simulator has several of its cells in one process.
    """
    private_files()
    job = str(fl_ctx.get_job_id() or "")
    for name, cell in list(CoreCell.ALL_CELLS.items()):
        home = name.removesuffix(f".{job}") if job else name
        cell.add_incoming_request_filter("*", "*", _refuse, home=home, told=set())


def federated(fl_ctx: FLContext) -> bool:
    """Whether the event at hand came from another process. Ours never do."""
    return bool(fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION)


class Gate(FLComponent):  # type: ignore[misc]
    """The gate of a kit's long-lived process: a component in local/resources.json. Jobs close their own."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Close the gate when the process begins."""
        if event_type == EventType.SYSTEM_BOOTSTRAP and not federated(fl_ctx):
            close(fl_ctx)


def _refuse(message: Message, home: str, told: set[Request]) -> Message | None:
    """A refusal, or None if the request may go on. A part of a longer request is judged by the request it belongs to.

    Only the kinds in `told` are not logged again: a hostile member must not be able to fill the disk.
    """
    head = message.get_header
    origin = str(head(MessageHeaderKey.ORIGIN, ""))
    carrier = Request(origin, str(head(MessageHeaderKey.CHANNEL, "")), str(head(MessageHeaderKey.TOPIC, "")))
    whole = Request(origin, str(head(StreamHeaderKey.CHANNEL, "")), str(head(StreamHeaderKey.TOPIC, "")))
    asked = [whole, carrier] if carrier.channel == STREAM_CHANNEL and whole.channel else [carrier]
    wrong = next((one for one in asked if not allowed(one, home)), None)
    if wrong is None:
        return None
    if wrong not in told and len(told) < TOLD_MOST:
        told.add(wrong)
        log.error("refused a request that no run needs: %.60s on %.60s from %.60s", *_shown(wrong))
    return make_reply(ReturnCode.AUTHENTICATION_ERROR, error="refused by the gate of pfedsam")


def _shown(request: Request) -> tuple[str, str, str]:
    return ascii(request.topic), ascii(request.channel), ascii(request.origin)
