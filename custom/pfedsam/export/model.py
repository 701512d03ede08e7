"""The exported model: one safetensors file with a site's whole model, and the object that predicts with it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pfedsam import methods
from pfedsam.config import Config, Precision
from pfedsam.data.dataset import fit, unfit
from pfedsam.errors import UserFault
from pfedsam.exchange.schema import schema_of
from pfedsam.export.facts import NOT_ONE, Facts, header, read_facts
from pfedsam.files import Tensors, digest, pack, unpack, write_atomic
from pfedsam.methods.base import Here, Method
from pfedsam.model import build
from pfedsam.model.backbones import Backbone
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import assemble, prepared, state_of
from pfedsam.model.segmenter import Branches
from pfedsam.study import private_schema, shared_schema
from pfedsam.train.evaluate import decide
from pfedsam.train.precision import autocast

SHARED, PRIVATE, BASE = "shared/", "private/", "base/"  # before a tensor's name in the file


@dataclass(frozen=True)
class Predictor:
    """A model as it predicts at its site: in evaluation mode, in training's number format.

    Attributes:
        facts: what its file says about it.
        model: the branches, on `device`.
        mean, std: the backbone's normalisation, (3, 1, 1), for images of 0..1.
        device: where it runs.
    """

    facts: Facts
    model: Branches
    mean: Tensor
    std: Tensor
    device: torch.device

    @property
    def config(self) -> Config:
        """The job's settings (`precision` as the model runs here)."""
        return self.facts.config

    @property
    def branches(self) -> tuple[str, ...]:
        """What can be asked of it: "global", "personal", or both."""
        return self.facts.branches

    @property
    def size(self) -> int:
        """S, the side of the images it takes, in pixels."""
        return self.config.model.image_size

    @torch.no_grad()
    def logits(self, images: Tensor, branch: str) -> Tensor:
        """(B, outputs, h, h) float32 on the CPU from images (B, 3, S, S) of 0..1, fitted as by `data.dataset.fit`.

        Raises:
            UserFault: the file does not hold that branch.
        """
        name = self.branch_name(branch)
        image = ((images - self.mean) / self.std).to(self.device)
        with autocast(self.device, self.config.train.precision):
            found: Tensor = self.model(image, (name,))[name]
        return found.float().cpu()

    def probabilities(self, images: Tensor, branch: str) -> Tensor:
        """(B, classes, h, h) of 0..1, background left out, from images as for `logits`."""
        logits = self.logits(images, branch)
        return logits.softmax(1)[:, 1:] if self.config.model.exclusive else logits.sigmoid()

    def mask(self, picture: Tensor, branch: str) -> Tensor:
        """(classes, H, W) of bool at the picture's own size, from (3, H, W) of 0..1; as the final test decides."""
        maps = self.logits(fit(picture, self.size)[None], branch)[0]
        return decide(
            unfit(maps, (picture.shape[1], picture.shape[2]), self.size), exclusive=self.config.model.exclusive
        )

    def branch_name(self, role: str) -> str:
        """The name in `model` of the branch that plays a role.

        Raises:
            UserFault: the file does not hold it.
        """
        if role not in self.branches:
            raise UserFault(
                expected=f"a branch that the model file holds ({', '.join(self.branches)})",
                came=role,
                do="export with --site for the personal branch",
            )
        method = methods.get(self.config.method)
        return method.global_ if role == "global" else method.personal


def save(
    path: Path, facts: Facts, shared: Tensors, private: Tensors | None = None, *, base: Backbone | None = None
) -> None:
    """Write one model file, atomically; `facts.whole`, `.versions` and `.sha256` are set here.

    Args:
        shared: by wire name.
        private: by name in the model; None: the global branch alone.
        base: the frozen base as read, exact, to go into the file too.

    Raises:
        UserFault: names or shapes are not those of the settings, or the disk forbids writing.
    """
    check(facts.config, shared, private)
    tensors = _under(SHARED, shared) | _under(PRIVATE, private or {}) | _under(BASE, state_of(base) if base else {})
    written = header(replace(facts, whole=base is not None), digest(tensors))
    write_atomic(path, pack(tensors, written))


