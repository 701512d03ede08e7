"""The site store: a site's private part on its own disk, by study, outside any job's run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.claim import Claim
from pfedsam.files import bytes_now, parsed, write_atomic, write_json
from pfedsam.names import one_name, unfinished
from pfedsam.tensors import Tensors, facts_now, not_finite, pack, unpack

KEEP = 3  # rounds of a run: one to redo the round in flight, one more should the server fall back one, the newest
LAST = 10**9  # a round after every other


@dataclass(frozen=True)
class Moment:
    """A point in training: a round of a run. A run is one training from its first round, over one or more jobs.

    Attributes:
        back: the runs that this one went back from, oldest first, each with the round that it was left before.
    """

    run: str
    round: int
    back: tuple["Moment", ...] = ()

    @property
    def line(self) -> tuple[str, ...]:
        """The run, and those that it went back from, newest first."""
        return (self.run, *(one.run for one in reversed(self.back)))


class SiteStore:
    """Private tensors of one site in one study: the last generations. Damaged or non-finite ones are skipped.

    A generation is a file `private.NUMBER.safetensors`, labelled with run and round. The highest
    number is the newest. A run sees only its own generations, unless a job says to begin with
    another run's. If a round is repeated because its server or this site died in it, the site
    continues from what it had before that round. So the round gives the same result.

    If a run goes back several rounds, it goes on under another name (`Moment.back`). Then a site begins with what the
    run before it had before that round, or else with the oldest that is left of it. What came later stays.

    Run and round come in messages. So no message makes the store delete what cannot be had again: saving drops only
    earlier attempts at the same round, and rounds of the same run that are older than its newest three. All else is
    deleted by the site's own verb, `pfedsam forget`.

    Args:
        root: the store's folder on the site's disk.
        study: the study's name.
        site: the site's name.
    """

    def __init__(self, root: Path, study: str, site: str) -> None:
        self.folder = root / study / site
        self._claim = Claim(self.folder)

    def claim(self) -> "SiteStore":
        """This store, with this process as the only one that may save."""
        self._claim.take()
        return self

    def save(self, tensors: Tensors, facts: dict[str, str], at: Moment | None = None) -> None:
        """Write a new generation, then delete those of this run that it replaces, as the class says.

        Raises:
            UserFault: the disk is full or forbids writing, another process has claimed the store, or the round is
                earlier than `require_next` allows.
        """
        self._claim.demand_mine()
        if at:
            self.require_next(at)
        when = {"run": at.run, "round": str(at.round)} if at else {}
        files = self._files()
        number = _number(files[0]) + 1 if files else 1
        new = self.folder / f"private.{number:06d}.safetensors"
        write_atomic(new, pack(tensors, {**facts, **when}))
        for path in _replaced([new, *files], when.get("run")):
            path.unlink(missing_ok=True)

    def require_next(self, at: Moment) -> None:
        """Check that a round may be trained: that it is at most one before the newest that this site has of the run.

        Raises:
            UserFault: it is earlier. What the site had before that round may be gone, and would be trained over.
        """
        labels = [*map(_label, self._files()), (at.run, round_of(facts_now(self._accepted(at.run))))]
        newest = max((round_ for run, round_ in labels if run == at.run), default=0)
        if at.round < newest - 1:
            raise UserFault(
                expected=f"a round of run {at.run} not before round {newest}, because this site has trained"
                f" round {newest + 1}",
                came=f"round {at.round + 1}",
                do="continue the run from a later round. If the server has lost it, go on from the earlier one under"
                " another name: pfedsam back, at the server",
            )

    def load(
        self, before: Moment | None = None, *, begin: str = "", trained: bool = False
    ) -> tuple[Tensors, dict[str, str]] | None:
        """The newest whole generation with its facts, or None if there is none.

        Args:
            before: take only what this run trained before this round. None: any generation of any run.
            begin: the run to take if this one has trained nothing yet. "latest": the one that trained last.
            trained: whether the site has trained before this round. If a run went back and nothing from before the
                round is left, the oldest of what came later is taken.

        Raises:
            UserFault: the disk does not give a generation now. An older one would be trained over it.
        """
        for path in self._files() if before is None else self._candidates(before, begin, trained):
            held = bytes_now(path)
            try:
                return _sound(held)
            except ValueError as fault:
                log.warning("site store: %s is damaged (%s). The generation before it is tried", path.name, fault)
        return None

    def _candidates(self, before: Moment, begin: str, trained: bool) -> list[Path]:
        """The files from before the round, newest first: this run's, those of the runs that it went back from, and the
        later ones of these. Then those of the run to begin with."""
        labels = {path: _label(path) for path in self._files()}
        own: list[Path] = []
        least = before.round
        for one in (before, *reversed(before.back)):
            least = min(least, one.round)
            own += [path for path, (run, round_) in labels.items() if run == one.run and round_ < least]
        left = [path for path, (run, _) in labels.items() if run in before.line[1:] and path not in own]
        others = [path for path, (run, _) in labels.items() if run not in before.line and begin in (run, "latest")]
        return [*own, *(reversed(left) if trained else ()), *others]

    def forget(self, run: str) -> None:
        """Delete what this site has of a run."""
        for path in self.files_of(run):
            path.unlink(missing_ok=True)

    def files_of(self, run: str) -> list[Path]:
        """The files of a run: its generations, the last model that it was sent, its notes, and unfinished writes."""
        generations = [path for path in self._files() if _label(path)[0] == run]
        ending = f"{one_name(run, 'run')}.json"  # a note's own name has no dot, but a run's may have some
        notes = sorted(path for path in self.folder.glob("*.json") if path.name.partition(".")[2] == ending)
        others = [self._accepted(run), *notes, *unfinished(self.folder)]
        return [*generations, *(path for path in others if path.exists())]

    def keep_accepted(self, tensors: Tensors, at: Moment) -> None:
        """Keep the model that this site was sent in a round of a run, instead of the one before.

        Raises:
            UserFault: as for `save`, also from `remember`.
        """
        self._claim.demand_mine()
        write_atomic(self._accepted(at.run), pack(tensors, {"round": str(at.round)}))

    def accepted(self, run: str) -> tuple[Tensors, int] | None:
        """The last model of a run that this site has trained on, and its round. None if there is none, or a damaged
        one.

        Raises:
            UserFault: the disk does not give it now. Without it any model would pass.
        """
        held = bytes_now(self._accepted(run))
        try:
            tensors, facts = _sound(held)
            return tensors, round_of(facts)
        except ValueError:
            return None

    def _accepted(self, run: str) -> Path:
        return self.folder / f"accepted.{one_name(run, 'run')}.safetensors"

    def remember(self, name: str, run: str, value: Any) -> None:
        """Keep a small fact of a run beside the tensors."""
        self._claim.demand_mine()
        write_json(self._note(name, run), value)

    def remembered(self, name: str, run: str) -> Any:
        """The fact of this run that was kept as `name`, or None if there is none or it is damaged.

        Raises:
            UserFault: the disk does not give it now.
        """
        held = bytes_now(self._note(name, run))
        try:
            return parsed(held)
        except ValueError:
            return None

    def _note(self, name: str, run: str) -> Path:
        """The file of a run's fact. The run's name comes in a message, so it is checked."""
        return self.folder / f"{name}.{one_name(run, 'run')}.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("private.*.safetensors"), key=_number, reverse=True)


def _sound(held: bytes) -> tuple[Tensors, dict[str, str]]:
    """A generation's tensors and facts. ValueError if it is damaged or holds NaN, which later rounds would keep."""
    tensors, facts = unpack(held)
    if name := not_finite(tensors):
        raise ValueError(f"NaN or infinite values at {name}")
    return tensors, facts


def _replaced(files: list[Path], run: str | None) -> list[Path]:
    """Of `files`, newest first, those of the run that are not kept. Kept is the newest of each of its last rounds."""
    labels = {path: _label(path) for path in files}
    own = {path: round_ if run else _number(path) for path, (of, round_) in labels.items() if of == run}
    newest: dict[int, Path] = {}
    for path, round_ in own.items():
        newest.setdefault(round_, path)
    kept = [newest[round_] for round_ in sorted(newest, reverse=True)[:KEEP]]
    return [path for path in own if path not in kept]


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdecimal() else 0


def _label(path: Path) -> tuple[str | None, int]:
    """The run and the round of a generation. None and -1 if it has none. UserFault if the disk does not give it now."""
    facts = facts_now(path)
    return facts.get("run"), round_of(facts)


def round_of(facts: dict[str, str]) -> int:
    """The round in a generation's facts, counted from 0. -1 if they name none."""
    try:
        return int(facts["round"])
    except (KeyError, ValueError):
        return -1
