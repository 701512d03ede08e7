"""Which model of the server a site trains on: one that can be the next of its run."""

import math
from collections.abc import Iterator

from pfedsam.errors import Diverged
from pfedsam.exchange.change import A, B, cosine, norm
from pfedsam.exchange.schema import misfits, schema_of
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.tensors import Tensors

LORA = ".lora."  # in the names of LoRA's tensors
NORMS = {"LoRA": 1.5, "other tensors": 0.5}  # the furthest that a model may move in a round, in norms of the last one
UPDATES = 3.0  # or in lengths of this site's own last update, if that is further
MOVED = "moved"  # the store's note: how long this site's last update was
# and in any number of rounds, which the message itself states: zeros are 1 away. After missed rounds a model may be as
# far as so many updates of this site, if it keeps its direction
FURTHEST = {"LoRA": math.inf, "other tensors": 0.95}
# the least cosine between a model so far away and the last one. After 2 to 6 missed rounds at a high rate it was 0.50
# with a frozen decoder and a head for three classes, and 0.70 with a U-Net from scratch
LEAST_FAR = 0.3
# the least cosine between a LoRA's end and the last one, after any number of rounds. In 6 rounds on brain_mri it stayed
# above 0.6. It is 0 for zeros and fresh noise, below for signs turned round, and 0.02 after a step of 50 norms aside
LEAST_COSINE = 0.02


def accept(store: SiteStore, shared: Tensors, at: Moment) -> None:
    """Check that a server's model can be the next of its run, and keep it to judge the one after it.

    Raises:
        UserFault: its round is too early.
        Diverged: it is not near the last one.
    """
    store.require_next(at)
    judge(store, shared, at)
    store.keep_accepted(shared, at)


def judge(store: SiteStore, shared: Tensors, at: Moment) -> None:
    """Check that a server's model can be that of a round of its run. Of a run without a last model nothing is known.

    Raises:
        Diverged: it is not near the last one, or has other tensors.
    """
    last = store.accepted(at.run)
    if last:
        if other := misfits(shared, schema_of(last[0])):
            raise _strange("tensors of the same names, shapes and number formats", f"others, e.g. {other[0][:80]}")
        own = store.remembered(MOVED, at.run) or {}
        require_near(shared, last[0], at.round - last[1], own, ends=(A, B) if at.round else (A,))


def note_moved(store: SiteStore, update: Tensors, run: str) -> None:
    """Keep the length of this site's own update. The sites' mean moves about as far."""
    store.remember(MOVED, run, {kind: _length(update, names) for kind, names in _kinds(update)})


def require_near(
    arrived: Tensors, last: Tensors, rounds: int, own: dict[str, float], ends: tuple[str, ...] = (A, B)
) -> None:
    """Raise Diverged if a server's model is not one that training can have made of the last one.

    Signs turned round, zeros and noise are not, once the updates are shorter than the model. The bounds are our
    choice: at a high rate, a first round of honest sites moves LoRA by almost two of its norms. So LoRA's direction
    counts too, whatever number of rounds the message states.

    Args:
        arrived, last: shared tensors, by wire name.
        rounds: how many rounds lie between the two. At least one counts.
        own: the length of this site's last update of the run by kind, if it has one.
        ends: the ends of LoRA that have a direction. A server may fall back to the first model, where B is zero.
    """
    for kind, names in _kinds(last):
        apart = norm(arrived[name].double() - last[name].double() for name in names)
        size = _length(last, names)
        moved = own.get(kind, 0.0)
        bound = max(NORMS[kind] * size, UPDATES * moved) * max(rounds, 1)
        near = max(FURTHEST[kind] * size, moved) if size else bound  # noise may be longer than the model
        bound = min(bound, max(near, moved * rounds))
        if apart > bound:
            raise _strange(f"{kind} no further than {bound:.3g} away", f"one that is {apart:.3g} away")
        if apart > near and (turned := _turned(arrived, last, names)) < LEAST_FAR:
            raise _strange(f"{kind} turned by less", f"one {apart:.3g} away with a cosine of {turned:.3g}")
        if moved < size:  # else the updates are noise, which has no direction
            _require_direction(arrived, last, names, ends)


def _require_direction(arrived: Tensors, last: Tensors, names: set[str], ends: tuple[str, ...]) -> None:
    """Check that those ends of LoRA go on from where they were. What was zero has no direction."""
    for end in ends:
        own = {name for name in names if name.endswith(end)}
        turned = _turned(arrived, last, own)
        if turned < LEAST_COSINE and _length(last, own):
            raise _strange(f"LoRA's {end.split('.')[-2].upper()} turned by less", f"one with a cosine of {turned:.3g}")


def _turned(arrived: Tensors, last: Tensors, names: set[str]) -> float:
    """The cosine between those tensors of two models."""
    return cosine(*({name: tensors[name] for name in names} for tensors in (arrived, last)))


def _strange(near: str, came: str) -> Diverged:
    return Diverged(
        expected=f"a model near the last one: {near}",
        came=came,
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
