"""The shared part that a study begins with: the pretrained model with what the job's seed draws."""

from pathlib import Path

import torch

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.files import Tensors
from pfedsam.methods.base import Method
from pfedsam.model import build
from pfedsam.model.backbones import Backbone
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import prepared


def initial_shared(config: Config, weights: Path | None = None, cache: Path | None = None) -> tuple[Tensors, str]:
    """The server's first shared tensors and the base model's digest.

    Args:
        weights: folder of pretrained weight files; None reads PFEDSAM_WEIGHTS.
        cache: folder of prepared base models; None: the base is read and digested anew.
    """
    method = methods.get(config.method)
    parts, base = _base(config, method, weights, cache)
    model = method.model(parts, config)
    shared = tensors_of(model, method.partition(model, config), Part.SHARED)
    return {wire_name(name): t.detach().clone().contiguous() for name, t in shared.items()}, base


def _base(config: Config, method: Method, weights: Path | None, cache: Path | None) -> tuple[Backbone, str]:
    if cache is not None:
        return prepared(config.model, weights, cache, rounded=methods.rounds(method, torch.device("cpu"), config))
    parts = build.backbone(config.model, weights)
    return parts, build.base_digest(parts)
