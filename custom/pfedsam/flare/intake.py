"""What a job's process takes in: no message is larger than the job's settings allow. It is refused before it is read.

FLARE sends a message as a stream of bytes, and lets the receiver fetch the message's tensors afterwards, in streams of
their own. The gate bounds each stream, and what a member may send at a time. `limit` counts what is fetched for one
message, lets nobody name another member's tensors as its own, and keeps few fetches from one member waiting.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.app_opt.pt.tensor_downloader import download_tensors
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs import dots

from pfedsam import log
from pfedsam.config import Config
from pfedsam.exchange.codec import wire_schema
from pfedsam.exchange.guard import Rejected
from pfedsam.exchange.schema import size_of
from pfedsam.flare.streams import member_of, root, too_much
from pfedsam.study import down_schema, sent_schema
from pfedsam.tensors import Tensors

FACTOR, FIXED = 1.1, 2_000_000  # on top of the declared tensors: their names, and what is said beside them. Our choice
WAITING_MOST = 4  # fetches from one member at a time. A run has one, and FLARE has 64 threads for all members
CAME = "pfedsam_came"  # in FLARE's context of one message: the bytes of the tensors that were fetched for it

_FETCHES: Counter[str] = Counter()  # that wait in this process, by member
_LOCK = threading.Lock()


def most_bytes(config: Config) -> int:
    """The largest message of a job in bytes, either way: its declared tensors as they travel, and a little more."""
    ways = (wire_schema(sent_schema(config), config.wire.up), wire_schema(down_schema(config), config.wire.down))
    return int(FACTOR * max(size_of(schema) for schema in ways)) + FIXED


def limit(most: int, *, at_server: bool) -> None:
    """From now on this process fetches tensors of at most `most` bytes for a message, and nothing else than tensors.

    What is refused stands in the message as a `Rejected` in each tensor's place. The guard then says the reason.

    Args:
        at_server: a fetch that fails counts as a refusal too, and a message that cannot be decoded is dropped. FLARE
            would end the server's process, and so the job.
    """
    if at_server:
        cell._is_server_job_cell = _no_cell  # FLARE asks it before it ends the process, and offers no other place
    fobs.register(TensorDecomposer)
    tensors, arrays = (fobs.get_dot_handler(dot) for dot in (dots.TENSOR_DOWNLOAD, dots.NUMPY_DOWNLOAD))
    tensors.download = partial(_fetched, most=most, at_server=at_server)  # FLARE offers no other place for a limit
    if arrays is not None:
        arrays.download = _no_arrays


def _no_cell(_info: object) -> bool:
    return False


class _TooMuch(Exception):
    """Raised within a fetch, to end it."""


class _Refused:
    """In the place of fetched tensors: each is the same refusal."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __contains__(self, _: object) -> bool:
        return True

    def __len__(self) -> int:
        return 0

    def get(self, _: str) -> Rejected:
        return Rejected(self._reason)


def _fetched(
    *, most: int, at_server: bool, fobs_ctx: dict[str, Any] | None = None, **where: Any
) -> tuple[str, Tensors | _Refused]:
    """FLARE's error and the tensors, or a refusal."""
    context = {} if fobs_ctx is None else fobs_ctx
    source = str(where.get("from_fqcn", ""))
    message: Message | None = context.get(fobs.FOBSContextKey.MESSAGE)
    sender = source if message is None else str(message.get_header(MessageHeaderKey.ORIGIN, ""))
    if root(sender) != root(source):
        return _refused(source, f"expected the tensors of {ascii(root(sender))[:60]}, came those of another member")
    with _waiting(member_of(source, message)) as few:
        if not few:
            return _refused(source, f"expected at most {WAITING_MOST} fetches from a member at a time, came more")
        return _fetch(context, most=most, at_server=at_server, **where)


def _fetch(context: dict[str, Any], *, most: int, at_server: bool, **where: Any) -> tuple[str, Tensors | _Refused]:
    def counted(tensors: Tensors) -> Tensors:
        context[CAME] = context.get(CAME, 0) + sum(one.numel() * one.element_size() for one in tensors.values())
        if context[CAME] > most:
            raise _TooMuch
        return tensors

    error, tensors = download_tensors(**where, tensors_received_cb=counted)
    reason = too_much("more", most) if context.get(CAME, 0) > most else ""
    if not reason and error and at_server:
        reason = f"expected the tensors of an update, came none: {error}"
    return _refused(str(where.get("from_fqcn", "")), reason) if reason else (error, tensors)


@contextmanager
def _waiting(member: str) -> Iterator[bool]:
    """Whether a fetch from a member may begin. It counts until the block ends."""
    with _LOCK:
        few = _FETCHES[member] < WAITING_MOST
        _FETCHES[member] += few
    try:
        yield few
    finally:
        with _LOCK:
            _FETCHES[member] -= few


def _refused(source: str, reason: str) -> tuple[str, _Refused]:
    log.error("refused a message of %.60s: %s", ascii(source), reason)
    return "", _Refused(reason)


def _no_arrays(**_: Any) -> tuple[str, _Refused]:
    return "", _Refused("expected tensors, came a NumPy array")
