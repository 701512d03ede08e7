"""The gate: which requests a FLARE process takes, and from whom. FLARE takes nearly all of them from every member.

Any member of a federation may send FLARE's events, its administrators' commands and its network commands to any other
member's processes. A run needs few of them: a site asks the server for tasks and gives its results, and nothing goes
from site to site. The gate refuses all else before FLARE acts on it, and logs each kind once. The server's gate also
refuses what a member sends in another's name.
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ReservedTopic, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.download_service import OBJ_DOWNLOADER_CHANNEL
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, StreamDataType, StreamHeaderKey

from pfedsam import log
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
PERSON = "_admin_"  # how FLARE names a person's process; no site may have such a name
FROM_A_PERSON = {  # what the server takes from a person
    **TRANSPORT,
    CellChannel.SERVER_MAIN: ALL,  # logging in
    CellChannel.HCI: ALL,  # commands; FLARE checks the certificate and the role
    CellChannel.AUX_COMMUNICATION: frozenset({"ObjectStreamer.Request", "ObjectStreamer.Abort"}),  # a job's files
}
AUX_FROM_SERVER = frozenset({ReservedTopic.END_RUN})  # of FLARE's auxiliary messages, what a site takes
TOLD_MOST = 100  # kinds of refused requests that are logged
CUT_MOST = 1000  # refused streams that are remembered
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
    return request.channel != CellChannel.AUX_COMMUNICATION or request.topic in AUX_FROM_SERVER


def close(fl_ctx: FLContext, most: int | None = None) -> None:
    """Put the gate before all that reaches this process, and let only its user read the files that it makes.

    From then on a text of another party in FLARE's own log lines cannot look like a line of its own either.

    FLARE's simulator has several of its cells in one process.

    Args:
        most: the bytes of the largest message that another party may send to this process; None: any.
    """
    private_files()
    for handler in logging.getLogger().handlers:
        handler.addFilter(aligned)
    job = str(fl_ctx.get_job_id() or "")
    for name, cell in list(CoreCell.ALL_CELLS.items()):
        home = name.removesuffix(f".{job}") if job else name
        watch = Watch(home, most)
        cell.add_incoming_request_filter("*", "*", refuse, watch)
        if name == SERVER:
            cell.add_incoming_filter("*", "*", refuse_forged, watch)


def close_early() -> None:
    """Put the gate before a job's process while its parts are made, before FLARE tells them of the job.

    A process of a job is named SITE.JOB, or server.JOB. Others get their gate when they know their names.
    """
    for name, cell in list(CoreCell.ALL_CELLS.items()):
        home, _, job = name.partition(".")
        if job and "." not in job:
            cell.add_incoming_request_filter("*", "*", refuse, Watch(home))


def federated(fl_ctx: FLContext) -> bool:
    """Whether the event at hand came from another process. Ours never do."""
    return bool(fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION)


class Gate(FLComponent):  # type: ignore[misc]
    """The gate of a kit's long-lived process: a component in local/resources.json. Jobs close their own."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Close the gate when the process begins."""
        if event_type == EventType.SYSTEM_BOOTSTRAP and not federated(fl_ctx):
            close(fl_ctx, LONG_LIVED)


@dataclass
class Watch:
    """What the gate of one process knows.

    Attributes:
        home: FLARE's name of the site whose process this is, or "server".
        most: the bytes of the largest message that another party may send; None: any.
        told: the kinds of refused requests that are in the log.
        cut: the streams that were refused. Their later parts are refused too.
    """

    home: str
    most: int | None = None
    told: set[Request] = field(default_factory=set)
    cut: deque[str] = field(default_factory=partial(deque, maxlen=CUT_MOST))


def refuse(message: Message, watch: Watch) -> Message | None:
    """A refusal, or None if the request may go on. A part of a longer request is judged by the request it belongs to.

    Only the kinds in `told` are not logged again: a hostile member must not be able to fill the disk.
    """
    head = message.get_header
    origin = str(head(MessageHeaderKey.ORIGIN, ""))
    carrier = Request(origin, str(head(MessageHeaderKey.CHANNEL, "")), str(head(MessageHeaderKey.TOPIC, "")))
    whole = Request(origin, str(head(StreamHeaderKey.CHANNEL, "")), str(head(StreamHeaderKey.TOPIC, "")))
    asked = [whole, carrier] if carrier.channel == STREAM_CHANNEL and whole.channel else [carrier]
    wrong = next((one for one in asked if not allowed(one, watch.home)), None)
    large = "" if wrong or not _measured(carrier, watch) else _large(message, origin, watch)
    if wrong is None and not large:
        return None
    return _refusal(wrong or whole, f"too large: {large}" if large else "that no run needs", watch.told)


def refuse_forged(message: Message, watch: Watch) -> Message | None:
    """A refusal at the server of what comes in another member's name, or None. Nothing else goes from site to site.

    FLARE ties a connection's name to its certificate. It does not tie a message's to that of its connection: a token
    that it signed for a relay, or for an earlier registration, lets its owner write any name, the server's too.
    """
    sender, origin = message.get_prop(MessagePropKey.ENDPOINT), str(message.get_header(MessageHeaderKey.ORIGIN, ""))
    if sender is not None and _member(origin) == _member(sender.name):
        return None
    head = message.get_header
    request = Request(origin, str(head(MessageHeaderKey.CHANNEL, "")), str(head(MessageHeaderKey.TOPIC, "")))
    return _refusal(request, f"in another's name, sent by {ascii(getattr(sender, 'name', ''))[:60]}", watch.told)


def _member(name: str) -> str:
    return name.partition(".")[0]


def _measured(carrier: Request, watch: Watch) -> bool:
    """Whether a message is a part of a stream of another party."""
    data = carrier.channel == STREAM_CHANNEL and carrier.topic == STREAM_DATA_TOPIC
    return data and not f"{carrier.origin}.".startswith(f"{watch.home}.")


def _large(part: Message, origin: str, watch: Watch) -> str:
    """Why a part of a stream is refused for its stream's size, or empty."""
    stream = f"{origin} {part.get_header(StreamHeaderKey.STREAM_ID)}"
    large = too_large(part, watch.most) if watch.most else ""
    if large:
        watch.cut.append(stream)
    return large or ("a part of it" if stream in watch.cut else "")


def too_large(begins: Message, most: int) -> str:
    """Why a stream may not begin, from the header of its first part; empty if it may, or if this is a later part.

    FLARE holds a stream to the size that its header states, and one that states none to nothing.
    """
    head = begins.get_header
    if head(StreamHeaderKey.SEQUENCE) != 0:
        return ""
    size = head(StreamHeaderKey.SIZE)
    if size == 0 and head(StreamHeaderKey.DATA_TYPE) == StreamDataType.FINAL and not begins.payload:
        return ""
    if isinstance(size, int) and 0 < size <= most:
        return ""
    return too_much(f"{size / 1e6:.1f} MB" if isinstance(size, int) and size > 0 else "one of unknown size", most)


def too_much(came: str, most: int) -> str:
    """Why a message is too large, in words."""
    return f"expected a message of at most {most / 1e6:.1f} MB, came {came}"


def _refusal(request: Request, why: str, told: set[Request]) -> Message:
    if request not in told and len(told) < TOLD_MOST:
        told.add(request)
        log.error("refused a request %s: %.60s on %.60s from %.60s", why, *_shown(request))
    return make_reply(ReturnCode.AUTHENTICATION_ERROR, error="refused by the gate of pfedsam")


def _shown(request: Request) -> tuple[str, str, str]:
    return ascii(request.topic), ascii(request.channel), ascii(request.origin)
