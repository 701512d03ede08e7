"""A part of a model as a file, and its card: a few lines beside it that say what it is and what it is not."""

from pathlib import Path
from typing import Any

import yaml

from pfedsam.config import Config
from pfedsam.files import write_atomic
from pfedsam.tensors import SETTINGS, Tensors, pack

USE = "Research use; not a medical device. Test it on your own data before you rely on it."
HUB = {  # the published SAM of a backbone on the Hugging Face hub, where its authors put it there
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
}
PARTS = {
    "shared": "LoRA and mask decoder, averaged over sites. Needs its base model; holds no expert.",
    "private": "Experts or copies of one site, by method. Stays at the site; needs shared part and base.",
}


def write_part(path: Path, part: str, tensors: Tensors, *, config: Config, facts: dict[str, str]) -> None:
    """Write one of `PARTS` and its card: `path` with the endings .safetensors and .md.

    Args:
        facts: of which run, and of which site.

    Raises:
        UserFault: the disk is full or forbids writing.
    """
    header = facts | {SETTINGS: config.text(), "part": part}
    write_atomic(path.with_name(f"{path.name}.safetensors"), pack(tensors, header))
    write_atomic(path.with_name(f"{path.name}.md"), part_card(part, config, facts).encode())


def part_card(part: str, config: Config, facts: dict[str, str]) -> str:
    """The card of one of `PARTS`; `facts` say of which run, and of which site."""
    own = "".join(f", {name} {value}" for name, value in vars(config.method_settings).items())
    head = front_matter(config) if part == "shared" else ""  # what stays at its site goes to no hub
    lines = [
        f"# {part.capitalize()} part",
        "",
        PARTS[part],
        "",
        f"- method: {config.method}{own}; seed {config.seed}",
        f"- backbone: {config.model.backbone} at {config.model.image_size} px, {config.model.num_classes} class(es)",
        *([f"- weights: {named.name}, sha256 {named.sha256}"] if (named := config.model.weights) else []),
        f"- trained on: {images_of(config)}, study {config.study}",
        *(f"- {key}: {value}" for key, value in facts.items()),
        f"- {USE}",
        "",
    ]
    return head + "\n".join(lines)


def front_matter(config: Config, index: list[dict[str, Any]] | None = None) -> str:
    """The YAML that heads a model card on the Hugging Face hub, between its lines of dashes.

    It claims no licence: that of the base weights and that of the sites' data differ, and the sites decide. It names
    no data set and nobody: what is known of both is that they stay at the sites.

    Args:
        index: the scores, as the hub's `model-index` has them.
    """
    model, named = config.model, config.model.weights  # a job's own file is not the published one
    medical = ["medical"] * (config.data.source != "synthetic")
    known = {
        "license": "other",
        "license_name": "set-by-the-sites",
        "license_link": "LICENSE",
        "library_name": "pfedsam",
        "pipeline_tag": "image-segmentation",
        "tags": [*medical, "segment-anything", "federated-learning", "lora", "pytorch", config.method],
        "base_model": HUB.get(model.backbone) if model.pretrained and not named else None,
        "model-index": index,
    }
    text = yaml.safe_dump({key: value for key, value in known.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"


def images_of(config: Config) -> str:
    """What kind of images a model was trained on."""
    return "synthetic images" if config.data.source == "synthetic" else "the sites' own images"
