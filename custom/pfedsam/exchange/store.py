"""The site store: a site's private part on its own disk, by study, outside any job's run folder."""

from pathlib import Path

from pfedsam import log
from pfedsam.exchange.files import pack, unpack, write_atomic
from pfedsam.exchange.schema import Tensors

CURRENT, PREVIOUS = "private.safetensors", "private.previous.safetensors"


class SiteStore:
    """Private tensors of one site in one study; two generations, each whole or absent.

    Args:
        root: the store's folder on the site's disk.
        study: the study's name.
        site: the site's name.
    """

    def __init__(self, root: Path, study: str, site: str) -> None:
        self.folder = root / study / site

    def save(self, tensors: Tensors, facts: dict[str, str]) -> None:
        """Write a new generation; the one before stays as `private.previous.safetensors`."""
        current = self.folder / CURRENT
        if current.exists():
            write_atomic(self.folder / PREVIOUS, current.read_bytes())
        write_atomic(current, pack(tensors, facts))

    def load(self) -> tuple[Tensors, dict[str, str]] | None:
        """The newest whole generation with its facts; None if the site has none yet."""
        for name in (CURRENT, PREVIOUS):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                return unpack(path.read_bytes())
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s); trying the generation before", name, fault)
        return None
