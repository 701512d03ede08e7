"""The methods by name: a file NAME.py in this folder with a `METHOD` is method NAME."""

import importlib
import pkgutil

from pfedsam.errors import UserFault
from pfedsam.methods.base import Method


def names() -> list[str]:
    """Every method's name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        UserFault: there is none.
    """
    if name not in names():
        raise UserFault(expected="method one of " + ", ".join(names()), came=name, do="correct the configuration")
    method: Method = importlib.import_module(f"pfedsam.methods.{name}").METHOD
    return method
