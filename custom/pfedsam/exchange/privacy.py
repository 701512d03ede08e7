"""Differential privacy: what training reveals of a site's patients, how much of it was spent, and the noise.

A site's budget is kept on its own disk, across studies and jobs. It only grows. Opacus's accountants compute epsilon.
"""

import hashlib
import hmac
import json
import math
import secrets
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfedsam import log
from pfedsam.config import Config, PrivacyConfig
from pfedsam.errors import UserFault
from pfedsam.exchange.change import norm
from pfedsam.files import read_json, write_json
from pfedsam.tensors import Tensors

BUDGET = "budget"  # a site store's folder of budgets, beside its studies
PIECE = 1 << 16  # normal numbers that are drawn at once
MOST_POINTS = 5e6  # of `prv`; our choice: they take about 1 GB


@dataclass(frozen=True)
class Mechanism:
    """Some steps of the Gaussian mechanism on a Poisson sample (Mironov et al. 2019).

    Attributes:
        noise: the noise's standard deviation, in parts of the clipping bound.
        rate: the chance of a patient to be in a step. 1 for a whole site.
        steps: the number of steps.
    """

    noise: float
    rate: float
    steps: int


def epsilon(spent: Iterable[Mechanism], privacy: PrivacyConfig) -> float:
    """The epsilon at `privacy.delta` of all these mechanisms together. Nothing spent is 0.

    `rdp` is Renyi accounting with its conversion, `prv` the upper end of the numerical bound (Gopi et al. 2021). Both
    are upper bounds. `rdp` also takes the place of `prv` where that needs more than `MOST_POINTS`: the noise of an
    earlier job may have been low.
    """
    steps = Counter[tuple[float, float]]()
    for one in spent:
        steps[one.noise, one.rate] += one.steps
    history = [(noise, rate, count) for (noise, rate), count in sorted(steps.items()) if count]
    if not history:
        return 0.0
    by_rdp = _accounted("rdp", history, privacy.delta)
    if (
        privacy.accountant == "rdp"
        or _points(by_rdp, sum(count for _, _, count in history), privacy.delta) > MOST_POINTS
    ):
        return by_rdp
    return _accounted("prv", history, privacy.delta)


