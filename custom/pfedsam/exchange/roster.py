"""The sites of one masked sum and their public keys, and what the messages about them look like.

A sum begins with an attempt, a text that names run and round. Each site says fresh public keys and its number of
samples, signed with its certificate. The sites of an attempt with all that are its roster. Every secret of an attempt
is bound to the digest of its roster, so that nothing of one roster opens anything of another.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pfedsam.errors import UserFault
from pfedsam.exchange.bounded import MAJORITY, fair
from pfedsam.exchange.guard import judge_samples, names_fault, tensor_fault
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.exchange.server import Contribution
from pfedsam.exchange.shamir import SHARE
from pfedsam.tensors import Tensors, below, under

Step = Literal["keys", "shares", "open"]
STEPS: tuple[Step, ...] = ("keys", "shares", "open")  # the tasks beside "train", in their order around it
LEAST = MAJORITY  # sites that begin a sum: in a sum of two, each site knows the other's update
MOST = 1000  # sites of a sum
KEY = 32  # bytes of a public key
ROW = 2 * SHARE + 16  # bytes of two sealed shares
LONGEST = 16_384  # most bytes of a certificate or a signature


@dataclass(frozen=True)
class Keys:
    """What a site says before a sum.

    Attributes:
        agree: the X25519 key from which it and another site derive their common mask.
        seal: the X25519 key under which the other sites send it their shares.
        samples: the number of its training slices.
        signature, certificate: empty if the site has no startup kit.
    """

    agree: bytes
    seal: bytes
    samples: int
    signature: bytes = b""
    certificate: bytes = b""


Roster = Mapping[str, Keys]


def new_attempt(run: str, round_: int) -> str:
    """The name of a new attempt at a masked sum. No two are alike."""
    return f"{run}/{round_}/{uuid.uuid4().hex}"


def threshold(count: int) -> int:
    """The number of sites whose shares give a secret back: more than half.

    Each site gives out one of two secrets of another, never both. So a server that tells some sites that one is there
    and others that it is lost gets one of them at most.
    """
    return count // 2 + 1


def least_open(count: int, hide: int) -> int:
    """The fewest updates of a sum that one of `count` sites opens, so that `hide` sites at least are in it.

    A server may tell each site of other losses. It opens the masks of a lost one with the shares of `threshold` sites,
    so it can take as many out of the sum as all that it tells have room for.
    """
    least = max(threshold(count), hide)
    while count * (count - least) // threshold(count) > count - hide:
        least += 1
    return least


def weights(roster: Roster, most_share: float) -> dict[str, float]:
    """Each site's weight in the sum, as `bounded.fair` bounds it. They add up to 1."""
    known = {site: Contribution(keys.samples, dict) for site, keys in sorted(roster.items())}
    samples = {site: float(one.samples) for site, one in fair(known, most_share).items()}
    total = sum(samples.values())
    return {site: own / total for site, own in samples.items()}


def statement(attempt: str, site: str, keys: Keys) -> bytes:
    """The text that a site signs."""
    return json.dumps(["pfedsam keys", attempt, site, keys.agree.hex(), keys.seal.hex(), keys.samples]).encode()


def roster_digest(attempt: str, roster: Roster) -> bytes:
    """The digest to which all of an attempt is bound: its sites, their keys and samples."""
    lines = [statement(attempt, site, keys) for site, keys in sorted(roster.items())]
    return hashlib.sha256(b"\n".join(lines)).digest()


def keys_tensors(keys: Keys) -> Tensors:
    """A site's keys as a message."""
    texts = {name: getattr(keys, name) for name in ("agree", "seal", "signature", "certificate")}
    return {name: to_tensor(text) for name, text in texts.items()} | {"samples": torch.tensor([keys.samples])}


def roster_tensors(roster: Roster) -> Tensors:
    """A roster as a message: each site's keys behind its name."""
    found: Tensors = {}
    for site, keys in roster.items():
        found |= under(f"{site}/", keys_tensors(keys))
    return found


def keys_of(tensors: Tensors) -> Keys:
    """The keys in a message that `step_fault` has accepted."""
    texts = {name: to_bytes(tensors[name]) for name in ("agree", "seal", "signature", "certificate")}
    return Keys(samples=int(tensors["samples"][0]), **texts)


def roster_of(tensors: Tensors) -> dict[str, Keys]:
    """The roster in a message that `step_fault` has accepted."""
    return {site: keys_of(below(f"{site}/", tensors)) for site in _sites(tensors)}


def step_fault(step: object, tensors: dict[str, Any], *, up: bool) -> str | None:
    """Why a message of one of the steps around a masked sum is none, or None if it is.

    Args:
        step: what the message says that it is.
        up: whether it goes from a site to the server.
    """
    if step not in STEPS:
        return f"expected one of the steps {', '.join(STEPS)}, came {str(step)[:40]!r}"
    schema = _schema(step, tensors, up=up)
    fault = names_fault(tensors, schema)
    for name in sorted(schema) if fault is None else ():
        fault = fault or tensor_fault(name, tensors[name], schema[name])
    for name in sorted(schema) if fault is None else ():
        if name.split("/")[-1] == "samples":
            fault = fault or getattr(judge_samples(int(tensors[name][0])), "reason", None)
    return fault


def sent_names() -> list[list[str]]:
    """The tensors that a site sends in the steps of a masked sum, beside its masked update."""
    steps: tuple[Step, ...] = "keys", "shares", "open"
    return [sorted(_schema(step, {}, up=True)) for step in steps]


def _schema(step: Step, tensors: dict[str, Any], *, up: bool) -> Schema:
    """The tensors of a message. Where their number follows from that of the sites, the message's own says it."""
    if step == "keys":
        return _keys_schema(tensors) if up else {}
    if step == "shares" and not up:
        found: Schema = {}
        for site in _sites(tensors):
            found |= under(f"{site}/", _keys_schema(below(f"{site}/", tensors)))
        return found
    if step == "shares":
        return {"sealed": _rows(tensors.get("sealed"), ROW), "commitment": _bytes(KEY)}
    if up:
        return {"opened": _rows(tensors.get("opened"), SHARE)}
    count = _length(tensors.get("sealed"), MOST)
    return {"sealed": Spec((count, count, ROW), torch.uint8)}


def _keys_schema(tensors: Mapping[str, Any]) -> Schema:
    free = {name: _bytes(_length(tensors.get(name), LONGEST)) for name in ("signature", "certificate")}
    return {"agree": _bytes(KEY), "seal": _bytes(KEY), "samples": Spec((1,), torch.int64), **free}


def _sites(tensors: Mapping[str, Any]) -> list[str]:
    return sorted({str(name).split("/")[0] for name in tensors})[:MOST]


def _rows(tensor: Any, size: int) -> Spec:
    return Spec((_length(tensor, MOST), size), torch.uint8)


def _bytes(size: int) -> Spec:
    return Spec((size,), torch.uint8)


def _length(tensor: Any, most: int) -> int:
    return min(len(tensor), most) if isinstance(tensor, Tensor) and tensor.dim() else 0


def to_tensor(text: bytes) -> Tensor:
    """Bytes as a tensor."""
    return torch.tensor(list(text), dtype=torch.uint8)


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes in a tensor that `to_tensor` made."""
    return bytes(tensor.tolist())


def require_enough(count: int, *, least: int = LEAST, what: str = "sites for a masked sum") -> None:
    """Raise UserFault if there are fewer."""
    if count < least:
        raise UserFault(
            expected=f"at least {least} {what}",
            came=str(count),
            do="wait until more sites are connected, or use server.secure none",
        )
