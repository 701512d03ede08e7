"""Rendering a job: from a folder of jobs/ to one that can be submitted anywhere."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pfedsam
from pfedsam.bounds import check_run
from pfedsam.config import Config
from pfedsam.data.folder import whole
from pfedsam.errors import UserFault
from pfedsam.files import read_json
from pfedsam.names import job_name, one_name, site_names
from pfedsam.settings import check_sites, from_dict

SETTINGS = Path("app/config/pfedsam.json")
SERVER = Path("app/config/config_fed_server.json")
OF_A_PERSON = ("cli", "doctor", "predict", "prepare")  # rooms of verbs that no job calls


def render(
    job: Path,
    out: Path,
    *,
    changes: Sequence[str] = (),
    rounds: int | None = None,
    code: bool = True,
    sites: list[str] | None = None,
    run: str = "",
    continues: bool = False,
    begin: str = "",
) -> None:
    """Write `job` to `out`, settings changed, for all sites that connect, the package's code inside.

    FLARE takes no links in a job, so the code is copied; the demo backbone's weights only where they are used.

    Args:
        changes: "key=value" pairs on app/config/pfedsam.json; values are JSON, or text.
        rounds: another number of rounds.
        code: False leaves the code out; every site then has the package installed and allowed, as a provisioned one
            has. FLARE's simulator allows no class that a job does not bring.
        sites: deploy to these alone (needed to simulate them without naming them); None: to all.
        run: the run's name; a job with it goes on after the last round that jobs of this name have finished.
        continues: refuse to begin a run of that name; "latest" is then the one that wrote last.
        begin: "STUDY/RUN", a finished run whose shared tensors the new one starts from.

    Raises:
        UserFault: no such job, `out` exists or has a name that FLARE does not take, as has a site; a setting is
            unknown; or the disk is full. No half job is left.
    """
    config, usual = settings_of(job, changes)
    read_json(job / "meta.json")  # so that a fault names the job's file, not the copy's
    check_run({"rounds": rounds})
    if out.exists():
        raise UserFault(expected="a folder that does not exist yet", came=str(out), do="remove it or name another")
    job_name(out.resolve().name)
    if begin:
        _check_begin(begin)
    if sites:
        check_sites(config, site_names(sites), rounds or usual)
    with whole(out) as new:
        shutil.copytree(job, new, ignore=shutil.ignore_patterns("custom"), dirs_exist_ok=True)
        (new / SETTINGS).write_text(json.dumps(_changed(job, changes), indent=2) + "\n")
        _edit(new / "meta.json", "deploy_map", {"app": ["server", *sites] if sites else ["@ALL"]})
        _edit_server(new, rounds, len(sites) if sites else None)
        if run:
            name_run(new, run, must_exist=continues)
        if begin:
            _edit_persistor(new, begin=begin)
        if code:
            _copy_code(new, config)


def _check_begin(begin: str) -> None:
    study, slash, run = begin.partition("/")
    if not slash:
        raise UserFault(expected="STUDY/RUN to begin with", came=repr(begin), do="write e.g. --begin brain_mri/latest")
    one_name(study, "study")
    one_name(run, "run")


def _copy_code(out: Path, config: Config) -> None:
    """The package, as small as a job can do with: FLARE's http takes 4 MiB at most."""
    leave = ["__pycache__"] if config.model.backbone == "demo" else ["__pycache__", "*.safetensors"]
    source, target = Path(pfedsam.__file__).parent, out / "app/custom/pfedsam"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*leave))
    for room in OF_A_PERSON:
        shutil.rmtree(target / room)


def settings_of(job: Path, changes: Sequence[str] = ()) -> tuple[Config, int]:
    """The settings of a job folder, changed as `render` would, and its number of rounds.

    Raises:
        UserFault: no such job, or a setting is unknown.
    """
    config = from_dict(_changed(job, changes))
    return config, int(loop_of(job)["num_rounds"])


