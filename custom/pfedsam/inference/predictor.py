"""A model file's branches, ready to predict with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pfedsam import methods
from pfedsam.config import Config, Precision
from pfedsam.data.square import Normalise, decide, fit, unfit
from pfedsam.errors import UserFault
from pfedsam.inference.facts import ModelFacts, Origin, require_branch, roles_of
from pfedsam.inference.model_file import read_model
from pfedsam.methods.base import Here, Method
from pfedsam.model.backbones import Backbone
from pfedsam.model.build import base_digest
from pfedsam.model.lora import taking
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import assemble, prepared
from pfedsam.model.segmenter import Branches
from pfedsam.study import initial_shared
from pfedsam.tensors import Tensors
from pfedsam.train.evaluate import logits_of
from pfedsam.train.precision import best_device

Compute = Callable[[Tensor], Tensor]  # from images to logits, both as in `Predictor.logits`


@dataclass(frozen=True)
class Predictor:
    """A model that predicts as at its site: in evaluation mode, in training's number format.

    Attributes:
        facts: what its file says about it.
        model: the branches, on `device`.
        normalise: the backbone's normalisation of images of 0..1.
        device: the device that it runs on.
        graphs: gives for a branch's role what computes its logits in place of torch. None: torch does.
    """

    facts: ModelFacts
    model: Branches
    normalise: Normalise
    device: torch.device
    graphs: Callable[[str], Compute] | None = None

    @property
    def config(self) -> Config:
        """The job's settings (`precision` as the model runs here)."""
        return self.facts.config

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that can predict: "global", "personal", or both."""
        return self.facts.branches

    @property
    def size(self) -> int:
        """S, the side of the images it takes, in pixels."""
        return self.config.model.image_size

    def logits(self, images: Tensor, branch: str) -> Tensor:
        """(B, outputs, h, h) float32 on the CPU from images (B, 3, S, S) of 0..1, fitted as by `data.square.fit`.

        Raises:
            UserFault: the file does not hold that branch.
        """
        return self.ready(branch)(images)

    def ready(self, branch: str) -> Compute:
        """What computes the branch's logits, made now where it is not there yet; raises as `logits`."""
        name = self.branch_name(branch)
        return self.graphs(branch) if self.graphs else partial(self._by_torch, name)

    def _by_torch(self, name: str, images: Tensor) -> Tensor:
        return logits_of(self.model, self.normalise(images), (name,), self.config.train.precision)[name]

    def logits_at_size(self, pictures: Tensor, branch: str) -> Tensor:
        """(B, outputs, H, W) from pictures (B, 3, H, W) of 0..1, at their own size; raises as `logits`."""
        fitted = torch.stack([fit(picture, self.size) for picture in pictures])
        height, width = pictures.shape[2:]
        return torch.stack([unfit(maps, (height, width), self.size) for maps in self.logits(fitted, branch)])

    def mask(self, picture: Tensor, branch: str) -> Tensor:
        """(classes, H, W) of bool at the picture's own size, from (3, H, W) of 0..1; as the final test decides."""
        return decide(self.logits_at_size(picture[None], branch)[0], exclusive=self.config.model.exclusive)

    def branch_name(self, role: str) -> str:
        """The name in `model` of the branch that plays a role.

        Raises:
            UserFault: the file does not hold it.
        """
        require_branch(self.branches, role)
        method = methods.get(self.config.method)
        return method.global_ if role == "global" else method.personal


def load_model(
    path: Path,
    weights: Path | None = None,
    cache: Path | None = None,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """The model in the file at `path`, ready to predict. Its numbers equal those of its site's final test.

    Args:
        weights: folder of pretrained weight files, if the file does not hold the base. None reads PFEDSAM_WEIGHTS.
        cache: folder of prepared base models. None: the base is read from its weights.
        device: None: a GPU if there is one.
        precision: a number format other than training's, e.g. "fp32".

    Raises:
        UserFault: the file is damaged, changed, of another kind or of a newer format. Or the base is missing or not
            the right one. Or there is no such device.
    """
    facts, shared, private, state = read_model(path)
    if precision is not None:
        facts = replace(facts, config=replace(facts.config, train=replace(facts.config.train, precision=precision)))
    where = _usable(device or best_device())
    method = methods.get(facts.config.method)
    parts = _base(facts, state, (weights, cache), bf16=methods.base_in_bf16(method, where, facts.config))
    model = _assembled(method, parts, facts.config, shared, private).to(where)
    return Predictor(facts, model, Normalise(facts.config.model.pixels), where)


def first_model(config: Config, weights: Path | None = None, cache: Path | None = None) -> Predictor:
    """The model as every site of a job first receives it, before training; its global branch alone.

    Args:
        weights, cache: as for `load_model`.

    Raises:
        UserFault: the weights are missing, or the method has no branch without a site's private part.
    """
    if not (roles := roles_of(config, private=False)):
        raise UserFault(
            expected="a method whose sites begin with one model",
            came=f"{config.method}, where each begins with its own",
            do="read the scores as first received: before, in results.json",
        )
    where = best_device()
    shared, base = initial_shared(config, weights, cache)
    facts = ModelFacts(config, config.digest(), Origin(base), roles)
    method = methods.get(config.method)
    parts = _base(facts, {}, (weights, cache), bf16=methods.base_in_bf16(method, where, config))
    model = _assembled(method, parts, config, shared, {}).to(where)
    return Predictor(facts, model, Normalise(config.model.pixels), where)


def _usable(device: torch.device | str) -> torch.device:
    """The device, after copying a first value there and back."""
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        why = next(iter(str(error).splitlines()), "").split(". ")[0]
        raise UserFault(
            expected="a device that torch can use here, such as cpu or cuda:0",
            came=f"{device} ({why})",
            do="correct the device, or leave it out",
        ) from None
    return where


def _base(facts: ModelFacts, state: Tensors, places: tuple[Path | None, Path | None], *, bf16: bool) -> Backbone:
    if facts.with_base:
        parts = assemble(facts.config.model, state)
        base = base_digest(parts)
    else:
        parts, base = prepared(facts.config.model, *places, bf16=bf16)
    if base != facts.origin.base:
        raise UserFault(
            expected=f"the base model that this model was trained on ({facts.origin.base[:12]})",
            came=f"another base model ({base[:12]})",
            do="use the weight file of the training run. pfedsam export --with-base puts it into the model file",
        )
    return parts


@torch.no_grad()
def _assembled(method: Method, parts: Backbone, config: Config, shared: Tensors, private: Tensors) -> Branches:
    with torch.random.fork_rng(devices=[]):
        model = method.model(parts, config)
    part = method.partition(model, config)
    for name, target in tensors_of(model, part, Part.SHARED).items():
        target.copy_(shared[wire_name(name)])
    method.merge(model, config, Here())
    taking(model, config.model.experts_share)
    if private:
        for name, target in tensors_of(model, part, Part.PRIVATE).items():
            target.copy_(private[name])
    return model.eval()
