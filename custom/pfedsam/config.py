"""The settings of a job: frozen, read from JSON, and the only place that knows a default.

Where the pFedSAM paper is silent the default is ours; docs/method.md lists which and why.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pfedsam.errors import UserFault

Reading = Literal["R1", "R2", "R3", "post"]
Direction = Literal["none", "global_to_personal", "personal_to_global", "mutual"]
DecoderMode = Literal["full", "lean", "frozen"]
Start = Literal["zero", "random"]
Target = Literal["qkv", "linear"]
Scale = Literal["uint8", "percentile"]
Plane = Literal["axial", "coronal", "sagittal", "stored"]
Flips = Literal["both", "horizontal", "vertical", "none"]
Precision = Literal["auto", "fp32", "bf16"]
Number = Literal["fp32", "bf16", "int8", "int4"]


@dataclass(frozen=True)
class ModelConfig:
    """What is built: backbone, adapters, experts, head."""

    backbone: str = "demo"  # demo | tiny_vit | vit_b | vit_l | vit_h
    pretrained: bool = True  # False: random weights, alike everywhere; to try shapes, speed and memory without a file
    image_size: int = 128  # pixels, square; SAM's own is 1024
    num_classes: int = 1  # foreground classes
    exclusive: bool = False  # True: classes exclude each other (softmax); False: one sigmoid each
    lora_rank: int = 4  # our choice: Conv-LoRA takes 3, SAMed 4
    lora_alpha: float = 4.0  # = rank, so the adapter's scale is 1
    lora_on: Target = "qkv"  # in a block: its fused qkv, as Conv-LoRA; or all linear layers (projection, MLP too)
    adapter_start: Start = "zero"  # FedMSA's adapters: zero begins at the pretrained model; random as released
    lora_last: int | None = None  # adapters in the last k attention blocks; None: in all
    decoder: DecoderMode = "full"  # what of SAM's decoder is trained: all, tokens and last norms, or the head alone
    experts: int = 8  # M; Conv-LoRA's number, ratios 1..M; 0: none, a site's own are LoRA and decoder alone
    experts_in: Literal["qkv", "mlp"] = "qkv"  # whose LoRA has them: as Conv-LoRA, or the MLP's first layer; our switch
    top_k: int = 2  # K; the paper's figure draws at least two experts selected
    gate_multiplied: bool = True  # False is Conv-LoRA's release: the gate then learns from balance alone
    gate_noise: bool = True  # noisy top-k in training, after Shazeer et al. 2017
    route: Literal["image", "window"] = "image"  # our choice: one routing per image, windows stitched
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # our choice: bicubic costs more on a CPU


@dataclass(frozen=True)
class TrainConfig:
    """How a site trains in one round."""

    epochs: int = 1  # FedFMS: one local epoch a round
    max_steps: int | None = None  # cap on steps a round, None: whole epochs
    batch_size: int = 4  # FedFMS
    lr: float = 1e-4  # FedFMS, Conv-LoRA
    lr_private: float | None = None  # experts and personal copies; None: lr
    lr_decoder: float | None = None  # SAM's mask decoder, in whichever part; None: as the part's others
    weight_decay: float = 1e-4  # Conv-LoRA
    schedule: Literal["constant", "cosine"] = "constant"  # over all rounds of the job
    warmup: int = 0  # steps over which an optimiser's rate rises at the start of each round; half a round's at most
    loss: Literal["bce", "ce"] = "bce"  # bce for sigmoid heads, ce for exclusive classes
    pos_weight: float = 2.0  # FedFMS
    dice_weight: float = 1.0  # our choice: small lesions; 0 gives the paper's plain cross-entropy
    distill: Direction = "mutual"  # our choice: the figure's arrows are symmetric
    distill_weight: float = 0.1  # DSFedMed: 0.1 beside 0.9 on the supervised terms
    temperature: float = 1.0  # DSFedMed
    recopy: float = 1.0  # how far R3's personal A, B and decoder go back to the server's each round; our switch
    recopy_if: Literal["better", "always"] = "better"  # only where the server's model validates higher; our choice
    recopy_margin: float = 0.0  # in Dice: how much higher it must validate for that; our switch
    balance_weight: float = 0.01  # Conv-LoRA
    prox_weight: float = 0.01  # mu of FedProx, lambda of Ditto; both papers tune it
    orthogonal_weight: float = 0.1  # of IAT's shift-orthogonal regulariser; our choice: its value is not known to us
    precision: Precision = "auto"  # auto: bf16 where the hardware has it
    record: bool = False  # on a GPU: record a round's step as a CUDA graph and replay it; off until it is measured
    augment: bool = True  # flips, small affine, intensity
    flips: Flips = (
        "both"  # horizontal mirrors left and right, vertical top and bottom; none where a side means something
    )
    views: int | None = None  # augmented views of an image that take turns; None: a fresh one each epoch
    cache: Literal["none", "memory", "disk"] = "none"  # keep what leaves the frozen front, per image and view
    cache_gb: float = 2.0  # at most; what was not used for longest goes first


@dataclass(frozen=True)
class WireConfig:
    """In which number format the shared part travels; integers in blocks of 64 with a scale each."""

    up: Number = "fp32"  # a site's update; what rounding takes is kept at the site and added to the next
    down: Literal["fp32", "bf16", "int8"] = "fp32"  # the server's model; int4 is too coarse for weights


@dataclass(frozen=True)
class DataConfig:
    """What the job expects of a site's data; where it lies is the site's own affair."""

    source: Literal["site", "synthetic"] = "site"
    scale: Scale = "uint8"  # to 0..1 by /255, or by the image's 0.5 and 99.5 percentiles
    plane: Plane = "axial"  # how a volume is cut into slices, at every site and in predict; stored: along its last axis
    classes: list[str] = field(default_factory=list)  # the classes' names, from class 1 on; empty: they have none
    codes: dict[str, str] = field(default_factory=dict)  # class name: its code for DICOM-SEG, "SCT:10200004:Liver"
    ignore: int | None = None  # the mask value of pixels that nobody labelled, such as 255; None: all are labelled
    pool: bool = False  # True: use every site's rows of the datalist (the pooled baseline)
    limit: dict[str, int] = field(default_factory=dict)  # site: so many training rows at most, drawn by the seed
    unannotated: dict[str, list[int]] = field(default_factory=dict)  # site: classes its masks leave out, from 1
    train: int = 48  # synthetic only: images per split
    val: int = 8
    test: int = 16

    @property
    def counts(self) -> dict[str, int]:
        """Images of a synthetic site by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Config:
    """Everything a job says about learning; FLARE's own files say how it is carried."""

    study: str = "pfedsam"  # names the site store's entry and the server's checkpoints
    method: str = "pfedsam"
    reading: Reading = "R3"  # which reading of the paper's "local": docs/method.md
    seed: int = 0
    begin_private: str = ""  # the study's run whose private part each site begins with, or "latest"; empty: as drawn
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    data: DataConfig = field(default_factory=DataConfig)
    every: dict[str, int] = field(default_factory=dict)  # site: trains in each n-th round alone; 0: never

    def check_sites(self, sites: Collection[str], rounds: int) -> None:
        """Hold the settings of single sites against the sites that there are.

        Raises:
            UserFault: a setting names another site, or nobody would train in a round.
        """
        named: dict[str, Collection[str]] = {
            "every": self.every,
            "data.limit": self.data.limit,
            "data.unannotated": self.data.unannotated,
        }
        for where, of_sites in named.items():
            if unknown := sorted(set(of_sites) - set(sites)):
                raise UserFault(
                    expected=f"sites in {where} among {', '.join(sorted(sites))}",
                    came=", ".join(unknown),
                    do="correct the spelling",
                )
        idle = [r for r in range(rounds) if not any(self.trains(site, r) for site in sites)]
        if idle:
            raise UserFault(
                expected="a site that trains in each round", came=f"none in round {idle[0]}", do="correct every"
            )

    def __hash__(self) -> int:
        return hash(self.digest())

    def trains(self, site: str, round_: int) -> bool:
        """Whether a site trains in a round, counted from 0."""
        every = self.every.get(site, 1)
        return every > 0 and round_ % every == 0

    @property
    def class_names(self) -> list[str]:
        """A name for each class, from class 1 on: the job's, else its number."""
        return self.data.classes or [f"class {i + 1}" for i in range(self.model.num_classes)]

    def unlike(self, other: "Config") -> dict[str, Any]:
        """The other's values of the settings in which it differs, by dotted name."""
        mine, theirs = _dotted(self), _dotted(other)
        return {name: value for name, value in theirs.items() if value != mine[name]}

    def digest(self) -> str:
        """sha256 of the settings that sites and server must agree on (all of them)."""
        return text_digest(self.text())

    def text(self) -> str:
        """All settings as one line of JSON, in the form in which they are digested."""
        return json.dumps(to_dict(self), sort_keys=True)


