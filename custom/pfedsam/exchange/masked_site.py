"""A site's half of a masked sum: fresh keys, sealed shares of its secrets, the masked update, and opened shares.

Two masks hide an update: one with each other site, with opposite signs, and one of its own. Each site gives all sites
shares of both secrets. After the round the server asks for one of the two: of a site that is there, its own mask; of a
lost one, the key of its masks with the others. A site never gives out both.

A lying server cannot see one update, if no site helps it. It would need the own mask of a site and the keys of all
others on the roster, from more than half of the sites each. But a site says of fewer than half that they are lost, and
never of itself.
"""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pfedsam import log
from pfedsam.config import ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.masks import bounded, fixed, mix, pack_words
from pfedsam.exchange.roster import (
    KEY,
    LEAST,
    Keys,
    Roster,
    keys_tensors,
    least_open,
    require_enough,
    roster_digest,
    roster_of,
    statement,
    threshold,
    to_bytes,
    to_tensor,
    weights,
)
from pfedsam.exchange.schema import schema_of
from pfedsam.exchange.shamir import SHARE, split
from pfedsam.files import read_json, write_json
from pfedsam.names import site_names
from pfedsam.tensors import Tensors

AGAIN = "nothing: the server repeats the round with fresh keys"


@dataclass(frozen=True)
class Identity:
    """How a site shows that its keys are its own, and checks those of others.

    Attributes:
        sign: gives the signature of a text, and the site's certificate.
        fault: why a site did not sign a text, from its name, the text, the signature and the certificate. None: it did.
    """

    sign: Callable[[bytes], tuple[bytes, bytes]]
    fault: Callable[[str, bytes, bytes, bytes], str | None]


UNSIGNED = Identity(lambda _: (b"", b""), lambda *_: None)  # where there is no kit: the server is believed


@dataclass(frozen=True)
class Secret:
    """What a site must keep to itself in an attempt.

    Attributes:
        agree, seal: its private X25519 keys.
        own: the seed of its own mask.
        stage: what it has done last.
        roster: the sites of the sum with their keys, once it has them.
    """

    attempt: str
    agree: bytes
    seal: bytes
    own: bytes
    stage: str = "keys"
    roster: Roster = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """That of the attempt's roster."""
        return roster_digest(self.attempt, self.roster)


class MaskedSite:
    """One site in masked sums. What must outlive a task is in its file, and each step is done once.

    Args:
        site: its name.
        server: the job's settings of the server, which bound an update's length and a site's weight.
        path: the file. It holds private keys until the sum is opened.
        identity: with which it signs its keys and checks the others'.
        least: the fewest updates of a sum that it opens: so many sites' noise may hide each (`privacy.sites`).
    """

    def __init__(
        self, site: str, server: ServerConfig, *, path: Path, identity: Identity = UNSIGNED, least: int = 1
    ) -> None:
        self.site, self._server, self._path, self._identity, self._least = site, server, path, identity, least

    def keys(self, attempt: str, samples: int) -> Tensors:
        """Begin an attempt: fresh secrets, and the message with the public keys."""
        secret = Secret(attempt, os.urandom(KEY), os.urandom(KEY), os.urandom(KEY))
        mine = Keys(public(secret.agree), public(secret.seal), samples)
        signature, certificate = self._identity.sign(statement(attempt, self.site, mine))
        self._write(replace(secret, roster={self.site: mine}))
        return keys_tensors(replace(mine, signature=signature, certificate=certificate))

    def deal(self, attempt: str, tensors: Tensors) -> Tensors:
        """The message with the shares of both secrets, sealed for each site of the roster.

        Raises:
            UserFault: the roster has too few sites, other keys of this site, or keys that a site did not sign.
        """
        secret = self._at("keys", attempt)
        roster = roster_of(tensors)
        self._check(secret, roster)
        bare = {site: replace(keys, signature=b"", certificate=b"") for site, keys in roster.items()}
        secret = replace(secret, stage="dealt", roster=bare)
        self._write(secret)
        return {"sealed": _sealed(secret, self.site), "commitment": to_tensor(sha256(secret.own).digest())}

    def ready(self, attempt: str) -> None:
        """Raise UserFault if this site cannot mask an update of the attempt."""
        self._at("dealt", attempt)

    def mask(self, attempt: str, update: Tensors) -> Tensors:
        """The masked update, as words of 32 bits by the update's names. One longer than `server.norm` is shortened."""
        secret, norm = self._at("dealt", attempt), self._server.norm
        update, length = bounded(update, norm)
        if length > norm:
            log.warning("[%s] its update of length %.4g was shortened to %g (server.norm)", self.site, length, norm)
        share = weights(secret.roster, self._server.most_share)[self.site]
        others = sorted(secret.roster.keys() - {self.site})
        seeds = {site: pair_seed(secret.agree, secret.roster[site].agree, secret.digest) for site in others}
        add = [secret.own, *(seed for site, seed in seeds.items() if self.site < site)]
        take = [seed for site, seed in seeds.items() if self.site > site]
        words = mix(fixed(update, share, norm=norm), add=add, take=take)
        self._write(replace(secret, stage="masked"))
        return pack_words(words, schema_of(update))

    def open(self, attempt: str, tensors: Tensors, there: Collection[str]) -> Tensors:
        """The message with one share of each site: of its own mask if its update came, else of its masks with others.

        In the place of a share that is not for this site and roster are zeros. The server then sees whose it was.

        Args:
            tensors: the shares that the sites sealed.
            there: the sites whose updates came.

        Raises:
            UserFault: too few came with a right share, or this site is said to be lost.
        """
        secret = self._at("masked", attempt)
        names, sealed, there = sorted(secret.roster), tensors["sealed"], set(there)  # a name counts once
        least = least_open(len(names), self._least)
        require_enough(len(there), least=least, what="updates in the sum")
        if not there <= set(names) or self.site not in there or len(sealed) != len(names):
            came = ", ".join(sorted(there))
            raise UserFault(expected=f"a sum with {self.site} of {', '.join(names)}", came=came, do=AGAIN)
        column = dict(zip(names, sealed[:, names.index(self.site)], strict=True))
        rows = {name: _unsealed(secret, self.site, name, to_bytes(row)) for name, row in column.items()}
        wrong = [name for name in names if rows[name] is None]
        if wrong:
            log.error("[%s] expected shares that %s sealed for it, came others", self.site, ", ".join(wrong))
        # a site without a right share may have another roster: then its update hides nobody's in this sum
        require_enough(len(there.difference(wrong)), least=least, what="updates in the sum, with right shares")
        self._write(replace(secret, stage="opened", agree=b"", seal=b"", own=b""))
        chosen = [_chosen(rows[name], there=name in there) for name in names]
        return {"opened": torch.stack([to_tensor(share) for share in chosen])}

    def _check(self, secret: Secret, roster: Roster) -> None:
        count = len(site_names(sorted(roster)))
        require_enough(count, least=max(LEAST, least_open(count, self._least)))  # else the sum would never be opened
        mine, known = roster.get(self.site), secret.roster[self.site]
        if mine is None or replace(mine, signature=b"", certificate=b"") != known:
            raise UserFault(expected=f"the keys that {self.site} has sent", came="others", do=AGAIN)
        for site in sorted(roster.keys() - {self.site}):
            keys = roster[site]
            text = statement(secret.attempt, site, keys)
            if fault := self._identity.fault(site, text, keys.signature, keys.certificate):
                do = "tell the federation's administrator: the server may have put keys of its own in their place"
                raise UserFault(expected=f"keys that {site} has signed", came=fault, do=do)
        if len({key for keys in roster.values() for key in (keys.agree, keys.seal)}) < 2 * len(roster):
            raise UserFault(expected="keys that no two sites have in common", came="the same key twice", do=AGAIN)

    def _at(self, stage: str, attempt: str) -> Secret:
        """The secret of an attempt at a stage. A step that was done, or another attempt's, is refused."""
        secret = _read(self._path) if self._path.exists() else None
        if secret is None or (secret.attempt, secret.stage) != (attempt, stage):
            came = f"attempt {secret.attempt} after {secret.stage}" if secret else "none"
            raise UserFault(expected=f"attempt {attempt[:80]} after {stage}", came=came, do=AGAIN)
        return secret

    def _write(self, secret: Secret) -> None:
        write_json(self._path, _plain(asdict(secret)))