def load(
    path: Path,
    weights: Path | None = None,
    cache: Path | None = None,
    *,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """The model in the file at `path`, ready to predict; numbers equal those of its site's final test.

    Args:
        weights: folder of pretrained weight files, where the file does not hold the base; None reads PFEDSAM_WEIGHTS.
        cache: folder of prepared base models; None: the base is read anew.
        device: None: a GPU where there is one.
        precision: another number format than training's, e.g. "fp32".

    Raises:
        UserFault: the file is damaged, changed, of another kind or a newer format; the base is another or missing;
            there is no such device.
    """
    facts = read_facts(path)
    if precision is not None:
        facts = replace(facts, config=with_precision(facts.config, precision))
    where = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shared, private, state = read_tensors(path)
    method = methods.get(facts.config.method)
    parts = _base(facts, state, (weights, cache), methods.rounds(method, where, facts.config))
    check(facts.config, shared, private or None)
    model = _assembled(method, parts, facts.config, shared, private).to(where)
    mean, std = (torch.tensor(values).view(3, 1, 1) / 255 for values in (parts.mean, parts.std))
    return Predictor(facts, model, mean, std, where)


def read_tensors(path: Path) -> tuple[Tensors, Tensors, Tensors]:
    """The shared part, the private part and the base's state in a model file; the last two may be empty.

    Raises:
        UserFault: the file is damaged.
    """
    try:
        tensors, _ = unpack(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserFault(
            expected=f"{NOT_ONE}, whole, at {path}", came=str(fault), do="copy the file again, or export it again"
        ) from None
    shared, private, base = (below(prefix, tensors) for prefix in (SHARED, PRIVATE, BASE))
    return shared, private, base


def check(config: Config, shared: Tensors, private: Tensors | None) -> None:
    """Refuse tensors that are not, by name, shape and number format, those of the settings.

    Raises:
        UserFault: the first name that does not fit.
    """
    parts = [("shared", shared, shared_schema(config))]
    if private is not None:
        parts.append(("private", private, private_schema(config)))
    for what, tensors, schema in parts:
        came = schema_of(tensors)
        odd = sorted(came.keys() ^ schema.keys()) or sorted(n for n in schema if came[n] != schema[n])
        if odd:
            raise UserFault(
                expected=f"the {what} part that method {config.method} has with these settings",
                came=f"{len(odd)} tensor(s) otherwise, the first {odd[0]}",
                do="take tensors and settings of one run",
            )


def with_precision(config: Config, precision: Precision) -> Config:
    """The settings with another number format to compute in."""
    return replace(config, train=replace(config.train, precision=precision))


def _usable(device: torch.device | str) -> torch.device:
    """The device, after a first value went there and back."""
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        why = next(iter(str(error).splitlines()), "").split(". ")[0]
        raise UserFault(
            expected="a device that torch can use here, such as cpu or cuda:0",
            came=f"{device} ({why})",
            do="correct --device, or leave it out",
        ) from None
    return where


def _base(facts: Facts, state: Tensors, places: tuple[Path | None, Path | None], round_: bool) -> Backbone:
    weights, cache = places
    config = facts.config.model
    if facts.whole:
        parts = assemble(config, state)
        found = build.base_digest(parts)
    elif cache is not None:
        parts, found = prepared(config, weights, cache, rounded=round_)
    else:
        parts = build.backbone(config, weights)
        found = build.base_digest(parts)
    if found != facts.origin.base:
        raise UserFault(
            expected=f"the base model that this model was trained on ({facts.origin.base[:12]})",
            came=f"another ({found[:12]})",
            do="use the weight file of the training run; pfedsam export --with-base puts it into the model file",
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
    for name, target in tensors_of(model, part, Part.PRIVATE).items():
        if private:
            target.copy_(private[name])
    return model.eval()


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