def read_job(path: Path, changes: Sequence[str] = ()) -> tuple[Config, int]:
    """As `settings_of`, of a job folder or of the settings' file in it; a file that lies elsewhere has one round.

    Raises:
        UserFault: no such job, or a setting is unknown.
    """
    job = path.resolve().parents[2] if path.is_file() and len(path.resolve().parents) > 2 else path
    if path.is_file() and not (job / SERVER).is_file():
        return from_dict(_set(read_json(path), changes)), 1
    return settings_of(job, changes)


def named_sites(path: Path) -> tuple[str, ...]:
    """The sites that a job names (by its folder, or by the settings' file in it); none where it is for all."""
    job = path.resolve().parents[2] if path.is_file() and len(path.resolve().parents) > 2 else path
    meta = read_json(job / "meta.json") if (job / "meta.json").is_file() else {}
    names = [name for app in meta.get("deploy_map", {}).values() for name in app]
    return tuple(name for name in names if name not in ("server", "@ALL"))


def _changed(job: Path, changes: Sequence[str]) -> dict[str, Any]:
    if not (job / SETTINGS).is_file():
        raise UserFault(expected=f"a job folder with {SETTINGS}", came=str(job), do="name a folder of jobs/")
    return _set(read_json(job / SETTINGS), changes)


def _set(settings: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The settings, changed; another method first, because it comes without the settings of the one before."""
    for change in sorted(changes, key=lambda change: not change.startswith("method=")):
        _change(settings, change)
    return settings


def loop_of(job: Path) -> dict[str, Any]:
    """The arguments of the rounds in a job folder: their number, the quorum, the deadline.

    Raises:
        UserFault: it has no such server configuration.
    """
    return _arguments(read_json(job / SERVER), "workflows", "rounds", job)


def _arguments(server: dict[str, Any], kind: str, name: str, job: Path) -> dict[str, Any]:
    """Those of a workflow or component of a server's configuration, to be changed in place."""
    found = [part for part in server.get(kind, []) if part.get("id") == name]
    if not found:
        raise UserFault(
            expected=f"{name} among the {kind} of {job / SERVER}", came="none", do="begin with a folder of jobs/"
        )
    arguments: dict[str, Any] = found[0].setdefault("args", {})
    check_run(arguments)
    return arguments


def _change(settings: dict[str, Any], change: str) -> None:
    key, sign, text = change.partition("=")
    if not sign:
        raise UserFault(expected="--set KEY=VALUE", came=change, do="write e.g. --set train.lr=3e-4")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *path, last = key.split(".")
    if path[:1] == ["method"] and isinstance(settings.get("method"), str):
        settings["method"] = {"name": settings["method"]}
    for name in path:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise UserFault(expected=f"settings below {name}", came=f"a value, in {key}", do="name the setting itself")
    settings[last] = value


def _edit_server(out: Path, rounds: int | None, sites: int | None) -> None:
    """Set the number of rounds, and lower what a round needs to the number of named sites."""
    path = out / SERVER
    server = read_json(path)
    loop = _arguments(server, "workflows", "rounds", out)
    loop["num_rounds"] = loop["num_rounds"] if rounds is None else rounds
    if sites is not None:
        loop["min_sites"] = min(loop["min_sites"], sites)
        _edit(out / "meta.json", "min_clients", loop["min_sites"])
    path.write_text(json.dumps(server, indent=2) + "\n")


def name_run(job: Path, run: str, *, must_exist: bool) -> None:
    """Write into a rendered job which run it belongs to; the job takes the run's name, for people to see."""
    _edit_persistor(job, run=one_name(run, "run"), continues=must_exist)
    if run != "latest":
        _edit(job / "meta.json", "name", run)


def _edit_persistor(job: Path, **arguments: Any) -> None:
    path = job / SERVER
    server = read_json(path)
    _arguments(server, "components", "persistor", job).update(arguments)
    path.write_text(json.dumps(server, indent=2) + "\n")


def _edit(path: Path, key: str, value: Any) -> None:
    content = read_json(path)
    path.write_text(json.dumps({**content, key: value}, indent=2) + "\n")
