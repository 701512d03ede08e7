"""The examination: look at the machine, try the configuration in small, count what the whole run needs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from pfedsam.config import Config, to_dict
from pfedsam.data.synthetic import write_site
from pfedsam.doctor import checks, memory, needs
from pfedsam.doctor.checks import Check
from pfedsam.doctor.needs import Bytes, Disk, Memory, Seconds, Setting
from pfedsam.doctor.trial import Request, Trial
from pfedsam.errors import UserFault

DRAWN = {"train": 16, "val": 4, "test": 4}  # synthetic images of a trial: their number enters by counting


@dataclass(frozen=True)
class Here:
    """This machine, and where things lie on it.

    Attributes:
        data, weights: folders; None: there is none.
        store: the folder on whose disk the run will write.
        threads: of torch in each site's process.
        site: which site; empty: the one with most training rows.
        sites: that the job names, and whose data must all lie here; empty: `site` alone.
        seconds: that a trial's training may take, about.
    """

    data: Path | None
    weights: Path | None
    store: Path
    threads: int
    site: str = ""
    seconds: float = 15.0
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What the run needs here, and whether it can have it.

    Attributes:
        site: whose data it was measured on.
        slices: of each split, as counted or as the job draws them.
        assumed: the counts are not the site's, which has no data here.
        got: of the processor time that the trial's threads could have used, what they got.
    """

    site: str
    slices: dict[str, int]
    assumed: bool
    setting: Setting
    threads: int
    checks: list[Check]
    seconds: Seconds
    wire: Bytes
    memory: Memory
    disk: Disk
    got: float

    @property
    def well(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def glance(config: Config, here: Here) -> list[Check]:
    """What can be told without a trial: versions, the weight file, each site's data."""
    names = here.sites or (here.site or checks.site_of(config, here.data),)
    data = [checks.data(config, here.data, name) for name in names]
    return [*checks.versions(), checks.weight_file(config, here.weights), *data]


def examine(
    config: Config,
    here: Here,
    setting: Setting,
    told: Callable[[str], None] = lambda _: None,
    *,
    seen: list[Check] | None = None,
) -> Diagnosis:
    """Try `config` for about half a minute and say what `setting` needs.

    Args:
        seen: what `glance` has found already, which reads the whole weight file; None: glance now.
        told: called with a line before each part.

    Raises:
        UserFault: the configuration cannot be built or run here at all.
    """
    site = here.site or checks.site_of(config, here.data, here.sites)
    found = glance(config, here) if seen is None else [*seen]
    fails = {check.name for check in found if not check.ok}
    has_weights, has_data = "weights" not in fails, "data" not in fails and config.data.source == "site"
    setting = replace(setting, lanes=min(setting.sites, os.cpu_count() or 1))
    tried = config if has_weights else replace(config, model=replace(config.model, pretrained=False))
    used = replace(here, data=here.data if has_data else None, site=site)
    trial, base, first_start = _try(tried, used, setting, told)
    trial = trial if has_data else replace(trial, slices=_counts(config))
    room = needs.memory(config, trial, setting, first_start)
    files = needs.disk(config, trial, setting, base)
    found += [
        checks.room("memory", max(room.all, room.first_start), memory.free(psutil.virtual_memory().available)),
        checks.room("disk", files.all, shutil.disk_usage(_existing(here.store)).free),
    ]
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
    """The trial; bytes of the prepared base model; bytes of memory of the process that prepared it.

    Raises:
        UserFault: it does not work, or the system's folder for temporary files is full or cannot be written to.
    """
    try:
        return _tried(config, here, setting, told)
    except OSError as error:
        raise UserFault(
            expected=f"room for a small run in {_temporary()}",
            came=error.strerror or str(error),
            do="free space there, or name another folder in TMPDIR",
        ) from None


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get("TMPDIR", "a folder for temporary files")


def _tried(config: Config, here: Here, setting: Setting, told: Callable[[str], None]) -> tuple[Trial, int, int]:
    with tempfile.TemporaryDirectory(prefix="pfedsam_doctor_") as place:
        folder = Path(place)
        data = here.data or _drawn(folder / "data", here.site, config)
        ask = _request(config, replace(here, data=data), folder)
        told("preparing the base model")
        opened = _run([ask], folder, setting.flare)[0]
        base = sum(path.stat().st_size for path in (folder / "cache").iterdir())
        told(f"a small run, {setting.lanes} process(es) of {here.threads} thread(s)")
        each = [replace(ask, store=str(folder / f"store-{i}"), rehearse=True) for i in range(setting.lanes)]
        return _mean(_run(each, folder, setting.flare)), base, opened.peak


def _request(config: Config, here: Here, folder: Path) -> Request:
    return Request(
        config=to_dict(config),
        site=here.site,
        data=str(here.data),
        weights=str(here.weights) if here.weights else None,
        cache=str(folder / "cache"),
        store=str(folder / "store"),
        threads=here.threads,
        seconds=here.seconds,
        rehearse=False,
    )


def _run(requests: list[Request], folder: Path, flare: bool) -> list[Trial]:
    """The answers of one process a request, all at the same time."""
    module = "pfedsam.flare.trial" if flare else "pfedsam.doctor.trial"
    paths = [folder / f"request-{i}.json" for i in range(len(requests))]
    live = []
    for path, request in zip(paths, requests, strict=True):
        path.write_text(json.dumps(asdict(request)))
        with path.with_suffix(".log").open("w") as log:
            live.append(subprocess.Popen([sys.executable, "-m", module, str(path)], stdout=log, stderr=log))
    try:
        while any(process.poll() is None for process in live):
            time.sleep(0.05)
    finally:
        for process in live:
            process.kill()
    return [answer(path) for path in paths]


def answer(request: Path) -> Trial:
    """What the process of a request measured.

    Raises:
        UserFault: it left no answer; with its last word.
    """
    path = request.with_suffix(".answer")
    if not path.exists():
        said = request.with_suffix(".log").read_text().strip().splitlines()
        room = checks.gigabytes(shutil.disk_usage(request.parent).free)
        raise UserFault(
            expected="a small run of this configuration to work",
            came=said[-1]
            if said
            else f"a process that was killed, perhaps for memory; {room} free in {request.parent}",
            do="mend what it says; if memory ran out, lower train.batch_size or model.image_size",
        )
    found = Trial(**json.loads(path.read_text()))
    path.unlink()
    return found


def _mean(trials: list[Trial]) -> Trial:
    """Times as their mean, sizes as their largest."""
    rows = [asdict(trial) for trial in trials]
    mean: dict[str, Any] = {
        key: fmean(row[key] for row in rows) for key, value in rows[0].items() if isinstance(value, float)
    }
    most: dict[str, Any] = {
        key: max(row[key] for row in rows) for key, value in rows[0].items() if isinstance(value, int)
    }
    return replace(trials[0], **mean, **most)


def _drawn(folder: Path, site: str, config: Config) -> Path:
    """Synthetic images for a trial: no more than it looks at."""
    counts = _counts(config)
    write_site(folder, site, {split: min(count, DRAWN[split]) for split, count in counts.items()}, config.seed)
    return folder


def _counts(config: Config) -> dict[str, int]:
    return {"train": config.data.train, "val": config.data.val, "test": config.data.test}


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
