"""Examines the machine, does a small run of the configuration, and computes what the whole run needs."""

import math
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from pfedsam.certificates import now
from pfedsam.config import Config
from pfedsam.data.synthetic import write_site
from pfedsam.doctor import checks, memory, needs
from pfedsam.doctor.checks import Finding
from pfedsam.doctor.needs import Bytes, Disk, Memory, Seconds, Setting
from pfedsam.doctor.trial import Trial, begin, tried
from pfedsam.errors import UserFault, reason
from pfedsam.layout import Places

DRAWN = {"train": 16, "val": 4, "test": 4}  # synthetic images of a trial; the estimate scales to the real number


@dataclass(frozen=True)
class Here:
    """This machine, and where its files are.

    Attributes:
        data, weights: folders; None if there is none.
        store: the site's store, which has its privacy budget. Its disk is what the run will use.
        threads: torch threads in each site's process.
        site: the site; empty: the one with the most training rows.
        sites: the job's sites, one of which `site` is. Empty: the job names none.
        all: whether the data of all of them must be here.
        seconds: about how long a trial's training may take.
        kit: the startup kit; None: its certificates are not checked.
    """

    data: Path | None
    weights: Path | None
    store: Path
    threads: int
    site: str = ""
    seconds: float = 15.0
    sites: tuple[str, ...] = ()
    all: bool = False
    kit: Path | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What the run needs here, and whether this machine has it.

    Attributes:
        site: the site with the measured data.
        slices: the number in each split, as counted or as the job draws them.
        assumed: the counts are not the site's, because its data is not here.
        got: the share of processor time that the trial's threads got.
    """

    site: str
    slices: dict[str, int]
    assumed: bool
    setting: Setting
    threads: int
    checks: list[Finding]
    seconds: Seconds
    wire: Bytes
    memory: Memory
    disk: Disk
    got: float

    @property
    def well(self) -> bool:
        """Whether every check holds."""
        return all(finding.ok for finding in self.checks)


def glance(config: Config, here: Here) -> list[Finding]:
    """The checks that need no trial: versions, the weight file, each site's data, the kit's certificates."""
    names = here.sites if here.all else (here.site or checks.site_of(config, here.data, here.sites),)
    data = [checks.data(config, here.data, name) for name in names] + checks.owners(config, here.data, names)
    kit = checks.certificates(here.kit, now())
    return [*checks.versions(), checks.weight_file(config, here.weights), *data, *kit]


def examine(
    config: Config,
    here: Here,
    setting: Setting,
    told: Callable[[str], None] = lambda _: None,
    *,
    seen: list[Finding] | None = None,
) -> Diagnosis:
    """Run `config` for about half a minute and return what `setting` needs.

    Args:
        seen: the earlier result of `glance`, which reads the whole weight file; None: call it now.
        told: called with one line before each part.

    Raises:
        UserFault: the configuration cannot be built or run here at all.
    """
    site = here.site or checks.site_of(config, here.data, here.sites)
    found = glance(config, here) if seen is None else [*seen]
    fails = {finding.name for finding in found if not finding.ok}
    has_weights, has_data = "weights" not in fails, "data" not in fails and config.data.source == "site"
    setting = replace(setting, lanes=min(setting.sites, os.cpu_count() or 1))
    possible = config if has_weights else replace(config, model=replace(config.model, pretrained=False))
    possible = replace(possible, privacy=replace(config.privacy, epsilon=math.inf))  # a trial's few patients cost more
    used = replace(here, data=here.data if has_data else None, site=site)
    trial, base, first_start = _try(possible, used, setting, told)
    trial = trial if has_data else replace(trial, slices=config.data.counts)
    room, files = needs.memory(config, trial, setting, first_start), needs.disk(config, trial, setting, base)
    disk = next(folder for folder in (here.store.resolve(), *here.store.resolve().parents) if folder.exists())
    found += [
        checks.room("memory", max(room.all, room.first_start), memory.free(psutil.virtual_memory().available)),
        checks.room("disk", files.all, shutil.disk_usage(disk).free),
    ]
    if config.privacy.unit != "none":
        patients = trial.patients if has_data else trial.slices["train"]
        found.append(checks.privacy(config, here.store, site, patients, trial.slices["train"], rounds=setting.rounds))
    return Diagnosis(
        site=site,
        slices=trial.slices,
        assumed=not has_data and config.data.source == "site",
        setting=setting,
        threads=here.threads,
        checks=found,
        seconds=needs.seconds(config, trial, setting),
        wire=needs.wire_bytes(config),
        memory=room,
        disk=files,
        got=trial.got,
    )


def _try(config: Config, here: Here, setting: Setting, told: Callable[[str], None]) -> tuple[Trial, int, int]:
    """The trial, the bytes of the prepared base model, and the memory of the process that prepared it.

    Raises:
        UserFault: the run fails, or the folder for temporary files is full or not writable.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pfedsam_doctor_") as folder:
            return _tried(config, here, setting, Path(folder), told)
    except OSError as error:
        raise UserFault(
            expected=f"room for a small run in {tempfile.tempdir or os.environ.get('TMPDIR', 'a temporary folder')}",
            came=reason(error),
            do="free space there, or set TMPDIR to another folder",
        ) from None


def _tried(
    config: Config, here: Here, setting: Setting, folder: Path, told: Callable[[str], None]
) -> tuple[Trial, int, int]:
    data, counts = here.data or folder / "data", config.data.counts
    if here.data is None:  # only as many images as a trial reads
        write_site(data, here.site, {split: min(count, DRAWN[split]) for split, count in counts.items()}, config.seed)
        config = replace(config, data=replace(config.data, pool=False))  # they are one site's

    def work(store: Path, seconds: float) -> Callable[[], Trial]:
        places = Places(data, store, here.weights, folder / "cache", store / "run")
        return partial(tried, here.site, config, places, threads=here.threads, seconds=seconds)

    told("preparing the base model")
    (opened,) = together([work(folder / "store", 0)], folder, flare=setting.flare)
    base = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    told(f"a small run, {setting.lanes} process(es) of {here.threads} thread(s)")
    lanes = [work(folder / f"store-{i}", here.seconds) for i in range(setting.lanes)]
    return _mean(together(lanes, folder, flare=setting.flare)), base, opened.peak


def together(works: list[Callable[[], Trial]], folder: Path, *, flare: bool) -> list[Trial]:
    """The results of all works, done at the same time, each in a new process.

    Raises:
        UserFault: one failed. The message has the reason, or the free space in `folder` if its process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with ExitStack() as stack:
            pools = [stack.enter_context(ProcessPoolExecutor(1, spawn, begin, (flare,))) for _ in works]
            futures = [pool.submit(work) for pool, work in zip(pools, works, strict=True)]
            return [future.result() for future in futures]
    except (UserFault, OSError):
        raise
    except BrokenProcessPool:
        room = checks.gigabytes(shutil.disk_usage(folder).free)
        came = f"a killed process, perhaps for lack of memory ({room} of disk are free in {folder})"
    except Exception as error:
        came = f"{type(error).__name__}: {error}"
    raise UserFault(
        expected="a small run of this configuration to work",
        came=came,
        do="correct what the message says; if memory ran out, lower train.batch_size or model.image_size",
    )


def _mean(trials: list[Trial]) -> Trial:
    """The mean of times, and the largest of sizes."""
    rows = [asdict(trial) for trial in trials]
    both: dict[str, Any] = {
        key: (fmean if isinstance(value, float) else max)(row[key] for row in rows)
        for key, value in rows[0].items()
        if key != "slices"
    }
    return replace(trials[0], **both)
