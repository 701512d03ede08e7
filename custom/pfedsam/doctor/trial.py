"""A small real run of a configuration, in a process of its own: what a step, a score and a message cost here.

Run as `python -m pfedsam.doctor.trial REQUEST` (or `pfedsam.flare.trial`, which holds FLARE as well); the answer is
written to the file that the request names. Everything is done by the functions that a real run calls.
"""

import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch

from pfedsam.config import Config
from pfedsam.data.dataset import PLAIN, Dataset, View
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.codec import encode
from pfedsam.exchange.guard import judge_message
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.server import ServerState, contribution, mean
from pfedsam.files import Tensors, pack, write_atomic, write_json
from pfedsam.service import Turn, serve_round, serve_test
from pfedsam.settings import from_dict
from pfedsam.site import Places, Site
from pfedsam.study import shared_schema
from pfedsam.train.loop import Progress, steps_of
from pfedsam.train.prefix import prefix

RUN = "trial"
MEASURED, CASES = 2, 4  # rounds after the first; cases of a split that are scored
GPU = torch.cuda.is_available()
WARM_UP = 4 if GPU else 2  # steps of the first round; a GPU's first two are run as they stand and recorded
MOST_STEPS = 64 if GPU else 16  # of a measured round; on a GPU, where each round records anew, about a real one's


@dataclass(frozen=True)
class Request:
    """What is tried, and where.

    Attributes:
        config: the settings, as JSON values.
        site: the site's name.
        data, weights, cache, store: folders, as in `Places`; the last two are the trial's own.
        threads: of torch.
        seconds: that training may take, about.
        rehearse: False only opens the site, which prepares the base model.
    """

    config: dict[str, object]
    site: str
    data: str
    weights: str | None
    cache: str
    store: str
    threads: int
    seconds: float
    rehearse: bool


@dataclass(frozen=True)
class Trial:
    """What one process measured; seconds and bytes.

    Attributes:
        ready: from the process's start to a site that can serve.
        slices: of each split, all of them.
        step_new, step: a training step whose images meet the cache of the frozen front for the first time, and later;
            the same where there is no such cache.
        first: what the first round takes beyond its steps and scores: compiling, first use of memory.
        before, validation, final: scoring a slice: of the first test, of all that a round scores, of the final test;
            the first and the last with distances.
        round: a round's own work at the site besides training and scoring.
        test: the final test's besides scoring: pictures, private part.
        message: checks, ledger, server's mean and checkpoint of one site's message.
        entry: bytes of one view in the cache of the frozen front; 0 without.
        private, ledger: bytes of a generation of the site store, and of the ledger a round.
        idle: memory after imports, but for what files hold.
        peak, vram: memory at most, and at most on the GPU.
        mapped: of the peak, what files hold (libraries, the base): on one machine there once for all processes.
        got: of the processor time that its threads could have used, what they got; about 1 where nothing else runs.
    """

    ready: float
    slices: dict[str, int]
    step_new: float = 0.0
    step: float = 0.0
    first: float = 0.0
    before: float = 0.0
    validation: float = 0.0
    final: float = 0.0
    round: float = 0.0
    test: float = 0.0
    message: float = 0.0
    entry: int = 0
    private: int = 0
    ledger: int = 0
    idle: int = 0
    mapped: int = 0
    peak: int = 0
    vram: int = 0
    got: float = 1.0


def main() -> None:
    """Serve the request that the command line names."""
    path = Path(sys.argv[1])
    idle = psutil.Process().memory_info().rss - mapped()
    request = Request(**json.loads(path.read_text()))
    torch.set_num_threads(request.threads)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    began = time.process_time()
    with clock() as took:
        found = tried(request)
    got = min(1.0, (time.process_time() - began) / took() / request.threads)
    found = replace(found, idle=idle, mapped=mapped(), peak=peak(), got=got)
    if torch.cuda.is_available():
        found = replace(found, vram=torch.cuda.max_memory_reserved())
    write_json(path.with_suffix(".answer"), asdict(found))


def tried(request: Request) -> Trial:
    """The trial that is asked for, but for memory."""
    config = from_dict(dict(request.config))
    weights = Path(request.weights) if request.weights else None
    store = Path(request.store)
    site = Site(request.site, config, Places(Path(request.data), store, weights, Path(request.cache), store / "run"))
    ready = time.time() - psutil.Process().create_time()
    opened = Trial(ready, {split: len(data) for split, data in site.data.items()})
    return rehearse(site, opened, request.seconds) if request.rehearse else opened


