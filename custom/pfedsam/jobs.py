"""A job: what is trained, for how many rounds, by which sites. Read from a settings file, or from FLARE's folder."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pfedsam.bounds import number
from pfedsam.config import MOST_ROUNDS, Config
from pfedsam.errors import UserFault
from pfedsam.exchange.robust import least_sites
from pfedsam.files import parsed, read_json
from pfedsam.layout import META, SERVER, SETTINGS
from pfedsam.names import job_name, one_name, site_names
from pfedsam.settings import field_values, from_dict
from pfedsam.shipped import presets

ROUNDS = ("rounds", "min_sites", "grace", "timeout")  # the arguments of flare.rounds.Rounds
RUN = ("run", "continues", "begin")  # and of flare.persistor.SharedPersistor
LOOP, PERSISTOR = ("workflows", "rounds"), ("components", "persistor")


@dataclass(frozen=True)
class Job:
    """A job, whether FLARE runs it or not.

    Attributes:
        name: the job's name, which people see.
        settings: as `Config` reads them. Settings that are left out have their defaults.
        rounds: the number of rounds.
        min_sites: the number of valid updates that a round needs. It needs more if `server.rule` does.
        grace: seconds for the other sites after `min_sites` valid updates have come.
        timeout: the most seconds for a round, and for the final test. 0: no limit.
        sites: the sites that take part, for `simulate` and `doctor`. `render` does not read them: without `--sites` the
            job is for all sites that connect.
        run: the run's name. If earlier jobs of this run finished rounds, the job continues after the last.
        continues: refuse to begin a run of that name. "latest" is then the run that wrote last.
        begin: "STUDY/RUN", a finished run whose shared tensors the new run starts from.
        meta: other entries for FLARE's meta.json, such as resource_spec, scope or mandatory_clients.
    """

    name: str
    settings: dict[str, Any]
    rounds: int = number(1, least=1, most=MOST_ROUNDS)
    min_sites: int = number(1, least=1, most=10_000)
    grace: int = number(3600, least=0, most=10_000_000)
    timeout: int = number(7200, least=0, most=10_000_000)
    sites: tuple[str, ...] = ()
    run: str = ""
    continues: bool = False
    begin: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UserFault if a value is impossible."""
        job_name(self.name)
        if self.run:
            one_name(self.run, "run")
        if self.begin:
            study, slash, run = self.begin.partition("/")
            if not slash:
                do = "write e.g. --begin brain_mri/latest"
                raise UserFault(expected="STUDY/RUN to begin with", came=repr(self.begin), do=do)
            one_name(study, "study")
            one_name(run, "run")
        site_names(list(self.sites))
        from_dict(self.settings)

    @property
    def config(self) -> Config:
        """The settings, with defaults filled in."""
        return from_dict(self.settings)

    @property
    def quorum(self) -> int:
        """The number of updates that a round needs: `min_sites`, or what `server.rule` needs. At most all sites."""
        least = max(self.min_sites, least_sites(self.config.server))
        return min(least, len(self.sites) or least)


FACTS = tuple(fact.name for fact in fields(Job))


def read_job(path: Path, changes: Iterable[str] = (), **facts: Any) -> Job:
    """The job at `path`: a settings file, FLARE's folder of a job, or the name of one that pfedsam brings.

    Args:
        path: a file, a job folder, or the name of a job that pfedsam brings. A file or folder of that name wins.
        changes: "key=value" pairs that change its settings. Values are JSON or text.
        facts: fields of `Job` that replace the job's own. None leaves a field unchanged.

    Raises:
        UserFault: there is no such job, or it has an unknown key or an impossible value.
    """
    if not path.is_file() and not (path / SETTINGS).is_file():
        path = presets().get(str(path), path)
    values = _of_folder(path) if path.is_dir() else _of_file(path)
    named = [re.sub(r"^method\.name=", "method=", change) for change in changes]
    for change in sorted(named, key=lambda change: not change.startswith("method=")):  # it drops the other's settings
        _change(values["settings"], change)
    own = make_job(values)  # so that a fault of the job's is told, though another value takes its place
    return make_job(vars(own) | {key: value for key, value in facts.items() if value is not None})


