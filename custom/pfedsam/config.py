"""The settings that all methods share: frozen, and the only place that knows their defaults and bounds.

A method's own settings are in the method's file. `settings.py` reads both from JSON.
If the pFedSAM paper gives no default, it is ours. docs/method.md lists which, and why.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from pfedsam.bounds import number

DecoderMode = Literal["full", "lora", "lean", "frozen"]
Target = Literal["qkv", "linear"]
Scale = Literal["uint8", "percentile"]
Plane = Literal["axial", "coronal", "sagittal", "stored"]
Weak = Literal["scribble", "point", "box", "block"]
Flips = Literal["both", "horizontal", "vertical", "none"]
Precision = Literal["auto", "fp32", "bf16"]
Number = Literal["fp32", "bf16", "int8", "int4"]
Rule = Literal["clipped", "mean", "product", "trimmed", "median", "krum", "geometric"]
Secure = Literal["none", "masks"]
Pixels = Literal["sam", "unit"]
Unit = Literal["none", "patient", "site"]
T = TypeVar("T")
MOST_ROUNDS = 100_000  # of a run


@dataclass(frozen=True)
class WeightsConfig:
    """A weight file of the job's own, which all sites must have; as text NAME:SHA256 or NAME:SHA256:PIXELS."""

    name: str = ""  # of the file in each site's weights folder
    sha256: str = ""  # of the file as published
    pixels: Pixels = "sam"  # what it was trained to take: SAM's normalised values, or 0..1 (unit: MedSAM, LiteMedSAM)

    @staticmethod
    def parts(text: str) -> dict[str, str]:
        """The fields in a text."""
        return dict(zip(("name", "sha256", "pixels"), text.split(":", 2), strict=False))


@dataclass(frozen=True)
class ModelConfig:
    """What is built: backbone, adapters, experts, head."""

    backbone: str = "demo"  # demo | tiny_vit | tiny_vit_lite | vit_b | vit_l | vit_h
    pretrained: bool = True  # False: random weights, alike everywhere; to try shapes, speed and memory without a file
    weights: WeightsConfig | None = None  # a SAM file of your own, NAME:SHA256[:unit]; None: the published file
    image_size: int = number(128, least=16, most=4096)  # pixels, square; SAM's own is 1024
    num_classes: int = number(1, least=1, most=254)  # foreground classes; 255 is no class: nobody labelled the pixel
    exclusive: bool = False  # True: classes exclude each other (softmax); False: one sigmoid each
    lora_rank: int = number(4, least=1, most=1024)  # our choice: Conv-LoRA takes 3, SAMed 4
    lora_alpha: float = number(4.0, least=0, most=10_000)  # = rank, so the adapter's scale is 1
    lora_on: Target = "qkv"  # in a block: its fused qkv, as Conv-LoRA; or all linear layers (projection, MLP too)
    lora_last: int | None = number(None, least=1, most=100)  # adapters in the last k attention blocks; None: in all
    # What of SAM's decoder is trained. full: all. lora: its linear layers get LoRA, all else is trained whole. lean:
    # tokens, last norms and header. frozen: the header.
    decoder: DecoderMode = "full"
    experts: int = number(4, least=0, most=256)  # M; 0: none, and with experts_rank a plain private adapter
    experts_rank: int = number(4, least=0, most=1024)  # of their private bottleneck; 0: they are in the shared one
    experts_share: float = number(1.0, least=0, most=1)  # of the private adapter, or dual LoRA's, in predictions
    expert: Literal["head", "conv"] = "head"  # a low-rank adapter each, or a convolution at ratio 1..M (Conv-LoRA)
    experts_in: Literal["all", "qkv", "mlp"] = "all"  # at which LoRA: all; qkv, as Conv-LoRA; or the MLP's first layer
    top_k: int = number(2, least=1, most=256)  # K; the paper's figure draws at least two experts selected
    gate: Literal["chosen", "noisy", "quiet"] = "chosen"  # weights sum to 1 over the chosen; others: earlier versions'
    gate_multiplied: bool = True  # False is Conv-LoRA's release: the gate then learns from balance alone
    route: Literal["image", "window"] = "image"  # our choice: one routing per image, windows stitched
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # our choice: bicubic costs more on a CPU

    @property
    def l_moe(self) -> bool:
        """Whether a personal branch has an L-MoE: experts, or a private bottleneck without any."""
        return self.experts > 0 or self.experts_rank > 0

    @property
    def pixels(self) -> Pixels:
        """The values that the backbone takes."""
        return self.weights.pixels if self.weights else "sam"