def rehearse(site: Site, opened: Trial, seconds: float) -> Trial:
    """A warm-up round, some that count, the final test, and what a message costs."""
    full, store = site.config, site.store.folder
    site.data = {split: few(data, None if split == "train" else CASES) for split, data in site.data.items()}
    entry = entry_bytes(site, full, store)
    wire = encode(site.shared(), full.wire.down)
    cold, cold_steps = one_round(site, wire, 0, WARM_UP)
    steps = max(WARM_UP, min(MOST_STEPS, int(seconds / MEASURED / (cold.last or 1e-3))))
    site.data["train"] = first(site.data["train"], steps * full.train.batch_size)
    warm = [one_round(site, wire, number, steps) for number in range(1, MEASURED + 1)]
    new, old = (train / count for train, count in ((warm[0][0].train, warm[0][1]), (warm[-1][0].train, warm[-1][1])))
    if not entry:
        new = old = (new + old) / 2
    val, test = len(site.data["val"]), len(site.data["test"])
    scoring = min(timed.scoring for timed, _ in warm)
    with clock() as before:
        site.summary("test", "global")
    with clock() as final:
        site.scores("test")
    with clock() as tested:
        serve_test(site, wire, Turn(RUN, site.base, MEASURED + 1, MEASURED + 1), store / "final")
    message, ledger = message_cost(site, wire, store)
    return replace(
        opened,
        step_new=new,
        step=old,
        first=max(0.0, cold.train - cold_steps * new),
        before=before() / test,
        validation=scoring / val,
        final=final() / test,
        round=min(timed.rest for timed, _ in warm),
        test=max(0.0, tested() - final() - scoring),
        message=message,
        entry=entry,
        private=max((path.stat().st_size for path in store.glob("private.*.safetensors")), default=0),
        ledger=ledger,
    )


@dataclass(frozen=True)
class Timed:
    """Seconds of a round: training, its last step, scoring, and the rest."""

    train: float
    last: float
    scoring: float
    rest: float


def one_round(site: Site, wire: Tensors, number: int, steps: int) -> tuple[Timed, int]:
    """A real round cut to so many steps; its seconds, and the steps there were."""
    full = site.config
    views = 1 if full.train.views else None  # so that a later round meets what an earlier one has put into the cache
    train = replace(full.train, max_steps=steps, epochs=max(full.train.epochs, steps), views=views)
    site.config = replace(full, train=train)
    shared_schema(site.config)
    ends: list[float] = [time.monotonic()]
    with clock() as whole:
        turn = Turn(RUN, site.base, number, MEASURED + 1)
        _, report = serve_round(site, wire, turn, progress=lambda now: ends.append(_when_done(now, number)))
    site.config = full
    rest = whole() - report["seconds"] - report["scoring_seconds"]
    count = min(steps, steps_of(len(site.data["train"]), train))
    return Timed(report["seconds"], ends[-1] - ends[-2], report["scoring_seconds"], rest), count


def _when_done(now: Progress, number: int) -> float:
    """The time after a step; in the first round a GPU is waited for, in the others it and the next batch take turns."""
    if number == 0:
        _ = now.losses
    return time.monotonic()


def few(data: Dataset, most: int | None) -> Dataset:
    """The split's first cases and its largest one; all of them for None."""
    cases = list(data.cases())
    if most is None or len(cases) <= most:
        return data
    largest = max(range(len(cases)), key=lambda i: len(cases[i]) * _pixels(data, cases[i][0]))
    picked = sorted({largest, *range(most - 1)})
    cut = copy.copy(data)
    cut.slices = [data.slices[i] for number in picked for i in cases[number]]
    return cut


def first(data: Dataset, most: int) -> Dataset:
    """The split's first slices."""
    cut = copy.copy(data)
    cut.slices = data.slices[:most]
    return cut


def entry_bytes(site: Site, config: Config, store: Path) -> int:
    """Bytes of one view in the cache of the frozen front; 0 where the job has none."""
    front = prefix(site.model, config, store / "probe")
    if front is None:
        return 0
    front.batch(site.data["train"], [View(0, PLAIN)], None)
    return front.shelf.used


def message_cost(site: Site, wire: Tensors, folder: Path) -> tuple[float, int]:
    """Seconds of what is done with one site's messages of a round beside FLARE's own work; bytes of ledger a round.

    At the site: both fences, the ledger's digests, the copy for a cross-site test. At the server: guard, mean,
    checkpoint.
    """
    config, schema = site.config, shared_schema(site.config)
    up = encode(site.shared(), config.wire.up)
    stamp, ledger = site.stamp(0), Ledger(folder / "trial.jsonl")
    with clock() as took:
        judge_message(wire, stamp, schema=schema, expected=stamp, number=config.wire.down)
        ledger.note("in", wire, task="train", round_=0, facts={})
        write_atomic(folder / "trained.safetensors", pack(site.shared(), {}))
        judge_message(up, stamp, schema=schema, expected=stamp, number=config.wire.up)
        ledger.note("out", up, task="train", round_=0, facts={})
        judge_message(up, stamp, schema=schema, expected=stamp, number=config.wire.up)
        given = {"a": contribution(up, 1, {}, config=config, up=schema)}
        state = mean(ServerState(site.shared()), given, config)
        Checkpoints(folder / "server", config.study).save(Checkpoint(RUN, 1, "", "", {}, state))
    return took(), ledger.path.stat().st_size


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Afterwards the yielded function gives the seconds that the block took."""
    began, ended = time.monotonic(), [0.0]
    yield lambda: ended[0]
    ended[0] = time.monotonic() - began


def mapped() -> int:
    """Bytes of this process's memory that files hold; 0 where the system does not say (all but Linux)."""
    return int(getattr(psutil.Process().memory_info(), "shared", 0))


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _pixels(data: Dataset, i: int) -> int:
    return data.slices[i].shape[0] * data.slices[i].shape[1]


if __name__ == "__main__":
    main()