def make_job(values: dict[str, Any]) -> Job:
    """The job with `values` as `Job`'s fields. Fields that are left out have their defaults.

    Raises:
        UserFault: a field is unknown, of the wrong type or impossible.
    """
    found = field_values(Job, {key: value for key, value in values.items() if value is not None}, "", "a job")
    return Job(**{**found, "sites": tuple(found.get("sites", ()))})


def _instead() -> str:
    return f"name another, or one of the jobs that pfedsam brings: {', '.join(presets())}"


def _of_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserFault(expected="a settings file or a job folder", came=str(path), do=_instead())
    values = read_json(path)
    if not isinstance(values.get("settings"), dict):
        raise UserFault(
            expected=f'"settings" in {path}, and beside it any of {", ".join(FACTS)}',
            came=f"keys {', '.join(values)}",
            do='write {"settings": {"study": "mine"}}. For FLARE\'s job folder name the folder',
        )
    return {"name": path.stem, **values}


def _of_folder(folder: Path) -> dict[str, Any]:
    if not (folder / SETTINGS).is_file():
        raise UserFault(expected=f"a job folder with {SETTINGS}", came=str(folder), do=_instead())
    meta, server = read_json(folder / META), read_json(folder / SERVER)
    loop, keeper = _arguments(server, *LOOP, folder), _arguments(server, *PERSISTOR, folder)
    if missing := [name for name in ROUNDS if name not in loop]:
        raise UserFault(
            expected=f"{', '.join(ROUNDS)} of rounds in {folder / SERVER}",
            came=f"no {', '.join(missing)}",
            do="render the job again, because another version wrote them differently",
        )
    own = {"name": meta.pop("name", folder.name), "settings": read_json(folder / SETTINGS)}
    named = [name for app in meta.pop("deploy_map", {}).values() for name in app]
    meta.pop("min_clients", None)
    return {
        **own,
        **{fact: loop[fact] for fact in ROUNDS},
        **{fact: keeper[fact] for fact in RUN if fact in keeper},
        "sites": [name for name in named if name not in ("server", "@ALL")],
        "meta": {key: value for key, value in meta.items() if value},
    }


def _arguments(server: dict[str, Any], kind: str, name: str, job: Path) -> dict[str, Any]:
    """The arguments of a workflow or component in a server's configuration, to be changed in place."""
    found = [part for part in server.get(kind, []) if part.get("id") == name]
    if not found:
        raise UserFault(expected=f"{name} among the {kind} of {job / SERVER}", came="none", do="render the job anew")
    arguments: dict[str, Any] = found[0].setdefault("args", {})
    return arguments


def name_run(folder: Path, run: str, *, must_exist: bool, back: str = "") -> None:
    """Write a job's run into FLARE's job folder, and leave all else in it unchanged.

    The job gets the run's name, so that people see it.

    Args:
        back: "RUN/ROUNDS", what the run goes back from and to.
    """
    server, more = read_json(folder / SERVER), {"back": back} if back else {}
    _arguments(server, *PERSISTOR, folder).update(run=one_name(run, "run"), continues=must_exist, **more)
    (folder / SERVER).write_text(json.dumps(server, indent=2) + "\n")
    if run != "latest":
        (folder / META).write_text(json.dumps({**read_json(folder / META), "name": run}, indent=2) + "\n")


def deploy_to(folder: Path, sites: Sequence[str]) -> None:
    """Write into FLARE's job folder for which sites the job is, and leave all else in it unchanged. None: for all."""
    meta = read_json(folder / META)
    meta["deploy_map"] = {app: ["server", *sites] if sites else ["@ALL"] for app in meta["deploy_map"]}
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n")


def _change(settings: dict[str, Any], change: str) -> None:
    key, sign, text = change.partition("=")
    if not sign:
        raise UserFault(expected="--set KEY=VALUE", came=change, do="write e.g. --set train.lr=3e-4")
    try:
        value = parsed(text)
    except ValueError:
        value = text
    *path, last = key.split(".")
    if path[:1] == ["method"] and isinstance(settings.get("method"), str):
        settings["method"] = {"name": settings["method"]}
    for name in path:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise UserFault(expected=f"settings below {name}", came=f"a value, in {key}", do="name the setting itself")
    settings[last] = value