@dataclass(frozen=True)
class TrainConfig:
    """How a site trains in a round."""

    epochs: int = number(1, least=1, most=100_000)  # FedFMS: one local epoch a round
    max_steps: int | None = number(None, least=0, most=10_000_000)  # most steps in a round; None: whole epochs
    batch_size: int = number(4, least=1, most=4096)  # FedFMS
    lr: float = number(1e-4, above=0, most=10)  # FedFMS, Conv-LoRA
    lr_private: float | None = number(None, least=0, most=10)  # experts and personal copies; None: lr
    lr_decoder: float | None = number(None, least=0, most=10)  # SAM's mask decoder, not its LoRA; None: its part's rate
    weight_decay: float = number(1e-4, least=0, most=100)  # Conv-LoRA
    schedule: Literal["constant", "cosine"] = "constant"  # over all rounds of the job
    warmup: int = number(0, least=0, most=10_000_000)  # steps in which the rate rises; at most half a round
    loss: Literal["bce", "ce"] = "bce"  # bce for sigmoid heads, ce for exclusive classes
    pos_weight: float = number(2.0, above=0, most=1_000_000)  # FedFMS
    dice_weight: float = number(1.0, least=0, most=1_000_000)  # our choice, for small lesions; 0: none
    balance_weight: float = number(0.01, least=0, most=1_000_000)  # Conv-LoRA
    precision: Precision = "auto"  # auto: bf16 if the hardware has it
    record: bool = False  # on a GPU: replay steps as a CUDA graph and read the next batch meanwhile; not measured yet
    augment: bool = True  # flips, small affine, intensity
    flips: Flips = "both"  # horizontal mirrors left and right, vertical top and bottom; none if a side has a meaning
    views: int | None = number(None, least=1, most=1_000_000)  # of an image, taken in turn; None: new ones
    cache: Literal["none", "memory", "disk"] = "none"  # keeps the frozen front's output, per image and view
    cache_gb: float = number(2.0, above=0, most=1_000_000)  # the cache's most; it drops the least recently used


@dataclass(frozen=True)
class WireConfig:
    """The number format of the shared part in messages. Integers come in blocks of 64, each with a scale."""

    up: Number = "fp32"  # a site's update; the site keeps the rounding error and adds it to the next
    down: Literal["fp32", "bf16", "int8"] = "fp32"  # the server's model; int4 is too coarse for weights


