"""Which settings go together: what the type and the bounds of a single one cannot say."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pfedsam import methods
from pfedsam.config import Config, ModelConfig, ServerConfig
from pfedsam.data.classes import safe_flips, sided
from pfedsam.errors import UserFault
from pfedsam.exchange.aggregate import chosen
from pfedsam.exchange.robust import OUTVOTE, RULES
from pfedsam.masked import check_masked
from pfedsam.methods.base import all_of_it, as_it_is, no_extras
from pfedsam.names import one_name

OWN_RANK = "model.experts_rank of 1 or more with model.expert head, whose experts have low-rank parts of their own"
ONE = "change one of the two"
FULL = "set model.decoder to full"
RESERVED = ("budget", "prepared", "scratch")  # what a site store holds beside its studies (`BUDGET`, `Places`)


def check_together(config: Config) -> None:
    """Check what the type and bounds of a single setting cannot say.

    Raises:
        UserFault: two settings exclude each other, or a name leads elsewhere.
    """
    m, t, method = config.model, config.train, methods.get(config.method)
    for broken, expected, came, do in (
        (m.image_size % 16, "model.image_size a multiple of 16", str(m.image_size), "use 256, 512 or 1024"),
        (0 < m.experts < m.top_k, f"model.top_k at most model.experts ({m.experts})", str(m.top_k), "lower top_k"),
        (m.expert == "head" and m.experts > 0 == m.experts_rank, OWN_RANK, "0", "set it, e.g. to 4, or expert conv"),
        (m.decoder == "lora" and not method.decoder_lora, f"model.decoder full with {config.method}", "lora", FULL),
        (m.experts_in == "mlp" and m.lora_on == "qkv", "model.lora_on linear with model.experts_in mlp", "qkv", ONE),
    ):
        if broken:
            raise UserFault(expected=expected, came=came, do=do)
    if (t.loss == "ce") != m.exclusive:
        raise UserFault(
            expected="train.loss ce with model.exclusive true, or bce with false",
            came=f"{t.loss} with {m.exclusive}",
            do=ONE,
        )
    if t.cache != "none" and t.augment and t.views is None:
        raise UserFault(
            expected="train.views with train.cache, so that views repeat",
            came="a new view in each epoch",
            do="set train.views, e.g. 8, or train.augment false",
        )
    if t.cache != "none" and method.augment is not as_it_is:
        raise UserFault(
            expected=f"train.cache none with {config.method}, which needs the images themselves in each round",
            came=t.cache,
            do="leave train.cache out",
        )
    chosen(method.rule, config)
    _check_parts(config)
    check_masked(config)
    _check_privacy(config)
    _check_weights(config)
    _check_classes(config)
    _check_unannotated(config)
    one_name(config.study, "study")
    if config.study in RESERVED:
        do = f"rename it: a site store has folders named {', '.join(RESERVED)} beside its studies"
        raise UserFault(expected="a study with another name", came=config.study, do=do)
    if config.begin_private:
        one_name(config.begin_private, "run")


def _check_parts(config: Config) -> None:
    """Check that a rule that turns LoRA's directions goes with no method that sends some of them."""
    if methods.get(config.method).sends is not all_of_it and config.server.rule in RULES:
        raise UserFault(
            expected=f"server.rule clipped or mean with {config.method}, which sends only some of LoRA's directions",
            came=config.server.rule,
            do="choose one of these two",
        )


def check_heard(config: Config) -> None:
    """Check that no setting is ignored because the one that turns it on is missing.

    Raises:
        UserFault: one is.
    """
    for setting, switch, now, do in _unheard(config):
        raise UserFault(
            expected=f"{switch} beside the job's {setting}",
            came=f"{now}, which ignores it",
            do=f"{do}, or leave {setting} out",
        )


Unheard = Iterator[tuple[str, str, str, str]]  # a setting, what would turn it on, what is there instead, what to do


