"""The shared part that a study begins with: the pretrained model with what the job's seed draws."""

from pathlib import Path

import torch

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.files import Tensors
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import prepared


def initial_shared(config: Config, weights: Path | None = None, cache: Path | None = None) -> tuple[Tensors, str]:
    """The server's first shared tensors and the base model's digest.

    Args:
        weights: folder of pretrained weight files; None reads PFEDSAM_WEIGHTS.
        cache: folder of prepared base models; None: the base is read and digested anew.
    """
    method = methods.get(config.method)
    bf16 = methods.base_in_bf16(method, torch.device("cpu"), config)
    parts, base = prepared(config.model, weights, cache, bf16=bf16)
    model = method.model(parts, config)
    shared = tensors_of(model, method.partition(model, config), Part.SHARED)
    return {wire_name(name): t.detach().clone().contiguous() for name, t in shared.items()}, base
