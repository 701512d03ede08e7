"""Parts of a bundle's train.json: MONAI's trainer goes on with an exported branch, on one site's own images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.transforms import Compose, Lambdad
from torch import Tensor, nn

from pfedsam import log, methods
from pfedsam.config import Config
from pfedsam.data import datalist
from pfedsam.data.augment import changes
from pfedsam.data.dataset import Batch, Dataset, label_size, open_site
from pfedsam.data.square import shrink
from pfedsam.errors import UserFault
from pfedsam.inference.facts import ModelFacts, roles_of
from pfedsam.inference.model_file import read_tensors, write_model
from pfedsam.inference.predictor import load_model
from pfedsam.model.moe import balance_term
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import assemble
from pfedsam.tensors import at_rest
from pfedsam.train.evaluate import labelled, masks, reference
from pfedsam.train.loop import make_optimisers
from pfedsam.train.losses import segmentation_loss

Sample = dict[str, Any]
STEPS = 10  # of a round, for the question what a method trains in it
SUFFIX = " fine-tuned"  # behind the run's name: the tensors are no longer those of the run


class Branch(nn.Module):
    """Logits (B, outputs, h, h) of one branch, with a gradient, from pictures (B, 3, S, S) of 0..1.

    What the job's method trains in that branch is trained, such as LoRA and the mask decoder. The rest is frozen.

    Args:
        path: the exported model.
        branch: "global" or "personal".
        weights: folder of pretrained weight files, where the file does not hold the base; None: PFEDSAM_WEIGHTS.
        device: None: a GPU where there is one.
    """

    def __init__(
        self, path: str, branch: str, weights: str | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.predictor = load_model(self.path, Path(weights) if weights else None, device=device, precision="fp32")
        self.config, model = self.predictor.config, self.predictor.model
        self.part = methods.get(self.config.method).partition(model, self.config)
        self.normalise = self.predictor.normalise
        self.segmenter = model[self.predictor.branch_name(branch)]

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised and predicted."""
        logits: Tensor = self.segmenter(self.normalise(pictures))
        return logits

    def save(self, path: str, site: str = "") -> None:
        """Write the model as it is now: a file as `pfedsam export` writes, which bundle and `pfedsam predict` read.

        Args:
            site: whose images it was trained on; empty: the site that the exported file names, if any.

        Raises:
            UserFault: the disk is full or forbids writing.
        """
        model, facts = self.predictor.model, self.predictor.facts
        shared, private = (tensors_of(model, self.part, which) for which in (Part.SHARED, Part.PRIVATE))
        trained = {id(weight) for weight in self.segmenter.parameters()}
        holds = "personal" in facts.branches or any(id(weight) in trained for weight in private.values())
        base = assemble(self.config.model, read_tensors(self.path)[2]) if facts.with_base else None
        write_model(
            Path(path),
            _facts(facts, site, private=holds),
            {wire_name(name): tensor for name, tensor in at_rest(shared).items()},
            at_rest(private) if holds else None,
            base=base,
        )


def _facts(facts: ModelFacts, site: str, *, private: bool) -> ModelFacts:
    """Those of the fine-tuned model: it comes from the run, and is of none of its rounds."""
    run = facts.origin.run.removesuffix(SUFFIX) + SUFFIX
    origin = replace(facts.origin, run=run, round=None, private_round=None, site=site or facts.origin.site)
    return replace(facts, origin=origin, branches=roles_of(facts.config, private=private))


