"""Reading settings: from plain values to the dataclasses of `config.py` and of the job's method. All are checked."""

import dataclasses
import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pfedsam import methods
from pfedsam.bounds import KEY, Bounds
from pfedsam.config import Config, WeightsConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.robust import require_voters
from pfedsam.files import encodable, read_json
from pfedsam.masked import check_masked_sites
from pfedsam.renamed import in_new_places
from pfedsam.together import check_heard, check_sides, check_together

USUAL = "pfedsam"  # the method of settings that name none
OF_METHOD = ("method", "method_settings")  # fields of `Config` that are one object in JSON
IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
IN_WORDS |= {list: "a list", tuple: "a list", dict: "an object"}
FINITE = Bounds(-1e300, 1e300)  # of a number in another distribution's method that declares no bounds


def from_dict(values: object) -> Config:
    """The settings that a person wrote, with defaults filled in.

    Raises:
        UserFault: for an unknown key, a wrong type, a number out of bounds or an impossible combination.
    """
    return _config(values, recorded=False)


def from_record(values: object) -> Config:
    """The settings that a run recorded in full, in this version or an earlier one.

    Earlier versions recorded the settings of all methods. Those of other methods than the run's are left out.

    Raises:
        UserFault: as `from_dict`.
    """
    return _config(values, recorded=True)


def read_config(path: str | Path) -> Config:
    """The settings in the JSON file at `path`. It raises what `from_dict` raises."""
    return from_dict(read_json(Path(path)))


def check_sites(config: Config, sites: Collection[str], rounds: int) -> None:
    """Check the settings of single sites against the sites of the run.

    Raises:
        UserFault: a setting names another site, or in a round no site would train, or too few for a masked sum or for
            the server's rule.
    """
    named: dict[str, Collection[str]] = {
        "every": config.every,
        "data.joined": config.data.joined,
        "data.limit": config.data.limit,
        "data.unannotated": config.data.unannotated,
        "data.weaken": config.data.weaken,
        "data.unlabelled": config.data.unlabelled,
    }
    for where, of_sites in named.items():
        if unknown := sorted(set(of_sites) - set(sites)):
            raise UserFault(
                expected=f"sites in {where} among {', '.join(sorted(sites))}",
                came=", ".join(unknown),
                do="correct the spelling",
            )
    check_masked_sites(config, sites, rounds)
    training = [sum(config.trains(site, round_) for site in sites) for round_ in range(rounds)]
    if 0 in training:
        came = f"none in round {training.index(0)}"
        raise UserFault(expected="a site that trains in each round", came=came, do="correct the setting every")
    for count in training:
        require_voters(count, config.server)


def _config(values: object, *, recorded: bool) -> Config:
    given = _object(values, "the settings")
    name, own = chosen_method(given)
    given.pop("method", None)
    given, own = in_new_places(given, own, name, recorded=recorded)
    method_settings = _build(methods.get(name).settings, own, "method", f"method {name}")
    config = Config(method=name, method_settings=method_settings, **field_values(Config, given, "", "a job"))
    check_together(config)
    if not recorded:  # what an earlier version ran can still be read
        check_heard(config)
        check_sides(config)
    return config


def chosen_method(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the method that the settings choose, and its own settings, unchecked.

    Raises:
        UserFault: "method" is neither a name nor an object with a name.
    """
    value = settings.get("method", USUAL)
    own = {"name": value} if isinstance(value, str) else _object(value, "method")
    name = own.pop("name", USUAL)
    if not isinstance(name, str):
        raise UserFault(expected="the method's name as method.name", came=repr(name), do="write e.g. fedavg")
    return name, own


def _object(value: object, where: str) -> dict[str, Any]:
    """A copy of a JSON object."""
    if not isinstance(value, dict):
        raise UserFault(expected=f"an object at {where}", came=repr(value), do="write {...} there")
    return dict(value)


def _build(kind: Any, values: object, where: str, whose: str) -> Any:
    return kind(**field_values(kind, _object(values, where), f"{where}.", whose))


def field_values(kind: Any, values: dict[str, Any], above: str, whose: str) -> dict[str, Any]:
    """The values of a dataclass's fields, from plain values. Types and bounds are checked, and sections are built.

    Args:
        above: the text before a field's name in a message.
        whose: whose fields they are, for a message.

    Raises:
        UserFault: for an unknown key, a wrong type, or a number out of bounds.
    """
    hints = get_type_hints(kind)
    known = {field.name: field.metadata.get(KEY, FINITE) for field in dataclasses.fields(kind)}
    known = {name: bounds for name, bounds in known.items() if name not in OF_METHOD}
    if unknown := sorted(set(values) - set(known)):
        raise _unknown(unknown, [*known, *(["method"] if kind is Config else [])], whose)
    return {name: _value(hints[name], value, above + name, known[name]) for name, value in values.items()}


def _unknown(names: list[str], known: list[str], whose: str) -> UserFault:
    """What to say of settings that do not exist, with the closest name that does."""
    expected = f"settings of {whose} among {', '.join(known)}" if known else f"no settings of {whose}: it has none"
    close = difflib.get_close_matches(names[0], known, 1)
    do = f"write {close[0]}" if close else "correct the spelling, or leave it out"
    return UserFault(expected=expected, came=", ".join(names), do=do)


def _value(hint: Any, value: object, name: str, bounds: Bounds) -> Any:
    if hint == WeightsConfig | None and value is not None:
        return _build(WeightsConfig, WeightsConfig.parts(value) if isinstance(value, str) else value, name, name)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name, name)
    if not _fits(hint, value):
        raise UserFault(expected=f"{name} to be {_spell(hint)}", came=repr(value), do="correct the value")
    for where, number in _numbers(value, name):
        bounds.hold(where, number)
    return value


def _numbers(value: object, name: str) -> Iterator[tuple[str, int | float]]:
    """Each number in a value, with its name for a message."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(option, value) for option in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(str, k) and _fits(get_args(hint)[1], v) for k, v in value.items())
    if get_origin(hint) in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(get_args(hint)[0], v) for v in value)
    if hint is Any:
        return True
    if hint is str:
        return isinstance(value, str) and encodable(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _spell(hint: Any) -> str:
    """A type in words, for a message."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_spell, get_args(hint)))
    return IN_WORDS.get(get_origin(hint) or hint, str(hint))
