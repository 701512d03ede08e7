"""The methods by name: a file NAME.py in this folder with a `METHOD` is method NAME."""

import importlib
import pkgutil

import torch

from pfedsam.config import Config
from pfedsam.errors import UserFault
from pfedsam.methods.base import Method
from pfedsam.train.precision import computes_bf16


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


def base_in_bf16(method: Method, device: torch.device, config: Config) -> bool:
    """Whether the frozen base may be rounded as autocast rounds it on a device: not if the method trains it."""
    return computes_bf16(device, config.train.precision) and not method.trains
