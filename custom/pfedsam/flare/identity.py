"""A site's identity in masked sums: it signs with its kit's key and checks others against the root certificate."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.apis.fl_context import FLContext
from nvflare.lighter.utils import (
    load_crt,
    load_crt_chain_bytes,
    load_private_key_file,
    sign_content,
    verify_cert_chain,
    verify_content,
)

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.masked_site import UNSIGNED, Identity
from pfedsam.exchange.roster import Keys, statement
from pfedsam.files import read_json

CLIENT = "fed_client.json"  # in a kit's startup folder
ROOT = "rootCA.pem"  # in the startup folders of sites and server


def identity_of(fl_ctx: FLContext) -> Identity:
    """The identity of this process's site. In the simulator there is no kit, and nothing is signed."""
    return _identity(Path(fl_ctx.get_workspace().get_startup_kit_dir()))


@lru_cache(maxsize=8)
def _identity(startup: Path) -> Identity:
    if not (startup / CLIENT).exists():
        log.warning("no startup kit here: the keys of masked updates are not signed, so the server must be honest")
        return UNSIGNED
    kit = Kit.read(startup)
    return Identity(kit.sign, kit.fault)


@dataclass(frozen=True)
class Kit:
    """A site's startup kit, as far as it proves who somebody is.

    Attributes:
        key, certificate, root: files: the site's private key, its certificate, and the federation's root certificate.
        servers: the names in the servers' certificates, which are no sites.
    """

    key: Path
    certificate: Path
    root: Path
    servers: frozenset[str]

    @staticmethod
    def read(startup: Path) -> "Kit":
        """The kit whose startup folder this is."""
        found = read_json(startup / CLIENT)
        names = [found.get("client", {}).get(name) for name in ("ssl_private_key", "ssl_cert", "ssl_root_cert")]
        key, certificate, root = (startup / str(name) for name in names)
        if missing := [str(path) for path in (key, certificate, root) if not path.is_file()]:
            do = "use a whole startup kit, or server.secure none"
            raise UserFault(expected="a key and certificates in the startup kit", came=f"none at {missing[0]}", do=do)
        return Kit(key, certificate, root, frozenset(str(one.get("identity")) for one in found.get("servers", [])))

    def sign(self, text: bytes) -> tuple[bytes, bytes]:
        """The signature of a text, and this site's certificate."""
        return sign_content(text, load_private_key_file(str(self.key)), return_str=False), self.certificate.read_bytes()

    def fault(self, site: str, text: bytes, signature: bytes, certificate: bytes) -> str | None:
        """Why a site did not sign a text. None if it did, with a certificate of this federation."""
        fault = signature_fault(self.root, site, text, signature=signature, certificate=certificate)
        return f"the certificate of {site}, a server" if fault is None and site in self.servers else fault


def signature_fault(root: Path, site: str, text: bytes, *, signature: bytes, certificate: bytes) -> str | None:
    """Why a site did not sign a text. None if it did, with a certificate of the federation of this root."""
    try:
        leaf, *between = load_crt_chain_bytes(certificate)
        verify_cert_chain(leaf, between, load_crt(str(root)))
        verify_content(text, signature, leaf.public_key())
    except Exception as fault:  # a certificate of a stranger can be anything
        return f"a signature or certificate that does not hold ({type(fault).__name__})"
    names, roles = (_texts(leaf, kind) for kind in (NameOID.COMMON_NAME, NameOID.UNSTRUCTURED_NAME))
    if names != [site] or roles:
        return f"the certificate of {', '.join(names)[:80]}{', a person' if roles else ''}"
    return None


def keys_fault(attempt: str, site: str, keys: Keys, fl_ctx: FLContext) -> str | None:
    """At the server, why a site did not sign its keys: all others refuse a roster with them. None if it did.

    The simulator has no kit, so nothing is checked there.
    """
    root = Path(fl_ctx.get_workspace().get_startup_kit_dir()) / ROOT
    if not root.is_file():
        return None
    signed = {"signature": keys.signature, "certificate": keys.certificate}
    fault = signature_fault(root, site, statement(attempt, site, keys), **signed)
    return fault and f"expected keys that {site} has signed, came {fault}"


def _texts(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> list[str]:
    return [str(one.value) for one in certificate.subject.get_attributes_for_oid(kind)]
