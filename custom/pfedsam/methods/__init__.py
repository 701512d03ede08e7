"""The methods by name: a file NAME.py in this folder with a `METHOD`, or an entry point of another distribution.

The entry point is in the group `pfedsam.methods` and names a `Method`: `NAME = "package.module:METHOD"`.
"""

import ast
import importlib
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import torch

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.methods.base import Method
from pfedsam.train.precision import computes_bf16

GROUP = "pfedsam.methods"
OURS = frozenset(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def names() -> list[str]:
    """The sorted names of all methods, those of other distributions too."""
    return sorted(OURS | _plugins(tuple(sys.path)).names)


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        UserFault: there is none, there are several, or another distribution's does not work.
    """
    found = list(_plugins(tuple(sys.path)).select(name=name))
    if len(found) + (name in OURS) > 1:
        raise UserFault(
            expected=f"one method {name}",
            came=f"several: {'one in pfedsam, ' * (name in OURS)}one in {', one in '.join(map(_distribution, found))}",
            do="uninstall that distribution, or ask its authors for another name",
        )
    if found:
        return _loaded(found[0])
    if name not in OURS:
        raise UserFault(
            expected="method one of " + ", ".join(names()),
            came=name,
            do="correct the name, or install the distribution that has the method here and at every site",
        )
    method: Method = importlib.import_module(f"pfedsam.methods.{name}").METHOD
    return method


def needed(name: str) -> frozenset[str]:
    """Our methods whose files a job with that method needs: its own, and those that it is built from.

    All of them if the method is another distribution's.
    """
    found, left = set[str](), {name} if name in OURS else set(OURS)
    while left:
        one = left.pop()
        found.add(one)
        left |= _built_from(Path(__path__[0]) / f"{one}.py") - found
    return frozenset(found)


def _built_from(file: Path) -> set[str]:
    """Our methods that a method's file imports."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes if node.module == GROUP for alias in node.names}
    return (names | {(node.module or "").removeprefix(f"{GROUP}.") for node in nodes}) & OURS


def base_in_bf16(method: Method, device: torch.device, config: Config) -> bool:
    """Whether the frozen base may be rounded as autocast does on `device`. It may not if the method trains it."""
    return computes_bf16(device, config.train.precision) and not method.trains


@lru_cache(maxsize=1)
def _plugins(_path: tuple[str, ...]) -> EntryPoints:
    """The entry points of other distributions. They are cached, because a look-up takes a tenth of a second."""
    return entry_points(group=GROUP)


def _distribution(point: EntryPoint) -> str:
    return f"distribution {point.dist.name}" if point.dist else point.value


def _loaded(point: EntryPoint) -> Method:
    try:
        method = point.load()
    except Exception as fault:  # whatever another's code raises
        came = f"{type(fault).__name__}: {fault}"
    else:
        if isinstance(method, Method):
            return method
        came = f"{type(method).__name__} at {point.value}"
    do = f"install a version of it that works with this pfedsam, or correct its entry point {point.name}"
    raise UserFault(expected=f"method {point.name} in {_distribution(point)}", came=came, do=do)
