"""Going back: a run goes on from an earlier good round, under another name. Nothing of the run before it is deleted."""

from dataclasses import replace
from typing import Any

from pfedsam.errors import UserFault
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.store import Moment
from pfedsam.names import back_name, one_name
from pfedsam.record.results import sites_of

BACK = "back"  # in results.json: a list of the times that the run went back


def came_from(results: dict[str, Any]) -> tuple[Moment, ...]:
    """The runs that a record's run went back from, oldest first, each with the round that it was left before."""
    return tuple(Moment(step["run"], step["round"]) for step in results.get(BACK, []))


def line_in(told: Any) -> tuple[Moment, ...]:
    """What a message says of the runs that its run went back from, oldest first.

    Raises:
        UserFault: it says something else.
    """
    if told is None:
        return ()
    pairs = isinstance(told, list) and all(isinstance(one, list) and len(one) == 2 for one in told)
    if not pairs or not all(isinstance(run, str) and type(round_) is int for run, round_ in told):
        raise UserFault(
            expected="the runs that this one went back from, each with a round",
            came=str(told)[:80],
            do="ask the server's administrator. Nothing was trained",
        )
    return tuple(Moment(one_name(run, "run"), round_) for run, round_ in told)


def left_out(results: dict[str, Any]) -> frozenset[str]:
    """The sites that a record's run was freed of."""
    return frozenset(site for step in results.get(BACK, []) for site in step["without"])


def go_back(points: Checkpoints, run: str, most: int | None = None, *, without: str = "", into: str = "") -> Checkpoint:
    """The checkpoint with which a new run begins: the last good one of `run` after at most `most` rounds.

    Args:
        points: the study's checkpoints. The new run's first one is written there.
        most: the most finished rounds. None: no bound.
        without: a site that leaves. No round in which it trained counts, and the new run goes on without it.
        into: the new run's name. Empty: a new name.

    Raises:
        UserFault: there is no such run, round or site, or no such checkpoint is left.
    """
    newest = points.load(points.find(run))
    if newest is None:
        raise UserFault(expected=f"a checkpoint of run {run}", came="none", do="begin a new run")
    bound = _bound(newest, most, without)
    point = _last_good(points, newest, bound)
    step = {"run": newest.run, "round": point.done, "without": [without] if without else []}
    results = {**point.results, BACK: [*newest.results.get(BACK, []), step]}
    new = replace(point, run=into or back_name(newest.run), results=results)
    best = points.load_best(newest.run)
    if best and _rounds_behind(best[1]) <= point.done:
        points.save_best(new.run, *best)
    points.save(new)
    return new


def _rounds_behind(facts: dict[str, str]) -> int:
    """How many rounds made a best model. Its facts name the last of them, counted from 0; none made the first model."""
    return int(facts.get("round", -1)) + 1


def _bound(newest: Checkpoint, most: int | None, without: str) -> int:
    """The most finished rounds of the checkpoint to go back to."""
    if most is not None and not 0 <= most <= newest.done:
        raise UserFault(
            expected=f"a number of finished rounds of run {newest.run}, from 0 to {newest.done}",
            came=str(most),
            do="name the round after which its model was good",
        )
    bound = newest.done if most is None else most
    rounds = newest.results["rounds"]
    if not without:
        return bound
    if without not in sites_of(rounds):
        raise UserFault(
            expected=f"a site that trained in run {newest.run}: {', '.join(sites_of(rounds)) or 'none did'}",
            came=without,
            do="correct the name. A site that never trained has left nothing in the model",
        )
    first: int = next(entry["round"] for entry in rounds if without in entry["sites"])
    return min(bound, first)


def _last_good(points: Checkpoints, newest: Checkpoint, bound: int) -> Checkpoint:
    """The last good checkpoint after at most `bound` rounds, of the run or of one that it went back from."""
    line = [Moment(newest.run, newest.done - 1), *reversed(came_from(newest.results))]
    for one in line:
        bound = min(bound, one.round)
        if point := points.newest(one.run, bound):
            return point
    left = [done for one in line for done in points.rounds(one.run)]
    raise UserFault(
        expected=f"a good checkpoint of run {newest.run} after at most {bound} rounds",
        came=f"the earliest is after {min(left)}" if min(left) < newest.done else "none but its newest",
        do="go back to that one, or begin a new run. A checkpoint is good once the next round was trained from it",
    )
