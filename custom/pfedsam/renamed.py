"""Settings that had another place or name in earlier versions. Old job files and records still use those names."""

from typing import Any

from pfedsam.errors import UserFault

Values = dict[str, Any]
EXPERTS = ("pfedsam", "newcomer")
# where and what every expert was, until that could be chosen
SHARED_BOTTLENECK = {"experts": 8, "experts_in": "qkv", "experts_rank": 0, "expert": "conv"}
BEFORE_BOUNDS = {"rule": "mean", "most_share": 1_000_000}  # what the server did until it could be chosen
MOVED: dict[str, dict[str, str]] = {  # old dotted name: by method, the name of its own setting
    "reading": dict.fromkeys(EXPERTS, "reading"),
    "train.distill": dict.fromkeys(EXPERTS, "distill"),
    "train.distill_weight": dict.fromkeys(EXPERTS, "distill_weight"),
    "train.temperature": dict.fromkeys(EXPERTS, "temperature"),
    "train.recopy": dict.fromkeys(EXPERTS, "recopy"),
    "train.recopy_if": dict.fromkeys(EXPERTS, "recopy_if"),
    "train.recopy_margin": dict.fromkeys(EXPERTS, "recopy_margin"),
    "train.prox_weight": {"fedprox": "mu", "ditto": "lam"},
    "train.orthogonal_weight": {"iat": "orthogonal_weight"},
    "model.adapter_start": {"fedmsa": "start"},
}


def in_new_places(given: Values, own: Values, method: str, *, recorded: bool) -> tuple[Values, Values]:
    """The settings and the method's own settings, all under today's names.

    Args:
        given: the settings without the method. Not changed.
        own: the method's own settings. Not changed.
        method: the method's name.
        recorded: whether an earlier version may have recorded other methods' settings too. Those are left out.

    Raises:
        UserFault: a setting belongs to another method, or is there under both names.
    """
    given, own = {key: dict(part) if isinstance(part, dict) else part for key, part in given.items()}, dict(own)
    if recorded and isinstance(model := given.get("model"), dict) and "gate_noise" in model:
        model["gate"] = "noisy" if model.pop("gate_noise") else "quiet"
        given["model"] = SHARED_BOTTLENECK | model
    if recorded:
        given.setdefault("server", BEFORE_BOUNDS)
    for old, homes in MOVED.items():
        *section, last = old.split(".")
        part = given.get(section[0]) if section else given
        if not isinstance(part, dict) or last not in part:
            continue
        value, new = part.pop(last), homes.get(method)
        if new is None:
            _leave_out(old, value, method, recorded=recorded)
        elif own.setdefault(new, value) != value:
            raise UserFault(expected=f"only method.{new}", came=f"{old} too, its older name", do=f"leave {old} out")
    return given, own


def _leave_out(old: str, value: object, method: str, *, recorded: bool) -> None:
    """Do nothing if the setting may be left out because the method never read it. Otherwise raise UserFault."""
    homes = MOVED[old]
    if recorded and (old, value) == ("reading", "post"):  # earlier versions put any method's LoRA after the encoder
        raise UserFault(
            expected=f"reading post with method {' or '.join(homes)}",
            came=f"method {method}",
            do="install the version of pfedsam that recorded these settings",
        )
    if not recorded:
        spelt = " or ".join(sorted({f"method.{name}" for name in homes.values()}))
        raise UserFault(
            expected=f"no {old} with method {method}: it is {spelt} of method {' or '.join(homes)}",
            came=repr(value),
            do=f"leave it out, or choose a method that has it and write {spelt}",
        )
