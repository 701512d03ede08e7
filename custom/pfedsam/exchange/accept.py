"""Which model of the server a site trains on: one that can be the next of its run."""

import math
from collections.abc import Iterator

from pfedsam.errors import Diverged
from pfedsam.exchange.change import A, norm
from pfedsam.exchange.schema import schema_of
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.files import Tensors

LORA = ".lora."  # in the names of LoRA's tensors
NORMS = {"LoRA": 1.5, "other tensors": 0.5}  # the furthest that a model may move in a round, in norms of the last one
UPDATES = 3.0  # or in lengths of this site's own last update, if that is further
MOVED = "moved"  # the store's note: how long this site's last update was
# and in any number of rounds, which the message itself states: zeros are 1 away
FURTHEST = {"LoRA": math.inf, "other tensors": 0.95}


def accept(store: SiteStore, shared: Tensors, at: Moment) -> None:
    """Check that a server's model can be the next of its run, and keep it to judge the one after it.

    Raises:
        UserFault: its round is too early.
        Diverged: it is not near the last one.
    """
    store.require_next(at)
    last = store.accepted(at.run)
    if last and schema_of(last[0]) == schema_of(shared):
        require_near(shared, last[0], at.round - last[1], store.remembered(MOVED, at.run) or {})
    store.keep_accepted(shared, at)


def note_moved(store: SiteStore, update: Tensors, run: str) -> None:
    """Keep the length of this site's own update. The sites' mean moves about as far."""
    store.remember(MOVED, run, {kind: _length(update, names) for kind, names in _kinds(update)})


def require_near(arrived: Tensors, last: Tensors, rounds: int, own: dict[str, float]) -> None:
    """Raise Diverged if a server's model is not one that training can have made of the last one.

    Signs turned round, zeros and noise are not, once the updates are shorter than the model. The bounds are our
    choice: at a high rate, a first round of honest sites moves LoRA by almost two of its norms.

    Args:
        arrived, last: shared tensors, by wire name.
        rounds: how many rounds lie between the two. At least one counts.
        own: the length of this site's last update of the run by kind, if it has one.
    """
    for kind, names in _kinds(last):
        apart = norm(arrived[name].double() - last[name].double() for name in names)
        size = _length(last, names)
        moved = own.get(kind, 0.0)
        bound = max(NORMS[kind] * size, UPDATES * moved) * max(rounds, 1)
        bound = min(bound, max(FURTHEST[kind] * size, moved)) if size else bound  # noise may be longer than the model
        if apart > bound:
            raise Diverged(
                expected=f"a model near the last one: {kind} no further than {bound:.3g} away",
                came=f"one that is {apart:.3g} away",
                do="ask the server's administrator what its model is. Nothing was trained. If the change is right,"
                " begin a new run",
            )


def _kinds(tensors: Tensors) -> Iterator[tuple[str, set[str]]]:
    """The names of each kind of tensor that has a bound. B alone begins at zero, and has no measure."""
    lora = {name for name in tensors if LORA in name}
    yield "LoRA", lora if any(name.endswith(A) for name in lora) else set()
    yield "other tensors", tensors.keys() - lora


def _length(tensors: Tensors, names: set[str]) -> float:
    return norm(tensors[name].double() for name in names)
