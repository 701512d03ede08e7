"""What a site does when asked: a round, or the final test. FLARE's executor and the in-process runner call it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.accept import judge
from pfedsam.exchange.codec import decode
from pfedsam.exchange.ledger import payload_bytes
from pfedsam.exchange.schema import shared_of
from pfedsam.exchange.store import LAST, Moment, round_of
from pfedsam.kept import tested_site
from pfedsam.record.scores import behind, coarse, over_masks, summary
from pfedsam.record.site_files import write_site_files
from pfedsam.site import Site, Update
from pfedsam.site_faults import require_base, require_turn
from pfedsam.study import down_schema
from pfedsam.tensors import Tensors
from pfedsam.train.loop import Progress

BEFORE = "before"  # name of the store's note: test metrics before training
MOST_FIRST = 3  # first models of a run that are tested: one, and two more if it begins anew. Our choice


@dataclass(frozen=True)
class Turn:
    """What the server asks of a site, beside its tensors.

    Attributes:
        run: the run's name.
        base: digest of the server's frozen base.
        round: counted from 0. For the final test, the number of finished rounds.
        rounds: of the whole run.
        trained: whether the server has an update of this site in an earlier round of the run.
        back: the runs that this one went back from, oldest first, each with the round that it was left before.
    """

    run: str
    base: str
    round: int
    rounds: int
    trained: bool = False
    back: tuple[Moment, ...] = ()

    @property
    def at(self) -> Moment:
        """The round of the run."""
        return Moment(self.run, self.round, self.back)


def serve_round(
    site: Site,
    wire: Tensors,
    turn: Turn,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Update, dict[str, Any]]:
    """One round at a site: receive, score the received model, train, score the personal branch.

    Args:
        wire: the server's encoded tensors.
        turn: the round of the run.
        progress, stop: as for `Site.train`.

    Returns:
        The update, and its numbers for results.json. A stopped round has no numbers.

    Raises:
        UserFault: the round is none of the run, the server has another base, the site's private part of the run is
            lost, or the training diverged.
    """
    scored: dict[str, dict[str, Any]] = {}

    def look() -> None:
        scored.update(before=_before(site, turn), received=site.validated("global"))

    began = _told(site, taken(site, wire, turn, look), turn)
    update = site.train(turn.round, turn.rounds, progress=progress, stop=stop)
    if update.report.stopped:
        return update, {}
    if update.epsilon is not None:
        log.info("[%s] privacy: epsilon %.2f of %g spent", site.name, update.epsilon, site.config.privacy.epsilon)
    scored |= {"personal": site.validated("personal"), "experts": site.experts("val")}
    late = 2 * turn.round >= turn.rounds  # before, the mean of all sites is ahead of any one of them
    two = bool(site.private()) and site.method.personal != site.method.global_
    if two and late and site.config.model.experts_share == 1:  # else it predicts with other weights
        _warn_behind(site.name, scored["personal"], scored["received"], "If it stays behind, lower train.lr_private")
    sizes = {"bytes_received": payload_bytes(wire), "bytes_sent": payload_bytes(update.wire)}
    return update, _numbers(site, update, scored) | {"private": began, **sizes}


def _numbers(site: Site, update: Update, scored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a round's report says of the training and of the scores."""
    val = {"global": scored["received"], "personal": scored["personal"]}
    return {
        "losses": update.report.losses,
        "seconds": update.report.seconds,
        "scoring_seconds": site.scoring_seconds,
        "samples": update.samples,
        **coarse({"val": val, "before": scored["before"], "experts": scored["experts"]}),
        **({} if update.epsilon is None else {"epsilon": update.epsilon}),
    }


