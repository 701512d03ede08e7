"""A MONAI bundle around an exported model, and the parts that its configuration names."""

import os
import shutil
from pathlib import Path
from typing import Any

import monai
import numpy
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

import pfedsam
from pfedsam.config import Config, Scale
from pfedsam.data import reader
from pfedsam.data.folder import new_folder
from pfedsam.data.planes import SCALES, described
from pfedsam.data.square import label_map, shown
from pfedsam.errors import UserFault
from pfedsam.files import read_json, write_atomic, write_json
from pfedsam.inference.facts import ModelFacts, read_facts, require_branch
from pfedsam.inference.predictor import load_model
from pfedsam.layout import ASSETS
from pfedsam.pages import filled
from pfedsam.record.cards import USE

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
MODEL = "models/model.safetensors"
PICTURE = ".png"
LICENCE = """The site or study that made this model fills in its licence here.

Base weights: see docs/README.md. The training data's licence, consent and ethics approval: the sites'.
"""
Sample = dict[str, Any]


def pictures(folder: str) -> list[Sample]:
    """A sample for each `*.png` file of a folder, by name.

    Raises:
        UserFault: there is none.
    """
    place = Path(folder)
    within = [path for path in place.iterdir() if path.is_file()] if place.is_dir() else []
    files = sorted(path for path in within if path.suffix == PICTURE and not path.name.startswith("."))
    if not files:
        came = f"{len(within)} files of other kinds, such as {min(within).name}" if within else "no such file"
        raise UserFault(
            expected=f"pictures (*{PICTURE}, in small letters) in the folder {folder}",
            came=came if place.is_dir() else "no such folder",
            do="correct --dataset_dir, or rename the files. pfedsam predict reads other kinds, and subfolders too",
        )
    return [{"image": str(path)} for path in files]


class Network(nn.Module):
    """Logits at the pictures' own size, (B, outputs, H, W), from pictures (B, 3, H, W) of 0..1.

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
        self.predictor = load_model(Path(path), Path(weights) if weights else None, device=device)
        self.branch = branch

    def forward(self, pictures: Tensor) -> Tensor:
        """Fitted, predicted, and brought back to size."""
        return self.predictor.logits_at_size(torch.as_tensor(pictures).float().cpu(), self.branch)


class Picture:
    """Reads a picture as training does: (3, H, W) of 0..1, with its file's name for MONAI's writer."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def __call__(self, path: str) -> MetaTensor:
        """The picture in the file at `path`."""
        ends = reader.ends_of_file(Path(path), self.scale)
        return MetaTensor(shown(reader.read_image(Path(path)), ends, path), meta={"filename_or_obj": path})


class Labels:
    """Turns a sample's logits `pred`, (outputs, H, W), into class numbers, (1, H, W) of uint8; 0 is the background.

    Where classes do not exclude each other the likeliest of those above the threshold is named. They carry the file's
    name of the sample's `image`, for MONAI's writer.
    """

    def __init__(self, exclusive: bool) -> None:
        self.exclusive = exclusive

    def __call__(self, sample: Sample) -> Sample:
        """The sample with the class of each pixel."""
        numbers = label_map(torch.as_tensor(sample["pred"]), exclusive=self.exclusive)[None]
        return {**sample, "pred": MetaTensor(numbers, meta=sample["image"].meta)}


def write_bundle(model: Path, folder: Path, branch: str, card: str) -> None:
    """Write a bundle with `model` in it, that `python -m monai.bundle run` predicts with and fine-tunes.

    Args:
        model: an exported model.
        folder: must not exist.
        branch: which one predicts.
        card: the model's card, for the bundle's README.

    Raises:
        UserFault: as `check_bundle`; the file is no exported model; or the disk is full. No half bundle is left.
    """
    facts = read_facts(model)
    check_bundle(facts.branches, folder, branch)
    with new_folder(folder) as beside:
        (beside / MODEL).parent.mkdir(parents=True)
        shutil.copyfile(model, beside / MODEL)
        write_json(beside / "configs/metadata.json", metadata(facts))
        for name, settings in _settings(facts.config, branch).items():
            write_json(beside / f"configs/{name}.json", read_json(ASSETS / f"bundle_{name}.json") | settings)
        shutil.copyfile(ASSETS / "bundle_logging.conf", beside / "configs/logging.conf")
        write_atomic(beside / "docs/README.md", _readme(facts, branch, card).encode())
        write_atomic(beside / "LICENSE", LICENCE.encode())


def _readme(facts: ModelFacts, branch: str, card: str) -> str:
    own_base = "" if facts.with_base else " --weights FOLDER_OF_BASE_WEIGHTS"
    return filled("bundle.md", card=card, with_base=facts.with_base, own_base=own_base, branch=branch)


def _settings(config: Config, branch: str) -> dict[str, dict[str, Any]]:
    """What each workflow's configuration says of the model and of its job."""
    train = config.train
    learning = {"lr": train.lr, "weight_decay": train.weight_decay, "batch_size": train.batch_size}
    return {
        "inference": {"branch": branch, "scale": config.data.scale, "exclusive": config.model.exclusive},
        "train": {"branch": branch, "seed": config.seed, **learning},
    }


def check_bundle(branches: tuple[str, ...], folder: Path, branch: str) -> None:
    """Refuse what would make no bundle, before anything is written.

    Args:
        branches: that the model holds.

    Raises:
        UserFault: the model lacks the branch, the folder exists, or none can be made there.
    """
    require_branch(branches, branch)
    if folder.exists():
        raise UserFault(expected="a folder that does not exist yet", came=str(folder), do="remove it or name another")
    above = next(place for place in folder.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserFault(
            expected=f"a place where the folder {folder} can be made",
            came=f"{above}, " + ("which forbids writing" if above.is_dir() else "which is no folder"),
            do="name another",
        )


def metadata(facts: ModelFacts) -> dict[str, Any]:
    """configs/metadata.json: all that MONAI's schema requires, and what this project knows."""
    config = facts.config
    channels = ["background"] * config.model.exclusive + config.class_names
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"run {facts.origin.run or 'unknown'}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"pfedsam": pfedsam.__version__},
        "name": f"pfedsam {config.study}",
        "task": f"2-D segmentation of {config.model.num_classes} class(es) without a prompt",
        "description": f"SAM ({config.model.backbone}) fine-tuned by several sites with {config.method}.",
        "authors": "the sites of the study fill this in",
        "copyright": "the sites of the study fill this in",
        "intended_use": USE,
        "scale": SCALES[config.data.scale],
        "plane": described(config.data.plane),
        "network_data_format": {
            "inputs": {"image": _tensor("RGB", [0, 1], ["red", "green", "blue"])},
            "outputs": {"pred": _tensor("logits", [], channels)},
        },
    }


def _tensor(format_: str, values: list[int], channels: list[str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": format_,
        "num_channels": len(channels),
        "spatial_shape": ["*", "*"],
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(channels)},
    }
