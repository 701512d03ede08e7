"""Tensors of each site at the server, sent to all sites in numbered slots, because a schema knows no site's name."""

from collections.abc import Mapping

import torch

from pfedsam.errors import UserFault
from pfedsam.exchange.schema import Schema, Spec
from pfedsam.files import seed_of
from pfedsam.tensors import Tensors, under

WHOSE, SAMPLES = "whose", "samples"  # (slots,): whose a slot is, by `tag`, 0 if it is empty; the site's samples


def tag(site: str) -> int:
    """The number that stands for a site's name in a message, 1 or more."""
    return 1 + seed_of(site)


def slotted(tensors: Schema, slots: int) -> Schema:
    """The schema of `slots` slots, each with these tensors. Zeros are empty slots, as before the first round."""
    found = {name: spec for slot in range(slots) for name, spec in under(f"{slot}/", tensors).items()}
    return found | {WHOSE: Spec((slots,), torch.int64), SAMPLES: Spec((slots,), torch.float32)}


def filled(memory: Tensors, tensors: Mapping[str, Tensors], samples: Mapping[str, float]) -> Tensors:
    """The rule's memory with these sites' tensors in their slots. New sites take empty ones, in the order of names.

    Args:
        memory: fulfils `slotted`.
        tensors, samples: by site.

    Raises:
        UserFault: there are too few slots.
    """
    whose, counts, found = memory[WHOSE].tolist(), memory[SAMPLES].clone(), dict(memory)
    for site in sorted(tensors):
        slot = next((whose.index(mark) for mark in (tag(site), 0) if mark in whose), None)
        if slot is None:
            came, do = f"{len(tensors)} or more", "raise method.sites in a new run"
            raise UserFault(expected=f"at most {len(whose)} sites in the run (method.sites)", came=came, do=do)
        whose[slot], counts[slot] = tag(site), samples.get(site, float(counts[slot]))
        found |= under(f"{slot}/", tensors[site])
    return found | {WHOSE: torch.tensor(whose), SAMPLES: counts}
