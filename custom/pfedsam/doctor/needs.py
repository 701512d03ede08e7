"""From what a trial measured to what a run needs: steps, scores, bytes and generations are counted, not guessed."""

import math
from dataclasses import dataclass

import torch

from pfedsam.config import Config
from pfedsam.doctor.trial import Trial
from pfedsam.exchange import checkpoint, store
from pfedsam.exchange.codec import wire_schema
from pfedsam.exchange.schema import Schema
from pfedsam.study import down_schema, shared_schema, up_schema
from pfedsam.train.loop import steps_of

FLARE_ROUND = 2.3  # seconds: FLARE 2.9 looks for tasks and answers in fixed intervals; measured, as the next
FLARE_MB = 0.04  # seconds more for each MB of a message one way; benchmarks/rounds.py and doctor.py, 2 to 15 MB
MESSAGE_MB = 0.05  # and with or without FLARE: guards, ledger, the server's mean and checkpoint, most of it the disk's
LINE = 1000  # bytes of a line of the ledger besides the tensors' names


@dataclass(frozen=True)
class Setting:
    """How the run will be carried.

    Attributes:
        rounds: of the run.
        sites: that train on this machine at the same time.
        lanes: of these, how many the trial had running beside each other.
        flare: False for a run in one process.
    """

    rounds: int
    sites: int = 1
    lanes: int = 1
    flare: bool = True


@dataclass(frozen=True)
class Seconds:
    """Of one site: until it is ready, of its first round, of a later one, of the final test, of the whole run."""

    ready: float
    first_round: float
    round: float
    test: float
    run: float


@dataclass(frozen=True)
class Bytes:
    """Payload of a site's messages in a round, each way."""

    up: int
    down: int


@dataclass(frozen=True)
class Memory:
    """Bytes: of one site's process at most, at its very first start, of all simulated processes, on the GPU."""

    site: int
    first_start: int
    all: int
    vram: int


@dataclass(frozen=True)
class Disk:
    """Bytes of files: base as it runs, generations and ledger, what a run leaves, cache, server's checkpoints."""

    base: int
    store: int
    run: int
    cache: int
    server: int

    @property
    def all(self) -> int:
        """What must be free."""
        return self.base + self.store + self.run + self.cache + self.server


def wire_bytes(config: Config) -> Bytes:
    """Exact: the values' bytes, as the ledger counts them."""
    up, down = wire_schema(up_schema(config), config.wire.up), wire_schema(down_schema(config), config.wire.down)
    return Bytes(_size(up), _size(down))


def seconds(config: Config, trial: Trial, setting: Setting) -> Seconds:
    """What the run takes without the time on the network."""
    rounds, slices, share = setting.rounds, trial.slices, setting.sites / setting.lanes
    megabytes = wire_bytes(config).up / 1e6
    by_flare = FLARE_ROUND + FLARE_MB * megabytes if setting.flare else 0.0
    ready = trial.ready * share if setting.flare else 0.0
    scored, tested = share * slices["val"] * trial.validation, share * slices["test"] * trial.final
    each = scored + share * trial.round + MESSAGE_MB * megabytes + by_flare
    test = tested + scored + share * trial.test + by_flare
    steps = steps_of(slices["train"], config.train)
    new = new_steps(config, trial, steps * rounds)
    fresh = [max(0, min(steps, new - number * steps)) for number in range(rounds)]
    trained = [share * (first * trial.step_new + (steps - first) * trial.step) for first in fresh]
    begun = ready + tested  # the first round has the first test before it
    run = begun + sum(trained) + rounds * each + test
    return Seconds(trial.ready, begun + trained[0] + each, trained[-1] + each, test, run)


def new_steps(config: Config, trial: Trial, steps: int) -> int:
    """Of all steps of a run those whose views are not in the cache of the frozen front yet."""
    if not trial.entry or cache_bytes(config, trial) > config.train.cache_gb * 1e9:
        return steps
    return min(steps, _views(config) * math.ceil(trial.slices["train"] / config.train.batch_size))


def cache_bytes(config: Config, trial: Trial) -> int:
    """What the cache of the frozen front would hold if nothing bounded it."""
    return trial.entry * (trial.slices["train"] * _views(config) + trial.slices["val"] + trial.slices["test"])


def memory(config: Config, trial: Trial, setting: Setting, first_start: int) -> Memory:
    """What the processes hold at most.

    Args:
        first_start: bytes that a process held which prepared the base model.
    """
    site = trial.peak + _held(config, trial, "memory")
    shared, held = _size(shared_schema(config)), 2 * _remembered(trial, setting)
    server = trial.idle + shared * (3 + setting.sites) + held if setting.flare and setting.sites > 1 else 0
    together = setting.sites * (site - trial.mapped) + trial.mapped + server
    return Memory(site, max(first_start, site), together, trial.vram)


def disk(config: Config, trial: Trial, setting: Setting, base: int) -> Disk:
    """What a run leaves on the disk of this machine.

    Args:
        base: bytes of the prepared base model.
    """
    shared, line = _size(shared_schema(config)), LINE + sum(len(name) + 4 for name in up_schema(config))
    of_site = trial.private * (2 * store.KEEP + 1) + 2 * line * (setting.rounds + 1)
    left = trial.private + shared + 2_000_000  # private part, the last trained shared part; cards, pictures, logs
    cached = _held(config, trial, "disk")
    kept = (shared + _remembered(trial, setting)) * (checkpoint.KEEP + 1)  # one being written
    server = kept + 3 * shared if setting.sites > 1 else 0  # best, two models
    return Disk(base, setting.sites * of_site, setting.sites * left, setting.sites * cached, server)


def on_the_wire(size: int, megabits: float) -> float:
    """Seconds that so many bytes take."""
    return size * 8 / (megabits * 1e6)


def _remembered(trial: Trial, setting: Setting) -> int:
    """Bytes of what the server's rule remembers."""
    always, each = trial.memory
    return always + each * setting.sites


def _views(config: Config) -> int:
    return config.train.views if config.train.augment and config.train.views else 1


def _held(config: Config, trial: Trial, kind: str) -> int:
    """Bytes in a cache of that kind; 0 where the job has none."""
    return min(int(config.train.cache_gb * 1e9), cache_bytes(config, trial)) if config.train.cache == kind else 0


def _size(schema: Schema) -> int:
    return sum(torch.Size(spec.shape).numel() * spec.dtype.itemsize for spec in schema.values())
