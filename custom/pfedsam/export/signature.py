"""A file's detached signature: who vouches for it, by the key and the certificate of a startup kit.

It is a JSON file beside the signed one. It has the signed statement as text, the signature, and the certificates of
the signer and of the project's root. Nothing in it is secret.
"""

import base64
import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pfedsam.certificates import (
    RENEW,
    Certificate,
    distrust,
    name_of,
    opened,
    organisation_of,
    read_certificate,
    root_of,
)
from pfedsam.errors import UserFault
from pfedsam.files import parsed, sha256, write_json
from pfedsam.layout import PARTY_CERTIFICATES, ROOT_CERTIFICATE

ENDING = ".sig"
KIND = "pfedsam.signature"
PURPOSE = b"pfedsam signature of a file, version 1\n"  # before what is signed: a kit's key also signs FLARE's messages
LONGEST = 100_000  # bytes of a signature's file; ours have under 5 000
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


@dataclass(frozen=True)
class Signed:
    """What a good signature proves: who signed, for which organisation, and when, as the signer's own clock said."""

    signer: str
    organisation: str
    when: str

    def __str__(self) -> str:
        place = f" of {self.organisation}" if self.organisation else ""
        return f"{self.signer}{place} signed this file, on {self.when} by its own clock"


def beside(file: Path) -> Path:
    """Where the signature of a file lies."""
    return file.with_name(file.name + ENDING)


@dataclass(frozen=True)
class Signer:
    """Who can sign: a party's certificate and key, and the project's root."""

    own: Certificate
    root: Certificate
    key: RSAPrivateKey = field(repr=False)


def signer_of(kit: Path, at: datetime.datetime) -> Signer:
    """The signer of a startup kit.

    Raises:
        UserFault: the kit lacks a part, its parts do not belong together, or a certificate in it has ended.
    """
    path = next((kit / name for name in PARTY_CERTIFICATES if (kit / name).is_file()), kit / PARTY_CERTIFICATES[0])
    own, root = read_certificate(path), root_of(kit / ROOT_CERTIFICATE)
    key = opened(path.with_suffix(".key"), lambda data: load_pem_private_key(data, None), "a key without a password")
    if not isinstance(key, RSAPrivateKey) or key.public_key() != own.public_key():
        came = "another key"
        raise UserFault(expected=f"the RSA key of {path.name} in {kit}", came=came, do="name the kit as you got it")
    if fault := distrust(own, root, at):
        raise UserFault(expected=f"a certificate in {kit} that others can check", came=fault, do=RENEW)
    return Signer(own, root, key)


def sign(file: Path, signer: Signer, at: datetime.datetime) -> Path:
    """The path of the signature, which it writes beside `file`."""
    when = f"{at:%Y-%m-%d %H:%M} UTC"
    said = {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file), "signed": when}
    statement = json.dumps(said, sort_keys=True)
    mark = signer.key.sign(PURPOSE + statement.encode(), PSS, hashes.SHA256())
    chain = [one.public_bytes(Encoding.PEM).decode() for one in (signer.own, signer.root)]
    line = {"format": KIND, "version": 1, "statement": statement, "certificates": chain}
    write_json(beside(file), {**line, "signature": base64.b64encode(mark).decode()})
    return beside(file)


def check(file: Path, root: Certificate, at: datetime.datetime, *, signer: str = "") -> Signed:
    """Who signed a file. The signature, the certificate, its issuer, both terms, the name and the content are checked.

    Args:
        root: the certificate that the caller trusts.
        signer: the name that the signer must have. Empty: any party of the project.

    Raises:
        UserFault: the file has no signature, or one that proves nothing. It says why.
    """
    if not file.is_file():
        raise UserFault(expected=f"a file at {file}", came="none", do="name a file that has a signature beside it")
    parts = _read(beside(file))
    fault = distrust(parts.own, root, at) or _unsigned(parts) or _differs(file, parts.said)
    if not fault and signer and name_of(parts.own) != signer:
        fault = f"one of {name_of(parts.own)}"
    if fault:
        wanted = f"a signature of {file.name} by {signer or 'a party of the project'}"
        raise UserFault(expected=wanted, came=fault, do="do not use the file; ask its owner for a new one")
    return Signed(name_of(parts.own), organisation_of(parts.own), str(parts.said.get("signed", "")))


@dataclass(frozen=True)
class _Parts:
    own: Certificate
    statement: str
    said: dict[str, Any]
    mark: bytes


def _read(path: Path) -> _Parts:
    """The parts of a signature's file. Nothing of them is proven."""
    if not path.is_file():
        do = "ask the file's owner for it: pfedsam export --sign KIT writes it"
        raise UserFault(expected=f"a signature at {path}", came="none", do=do)
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError
        found = parsed(path.read_bytes())
        own = x509.load_pem_x509_certificate(found["certificates"][0].encode())
        said = parsed(found["statement"])
        mark = base64.b64decode(found["signature"], validate=True)
        if found["format"] != KIND or found["version"] != 1 or not isinstance(said, dict):
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        do = "ask the file's owner for it again"
        raise UserFault(expected=f"a signature of pfedsam at {path}", came="something else", do=do) from None
    return _Parts(own, found["statement"], said, mark)


def _unsigned(parts: _Parts) -> str:
    """Why the key of the certificate did not sign the statement, or empty if it did."""
    key = parts.own.public_key()
    try:
        if isinstance(key, RSAPublicKey):
            key.verify(parts.mark, PURPOSE + parts.statement.encode(), PSS, hashes.SHA256())
            return ""
    except InvalidSignature:
        pass
    return f"a signature that the key of {name_of(parts.own)} did not make"


def _differs(file: Path, said: dict[str, Any]) -> str:
    """Why the file is not the signed one, or empty if it is. Its name may have changed."""
    fits = said.get("sha256") == sha256(file)
    return "" if fits else f"a signature of other content: {file.name} was changed or replaced after it was signed"
