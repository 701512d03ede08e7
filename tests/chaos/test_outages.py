"""What a federation survives: killed processes, a slow site, a cut network. Real processes, minutes each."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
from chaos import JOB, PATIENCE, run_once, same, trained
from chaos import campaign as chaos_campaign
from federation import Federation

from conftest import ROOT, TINY, let_little_leave
from pfedsam.flare.presence import Patience

pytestmark = [pytest.mark.flare, pytest.mark.long]


def test_random_kills_lose_nothing_and_change_no_bit() -> None:
    rows = chaos_campaign(3, random.Random(1), each=3, within=20, tell=print)
    assert sum(len(row.kills) for row in rows) == 3
    assert all(row.equal for row in rows)
    assert not any(row.lost for row in rows)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("outages") / "federation")
    federation.prepare("provisioned", byoc=False)
    let_little_leave(federation)
    federation.start()
    yield federation
    federation.stop()


@contextmanager
def slowed(federation: Federation, site: str, times: int) -> Iterator[None]:
    """A site whose job gets one part in `times` of the time."""
    ended = threading.Event()

    def brake() -> None:
        while not ended.is_set():
            for process in [p for word in JOB for p in federation.processes(site, word)]:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
                    time.sleep(0.1 * (times - 1))
                    process.resume()
            time.sleep(0.1)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_site_ten_times_slower_is_left_behind_after_the_wait_and_the_run_ends(federation: Federation) -> None:
    job = federation.render(ROOT / "jobs/pfedsam", *TINY, "study=slow", rounds=3, grace=3)
    path = job / "app/config/config_fed_server.json"
    server = json.loads(path.read_text())
    server["workflows"][1]["args"] |= {"grace": 20}
    path.write_text(json.dumps(server))
    with slowed(federation, "hospital-c", 10):
        outcome = federation.watch(job, PATIENCE)
    (found,) = outcome.folder.rglob("results.json")
    results = json.loads(found.read_text())
    assert [r["round"] for r in results["rounds"]] == [0, 1, 2]
    assert all({"hospital-a", "hospital-b"} <= set(r["sites"]) for r in results["rounds"])
    assert any("hospital-c" not in r["sites"] for r in results["rounds"])
    assert {"hospital-a", "hospital-b"} <= set(results["final"]["sites"])


class Cable:
    """A TCP way to the server that can be cut: open connections break, new ones are refused."""

    def __init__(self, target: int) -> None:
        self._target, self._open, self._cut = target, set(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        self._cut.set()
        for side in list(self._open):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._cut.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for side in (source, sink):
            with suppress(OSError):
                side.close()
            self._open.discard(side)


def test_a_network_cut_of_a_minute_costs_no_round_and_no_bit(federation: Federation) -> None:
    project = (federation.home / "project.yml").read_text()
    port = int(project.split("fed_learn_port:")[1].split()[0])
    cable = Cable(port)
    way = federation.kit("hospital-c") / "startup/fed_client.json"
    way.write_text(way.read_text().replace(f":{port}", f":{cable.port}"))
    federation.stop("hospital-c")
    federation.start("hospital-c")
    run_once(federation, "whole", sites=3)

    def cut(*_: object) -> None:
        time.sleep(15)
        cable.cut(60)

    ends, _ = run_once(federation, "cut", cut, sites=3)
    assert same(trained(federation, "cut"), trained(federation, "whole")), ends


def test_a_killed_machine_with_a_quorum_left_does_not_stop_the_others_and_comes_back(federation: Federation) -> None:
    """Unlike the random kills, which ask for every site in every round, two of three are enough here."""
    job = federation.render(ROOT / "jobs/pfedsam", *TINY, "study=quorum", "train.max_steps=6", rounds=8)

    def reset() -> None:
        time.sleep(22)
        for process in federation.processes("hospital-b"):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(5)
        federation.start("hospital-b")

    thread = threading.Thread(target=reset)
    thread.start()
    outcome = federation.watch(job, Patience(poll=1, outside=5, boundary=5))
    thread.join()
    (found,) = outcome.folder.rglob("results.json")
    results = json.loads(found.read_text())
    assert [r["round"] for r in results["rounds"]] == list(range(8))
    assert "hospital-b" in results["rounds"][-1]["sites"]
    assert "hospital-b" in results["final"]["sites"]