def _accounted(accountant: str, history: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import create_accountant  # takes seconds, and only jobs with privacy need it

    found = create_accountant(accountant)
    found.history = history
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # on orders of Renyi's divergence that are not the best, and log(0)
        return float(found.get_epsilon(delta))


def _points(by_rdp: float, steps: int, delta: float) -> float:
    """About how many points Opacus's `prv` computes with: from -epsilon to epsilon, in the mesh of Gopi et al. 2021."""
    mesh = 0.01 / math.sqrt(steps * math.log(12_000 / delta) / 2)  # 0.01 and delta / 1000 are Opacus's errors
    return 2 * by_rdp / mesh


class Noise:
    """Random numbers that nobody outside the site can guess: a ChaCha20 stream under a key of the site's.

    The same key gives the same numbers. A repeated round therefore repeats its noise, and reveals nothing new.
    """

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """Numbers in [0, 1) with 53 random bits, (count,)."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return (words >> np.uint64(11)) * 2.0**-53

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, format and place of a tensor, by Box and Muller's transform."""
        count = like.numel()
        pieces = [self._normal(min(PIECE, count - start)) for start in range(0, count, PIECE)]
        drawn = np.concatenate(pieces) if pieces else np.empty(0)
        return torch.from_numpy(drawn).reshape(like.shape).to(like)

    def _normal(self, count: int) -> np.ndarray:
        pairs = (count + 1) // 2
        radius = np.sqrt(-2 * np.log1p(-self.uniform(pairs)))
        angle = 2 * math.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def noised(update: Tensors, noise: Noise, privacy: PrivacyConfig) -> Tensors:
    """A site's update, cut to the norm `privacy.clip` as a whole, plus normal noise on each value.

    If `privacy.sites` sites add noise to one masked sum, each adds its part of the variance.
    """
    size = norm(tensor.double() for tensor in update.values())
    short = min(1.0, privacy.clip / size) if size else 1.0
    deviation = privacy.noise * privacy.clip / math.sqrt(privacy.sites)
    return {name: tensor * short + deviation * noise.normal(tensor) for name, tensor in sorted(update.items())}


def mechanism_of(config: Config, patients: int, steps: int) -> Mechanism:
    """What a round spends at a site with that many training patients."""
    if config.privacy.unit == "site":
        return Mechanism(config.privacy.noise, 1.0, 1)
    return Mechanism(config.privacy.noise, sampling_rate(config, patients), steps)


def sampling_rate(config: Config, patients: int) -> float:
    """The chance of a patient to be in a step, so that a step has `train.batch_size` patients in the mean."""
    return min(1.0, config.train.batch_size / patients)


@dataclass(frozen=True)
class Spent:
    """What a site's budget file says.

    Attributes:
        secret: the key of the site's noise, as hexadecimal digits.
        mechanisms: all that was spent, by noise and rate.
        rounds: digests of the rounds that were paid.
    """

    secret: str
    mechanisms: tuple[Mechanism, ...] = ()
    rounds: tuple[str, ...] = field(default=())

    def with_round(self, ident: str, one: Mechanism) -> "Spent":
        """After one more round."""
        return Spent(self.secret, (*self.mechanisms, one), (*self.rounds, ident))


class Budget:
    """What all jobs of a site have spent. No job and no crash lowers it, and `pfedsam forget` leaves it.

    A round is paid before it trains. If the same round is repeated on the same model, data and settings, it is paid
    already: its noise is the same, so its update is the same.

    Args:
        root: the site store's folder.
        site: the site's name.
    """

    def __init__(self, root: Path, site: str) -> None:
        self.path = root / BUDGET / f"{site}.json"

    def spent(self) -> Spent | None:
        """What the file says. None if there is no file.

        Raises:
            UserFault: it is damaged.
        """
        if not self.path.exists():
            return None
        try:
            held = read_json(self.path)
            checksum = held.pop("sha256")
            if checksum != _checksum(held) or len(bytes.fromhex(held["secret"])) != 32:
                raise ValueError("the checksum does not match the content")
            mechanisms = tuple(Mechanism(*one) for one in held["mechanisms"])
            return Spent(held["secret"], mechanisms, tuple(held["rounds"]))
        except (UserFault, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise UserFault(
                expected=f"the site's privacy budget in {self.path}",
                came=f"a damaged file ({fault})",
                do="bring the file back from a backup. Without it nobody knows what was spent",
            ) from None

    def pay(self, ident: str, one: Mechanism, privacy: PrivacyConfig) -> tuple[Noise, float]:
        """Pay a round, on the disk before this returns.

        Args:
            ident: a digest of all that the round's update depends on.

        Returns:
            The round's noise, and the epsilon that the site has then spent.

        Raises:
            UserFault: the budget does not suffice. Nothing is paid.
        """
        with self._locked():
            spent = self.spent() or Spent(secrets.token_hex(32))
            after = spent if ident in spent.rounds else spent.with_round(ident, one)
            total = epsilon(after.mechanisms, privacy)
            if after is not spent:
                if total > privacy.epsilon:
                    raise _too_little(total, epsilon(spent.mechanisms, privacy), privacy)
                self._write(after)
        return Noise(hmac.digest(bytes.fromhex(after.secret), ident.encode(), "sha256")), total

    def noise(self, purpose: str) -> Noise:
        """The site's own random numbers for a purpose, the same each time. Nothing is paid.

        Raises:
            UserFault: the file is damaged.
        """
        with self._locked():
            spent = self.spent() or Spent(secrets.token_hex(32))
            if not self.path.exists():
                self._write(spent)
        return Noise(hmac.digest(bytes.fromhex(spent.secret), f"noise/{purpose}".encode(), "sha256"))

    def _write(self, spent: Spent) -> None:
        if not self.path.exists():
            told = (
                "a new privacy budget begins in %s: nothing counts as spent. If this site has spent some, bring it back"
            )
            log.warning(told, self.path)
        steps = Counter[tuple[float, float]]()
        for one in spent.mechanisms:
            steps[one.noise, one.rate] += one.steps
        held = {
            "secret": spent.secret,
            "mechanisms": [[noise, rate, count] for (noise, rate), count in sorted(steps.items())],
            "rounds": list(spent.rounds),
        }
        write_json(self.path, {**held, "sha256": _checksum(held)})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within it no other process pays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            flock(file, LOCK_EX)
            yield


def budget_of(root: Path, site: str, config: Config) -> Budget:
    """The budget that a site's rounds of a job are paid from. Drawn images have one of their own: they show no patient.

    Args:
        root: the site store's folder.
    """
    return Budget(root, site if config.data.source == "site" else f"{site}.synthetic")


def _checksum(held: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _too_little(after: float, before: float, privacy: PrivacyConfig) -> UserFault:
    return UserFault(
        expected=f"a privacy budget of epsilon {privacy.epsilon:g} (delta {privacy.delta:g}) that pays this round",
        came=f"{before:.2f} spent, {after:.2f} after the round",
        do="end the run with the rounds that are done. Nothing was trained or sent."
        " privacy.epsilon can be raised only in a new run that every site agrees to",
    )
