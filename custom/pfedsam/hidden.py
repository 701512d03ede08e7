"""How a site's round hides its patients or its data: paid from its budget, with noise that only the site knows."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from pfedsam import __version__
from pfedsam.config import Config
from pfedsam.data.dataset import Dataset
from pfedsam.errors import UserFault
from pfedsam.exchange.change import norm
from pfedsam.exchange.privacy import Budget, Noise, mechanism_of, noised
from pfedsam.tensors import Tensors
from pfedsam.train.loop import steps_of
from pfedsam.train.patients import Hidden, patients_of
from pfedsam.train.precision import best_device, computes_bf16


@dataclass(frozen=True)
class Paid:
    """A round that is paid: its noise, and the epsilon that the site has then spent."""

    noise: Noise
    epsilon: float
    config: Config

    @property
    def hidden(self) -> Hidden | None:
        """How the training hides the patients. None: only the update is noised."""
        return Hidden(self.noise, self.config) if self.config.privacy.unit == "patient" else None

    def leaving(self, update: Tensors) -> Tensors:
        """What may leave of an update: the same after training on noised gradients, else cut and noised.

        Raises:
            UserFault: a masked sum would shorten it, and its noise with it.
        """
        if self.hidden:
            return update
        found = noised(update, self.noise, self.config.privacy)
        length, most = norm(tensor.double() for tensor in found.values()), self.config.server.norm
        if self.config.privacy.sites > 1 and length > most:
            raise UserFault(
                expected=f"server.norm of at least {length:.4g}, the length of a noised update",
                came=f"{most:g}",
                do="raise server.norm, or lower privacy.noise or privacy.clip. Nothing was sent",
            )
        return found


def pay(budget: Budget, config: Config, data: Dataset, told: Iterable[object]) -> Paid | None:
    """Pay a round at a site with that training split. None: the job has no privacy.

    The noise depends on all that the update depends on. Two updates with one noise would show their difference. Two
    kinds of noise are new each time, and are paid each time: spread noise, because a sum may be repeated without a
    site, and a GPU's, because a repeated round may make another update there.

    Args:
        told: the round, and what the site knew before it: settings, base, and every tensor that it received or kept.

    Raises:
        UserFault: the budget does not suffice, or its file is damaged.
    """
    if config.privacy.unit == "none":
        return None
    device = best_device()
    machine = (__version__, torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    computes = (device.type, computes_bf16(device, config.train.precision))
    patients = patients_of(data)
    files = data.fingerprint() if config.data.source == "site" else ""  # what each job draws follows from its settings
    rows = [(one.image.name, one.index) for one in data.slices]
    once = secrets.token_hex(16) if config.privacy.sites > 1 or device.type != "cpu" else ""
    text = "\n".join(map(str, (*told, *machine, *computes, config.digest(), files, rows, patients, once)))
    spends = mechanism_of(config, len(patients), steps_of(len(data), config.train))
    noise, epsilon = budget.pay(hashlib.sha256(text.encode()).hexdigest(), spends, config.privacy)
    return Paid(noise, epsilon, config)


def facts_of(config: Config) -> dict[str, str]:
    """What a stored private part says of its privacy: what the run that trained it hides."""
    return {} if config.privacy.unit == "none" else {"privacy": config.privacy.unit}


def require_hidden(facts: Mapping[str, str], config: Config) -> None:
    """Raise UserFault if a round that hides patients would begin with a private part that knows them.

    The distillation would carry them into the update, and no noise would hide them.
    """
    if facts and config.privacy.unit == "patient" and facts.get("privacy") != "patient":
        raise UserFault(
            expected="a private part from a run with privacy.unit patient",
            came=f"one of run {facts.get('run')}, which hides no patients",
            do="leave begin_private out, or name a run that hides patients",
        )