def taken(site: Site, wire: Tensors, turn: Turn, look: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Load the server's model, if this site may train on it. Nothing is trained yet.

    Args:
        look: as for `Site.receive`.

    Returns:
        The facts of the private part that the round begins with.

    Raises:
        UserFault: as `serve_round`, before training.
    """
    require_turn(turn.round, turn.rounds)
    require_base(turn.base, site.base)
    arrived = decode(wire, down_schema(site.config), site.config.wire.down)
    return site.receive(arrived, turn.at, trained=turn.trained, look=look)


def serve_test(site: Site, wire: Tensors, turn: Turn, folder: Path) -> dict[str, Any]:
    """The final test: metrics by role on the test and validation splits, and the number of test patients.

    Only the test split has distances. The site's own files stay in `folder`.

    Raises:
        UserFault: the round is none of the run, the server has another base or a model that cannot be that of the
            run, or the site's private part of the run is lost.
    """
    require_turn(turn.round, turn.rounds)
    require_base(turn.base, site.base)
    arrived, run = decode(wire, down_schema(site.config), site.config.wire.down), turn.run
    judge(site.store, shared_of(arrived), turn.at)
    stored = site.recall(arrived, replace(turn.at, round=LAST), trained=turn.trained)
    scores = site.scores("test")
    trained = {"run": run, **{k: v for k, v in stored.items() if k == "round"}}
    write_site_files(tested_site(site, scores, trained), folder)
    val = {role: site.validated(role) for role in scores}
    if turn.trained and site.private():
        _warn_behind(site.name, val["personal"], val["global"], "Predict with --branch global here")
    found = {
        **{role: summary(cases) for role, cases in scores.items()},
        BEFORE: _remembered(site, turn.at),
        "val": val,
        "experts": site.experts("test"),
    }
    return coarse(found) | {"patients": len({one.group for one in site.data["test"].slices})}


def _told(site: Site, facts: dict[str, str], turn: Turn) -> dict[str, Any]:
    """The origin of a round's private part, for results.json: run and round. Empty: as drawn. It logs a new origin."""
    if not site.private():
        return {}
    if not facts:
        if wanted := site.config.begin_private:
            log.warning("[%s] has no private part of run %s, which the job names in begin_private", site.name, wanted)
        log.info("[%s] begins with a private part drawn from the seed", site.name)
        return {}
    source, round_ = facts.get("run", ""), round_of(facts)
    if source != turn.run:
        log.info("[%s] begins with its private part of run %s, round %d", site.name, source, round_ + 1)
    elif (ago := turn.round - round_) > 1:
        log.info("[%s] goes on with its private part of round %d, %d rounds ago", site.name, round_ + 1, ago)
    return {"run": source, "round": round_}


def _warn_behind(site: str, personal: dict[str, Any], other: dict[str, Any], do: str) -> None:
    """Log that a site's personal branch validates clearly below the server's model, and what to do."""
    if behind(personal["dice"], other["dice"]):
        told = "[%s] personal branch %.3f, global %.3f (validation Dice%s). %s"
        log.warning(told, site, personal["dice"], other["dice"], over_masks(personal), do)


def _before(site: Site, turn: Turn) -> dict[str, Any]:
    """Test metrics of the first model that this site received in this run. The store keeps them for the last task.

    Other test images than then are scored anew. So is another model in a run's first round, as after an earlier run of
    that name, at most `MOST_FIRST` times: each shows how one more model sees the same patients.

    Raises:
        UserFault: the server asks for more.
    """
    model = site.model[site.method.global_].trained_digest()
    asked = (site.store.remembered(BEFORE, turn.run) or {}).get("models", [])
    same = turn.round > 0 or asked[-1:] == [model]
    if same and (known := _remembered(site, turn.at)) is not None:
        return known
    if not same and len(asked) >= MOST_FIRST:
        do = "ask the server's administrator what its models are. Nothing was trained"
        raise UserFault(expected=f"at most {MOST_FIRST} first models of a run", came="one more", do=do)
    found = site.summary("test", "global")
    note = {"test": site.data["test"].content(), "scores": found, "models": [*asked, model]}
    site.store.remember(BEFORE, turn.run, note)
    return found


def _remembered(site: Site, at: Moment) -> dict[str, Any] | None:
    """The metrics that the store keeps of the run, or of the newest run that it went back from. None: of none, or of
    other test images."""
    notes: Iterator[dict[str, Any] | None] = (site.store.remembered(BEFORE, run) for run in at.line)
    note = next((note for note in notes if note is not None), None)
    if note is None or "test" not in note:  # an older version's has the metrics alone
        return note
    if note["test"] == site.data["test"].content():
        return dict(note["scores"])
    log.warning("[%s] the test images changed since run %s began: scores before training are void", site.name, at.run)
    return None
