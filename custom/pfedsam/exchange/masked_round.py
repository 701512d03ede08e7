"""A masked sum whose sites and server are in one process: the same messages as through FLARE, without the transport."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from pfedsam.config import ServerConfig
from pfedsam.exchange.masked_site import MaskedSite
from pfedsam.exchange.masked_sum import MaskedSum
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Contribution
from pfedsam.tensors import Tensors


class MaskedRound:
    """One round of masked sums: the sites agree at its beginning and open the sum at its end.

    Args:
        attempt: names the run and the round, and is never used twice.
        server: the job's settings of the server.
        samples: each site's number of training slices.
    """

    def __init__(self, attempt: str, server: ServerConfig, samples: Mapping[str, int]) -> None:
        self.sum = MaskedSum(attempt, server)
        folder = Path(tempfile.mkdtemp(prefix="pfedsam-"))  # of the sites' secrets
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._sites = {site: MaskedSite(site, server, path=folder / f"{site}.json") for site in sorted(samples)}
        for site, count in samples.items():
            self.sum.take("keys", site, self._sites[site].keys(attempt, count))
        asked = self.sum.question("shares")
        for site, member in self._sites.items():
            self.sum.take("shares", site, member.deal(attempt, asked))

    def masked(self, site: str, update: Tensors) -> Tensors:
        """A site's masked update."""
        return self._sites[site].mask(self.sum.attempt, update)

    def opened(self, given: Mapping[str, Contribution], schema: Schema) -> dict[str, Contribution]:
        """The one contribution that the sites' masked updates add up to.

        Args:
            given: the masked updates that came. The other sites are lost.
            schema: of a plain update.
        """
        asked = self.sum.question("open")
        for site in given:
            self.sum.take("open", site, self._sites[site].open(self.sum.attempt, asked, list(given)))
        return {"sum": self.sum.contribution(given, schema)}