def _unheard(config: Config) -> Unheard:
    """What is ignored."""
    yield from _unheard_by_server(config)
    yield from _unheard_in_training(config)
    yield from _unheard_by_method(config)
    model = config.model
    if config.method in ("pfedsam", "newcomer") and model.experts_share < 1 and not model.experts_rank:
        yield "model.experts_share", "model.experts_rank of 1 or more", "model.experts_rank 0", "set it, e.g. to 8"
    if model.interpolation != ModelConfig().interpolation and model.expert != "conv":
        yield "model.interpolation", "model.expert conv", f"model.expert {model.expert}", "set model.expert to conv"
    if config.data.pool and config.data.joined:
        yield "data.joined", "data.pool false", "data.pool true", "set data.pool to false"


def _unheard_by_server(config: Config) -> Unheard:
    server, usual = config.server, ServerConfig()
    if config.privacy.unit == "none" and (names := _changed(config.privacy)):
        hidden = " and ".join(f"privacy.{name}" for name in names)
        yield hidden, "privacy.unit patient or site", "privacy.unit none", "set privacy.unit to patient or site"
    if server.secure == "none" and server.norm != usual.norm:
        yield "server.norm", "server.secure masks", "server.secure none", "set server.secure to masks"
    if server.rule not in OUTVOTE and server.hostile > usual.hostile:
        *some, last = OUTVOTE
        votes = f"{', '.join(some)} or {last}"
        yield "server.hostile", f"server.rule {votes}", f"server.rule {server.rule}", "set one of these rules"


def _unheard_in_training(config: Config) -> Unheard:
    train, changed = config.train, _changed(config.train)
    if train.loss == "ce" and "pos_weight" in changed:
        yield "train.pos_weight", "train.loss bce", "train.loss ce", "choose bce, where classes may overlap"
    for name in ("views", "flips"):
        if name in changed and not train.augment:
            yield f"train.{name}", "train.augment true", "train.augment false", "set train.augment true"
    if "cache_gb" in changed and train.cache == "none":
        yield "train.cache_gb", "train.cache memory or disk", "train.cache none", "set train.cache"
    if train.record and config.privacy.unit == "patient":
        yield "train.record", "privacy.unit none or site", "privacy.unit patient", "set privacy.unit to none"


def _unheard_by_method(config: Config) -> Unheard:
    own, train = config.method_settings, config.train
    changed = _changed(own)
    teaching = [name for name in ("distill_weight", "temperature") if name in changed]
    if teaching and getattr(own, "distill", "") == "none":
        taught = " and ".join(f"method.{name}" for name in teaching)
        yield taught, "method.distill other than none", "method.distill none", "choose who teaches whom"
    reading = getattr(own, "reading", "") if config.method == "pfedsam" else ""  # a newcomer has what its study has
    if reading in ("R1", "R2") and (names := [name for name in changed if name.startswith("recopy")]):
        copying = " and ".join(f"method.{name}" for name in names)
        yield copying, "method.reading R3 or post", f"method.reading {reading}", "set one of these readings"
    if config.model.lora_last and (reading == "post" or not methods.get(config.method).encoder_lora):
        there = "method.reading post" if reading == "post" else f"method {config.method}"
        yield "model.lora_last", "a method with LoRA in the encoder's layers", there, "choose another one"
    if config.method == "gin" and not train.augment:
        yield "method gin", "train.augment true", "train.augment false", "set train.augment true"
    mixes = "mix" in changed and getattr(own, "mix", 0.0) > 0
    if config.method == "drflm" and mixes and train.batch_size == 1:
        yield "method.mix", "train.batch_size of 2 or more", "train.batch_size 1", "raise train.batch_size"


def _changed(settings: Any) -> list[str]:
    """The names of a dataclass's fields that have no longer their default."""
    usual = asdict(type(settings)())
    return [name for name, value in asdict(settings).items() if value != usual[name]]


def check_sides(config: Config) -> None:
    """Check that training does not mirror left and right where a class means one of the two.

    Raises:
        UserFault: it does.
    """
    t, named, safe = config.train, sided(config.data.classes), safe_flips(config.data.plane)
    if named and t.augment and t.flips not in safe:
        raise UserFault(
            expected=f"train.flips {' or '.join(safe)}, with the classes {', '.join(named)}",
            came=f"{t.flips}, which mirrors left and right in training",
            do=f"set train.flips to {safe[0]}",
        )


