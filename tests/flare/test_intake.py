"""What a process fetches for a message: its sender's own tensors, and few of them at a time."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.fuel.utils import fobs

from pfedsam.exchange.guard import Rejected
from pfedsam.flare import intake

LIMITS = {"most": 1000, "at_server": True}
TENSORS = {"a": torch.zeros(2)}


def sent_by(name: str) -> dict[str, Any]:
    """FLARE's context of a message that it decodes."""
    return {fobs.FOBSContextKey.MESSAGE: Message({MessageHeaderKey.ORIGIN: name})}


def fetched(source: str, context: dict[str, Any] | None) -> Any:
    error, found = intake._fetched(from_fqcn=source, ref_id="1", fobs_ctx=context, **LIMITS)
    assert not error
    return found


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Whether the members answer a fetch."""
    answered = threading.Event()

    def download(**_: Any) -> tuple[str, Any]:
        assert answered.wait(20)
        return "", TENSORS

    monkeypatch.setattr(intake, "download_tensors", download)
    yield answered
    answered.set()


def test_a_member_s_own_tensors_are_fetched_and_another_s_are_not(answers: threading.Event) -> None:
    answers.set()
    assert fetched("site-1.job", sent_by("site-1.job")) is TENSORS
    assert fetched("site-1", sent_by("site-1.job")) is TENSORS
    assert fetched("site-1.job", {}) is TENSORS is fetched("site-1.job", None)
    for other in ("site-2.job", "server", "site-11.job", ""):
        refused = fetched(other, sent_by("site-1.job")).get("a")
        assert isinstance(refused, Rejected)
        assert "came those of another member" in refused.reason


@pytest.mark.parametrize("name", ["site-3.job", "_admin_{}"])
def test_fetches_that_are_not_answered_keep_few_threads_and_nobody_else_s(name: str, answers: threading.Event) -> None:
    found: list[Any] = []
    names = [name.format(number) for number in range(64)]
    threads = [threading.Thread(target=lambda one=one: found.append(fetched(one, sent_by(one)))) for one in names]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while len(found) < 64 - intake.WAITING_MOST and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert len(found) == 64 - intake.WAITING_MOST
    assert {"at most 4 fetches" in one.get("a").reason for one in found} == {True}
    answers.set()
    for thread in threads:
        thread.join()
    assert sum(one is TENSORS for one in found) == intake.WAITING_MOST
    assert fetched("site-3.job", sent_by("site-3.job")) is TENSORS
    assert not any(intake._FETCHES.values())
