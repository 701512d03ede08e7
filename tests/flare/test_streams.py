"""What other members' streams may hold at a process: size, parts, number, and what comes after the end."""

import uuid

import pytest
from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, MessagePropKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import (
    STREAM_ACK_TOPIC,
    STREAM_CHANNEL,
    STREAM_DATA_TOPIC,
    StreamDataType,
    StreamHeaderKey,
)

from pfedsam.flare.gate import Watch, refuse
from pfedsam.flare.streams import OPEN_MOST, SILENT, Streams

MOST = 100_000
FINAL = {StreamHeaderKey.DATA_TYPE: StreamDataType.FINAL}
RELIABLE = {StreamHeaderKey.RELIABLE: True}


def part(place: object, number: object = 7, payload: object = b"x", **head: object) -> Message:
    """A part of a stream of site-2 to the server."""
    usual = {
        MessageHeaderKey.ORIGIN: "site-2.1",
        MessageHeaderKey.CHANNEL: STREAM_CHANNEL,
        MessageHeaderKey.TOPIC: STREAM_DATA_TOPIC,
        StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
        StreamHeaderKey.TOPIC: ServerCommandNames.SUBMIT_UPDATE,
        StreamHeaderKey.SEQUENCE: place,
        StreamHeaderKey.STREAM_ID: number,
        StreamHeaderKey.SIZE: MOST,
    }
    return Message({**usual, **head}, payload)


@pytest.mark.parametrize("size", [MOST + 1, 10**12, 0, -1, None, "1", 1.0])
def test_a_stream_that_is_too_large_or_hides_its_size_is_cut_from_its_first_part_on(
    size: object, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch("server", most=MOST)
    assert refuse(part(0, **{StreamHeaderKey.SIZE: size}), watch) is not None
    assert refuse(part(1), watch) is not None
    assert refuse(part(1, 8), watch) is None
    assert sum("expected a message of at most 0.1 MB" in line and "site-2.1" in line for line in caplog.messages) == 1


def test_a_stream_within_the_limit_an_acknowledgement_and_the_process_s_own_go_through() -> None:
    watch, large = Watch("server", most=MOST), {StreamHeaderKey.SIZE: 2 * MOST}
    assert refuse(part(0), watch) is None
    assert refuse(part(1), watch) is None
    assert refuse(part(0, 8, **large, **{MessageHeaderKey.TOPIC: STREAM_ACK_TOPIC}), watch) is None
    assert refuse(part(0, 9, **large, **{MessageHeaderKey.ORIGIN: "server"}), watch) is None
    assert refuse(part(0, **large), Watch("server")) is None


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_a_whole_stream_goes_through_in_any_order_as_often_as_it_is_sent(order: tuple[int, ...]) -> None:
    streams = Streams(MOST)
    for number in range(100):
        for place in order:
            assert not streams.fault(part(place, number, bytes(25_000), **FINAL if place == 3 else {}))


def test_a_stream_brings_no_more_than_it_states() -> None:
    streams, small = Streams(MOST), {StreamHeaderKey.SIZE: 1000}
    assert not streams.fault(part(0, payload=bytes(1000), **small))
    assert not streams.fault(part(1, payload=bytes(1000), **small))
    assert "came more than the 0.0 MB of its stream" in streams.fault(part(2, payload=bytes(10_000), **small))


def test_parts_without_a_first_one_are_bounded_together() -> None:
    streams = Streams(MOST)
    taken = [not streams.fault(part(place, number, bytes(10_000))) for number in range(20) for place in range(1, 101)]
    assert 300_000 <= 10_000 * sum(taken) <= 5 * MOST


def test_small_parts_count_for_what_they_take() -> None:
    streams = Streams(MOST)
    assert sum(not streams.fault(part(place)) for place in range(10_000)) < 150


def test_a_member_has_few_unfinished_streams_and_others_have_theirs() -> None:
    now = [0.0]
    streams = Streams(MOST, lambda: now[0])
    assert sum(not streams.fault(part(0, number)) for number in range(64)) == OPEN_MOST
    assert not streams.fault(part(0, 1000, **FINAL, **{MessageHeaderKey.ORIGIN: "site-1.1"}))
    assert "expected at most 16 unfinished messages" in streams.fault(
        part(0, 2000, **{MessageHeaderKey.ORIGIN: "site-2"})
    )
    now[0] = SILENT + 1  # FLARE has dropped them
    assert not streams.fault(part(0, 3000))


def from_persons(streams: Streams, certificate: str | None, names: int = 5, **part_: object) -> list[str]:
    """What becomes of 16 parts of each of some persons' processes, all with one certificate."""
    faults = []
    for name in (f"_admin_{uuid.uuid4()}" for _ in range(names)):
        for number in range(OPEN_MOST):
            one = part(0, number, **{MessageHeaderKey.ORIGIN: name}, **part_)
            one.set_prop(MessagePropKey.COMMON_NAME, certificate)
            faults.append(streams.fault(one))
    return faults


@pytest.mark.parametrize(("certificate", "told"), [("hospital-b", "'hospital-b'"), (None, "'_admin_'")])
def test_a_member_that_connects_as_many_persons_has_the_streams_of_one_member(
    certificate: str | None, told: str
) -> None:
    """FLARE takes any certificate for a person's process, and FLARE's threads are for all members."""
    streams = Streams(MOST)
    faults = from_persons(streams, certificate)
    assert sum(not fault for fault in faults) == OPEN_MOST
    assert {fault for fault in faults if fault} == {f"expected at most 16 unfinished messages of {told}, came more"}
    assert not any(from_persons(streams, "lead@hub.org", names=1))
    own = part(0, 1000, **{MessageHeaderKey.ORIGIN: "hospital-b.job"})
    assert bool(streams.fault(own)) == (certificate == "hospital-b")  # its own streams count too


def test_a_member_that_connects_as_many_persons_holds_the_bytes_of_one_member() -> None:
    size = MOST // 2
    faults = from_persons(Streams(MOST), "hospital-b", payload=bytes(size))
    assert sum(not fault for fault in faults) * size <= 5 * MOST
    assert any("more than 4 of them at a time of 'hospital-b'" in fault for fault in faults)


def test_streams_without_a_first_part_are_never_forgotten_as_flare_keeps_them() -> None:
    now = [0.0]
    streams = Streams(MOST, lambda: now[0])
    assert sum(not streams.fault(part(1, number)) for number in range(64)) == OPEN_MOST
    now[0] = 100 * SILENT
    assert streams.fault(part(1, 3000))


def test_after_the_end_only_a_part_that_flare_acknowledges_again_goes_through() -> None:
    streams = Streams(MOST)
    assert not streams.fault(part(0, 1, **FINAL))
    assert "after the last" in streams.fault(part(0, 1, **FINAL))
    for place in (0, 1):
        assert not streams.fault(part(place, 2, **RELIABLE, **FINAL if place else {}))
    assert not streams.fault(part(0, 2, **RELIABLE))
    assert "after the last" in streams.fault(part(2, 2, **RELIABLE))


@pytest.mark.parametrize("wrong", [None, "1", 1.0, True, -1, [1], {}])
def test_a_place_or_number_that_is_none_and_a_payload_that_is_no_bytes_are_refused(wrong: object) -> None:
    streams = Streams(MOST)
    assert "whole numbers" in streams.fault(part(wrong))
    assert wrong == -1 or "whole numbers" in streams.fault(part(0, wrong))
    assert wrong is None or "expected bytes" in streams.fault(part(0, payload=wrong))