def _check_privacy(config: Config) -> None:
    """Check that nothing but noised sums leaves a site that hides its patients, or its data."""
    unit, method = config.privacy.unit, methods.get(config.method)
    if unit == "none":
        return
    if method.up is not no_extras or method.augment is not as_it_is or method.looks:
        raise UserFault(
            expected="a method that sends only its update, with privacy.unit patient or site",
            came=f"{config.method}, which also sends or uses values of the images without noise",
            do="choose another method, e.g. fedavg or pfedsam",
        )
    alone = unit != "site" or config.server.secure != "masks" or config.server.most_share != 1
    if config.privacy.sites > 1 and alone:
        raise UserFault(
            expected="privacy.unit site, server.secure masks and server.most_share 1 with privacy.sites above 1",
            came=f"{unit}, {config.server.secure} and {config.server.most_share:g}",
            do="set them. Only in a masked sum of equal weights does the noise of all sites hide each",
        )
    if unit == "site" and method.joins:
        raise UserFault(
            expected="a method whose sites send something, with privacy.unit site",
            came=f"{config.method}, whose updates are zero. Noise alone would replace the model",
            do="set privacy.unit to patient, or none",
        )
    if unit == "site" and not method.shares(config):
        raise UserFault(
            expected="a method whose sites send something, with privacy.unit site",
            came=f"{config.method}, which sends nothing of a model. The budget would be spent on nothing",
            do="set privacy.unit to patient, or none",
        )
    if unit == "patient" and method.couples:
        raise UserFault(
            expected="a method whose loss keeps nothing from one image to the next, with privacy.unit patient",
            came=config.method,
            do="choose another method, e.g. fedavg or pfedsam",
        )
    if unit == "patient" and config.model.experts:
        raise UserFault(
            expected="model.experts 0 with privacy.unit patient: the experts' gate keeps means of the images",
            came=str(config.model.experts),
            do="set model.experts 0. model.experts_rank can stay",
        )


def _check_weights(config: Config) -> None:
    """The weight file that a job names: it comes from a message, and must lead nowhere but into the weights folder."""
    named = config.model.weights
    if named is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", named.name):
        raise UserFault(
            expected="model.weights.name a file's name of letters, digits, . - and _, at most 128, without a folder",
            came=repr(named.name),
            do="rename the file; each site has it in its weights folder",
        )
    if not re.fullmatch("[0-9a-f]{64}", named.sha256):
        raise UserFault(
            expected=f"model.weights.sha256 of {named.name} as 64 digits of 0 to 9 and a to f",
            came=repr(named.sha256),
            do="write what sha256sum or pfedsam convert prints, in small letters: model.weights=NAME:SHA256",
        )
    if not config.model.pretrained:
        raise UserFault(
            expected="model.pretrained true with model.weights", came="false: random weights need no file", do=ONE
        )


def _check_classes(config: Config) -> None:
    """Check the names of the classes, their codes, and the value of unlabelled pixels."""
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
                expected=f"data.codes.{name} as SCHEME:VALUE:MEANING", came=code, do="write e.g. SCT:10200004:Liver"
            )
    if config.data.ignore is not None and config.data.ignore <= classes:
        raise UserFault(
            expected=f"data.ignore above model.num_classes ({classes}), and at most 255",
            came=str(config.data.ignore),
            do="use 255, which no class has",
        )


def _check_unannotated(config: Config) -> None:
    """Check the classes that the masks of single sites leave out."""
    m = config.model
    for site, classes in config.data.unannotated.items():
        known = set(range(1, m.num_classes + 1))
        if m.exclusive or not set(classes) < known:
            raise UserFault(
                expected=f"in data.unannotated some of the classes {sorted(known)}, with model.exclusive false",
                came=f"{classes} for {site}" + (" with true" if m.exclusive else ""),
                do="name classes that the site's masks leave out. Classes that exclude each other need whole masks",
            )
