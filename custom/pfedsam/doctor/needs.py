"""Computes a run's needs from a trial: steps, scores, bytes and generations are counted instead of guessed."""

import math
from dataclasses import dataclass

from pfedsam.config import Config
from pfedsam.doctor.trial import Trial
from pfedsam.exchange import checkpoint, store
from pfedsam.exchange.codec import wire_schema
from pfedsam.exchange.schema import size_of
from pfedsam.study import down_schema, shared_schema, up_schema
from pfedsam.train.loop import steps_of

FLARE_ROUND = 2.3  # seconds: FLARE 2.9 polls for tasks and answers in fixed intervals; measured, like the next
FLARE_MB = 0.04  # seconds more per MB of a message one way; benchmarks/rounds.py and doctor.py, 2 to 15 MB
MESSAGE_MB = 0.05  # also without FLARE: guards, ledger, the server's mean and checkpoint, mostly for the disk
LINE = 1000  # bytes of a ledger line besides the tensors' names


@dataclass(frozen=True)
class Setting:
    """How the run is done.

    Attributes:
        rounds: of the run.
        sites: that train on this machine at the same time.
        lanes: how many of these the trial ran side by side.
        flare: False for a run in one process.
    """

    rounds: int
    sites: int = 1
    lanes: int = 1
    flare: bool = True


@dataclass(frozen=True)
class Seconds:
    """For one site: until it is ready, its first round, a later round, the final test, the whole run."""

    ready: float
    first_round: float
    round: float
    test: float
    run: float


@dataclass(frozen=True)
class Bytes:
    """Payload of a site's messages in one round, each way."""

    up: int
    down: int


@dataclass(frozen=True)
class Memory:
    """Bytes: one site's process at most, its very first start, all simulated processes, the GPU."""

    site: int
    first_start: int
    all: int
    vram: int


@dataclass(frozen=True)
class Disk:
    """Bytes of files: prepared base, generations and ledger, a run's remains, cache, server's checkpoints."""

    base: int
    store: int
    run: int
    cache: int
    server: int

    @property
    def all(self) -> int:
        """The bytes that must be free."""
        return self.base + self.store + self.run + self.cache + self.server


def wire_bytes(config: Config) -> Bytes:
    """The exact bytes of the values, as the ledger counts them."""
    up, down = wire_schema(up_schema(config), config.wire.up), wire_schema(down_schema(config), config.wire.down)
    return Bytes(size_of(up), size_of(down))


def seconds(config: Config, trial: Trial, setting: Setting) -> Seconds:
    """The time of the run, without the time on the network."""
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
    begun = ready + tested  # the first test comes before the first round
    run = begun + sum(trained) + rounds * each + test
    return Seconds(trial.ready, begun + trained[0] + each, trained[-1] + each, test, run)


def new_steps(config: Config, trial: Trial, steps: int) -> int:
    """How many of a run's steps have views that are not yet in the cache of the frozen front."""
    if not trial.entry or cache_bytes(config, trial) > config.train.cache_gb * 1e9:
        return steps
    return min(steps, _views(config) * math.ceil(trial.slices["train"] / config.train.batch_size))


def cache_bytes(config: Config, trial: Trial) -> int:
    """The size of the cache of the frozen front without a limit."""
    return trial.entry * (trial.slices["train"] * _views(config) + trial.slices["val"] + trial.slices["test"])


def memory(config: Config, trial: Trial, setting: Setting, first_start: int) -> Memory:
    """The memory of the processes at most.

    Args:
        first_start: bytes of memory of the process that prepared the base model.
    """
    site = trial.peak + _held(config, trial, "memory")
    shared, held = size_of(shared_schema(config)), 2 * _remembered(trial, setting)
    server = trial.idle + shared * (3 + setting.sites) + held if setting.flare and setting.sites > 1 else 0
    together = setting.sites * (site - trial.mapped) + trial.mapped + server
    return Memory(site, max(first_start, site), together, trial.vram)


def disk(config: Config, trial: Trial, setting: Setting, base: int) -> Disk:
    """The disk space of a run on this machine.

    Args:
        base: bytes of the prepared base model.
    """
    shared, line = size_of(shared_schema(config)), LINE + sum(len(name) + 4 for name in up_schema(config))
    of_site = trial.private * (2 * store.KEEP + 1) + 2 * line * (setting.rounds + 1)
    left = trial.private + shared + 2_000_000  # private part, the last trained shared part; cards, pictures, logs
    cached = _held(config, trial, "disk")
    points = min(checkpoint.KEEP, setting.rounds + 1) + 1  # one being written
    kept = (shared + _remembered(trial, setting)) * points
    server = kept + 3 * shared if setting.sites > 1 else 0  # best, two models
    return Disk(base, setting.sites * of_site, setting.sites * left, setting.sites * cached, server)


def on_the_wire(size: int, megabits: float) -> float:
    """The seconds that `size` bytes take on the network."""
    return size * 8 / (megabits * 1e6)


def _remembered(trial: Trial, setting: Setting) -> int:
    """Bytes of the server rule's memory."""
    always, each = trial.memory
    return always + each * setting.sites


def _views(config: Config) -> int:
    return config.train.views if config.train.augment and config.train.views else 1


def _held(config: Config, trial: Trial, kind: str) -> int:
    """Bytes in a cache of this kind; 0 if the job has none."""
    return min(int(config.train.cache_gb * 1e9), cache_bytes(config, trial)) if config.train.cache == kind else 0
