"""The tensors of a SAM, out of the forms in which such files are published."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pfedsam.errors import UserFault
from pfedsam.tensors import Tensors, below

ENCODER = "image_encoder."
WRAPS = ("model", "state_dict", "model_state_dict", "model_state")  # where a training checkpoint has the model
COUNTER = "num_batches_tracked"  # of a batch norm: torch fills it in where a file leaves it out
PICKLE = b"\x80"  # the first byte of torch's older files
NO_TORCH = "a file that torch cannot read as tensors: it is damaged, or no torch file"
SHOWN = 3  # tensors that a message names, at most


class Misfit(ValueError):
    """Tensors that are not those of a module; the text names a few."""


def load_any(path: Path) -> object:
    """What is in a safetensors file, or in a torch file read with `weights_only=True`.

    Raises:
        UserFault: the file holds pickled objects, which could run code.
        OSError, SafetensorError: it is damaged.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        if not zipfile.is_zipfile(path) and not _pickled(path):
            raise OSError(NO_TORCH) from None
        raise UserFault(
            expected=f"tensors alone in {path}",
            came="pickled objects, which may run code when they are read",
            do="ask its publisher for the state_dict alone, best as safetensors",
        ) from None
    except OSError:
        raise
    except Exception:  # torch's reader raises whatever its steps raise on bytes that are no torch file
        raise OSError(NO_TORCH) from None


def _pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == PICKLE


def sam_tensors(content: object, path: Path) -> Tensors:
    """The SAM's tensors in what a file holds, keys as segment-anything has them.

    A training checkpoint has them below one of `WRAPS`, beside an optimiser; a wrapped model before each name "module."
    or the like.

    Raises:
        UserFault: there are none.
    """
    whole = content if isinstance(content, dict) else {}
    for held in (whole, *(whole[name] for name in WRAPS if isinstance(whole.get(name), dict))):
        tensors = {name: t for name, t in held.items() if isinstance(name, str) and isinstance(t, Tensor)}
        first = next((name for name in tensors if ENCODER in name), None)
        if first is not None:
            return below(first.partition(ENCODER)[0], tensors)
    raise UserFault(
        expected=f"a SAM in {path}: tensors named {ENCODER}*, at its top or below {', '.join(WRAPS)}",
        came=f"names such as {', '.join(map(str, list(whole)[:SHOWN])) or 'none'}",
        do="take a file with segment-anything's names, or rename the tensors to those",
    )


def fill(module: nn.Module, state: Tensors, above: str) -> None:
    """Load `state` into `module`; every tensor of both has its counterpart, in the same shape.

    Args:
        above: what stands before the names in the file, for the message.

    Raises:
        Misfit: they differ.
    """
    own = module.state_dict()
    lacks = [f"no {above}{name}" for name in own if name not in state and not name.endswith(COUNTER)]
    other = [
        f"{above}{name} of {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    more = [f"{above}{name}, which it does not have" for name in state if name not in own]
    if faults := other + lacks + more:
        rest = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise Misfit("; ".join(faults[:SHOWN]) + rest)
    module.load_state_dict(state)