def text_digest(text: str) -> str:
    """The digest of settings as another version of this software wrote them: its defaults may have been others."""
    return hashlib.sha256(text.encode()).hexdigest()


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as plain JSON values."""
    return dataclasses.asdict(config)


def _dotted(part: Any, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(part).items():
        found |= _dotted(value, f"{above}{name}.") if dataclasses.is_dataclass(value) else {above + name: value}
    return found


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration that `values` describes, defaults filled in.

    Raises:
        UserFault: on an unknown key, a wrong type or an impossible combination.
    """
    config: Config = _build(Config, values, "config")
    _check(config)
    return config


def load(path: str | Path) -> Config:
    """The configuration in the JSON file at `path`."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserFault(expected=f"a JSON file at {path}", came=str(error), do="correct the file") from None
    return from_dict(values)


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserFault(expected=f"an object at {where}", came=repr(values), do="write {...} there")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserFault(
            expected=f"keys of {where} among {', '.join(hints)}", came=", ".join(unknown), do="correct the spelling"
        )
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if not _fits(hint, value):
        raise UserFault(expected=f"{where} to be {_spell(hint)}", came=repr(value), do="correct the value")
    return value


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(option, value) for option in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(get_args(hint)[1], v) for v in value.values())
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(get_args(hint)[0], v) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _spell(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def _check(config: Config) -> None:
    m, t = config.model, config.train
    _positive("model", m, ("image_size", "num_classes", "lora_rank", "top_k"))
    _positive("train", t, ("epochs", "batch_size", "lr", "temperature", "pos_weight", "cache_gb"))
    _at_least(1, "model", m, ("lora_last",))
    _at_least(0, "model", m, ("experts",))
    _at_least(1, "train", t, ("views",))
    _at_least(0, "train", t, ("max_steps", "warmup", "lr_private", "lr_decoder", "weight_decay", "dice_weight"))
    _at_least(0, "train", t, ("balance_weight", "prox_weight", "orthogonal_weight", "recopy_margin"))
    if m.image_size % 16:
        raise UserFault(
            expected="model.image_size a multiple of 16", came=str(m.image_size), do="take 256, 512 or 1024"
        )
    if 0 < m.experts < m.top_k:
        raise UserFault(
            expected=f"model.top_k at most model.experts ({m.experts})", came=str(m.top_k), do="lower top_k"
        )
    if (m.experts_in, m.lora_on) == ("mlp", "qkv"):
        raise UserFault(
            expected="model.lora_on linear with model.experts_in mlp", came="qkv", do="change one of the two"
        )
    if (t.loss == "ce") != m.exclusive:
        raise UserFault(
            expected="train.loss ce with model.exclusive true, or bce with false",
            came=f"{t.loss} with {m.exclusive}",
            do="change one of the two",
        )
    if not 0 <= t.distill_weight < 1:
        raise UserFault(expected="train.distill_weight in [0, 1)", came=str(t.distill_weight), do="0.1 is the default")
    if not 0 <= t.recopy <= 1:
        raise UserFault(expected="train.recopy in [0, 1]", came=str(t.recopy), do="1 copies all, 0 nothing")
    if t.recopy_margin and t.recopy_if == "always":
        raise UserFault(
            expected="train.recopy_margin 0 with train.recopy_if always, which asks nothing",
            came=str(t.recopy_margin),
            do="set train.recopy_if better, or leave the margin out",
        )
    if t.cache != "none" and t.augment and t.views is None:
        raise UserFault(
            expected="train.views with train.cache, so that views come again",
            came="a fresh view each epoch",
            do="set train.views, e.g. 8, or train.augment false",
        )
    _check_classes(config)
    _check_sites(config)
    one_name(config.study, "study")
    if config.begin_private:
        one_name(config.begin_private, "run")


def _check_classes(config: Config) -> None:
    """The names of the classes, their codes, and the value that is none of them."""
    names, classes = config.data.classes, config.model.num_classes
    if names and (len(names) != classes or len(set(names)) < classes or not all(name.strip() for name in names)):
        raise UserFault(
            expected=f"data.classes empty, or {classes} different names for model.num_classes {classes}",
            came=f"{len(names)}: {', '.join(map(repr, names))}",
            do="name each class once, in the order of the numbers in the masks",
        )
    if strange := sorted(set(config.data.codes) - set(names)):
        raise UserFault(
            expected="data.codes of the names in data.classes", came=", ".join(strange), do="correct the name"
        )
    for name, code in config.data.codes.items():
        if not re.fullmatch(r"[^:]+:[^:]+:[^:]+", code):
            raise UserFault(
                expected=f"data.codes.{name} as SCHEME:VALUE:MEANING", came=code, do="write such as SCT:10200004:Liver"
            )
    if config.data.ignore is not None and not classes < config.data.ignore <= 255:
        raise UserFault(
            expected=f"data.ignore above model.num_classes ({classes}), 255 at most",
            came=str(config.data.ignore),
            do="take 255, which no class has",
        )


def _check_sites(config: Config) -> None:
    """What single sites do otherwise."""
    m = config.model
    for site, classes in config.data.unannotated.items():
        known = set(range(1, m.num_classes + 1))
        if m.exclusive or not set(classes) < known:
            raise UserFault(
                expected=f"data.unannotated some of the classes {sorted(known)}, with model.exclusive false",
                came=f"{classes} for {site}" + (" with true" if m.exclusive else ""),
                do="name classes that the site's masks leave out; classes that exclude each other need whole masks",
            )
    for where, values, least in (("data.limit", config.data.limit, 1), ("every", config.every, 0)):
        for site, value in values.items():
            _least(least, f"{where}.{site}", value)


def one_name(text: str, what: str) -> str:
    """`text`, where it names one file or folder and leads nowhere else: it may come from a job or a message.

    Raises:
        UserFault: it is no such name; the message says of what.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", text):
        raise UserFault(
            expected=f"a {what}'s name of letters, digits, . - and _, at most 100, not beginning with .",
            came=repr(text),
            do="rename it",
        )
    return text


def whole(text: str, what: str) -> int:
    """A whole number of 1 or more out of a text, as an environment's variable has it.

    Raises:
        UserFault: it is none; the message says of what.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserFault(
            expected=f"a whole number of {what}, 1 or more", came=repr(text), do="correct it or leave it out"
        )
    return int(text)


def _at_least(least: int, where: str, part: Any, names: tuple[str, ...]) -> None:
    """Null passes where the setting may be null."""
    for name in names:
        _least(least, f"{where}.{name}", getattr(part, name))


def _least(least: int, name: str, value: float | None) -> None:
    if value is not None and not value >= least:
        raise UserFault(expected=f"{name} of {least} or more", came=str(value), do="correct the value")


def _positive(where: str, part: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not getattr(part, name) > 0:
            raise UserFault(expected=f"{where}.{name} > 0", came=str(getattr(part, name)), do="raise it")
