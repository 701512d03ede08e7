"""What a process holds of other members' streams. FLARE bounds one stream a little, and not how many there are.

FLARE sends a longer message as a stream of parts, which may come in any order. It keeps each part until those before it
have come, and waits for the next part of a stream in a thread of its own. A member that never sends a first part, or
never a last one, could fill the memory of a process, or hold all of its threads.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamDataType, StreamHeaderKey

PERSON = "_admin_"  # how FLARE names a person's process; no site may have such a name
OPEN_MOST = 16  # of one member at a time. A run has about five, and FLARE has 64 threads for all members
WHOLE_MOST = 4  # largest messages of a member that are held at a time
OF_A_PART = 1000  # bytes that a part takes beside its payload. Small parts take a hundred times what they carry
SILENT = 600.0  # seconds. FLARE waits half of this for a stream's next part, and then drops the stream
ENDED_MOST = 1000  # streams that have ended and are still known


@dataclass
class Stream:
    """What has come of a stream.

    Attributes:
        member: who sends it, as `member_of` says.
        heard: when its last part came, in seconds.
        parts: the places of the parts that were let through.
        states: the size that its first part stated, in bytes; None: the first part has not come.
        held: the bytes of its parts, each with what it takes.
        last: the place of its last part; None: it has not come.
        again: whether FLARE acknowledges a part of it that comes again after the last.
    """

    member: str
    heard: float
    parts: set[int] = field(default_factory=set)
    states: int | None = None
    held: int = 0
    last: int | None = None
    again: bool = True

    @property
    def whole(self) -> bool:
        """Whether all parts have come."""
        return self.last is not None and len(self.parts) == self.last + 1


class Streams:
    """The streams of other members at one process.

    Args:
        most: the bytes of the largest message that another member may send.
        clock: the time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self._clock, self._lock = most, clock, threading.Lock()
        self._open: dict[tuple[str, int], Stream] = {}
        self._ended: OrderedDict[tuple[str, int], Stream] = OrderedDict()

    def fault(self, part: Message) -> str:
        """Why a part of a stream may not go on, in words; empty if it may."""
        head, now = part.get_header, self._clock()
        number, place = head(StreamHeaderKey.STREAM_ID), head(StreamHeaderKey.SEQUENCE)
        if type(number) is not int or type(place) is not int or place < 0:
            return "expected whole numbers for a stream and its part, came others"
        if not isinstance(part.payload, bytes | bytearray | memoryview | None):
            return "expected bytes in a part of a stream, came what they encode"
        origin = str(head(MessageHeaderKey.ORIGIN, ""))
        with self._lock:
            self._forget(now)
            key = origin, number
            if key in self._ended:
                ended = self._ended[key]
                return "" if ended.again and place in ended.parts else "came a part after the last one"
            member = member_of(origin, part)
            if key not in self._open and self._count(member) >= OPEN_MOST:
                return f"expected at most {OPEN_MOST} unfinished messages of {ascii(member)[:60]}, came more"
            stream = self._open.setdefault(key, Stream(member, now))
            return self._taken(key, stream, part, place)

    def _taken(self, key: tuple[str, int], stream: Stream, part: Message, place: int) -> str:
        why = too_large(part, self.most) or self._too_much(stream, part, place)
        if why and not stream.parts:
            self._end(key)  # FLARE has nothing of it
        if why:
            return why
        stream.again &= bool(part.get_header(StreamHeaderKey.RELIABLE, False))
        stream.heard = self._clock()
        if place == 0:
            stream.states = int(part.get_header(StreamHeaderKey.SIZE))
        if place not in stream.parts:
            stream.parts.add(place)
            stream.held += cost(part)
        if part.get_header(StreamHeaderKey.DATA_TYPE) == StreamDataType.FINAL:
            stream.last = place
        if stream.whole:
            self._end(key)
        return ""

    def _too_much(self, stream: Stream, part: Message, place: int) -> str:
        """Why a part is more than its stream or its member may have here; empty if it is not."""
        if place in stream.parts:
            return ""
        states = self.most if stream.states is None else stream.states
        if stream.held + cost(part) > room(states):
            return too_much(f"more than the {states / 1e6:.1f} MB of its stream", self.most)
        held = sum(other.held for other in self._open.values() if other.member == stream.member)
        if held + cost(part) > WHOLE_MOST * room(self.most):
            return too_much(f"more than {WHOLE_MOST} of them at a time of {ascii(stream.member)[:60]}", self.most)
        return ""

    def _count(self, member: str) -> int:
        return sum(stream.member == member for stream in self._open.values())

    def _end(self, key: tuple[str, int]) -> None:
        self._ended[key] = self._open.pop(key)
        while len(self._ended) > ENDED_MOST:
            self._ended.popitem(last=False)

    def _forget(self, now: float) -> None:
        """Drop the streams that FLARE has dropped. It keeps one without a first part until the process ends."""
        for key in [key for key, one in self._open.items() if 0 in one.parts and now - one.heard > SILENT]:
            del self._open[key]


def root(name: str) -> str:
    """The first part of a name of FLARE's: a site, the server, or a person's process."""
    return name.partition(".")[0]


def member_of(name: str, message: Message | None) -> str:
    """Whose limits count for a message of that sender: the site's of the name, or those of a person's certificate.

    A person's process chooses its own name, and FLARE takes any member's certificate for it. Persons without a
    certificate count as one.
    """
    if not name.startswith(PERSON):
        return root(name)
    return str((message and message.get_prop(MessagePropKey.COMMON_NAME)) or PERSON)


def cost(part: Message) -> int:
    """The bytes that a part takes."""
    return len(part.payload or b"") + OF_A_PART


def room(size: int) -> int:
    """The bytes that the parts of a stream of this size may take. FLARE's parts have a megabyte each."""
    return size + size // 10 + 10 * OF_A_PART


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
