"""What a site may say beside its tensors: exactly these keys, with numbers in their bounds. All else is refused.

So a report cannot carry a patient's name, a page of text or NaN into the record.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from pfedsam.exchange.guard import facts_fault
from pfedsam.names import RUN_NAME
from pfedsam.record.cases import ROLES
from pfedsam.record.measures import DISTANCES, HIGHER_IS_BETTER, METRICS, MIXED, OVERLAP, UNITS

Check = Callable[[str, Any], str | None]  # of a value's name and the value: why it is refused, or None


def report_fault(report: Any, losses: Collection[str]) -> str | None:
    """Why a site's report of its round cannot enter the record, or None if it can.

    Args:
        losses: the names that the losses of the job's method may have.
    """
    checks = ROUND | {"losses": partial(_losses, known=losses)}
    return facts_fault(report) or _object_fault("the report", report, checks, may_lack=("experts", "epsilon"))


def tested_fault(tested: Any) -> str | None:
    """Why a site's report of its final test cannot enter the record, or None if it can."""
    return facts_fault(tested) or _object_fault(
        "the final test", tested, TEST, may_lack=("before", "experts", "patients")
    )


def _object_fault(where: str, value: Any, checks: Mapping[str, Check], may_lack: tuple[str, ...] = ()) -> str | None:
    """Why a value is no object with exactly these keys. A missing key is checked as None, unless it may be missing."""
    if not isinstance(value, dict):
        return f"expected an object as {where}, came {ascii(value)[:40]}"
    for key, check in checks.items():
        if (key in value or key not in may_lack) and (fault := check(key, value.get(key))):
            return fault
    unknown = next((key for key in value if key not in checks), None)
    return None if unknown is None else f"expected no {ascii(unknown)[:40]} in {where}"


def _number(name: str, value: Any, *, least: float = -1e12, most: float = 1e12, whole: bool = False) -> str | None:
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if fits and least <= value <= most:  # which NaN is not, and an integer of any length can be compared
        return None
    kind = "a whole number" if whole else "a number"
    return f"expected {kind} as {name} from {least:g} to {most:g}, came {ascii(value)[:40]}"


def _row(name: str, value: Any, *, where: str = "") -> str | None:
    """Why this is not a row of metrics. Each is a number in its bounds, or None if no case was scored."""
    name = f"{where}{name}"
    checks: dict[str, Check] = {metric: partial(_metric, of=name) for metric in METRICS}
    checks |= {key: partial(_number, least=0, most=1e9, whole=True) for key in ("scored", "empty", "false_alarms")}
    checks |= {"unit": partial(_unit, of=name), "by_unit": partial(_by_unit, of=name)}
    filled = dict.fromkeys(OVERLAP, "nothing") | value if isinstance(value, dict) else value
    return _object_fault(name, filled, checks, may_lack=tuple(key for key in checks if key not in OVERLAP))


def _metric(metric: str, value: Any, *, of: str) -> str | None:
    most = 1 if HIGHER_IS_BETTER[metric] else 1e9
    return None if value is None else _number(f"{metric} of {of}", value, least=0, most=most)


def _unit(_: str, value: Any, *, of: str) -> str | None:
    if value in (None, *UNITS, MIXED):
        return None
    return f"expected mm or px as unit of {of}, came {ascii(value)[:40]}"


def _by_unit(_: str, value: Any, *, of: str) -> str | None:
    def distances(unit: str, row: Any) -> str | None:
        inside = f"{of} in {unit}"
        return _object_fault(inside, row, {metric: partial(_metric, of=inside) for metric in DISTANCES}, DISTANCES)

    return _object_fault(f"by_unit of {of}", value, dict.fromkeys(UNITS, distances), UNITS)


def _losses(_: str, value: Any, *, known: Collection[str]) -> str | None:
    if not isinstance(value, dict):
        return f"expected an object as losses, came {ascii(value)[:40]}"
    wrong = [ascii(name)[:40] for name in value if name not in known]
    if wrong:
        return f"expected losses named {', '.join(sorted(known))}, came {wrong[0]}"
    return next(filter(None, (_number(f"loss {name}", one) for name, one in value.items())), None)


def _experts(_: str, value: Any) -> str | None:
    """Why these are not the numbers of a site's experts (`model.watch.Watch.facts`). Each is a share of 1."""
    return _object_fault("experts", value, EXPERTS, may_lack=tuple(EXPERTS))


def _share(name: str, value: Any) -> str | None:
    return _number(f"experts' {name}", value, least=0, most=1)


def _shares(name: str, value: Any) -> str | None:
    if not isinstance(value, list):
        return f"expected a list as experts' {name}, came {ascii(value)[:40]}"
    return next(filter(None, (_share(name, one) for one in value)), None)


def _share_or_none(name: str, value: Any) -> str | None:
    return None if value is None else _share(name, value)


def _private(_: str, value: Any) -> str | None:
    told = value if isinstance(value, dict) else {"": value}
    run, known = told.get("run"), told.keys() == {"run", "round"}
    if not told or (known and _whole_round(told["round"]) and isinstance(run, str) and re.fullmatch(RUN_NAME, run)):
        return None
    return f"expected a run and a round as private, or nothing, came {ascii(value)[:80]}"


def _whole_round(value: Any) -> bool:
    return _number("round", value, least=-1, most=1e9, whole=True) is None


def _branches(name: str, value: Any) -> str | None:
    return _object_fault(name, value, {role: partial(_row, where=f"{name} ") for role in ROLES})


def _tested_before(name: str, value: Any) -> str | None:
    return None if value is None else _row(name, value)  # a site that never trained has none


COUNT = partial(_number, least=0, most=1e9, whole=True)
BYTES = partial(_number, least=0, most=1e15, whole=True)
SECONDS = partial(_number, least=0, most=1e9)
EXPERTS: dict[str, Check] = {
    **dict.fromkeys(("entropy", "varies", "share"), _share),
    "experts": _shares,
    "dice_without": _share_or_none,
}
ROUND: dict[str, Check] = {
    "val": _branches,
    "before": _row,
    "experts": _experts,
    "samples": COUNT,
    "bytes_sent": BYTES,
    "bytes_received": BYTES,
    "scoring_seconds": SECONDS,
    "seconds": SECONDS,
    "private": _private,
    "epsilon": partial(_number, least=0, most=1e12),
}
TEST: dict[str, Check] = {
    **dict.fromkeys(ROLES, _row),
    "val": _branches,
    "before": _tested_before,
    "experts": _experts,
    "patients": COUNT,
}