def public(key: bytes) -> bytes:
    """The public key of a private X25519 key."""
    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def pair_seed(mine: bytes, theirs: bytes, digest: bytes) -> bytes:
    """The seed of the mask that two sites have in common: from a private and a public key, for one roster."""
    return _derive(mine, theirs, b"pfedsam mask" + digest)


def _derive(mine: bytes, theirs: bytes, info: bytes) -> bytes:
    try:
        common = X25519PrivateKey.from_private_bytes(mine).exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:  # a point of low order: its secret would be known to all
        raise UserFault(expected="public keys of X25519", came=theirs.hex(), do=AGAIN) from None
    return HKDF(algorithm=SHA256(), length=KEY, salt=None, info=info).derive(common)


def _sealed(secret: Secret, site: str) -> torch.Tensor:
    """For each site of the roster, in the order of names, a share of the own mask's seed and one of the private key."""
    names = sorted(secret.roster)
    count, least = len(names), threshold(len(names))
    secrets = [split(part, count, least=least, draw=os.urandom) for part in (secret.own, secret.agree)]
    rows = [own + agree for own, agree in zip(*secrets, strict=True)]
    boxes = [_box(secret, site, to, to) for to in names]
    return torch.stack([to_tensor(box.encrypt(bytes(12), row, None)) for box, row in zip(boxes, rows, strict=True)])


def _unsealed(secret: Secret, site: str, sender: str, row: bytes) -> bytes | None:
    """The two shares that a site sealed for this one. None if it did not, or for another roster."""
    try:
        return _box(secret, sender, site, sender).decrypt(bytes(12), row, None)
    except InvalidTag:
        return None


def _chosen(shares: bytes | None, *, there: bool) -> bytes:
    """The one of two shares that a site gives out, or zeros if it has none."""
    if shares is None:
        return bytes(SHARE)
    return shares[:SHARE] if there else shares[SHARE:]


def _box(secret: Secret, sender: str, to: str, other: str) -> ChaCha20Poly1305:
    """The cipher of one message from a site to a site. Each key seals one message, so its nonce may be zero."""
    info = b"pfedsam shares" + secret.digest + json.dumps([sender, to]).encode()
    return ChaCha20Poly1305(_derive(secret.seal, secret.roster[other].seal, info))


def _plain(value: Any) -> Any:
    """A value of dictionaries, with bytes as hexadecimal texts."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value.hex() if isinstance(value, bytes) else value


def _read(path: Path) -> Secret:
    values = read_json(path)
    hexed, known = bytes.fromhex, values["roster"].items()
    roster = {site: Keys(hexed(one["agree"]), hexed(one["seal"]), one["samples"]) for site, one in known}
    keys = {name: hexed(values[name]) for name in ("agree", "seal", "own")}
    return Secret(values["attempt"], stage=values["stage"], roster=roster, **keys)
