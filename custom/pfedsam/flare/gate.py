"""The gate: which requests a FLARE process takes, and from whom. FLARE takes nearly all of them from every member.

Any member of a federation may send FLARE's events, its administrators' commands and its network commands to any other
member's processes. A run needs few of them: a site asks the server for tasks and gives its results, the server deploys
and ends jobs, and nothing goes from site to site. The gate refuses all else before FLARE acts on it, and logs each kind
once. It also refuses a false name: at the server one that is not the sender's, at a site its own name from outside.
"""

import logging
import re
from dataclasses import dataclass, replace

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ReservedTopic, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.download_service import OBJ_DOWNLOADER_CHANNEL
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, StreamHeaderKey
from nvflare.private.admin_defs import Message as Order
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic

from pfedsam import log
from pfedsam.flare.streams import PERSON, Streams, room, root, too_much
from pfedsam.names import aligned
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
FROM_A_PERSON = {  # what the server's own process takes from a person. A job's takes nothing: `refuse_unread`
    **TRANSPORT,
    CellChannel.CELLNET: frozenset({CellChannelTopic.Bye}),  # in a bulk no message has a certificate
    CellChannel.SERVER_MAIN: ALL,  # logging in
    CellChannel.HCI: ALL,  # commands; FLARE checks the certificate and the role
    CellChannel.AUX_COMMUNICATION: frozenset({"ObjectStreamer.Request", "ObjectStreamer.Abort"}),  # a job's files
}
FROM_THE_SERVER = {  # what a site takes from the server
    **TRANSPORT,
    CellChannel.CLIENT_MAIN: ALL,  # commands; `ordered` judges them
    CellChannel.AUX_COMMUNICATION: frozenset({ReservedTopic.END_RUN}),
}
# Of the commands, those about jobs and the process itself. FLARE's shell reads any of a site's files.
ORDERS = frozenset(
    {
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.CANCEL_RESOURCE,
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.ABORT,
        TrainingTopic.ABORT_TASK,
        TrainingTopic.DELETE_RUN,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.CHECK_STATUS,
        TrainingTopic.GET_SCOPES,
        TrainingTopic.RESTART,
        TrainingTopic.SHUTDOWN,
        SysCommandTopic.SYS_INFO,
        SysCommandTopic.REPORT_RESOURCES,
        SysCommandTopic.REPORT_VERSION,
    }
)
JOB = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # how FLARE names a job: a folder in the kit
APP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # an app's name, also a folder's
TOLD_MOST = 100  # kinds of refused requests that are logged
LONG_LIVED = 64_000_000  # bytes of a message to a long-lived process, such as a job's files. Our choice: ours have 4 MB


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
    topics = FROM_THE_SERVER.get(request.channel, frozenset())
    return topics is ALL or request.topic in topics


def ordered(request: Request, order: object) -> bool:
    """Whether a site carries out a command: one of `ORDERS`, from the server's own process, not from a job's.

    FLARE takes the command from the content, and joins the names in it with the kit's folder.
    """
    if request.origin != SERVER or not isinstance(order, Order) or order.topic not in ORDERS:
        return False
    job, app = (order.get_header(name, "") or "" for name in (RequestHeader.JOB_ID, RequestHeader.APP_NAME))
    return (not job or bool(JOB.fullmatch(str(job)))) and (not app or bool(APP.fullmatch(str(app))))


def close(fl_ctx: FLContext, most: int | None = None) -> None:
    """Put the gate before all that reaches this process, and let only its user read the files that it makes.

    FLARE's simulator has several of its cells in one process.

    Args:
        most: the bytes of the largest message that another party may send to this process; None: any.

    Raises:
        UserFault: PFEDSAM_UMASK is no umask. The gate is closed all the same.
    """
    _align_log()
    job = str(fl_ctx.get_job_id() or "")
    for name, cell in list(CoreCell.ALL_CELLS.items()):
        home = name.removesuffix(f".{job}") if job else name
        watch = Watch(home, most, cell, passes_on=name == SERVER)
        cell.add_incoming_filter("*", "*", refuse_unread, watch)
        cell.add_incoming_request_filter("*", "*", refuse, watch)
    private_files()


def close_early() -> None:
    """Put the gate before a job's process while its parts are made, before FLARE tells them of the job.

    A process of a job is named SITE.JOB, or server.JOB. Others get their gate when they know their names.
    """
    _align_log()
    for name, cell in list(CoreCell.ALL_CELLS.items()):
        home, _, job = name.partition(".")
        if job and "." not in job:
            watch = Watch(home, cell=cell)
            cell.add_incoming_filter("*", "*", refuse_unread, watch)
            cell.add_incoming_request_filter("*", "*", refuse, watch)


