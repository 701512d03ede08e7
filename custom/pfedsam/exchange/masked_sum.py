"""The server's half of a masked sum: who takes part, and the sum without its masks. It never sees one update."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from math import comb
from random import Random

import torch

from pfedsam import log
from pfedsam.config import ServerConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.masked_site import pair_seed, public
from pfedsam.exchange.masks import mean_of, mix, total_of, words_of
from pfedsam.exchange.roster import KEY, Keys, keys_of, roster_digest, roster_tensors, threshold, to_bytes, weights
from pfedsam.exchange.schema import Schema
from pfedsam.exchange.server import Contribution
from pfedsam.exchange.shamir import join
from pfedsam.tensors import Tensors

TRIES = 2000  # sets of shares that are tried before a secret counts as lost


class MaskedSum:
    """One attempt at a sum, as the server sees it.

    Args:
        attempt: names the run and the round, and is never used twice.
        server: the job's settings of the server, as the sites have them.
    """

    def __init__(self, attempt: str, server: ServerConfig) -> None:
        self.attempt, self._server = attempt, server
        self.roster: dict[str, Keys] = {}  # by site; it is complete before the first shares come
        self._sealed: Tensors = {}
        self._commitments: dict[str, bytes] = {}  # the digest of each site's own mask's seed
        self.opened: Tensors = {}  # by site, the shares that it opened after the round
        self.wrong = set[str]()  # the sites of which one was wrong
        self._compared = False  # whether all shares of a secret were compared

    def take(self, step: str, site: str, tensors: Tensors) -> str | None:
        """Keep a site's message of a step that `step_fault` has accepted. Why it does not count, or None if it does."""
        if step == "keys":
            return self._enter(site, keys_of(tensors))
        if site not in self.roster:
            return "expected a site of the roster, came another"
        elif len(tensors["opened" if step == "open" else "sealed"]) != len(self.roster):
            return f"expected shares for the {len(self.roster)} sites of the roster, came others"
        elif step == "shares":
            self._sealed[site], self._commitments[site] = tensors["sealed"], to_bytes(tensors["commitment"])
        else:
            self.opened[site] = tensors["opened"]
        return None

    def _enter(self, site: str, keys: Keys) -> str | None:
        """Put a site on the roster. Why not, if the others would refuse a roster with its keys."""
        held = {key for name, other in self.roster.items() if name != site for key in (other.agree, other.seal)}
        if len(held | {keys.agree, keys.seal}) < len(held) + 2:
            return "expected keys that no two sites have in common, came the same key twice"
        try:
            for key in (keys.agree, keys.seal):
                pair_seed(os.urandom(KEY), key, b"")
        except UserFault as fault:
            return f"expected {fault.expected}, came {fault.came}"
        self.roster[site] = keys
        return None

    @property
    def dealt(self) -> list[str]:
        """The sites that have sealed their shares."""
        return sorted(self._sealed)

    @property
    def complete(self) -> bool:
        """Whether each site of the roster has sealed its shares. Without them a lost site's masks cannot be removed."""
        return self._sealed.keys() == self.roster.keys() != set()

    @property
    def least(self) -> int:
        """The number of sites without which the sum cannot be opened."""
        return threshold(len(self.roster))

    def question(self, step: str) -> Tensors:
        """What sites are sent in a step."""
        if step == "keys":
            return {}
        if step == "shares":
            return roster_tensors(self.roster)
        return {"sealed": torch.stack([self._sealed[site] for site in sorted(self.roster)])}

    def contribution(self, given: Mapping[str, Contribution], schema: Schema) -> Contribution:
        """The sum of the sites' masked updates, as one contribution: their mean.

        Args:
            given: the masked updates that came.
            schema: of a plain update.

        Raises:
            UserFault: the opened shares do not give the masks back.
        """
        share = weights(self.roster, self._server.most_share)
        total = total_of(words_of(given[site].update) for site in sorted(given))
        total = mix(total, add=self._added(given), take=self._taken(given))
        update = mean_of(total, sum(share[site] for site in sorted(given)), norm=self._server.norm, schema=schema)
        return Contribution(sum(one.samples for one in given.values()), lambda: update)

    def _taken(self, given: Collection[str]) -> Iterator[bytes]:
        """The seeds of all streams that the sites in the sum have added."""
        for site in sorted(given):
            yield self._secret(site, given)
        yield from (seed for site, lost, seed in self._left_over(given) if site < lost)

    def _added(self, given: Collection[str]) -> Iterator[bytes]:
        """The seeds of all streams that they have taken away, and that no site of the sum has added."""
        yield from (seed for site, lost, seed in self._left_over(given) if site > lost)

    def _left_over(self, given: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
        """The masks that sites of the sum have in common with lost ones: the site, the lost one, the seed."""
        digest = roster_digest(self.attempt, self.roster)
        for lost in sorted(self.roster.keys() - set(given)):
            key = self._secret(lost, given)
            yield from ((site, lost, pair_seed(key, self.roster[site].agree, digest)) for site in sorted(given))

    def _secret(self, site: str, given: Collection[str]) -> bytes:
        """A site's secret, joined from the opened shares: its own mask's seed if it is in the sum, else its key."""
        names = sorted(self.roster)
        row = names.index(site)
        given_out = {giver: to_bytes(rows[row]) for giver, rows in self.opened.items() if giver not in self.wrong}
        shares = {names.index(giver) + 1: share for giver, share in sorted(given_out.items())}
        for number, places in enumerate(_sets(list(shares), self.least)):
            right = {place: shares[place] for place in places}
            if (found := join(right)) is not None and self._fits(site, found, there=site in given):
                if number or not self._compared:  # one comparison takes a join a site
                    self._name_wrong(shares, right, found)
                return found
        raise UserFault(
            expected=f"{self.least} right shares of the secret of {site}",
            came=f"{len(shares)} shares that give none",
            do="repeat the round. If it happens again, leave out the sites that the log names, one after the other",
        )

    def _name_wrong(self, shares: Mapping[int, bytes], right: Mapping[int, bytes], secret: bytes) -> None:
        """Log the sites whose shares, by place, do not go with the right ones, and take no more of theirs."""
        names, rest = sorted(self.roster), dict(list(right.items())[1:])
        for place in sorted(shares.keys() - right.keys()):
            if join({**rest, place: shares[place]}) != secret:
                log.error("[server] %s opened a wrong share. Its shares are left out of the sum", names[place - 1])
                self.wrong.add(names[place - 1])
        self._compared = True

    def _fits(self, site: str, secret: bytes, *, there: bool) -> bool:
        return (
            sha256(secret).digest() == self._commitments[site] if there else public(secret) == self.roster[site].agree
        )


def _sets(places: list[int], size: int) -> Iterator[Sequence[int]]:
    """Sets of shares to try. If there are too many for all, random ones: any order would begin with the same sites."""
    if comb(len(places), size) <= TRIES:
        return combinations(places, size)
    draw = Random(0)
    return (draw.sample(places, size) for _ in range(TRIES))
