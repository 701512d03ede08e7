"""Which model of the server a site trains on: one that can be the next of its run."""

import math

from pfedsam.errors import UserFault
from pfedsam.exchange.robust import A, norm
from pfedsam.exchange.schema import schema_of
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.files import Tensors

LORA = ".lora."  # in the names of LoRA's tensors
FAR = {"LoRA": 1.5, "other tensors": 0.5}  # the furthest that a model may move in a round, in norms of the last one
# and in any number of rounds, which the message itself states: zeros are 1 away
FURTHEST = {"LoRA": math.inf, "other tensors": 0.95}


def accept(store: SiteStore, shared: Tensors, at: Moment) -> None:
    """Check that a server's model can be the next of its run, and keep it to judge the one after it.

    Raises:
        UserFault: its round is too early, or it is not near the last one.
    """
    store.require_next(at)
    last = store.accepted(at.run)
    if last and schema_of(last[0]) == schema_of(shared):
        require_near(shared, last[0], at.round - last[1])
    store.keep_accepted(shared, at)


def require_near(arrived: Tensors, last: Tensors, rounds: int) -> None:
    """Raise UserFault if a server's model is not one that training can have made of the last one.

    Signs turned round, zeros and noise are not. The bounds are our choice, several times what a first round moves.

    Args:
        arrived, last: shared tensors, by wire name.
        rounds: how many rounds lie between the two. At least one counts.
    """
    lora = {name for name in last if LORA in name}
    measured = lora if any(name.endswith(A) for name in lora) else set()  # B alone begins at zero, and has no measure
    for kind, names in (("LoRA", measured), ("other tensors", last.keys() - lora)):
        apart = norm(arrived[name].double() - last[name].double() for name in names)
        bound = min(FAR[kind] * max(rounds, 1), FURTHEST[kind]) * norm(last[name].double() for name in names)
        if apart > bound:
            raise UserFault(
                expected=f"a model near the last one: {kind} no further than {bound:.3g} away",
                came=f"one that is {apart:.3g} away",
                do="ask the server's administrator what its model is. Nothing was trained. If the change is right,"
                " begin a new run",
            )