def _align_log() -> None:
    """From now on no text of another party can look like a line of this process's log, or drive others out of it."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(aligned)


def federated(fl_ctx: FLContext) -> bool:
    """Whether the event at hand came from another process. Ours never do."""
    return bool(fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION)


class Gate(FLComponent):  # type: ignore[misc]
    """The gate of a kit's long-lived process: a component in local/resources.json. Jobs close their own."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Close the gate when the process begins. If it cannot, the process does not start.

        Raises:
            UnsafeComponentError: why it cannot. FLARE's `component_security_check` stops on no other error.
        """
        if event_type == EventType.SYSTEM_BOOTSTRAP and not federated(fl_ctx):
            try:
                close(fl_ctx, LONG_LIVED)
            except Exception as fault:
                raise UnsafeComponentError(str(fault)) from fault


class Watch:
    """What the gate of one process knows.

    Args:
        home: FLARE's name of the site whose process this is, or "server".
        most: the bytes of the largest message that another party may send; None: any.
        cell: what sends and receives the process's messages; None: nothing comes from outside.
        passes_on: whether this is the server's own process, which passes messages on from member to member.

    Attributes:
        told: the kinds of refused requests that are in the log.
        streams: what comes in parts from other parties; None: not bounded.
    """

    def __init__(
        self, home: str, most: int | None = None, cell: CoreCell | None = None, *, passes_on: bool = False
    ) -> None:
        self.home, self.cell, self.passes_on = home, cell, passes_on
        self.told: set[Request] = set()
        self.streams = Streams(most) if most else None

    def own(self, origin: str) -> bool:
        """Whether a message comes from the same party."""
        return f"{origin}.".startswith(f"{self.home}.")

    def outside(self, sender: Endpoint | None) -> bool:
        """Whether a message came over a site's connection to the server.

        A sender's name does not tell: with FLARE's gRPC a site cannot compare the server's name with its certificate.
        """
        way = getattr(self.cell, "bb_ext_connector", None)
        if self.cell is None or not way or not sender:
            return False  # the server has no such way
        if sender.name in CoreCell.ALL_CELLS:
            return False  # this very process: FLARE closes a connection that claims its name
        known = self.cell.communicator.conn_manager.sfm_endpoints.get(sender.name)
        inside = [c.conn.connector.handle != way.handle for c in known.connections] if known else []
        return not (inside and all(inside) and known.endpoint is sender)


def refuse(message: Message, watch: Watch) -> Message | None:
    """A refusal, or None if the request may go on. A part of a longer request is judged by the request it belongs to.

    Only the kinds in `told` are not logged again: a hostile member must not be able to fill the disk.
    """
    head, carrier = message.get_header, request_of(message)
    whole = replace(carrier, channel=str(head(StreamHeaderKey.CHANNEL, "")), topic=str(head(StreamHeaderKey.TOPIC, "")))
    asked = [whole, carrier] if carrier.channel == STREAM_CHANNEL and whole.channel else [carrier]
    wrong = next((one for one in asked if not allowed(one, watch.home)), None)
    commands = any(one.channel == CellChannel.CLIENT_MAIN for one in asked) and not watch.own(carrier.origin)
    if wrong is None and commands and not ordered(carrier, message.payload):
        wrong = replace(carrier, topic=str(getattr(message.payload, "topic", "")))
    if wrong is not None:
        return _refusal(wrong, "that no run needs", watch.told)
    part = carrier.channel == STREAM_CHANNEL and carrier.topic == STREAM_DATA_TOPIC and not watch.own(carrier.origin)
    large = watch.streams.fault(message) if part and watch.streams else ""
    return _refusal(whole, f"too large: {large}", watch.told) if large else None


def refuse_unread(message: Message, watch: Watch) -> Message | None:
    """A refusal of what may not even be read or passed on, or None.

    That is a message larger than any of the job's that does not come as a stream, or one in a false name: at the
    server another member's, and at a site the site's own if it comes over the connection to the server. FLARE ties a
    connection's name to its certificate. It does not tie a message's to that of its connection: with a token that it
    signed for a relay, or for an earlier registration, a member may write any name, the server's too. And a server may
    write whatever it likes.

    Nor may a person's be read but at the server's own process. FLARE's console and sessions write to no other.
    """
    request, sender = request_of(message), message.get_prop(MessagePropKey.ENDPOINT)
    name = getattr(sender, "name", "")
    if request.origin.startswith(PERSON) and not watch.passes_on:
        return _refusal(request, "that no run needs", watch.told)
    if watch.passes_on and root(request.origin) != root(name):
        return _refusal(request, f"in another's name, sent by {ascii(name)[:60]}", watch.told)
    if watch.own(request.origin) and watch.outside(sender):
        return _refusal(request, f"in this site's own name, sent by {ascii(name)[:60]}", watch.told)
    size = len(message.payload or b"")
    if watch.streams is None or watch.own(request.origin) or size <= room(watch.streams.most):
        return None
    return _refusal(request, f"too large: {too_much(f'{size / 1e6:.1f} MB', watch.streams.most)}", watch.told)


def request_of(message: Message) -> Request:
    """Who sent a message, and for what. A text of another party may be of any kind and length."""
    head = message.get_header
    names = MessageHeaderKey.ORIGIN, MessageHeaderKey.CHANNEL, MessageHeaderKey.TOPIC
    return Request(*(str(head(name, "")) for name in names))


def _refusal(request: Request, why: str, told: set[Request]) -> Message:
    if request not in told and len(told) < TOLD_MOST:
        told.add(request)
        log.error("refused a request %s: %.60s on %.60s from %.60s", why, *_shown(request))
    return make_reply(ReturnCode.AUTHENTICATION_ERROR, error="refused by the gate of pfedsam")


def _shown(request: Request) -> tuple[str, str, str]:
    return ascii(request.topic), ascii(request.channel), ascii(request.origin)