@dataclass(frozen=True)
class ServerConfig:
    """What the server does against a site that lies. docs/security.md says what each rule stops."""

    rule: Rule = (
        "clipped"  # norms cut to the round's median; mean: as they are; product, trimmed, median: on LoRA's B A
    )
    hostile: int = number(1, least=0, most=1000)  # most hostile sites that krum, geometric, trimmed and median outvote
    most_share: float = number(1.5, least=1, most=1_000_000)  # a site's most weight, in equal shares; from 3 sites on
    secure: Secure = "none"  # masks: the server sees the sum of the sites' updates and no single one; from 3 sites on
    norm: float = number(100.0, least=1e-3, most=1_000_000)  # with masks: a site shortens an update that is longer


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of what a site sends. docs/security.md says what it promises, and what it does not."""

    unit: Unit = "none"  # what is hidden: that a patient is in the training data (DP-SGD), or a site's whole data
    epsilon: float = number(8.0, above=0, most=1_000_000)  # a site's budget; it trains no round that would exceed it
    delta: float = number(1e-5, above=0, most=1e-3)  # the chance that epsilon does not hold; below 1 / patients
    noise: float = number(1.0, least=0.01, most=10_000)  # standard deviation of the noise, in parts of clip
    clip: float = number(1.0, above=0, most=1_000_000)  # most norm of a patient's gradient, or of a site's update
    accountant: Literal["rdp", "prv"] = "rdp"  # Renyi's, or the tighter numerical one
    sites: int = number(1, least=1, most=1000)  # honest sites whose noise adds up in a masked sum; 1: each has it all


@dataclass(frozen=True)
class DataConfig:
    """What the job expects of a site's data. The site alone decides where they are."""

    source: Literal["site", "synthetic"] = "site"  # the site's own images, or images that are drawn at each site
    scale: Scale = "uint8"  # to 0..1 by /255, or by the image's 0.5 and 99.5 percentiles
    plane: Plane = "axial"  # how volumes are cut into slices, at every site and in predict; stored: along the last axis
    classes: list[str] = field(default_factory=list)  # the classes' names, from class 1 on; empty: none
    codes: dict[str, str] = field(default_factory=dict)  # class name: its code for DICOM-SEG, "SCT:10200004:Liver"
    ignore: int | None = number(None, least=1, most=255)  # the mask value of unlabelled pixels; None: none
    pool: bool = False  # True: use every site's rows of the datalist (the pooled baseline)
    joined: dict[str, list[str]] = field(default_factory=dict)  # site: the names that it has in a datalist of many
    limit: dict[str, int] = number(dict, least=1, most=1_000_000_000)  # site: training rows, drawn by the seed
    unannotated: dict[str, list[int]] = number(dict, least=1, most=255)  # site: classes its masks leave out, from 1
    weaken: dict[str, Weak] = field(default_factory=dict)  # site: weak labels that training makes of its whole masks
    unlabelled: dict[str, float] = number(dict, least=0, most=1)  # site: share of training rows without mask, by seed
    train: int = number(48, least=1, most=1_000_000)  # synthetic only: images per split
    val: int = number(8, least=1, most=1_000_000)  # synthetic only
    test: int = number(16, least=1, most=1_000_000)  # synthetic only

    def rows_of(self, site: str) -> list[str]:
        """The names in a datalist's column `site` whose rows a site takes. Empty: all."""
        return [] if self.pool else self.joined.get(site, [site])

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of a synthetic site, by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a job's settings for learning. FLARE's own files say how the job runs.

    `settings.from_dict` makes it. In JSON `method` and `method_settings` are one object, {"name": ..., ...}.
    """

    study: str = "pfedsam"  # names the site store's entry and the server's checkpoints
    method: str
    method_settings: object  # an instance of the method's own dataclass; `own` returns it with its type
    seed: int = number(0, least=0, most=10**12)  # of all random draws: new weights, order, augmentation, data.limit
    begin_private: str = ""  # the run of the study whose private part each site begins with, or "latest"; empty: drawn
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    every: dict[str, int] = number(dict, least=0, most=100_000)  # site: trains only in each n-th round; 0: never

    def __hash__(self) -> int:
        return hash(self.digest())

    def own(self, kind: type[T]) -> T:
        """The method's own settings, as an instance of `kind`.

        Raises:
            TypeError: they are another method's.
        """
        if not isinstance(self.method_settings, kind):
            raise TypeError(f"method {self.method} has {type(self.method_settings)}, not {kind}")
        return self.method_settings

    def trains(self, site: str, round_: int) -> bool:
        """Whether a site trains in a round, counted from 0."""
        every = self.every.get(site, 1)
        return every > 0 and round_ % every == 0

    @property
    def class_names(self) -> list[str]:
        """A name for each class, from class 1 on: the job's, or else its number."""
        return names_of_classes(self.data.classes, self.model.num_classes)

    def unlike(self, other: "Config") -> dict[str, Any]:
        """The settings in which `other` differs: its values by dotted name."""
        mine, theirs = (ABSENT | _dotted(to_dict(config)) for config in (self, other))
        return {name: value for name, value in theirs.items() if name not in mine or value != mine[name]}

    def digest(self) -> str:
        """sha256 of all settings. Sites and server must agree on it."""
        return text_digest(self.text())

    def text(self) -> str:
        """All settings as one line of JSON, the text that `digest` hashes."""
        return json.dumps(to_dict(self), sort_keys=True)


def names_of_classes(given: list[str], count: int) -> list[str]:
    """A name for each of `count` classes, from class 1 on: the job's, or else its number."""
    return given or [f"class {i + 1}" for i in range(count)]


def text_digest(text: str) -> str:
    """The digest of settings in the text that another version of this software wrote. Its defaults may differ."""
    return hashlib.sha256(text.encode()).hexdigest()


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values; without `model.weights`, `privacy`, masks, weak labels if there are none, and
    without `model.experts_share` if all is taken.

    Thus jobs without them keep the digest that they had before these could be set.
    """
    values = asdict(config)
    if config.privacy == PrivacyConfig():
        del values["privacy"]
    if all(getattr(config.server, name) == usual for name, usual in UNMASKED.items()):
        values["server"] = {name: value for name, value in values["server"].items() if name not in UNMASKED}
    for name in [name for name, usual in USUAL.items() if getattr(config.model, name) == usual]:
        del values["model"][name]
    values["data"] = {name: value for name, value in values["data"].items() if value or name not in WHOLE}
    own = values.pop("method_settings")
    return values | {"method": {"name": config.method, **own}}


def _dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The values of sections by dotted name. A setting that is itself a dict is one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        part = not above and name in SECTIONS
        found |= _dotted(value, f"{name}.") if part else {above + name: value}
    return found


SECTIONS = ("method", *(f.name for f in fields(Config) if is_dataclass(f.type)))
UNMASKED = {name: value for name, value in asdict(ServerConfig()).items() if name in ("secure", "norm")}
USUAL: dict[str, Any] = {"weights": None, "experts_share": 1.0}  # of `model`
ABSENT = {
    **{f"model.{name}": value for name, value in USUAL.items()},
    **{f"privacy.{name}": value for name, value in asdict(PrivacyConfig()).items()},
}
ABSENT |= {f"server.{name}": value for name, value in UNMASKED.items()}
WHOLE = ("weaken", "unlabelled")  # of `data`: empty where all masks are whole
ABSENT |= {f"data.{name}": {} for name in WHOLE}
