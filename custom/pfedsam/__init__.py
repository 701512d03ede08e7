"""Personalised federated fine-tuning of the Segment Anything Model, as an NVIDIA FLARE bundle.

What is in `__all__` is the Python API; docs/api.md describes it. Its parts are loaded when they are first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pfedsam.names import shown

if TYPE_CHECKING:
    from pfedsam.api import Model, Results, load, simulate
    from pfedsam.errors import UserFault
    from pfedsam.flare.recipe import PFedSAMRecipe

__version__ = "0.1.0"
__all__ = ["Model", "PFedSAMRecipe", "Results", "UserFault", "__version__", "load", "simulate"]

log = logging.getLogger("pfedsam")
log.addFilter(shown)
_HOMES = {
    **dict.fromkeys(("Model", "Results", "load", "simulate"), "pfedsam.api"),
    "PFedSAMRecipe": "pfedsam.flare.recipe",
    "UserFault": "pfedsam.errors",
}


def __getattr__(name: str) -> Any:
    """A part of the API out of its module: importing pfedsam alone loads neither torch nor FLARE."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