class Split:
    """One split of a site's datalist as MONAI's Dataset takes it.

    A sample has `image`, (3, S, S) of 0..1; `label`, (1, S, S) of class numbers; and `slice`, its index in the split.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Sample:
        image, label = self.data[i]
        return {"image": image, "label": label[None].float(), "slice": i}


def groups(network: Branch, lr: float) -> list[dict[str, Any]]:
    """AdamW's groups: what the job trained in the branch, at the job's rates. `lr` stands for `train.lr`.

    Rates of their own, of the private part or the decoder, change in the same proportion.
    """
    method, train = methods.get(network.config.method), network.config.train
    parts = {part for done in range(STEPS) for part in method.phase(done, STEPS)}
    optimisers = make_optimisers(network.predictor.model, network.part, replace(train, record=False))
    own = {id(weight) for weight in network.segmenter.parameters() if weight.requires_grad}
    every = [(part, group) for part, optimiser in optimisers.items() for group in optimiser.param_groups]
    mine = [(part, [w for w in group["params"] if id(w) in own], group["lr"]) for part, group in every]
    trained = [one for one in mine if one[0] in parts and one[1]] or [one for one in mine if one[1]]
    return [{"params": weights, "lr": rate * lr / train.lr if train.lr else lr} for _, weights, rate in trained]


def splits(folder: str, network: Branch, site: str = "") -> dict[str, Split]:
    """The splits of the datalist in `folder`, read as the model's job read its own.

    Args:
        site: whose rows, where the datalist has a column `site`, and which classes its masks lack.

    Raises:
        UserFault: there is no datalist, or as `data.dataset.open_site`.
    """
    try:
        datalist.find(Path(folder), site)
    except UserFault as fault:
        do = "make one with pfedsam prepare, and name its folder with --dataset_dir"
        raise UserFault(expected=fault.expected, came=fault.came, do=do) from None
    return {name: Split(data) for name, data in open_site(Path(folder), site, network.config).items()}


def augmented(config: Config) -> Compose:
    """The job's augmentation of a sample; nothing where the job had none."""
    if not config.train.augment:
        return Compose([])
    return Compose([changes(config, ("image", "label")), Lambdad("image", lambda image: image.clamp(0, 1))])


class Loss:
    """The job's supervised loss of the branch; of its experts, if it has any, the balance term too."""

    def __init__(self, network: Branch, split: Split) -> None:
        self.network, self.data = network, split.data

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """A scalar, of (B, outputs, h, h) logits and (B, 1, S, S) class numbers."""
        train = self.network.config.train
        small = shrink(label[:, 0].round().long(), label_size(self.network.config), sparse=self.data.sparse)
        batch = Batch(small, small, annotated=self.data.annotated, ignores=self.data.ignores)
        return segmentation_loss(logits, batch, train) + train.balance_weight * balance_term(self.network.segmenter)


class Masks:
    """Puts masks at the slice's own size into a sample, as the job's test decides: `pred` the found, `label` the true.

    Both are (classes, H, W) of 0 or 1, of the classes that the site's masks show.
    """

    def __init__(self, split: Split) -> None:
        self.data = split.data

    def __call__(self, sample: Sample) -> Sample:
        """The sample with masks instead of logits and class numbers."""
        i = int(sample["slice"])
        found, true = masks(sample["pred"].float().cpu(), self.data, i), reference(self.data, i)
        if self.data.ignores:
            found = found & labelled(self.data, i)
        shown = slice(None) if self.data.annotated is None else self.data.annotated
        return {**sample, "pred": found[shown].float(), "label": true[shown].float()}


class Best:
    """A handler of MONAI's evaluator: saves the network each time that its key metric is the best so far.

    After `begin`, better than the start too.
    """

    def __init__(self, network: Branch, path: str, site: str = "") -> None:
        self.network, self.path, self.site = network, path, site
        self.beginning = self.saved = False

    def attach(self, engine: Engine) -> None:
        """Have it called after each validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def begin(self, evaluator: Evaluator) -> None:
        """Validate the start, and save nothing of it: it may be the file at `path` itself."""
        self.beginning = True
        evaluator.run()
        evaluator.state.best_metric_epoch, self.beginning = 0, False

    def __call__(self, engine: Engine) -> None:
        """Save, if this validation was the best."""
        if not self.beginning and engine.state.best_metric_epoch == engine.state.epoch:
            self.network.save(self.path, self.site)
            self.saved = True

    def tell(self) -> None:
        """Say at the end whether anything was written."""
        if not self.saved:
            log.warning("no validation was better than that of the start (--model), so %s was not written", self.path)
