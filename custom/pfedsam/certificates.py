"""Certificates of startup kits: whose they are, who issued them, and how long they still hold."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from pfedsam.errors import UserFault
from pfedsam.layout import PARTY_CERTIFICATES, ROOT_CERTIFICATE

Certificate = x509.Certificate
T = TypeVar("T")
SOON = 60  # days before its end from which on a certificate is warned of; our choice: renewing needs all parties
RENEW = "ask the project's administrator to renew it, as docs/operations.md says under Certificates"


@dataclass(frozen=True)
class Term:
    """How long a certificate of a kit still holds.

    Attributes:
        name: whose it is.
        until: its last moment, in UTC.
        left: whole days until then; below 0: it has ended.
    """

    name: str
    until: datetime.datetime
    left: int

    @property
    def short(self) -> bool:
        """Whether its owner has to act."""
        return self.left < SOON

    def __str__(self) -> str:
        if self.left < 0:
            return f"the certificate of {self.name} ended on {self.until:%Y-%m-%d}"
        return f"the certificate of {self.name} ends on {self.until:%Y-%m-%d}, in {self.left} days"


def now() -> datetime.datetime:
    """The present, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def terms(kit: Path, at: datetime.datetime) -> list[Term]:
    """The terms of a kit's own certificate and of the project's root. Empty if the folder is no kit.

    Raises:
        UserFault: a certificate there cannot be read.
    """
    found = [kit / name for name in (*PARTY_CERTIFICATES, ROOT_CERTIFICATE) if (kit / name).is_file()]
    return [_term(read_certificate(path), at) for path in found]


def warnings(kit: Path, at: datetime.datetime) -> list[str]:
    """A sentence for each certificate of a kit that ends soon or has ended, with what to do."""
    try:
        return [f"{term}. To mend it: {RENEW}" for term in terms(kit, at) if term.short]
    except UserFault as fault:
        return [str(fault)]


def read_certificate(path: Path) -> Certificate:
    """The first certificate of a PEM file.

    Raises:
        UserFault: there is none.
    """
    return opened(path, x509.load_pem_x509_certificate, "a certificate (PEM)")


def opened(path: Path, load: Callable[[bytes], T], what: str) -> T:
    """What `load` makes of a file's bytes.

    Raises:
        UserFault: the file cannot be read, or is something else.
    """
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:  # a key with a password is a TypeError
        came = getattr(error, "strerror", "") or "something else"
        raise UserFault(expected=f"{what} at {path}", came=came, do="name a startup kit or its rootCA.pem") from None


def root_of(place: Path) -> Certificate:
    """The project's root certificate, from a startup kit or from its file.

    Raises:
        UserFault: there is none, or it is a party's certificate.
    """
    path = place / ROOT_CERTIFICATE if place.is_dir() else place
    root = read_certificate(path)
    if not _issues(root):
        came = f"the certificate of {name_of(root)}, which may issue none"
        raise UserFault(expected=f"a root certificate at {path}", came=came, do="name startup/rootCA.pem of a kit")
    return root


def distrust(certificate: Certificate, root: Certificate, at: datetime.datetime) -> str:
    """Why a certificate proves nothing to somebody who trusts `root`, in words; empty if it does.

    FLARE's root issues every party's certificate itself, so there is nothing between the two.
    """
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return f"{name_of(root)} did not issue the certificate of {name_of(certificate)}"
    for one in (certificate, root):
        if at < one.not_valid_before_utc:
            return f"the certificate of {name_of(one)} holds only from {one.not_valid_before_utc:%Y-%m-%d} on"
        if at > one.not_valid_after_utc:
            return str(_term(one, at))
    return ""


def name_of(certificate: Certificate) -> str:
    """The name that FLARE knows the owner by."""
    return _said(certificate, NameOID.COMMON_NAME)


def organisation_of(certificate: Certificate) -> str:
    """The owner's organisation, as project.yml has it. Empty: none."""
    return _said(certificate, NameOID.ORGANIZATION_NAME)


def _said(certificate: Certificate, what: x509.ObjectIdentifier) -> str:
    return next((str(one.value) for one in certificate.subject.get_attributes_for_oid(what)), "")


def _term(certificate: Certificate, at: datetime.datetime) -> Term:
    until = certificate.not_valid_after_utc
    return Term(name_of(certificate), until, (until - at).days)


def _issues(certificate: Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False
