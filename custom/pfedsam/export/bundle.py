"""A MONAI bundle around an exported model, and the parts that its configuration names."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import monai
import numpy
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from torch import Tensor, nn

import pfedsam
from pfedsam.config import Config, Scale
from pfedsam.data import reader
from pfedsam.data.dataset import fit, unfit
from pfedsam.data.folder import new_folder
from pfedsam.data.planes import described
from pfedsam.errors import UserFault
from pfedsam.export.facts import Facts, read_facts
from pfedsam.export.model import load
from pfedsam.files import write_atomic, write_json
from pfedsam.train.evaluate import label_map

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
MODEL = "models/model.safetensors"
LICENCE = """The site or study that made this model fills in its licence here.

Base weights: see docs/README.md. The training data's licence, consent and ethics approval: the sites'.
"""
NO_BASE = "The base weights are not in the bundle: name their folder (pfedsam brings the demo backbone's)."
Item = dict[str, Any]


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
        self.predictor = load(Path(path), Path(weights) if weights else None, device=device)
        self.branch = branch

    def forward(self, pictures: Tensor) -> Tensor:
        """Fitted, predicted, and brought back to size."""
        size, shape = self.predictor.size, (pictures.shape[2], pictures.shape[3])
        fitted = torch.stack([fit(picture, size) for picture in pictures.float().cpu()])
        return torch.stack([unfit(maps, shape, size) for maps in self.predictor.logits(fitted, self.branch)])


class Picture:
    """Reads a picture as training does: (3, H, W) of 0..1, with its file's name for MONAI's writer."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def __call__(self, path: str) -> MetaTensor:
        """The picture in the file at `path`."""
        ends = reader.EIGHT_BIT if self.scale == "uint8" else reader.intensity_range(Path(path))
        pixels = reader.unit(reader.read_image(Path(path)), ends, path)
        return MetaTensor(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), meta={"filename_or_obj": path})


class Labels:
    """Turns logits into class numbers, (outputs, H, W) to (1, H, W) of uint8; 0 is the background.

    Where classes do not exclude each other the likeliest of those above the threshold is named.
    """

    def __init__(self, exclusive: bool) -> None:
        self.exclusive = exclusive

    def __call__(self, logits: Tensor) -> Tensor:
        """The class of each pixel."""
        return label_map(logits, exclusive=self.exclusive)[None]


def run(
    dataset: Iterable[Item], inferer: Callable[..., Tensor], network: Network, after: Callable[[Item], Item]
) -> int:
    """Predict each item's `image` into its `pred` and hand it to `after`; returns how many there were."""
    count, tracked = 0, get_track_meta()
    set_track_meta(True)  # the writer names a mask by its picture; training in this process switches that off
    try:
        for item in dataset:
            image: MetaTensor = item["image"]
            found = inferer(image.as_tensor()[None], network)[0]
            after({**item, "pred": MetaTensor(found, meta=image.meta)})
            count += 1
    finally:
        set_track_meta(tracked)
    return count


def write_bundle(model: Path, folder: Path, branch: str, card: str) -> None:
    """Write a bundle with `model` in it that `python -m monai.bundle run` executes on a folder of PNG files.

    Args:
        model: an exported model.
        folder: must not exist.
        branch: which one predicts.
        card: the model's card, for the bundle's README.

    Raises:
        UserFault: as `check`; the file is no exported model; or the disk is full. No half bundle is left.
    """
    facts = read_facts(model)
    check(facts.branches, folder, branch)
    with new_folder(folder) as beside:
        (beside / MODEL).parent.mkdir(parents=True)
        shutil.copyfile(model, beside / MODEL)
        write_json(beside / "configs/metadata.json", metadata(facts))
        write_json(beside / "configs/inference.json", inference(facts.config, branch))
        write_atomic(beside / "docs/README.md", _readme(card, whole=facts.whole).encode())
        write_atomic(beside / "LICENSE", LICENCE.encode())


def check(branches: tuple[str, ...], folder: Path, branch: str) -> None:
    """Refuse what would make no bundle, before anything is written.

    Args:
        branches: that the model holds.

    Raises:
        UserFault: the model lacks the branch, the folder exists, or none can be made there.
    """
    if branch not in branches:
        raise UserFault(expected=f"a branch that the model holds ({', '.join(branches)})", came=branch, do="correct it")
    if folder.exists():
        raise UserFault(expected="a folder that does not exist yet", came=str(folder), do="remove it or name another")
    above = next(place for place in folder.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserFault(
            expected=f"a place where the folder {folder} can be made",
            came=f"{above}, " + ("which forbids writing" if above.is_dir() else "which is no folder"),
            do="name another",
        )


def metadata(facts: Facts) -> dict[str, Any]:
    """configs/metadata.json: all that MONAI's schema requires, and what this project knows."""
    config = facts.config
    outputs = config.model.num_classes + config.model.exclusive
    names = {str(i): name for i, name in enumerate(_channels(config))}
    image = _tensor("RGB", 3, [0, 1], {"0": "red", "1": "green", "2": "blue"})
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
        "intended_use": "Research use; not a medical device. Test it on your own data before you rely on it.",
        "plane": described(config.data.plane),
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {"pred": _tensor("logits", outputs, [], names)},
        },
    }


def inference(config: Config, branch: str) -> dict[str, Any]:
    """configs/inference.json: PNG files of a folder in, PNG files of class numbers out.

    Pictures are read as in training; MONAI's writer wants them as (W, H).
    """
    read = {
        "_target_": "Lambdad",
        "keys": "image",
        "func": {"_target_": "pfedsam.export.bundle.Picture", "scale": config.data.scale},
    }
    turned = {"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]}
    saved = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "mask",
        "output_ext": ".png",
        "output_dtype": "$np.uint8",
        "resample": False,
        "separate_folder": False,
        "print_log": False,
    }
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch", "$import pfedsam.export.bundle as bundle"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "branch": branch,
        "weights": None,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "pfedsam.export.bundle.Network",
            "path": f"$@bundle_root + '/{MODEL}'",
            "branch": "@branch",
            "weights": "@weights",
            "device": "@device",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [read]},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.png'))]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "labels": {"_target_": "pfedsam.export.bundle.Labels", "exclusive": config.model.exclusive},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Lambdad", "keys": "pred", "func": "@labels"},
                turned,
                saved,
            ],
        },
        "run": ["$bundle.run(@dataset, @inferer, @network, @postprocessing)"],
    }


def _tensor(format_: str, channels: int, values: list[int], names: dict[str, str]) -> Item:
    return {
        "type": "image",
        "format": format_,
        "num_channels": channels,
        "spatial_shape": ["*", "*"],
        "dtype": "float32",
        "value_range": values,
        "is_patch_data": False,
        "channel_def": names,
    }


def _channels(config: Config) -> list[str]:
    background = ["background"] if config.model.exclusive else []
    return background + config.class_names


def _readme(card: str, *, whole: bool) -> str:
    weights = "" if whole else " --weights FOLDER_OF_BASE_WEIGHTS"
    return f"""{card}
## Run it

Needs `pip install "pfedsam[bundle]"`. In this folder, on a folder of PNG files:

```sh
python -m monai.bundle run --meta_file configs/metadata.json --config_file configs/inference.json \\
  --bundle_root . --dataset_dir IMAGES --output_dir MASKS{weights}
```

It writes a PNG of class numbers (0 the background) for each. Where classes overlap the likeliest is written.
{"" if whole else NO_BASE}
"""
