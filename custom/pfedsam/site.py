"""One hospital's side of a study, without FLARE: model, data, store, a round, an evaluation."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from pfedsam import methods
from pfedsam.config import Config
from pfedsam.data.dataset import Dataset, open_site
from pfedsam.exchange.accept import accept, note_moved
from pfedsam.exchange.codec import with_feedback
from pfedsam.exchange.privacy import budget_of
from pfedsam.exchange.schema import EXTRA, Stamp, extras_of, shared_of
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.files import seed_of
from pfedsam.hidden import Paid, facts_of, pay, require_hidden
from pfedsam.layout import Places
from pfedsam.methods.base import Dice, Here, nothing_told
from pfedsam.model.lora import adapted, taking
from pfedsam.model.partition import Part, tensors_of, wire_name
from pfedsam.model.prepared import prepared
from pfedsam.model.watch import has_experts, watching, without_experts
from pfedsam.record.scores import CaseScore, Validation, summary
from pfedsam.site_faults import (
    require_declared,
    require_finite_weights,
    require_fit,
    require_kept,
    require_named,
    require_prompts,
)
from pfedsam.study import up_schema
from pfedsam.tensors import Tensors, at_rest, below, digest, under, unprefixed
from pfedsam.train.evaluate import evaluate
from pfedsam.train.loop import Progress, RoundReport, train_round
from pfedsam.train.precision import best_device
from pfedsam.train.prefix import prefix

ROLES = ("global", "personal")
OWED, MEMORY = "owed/", "memory/"  # in the site store: no parameter's name holds a slash


@dataclass(frozen=True)
class Update:
    """What a site sends: the difference to the shared tensors that it received, and the round's report.

    Attributes:
        wire: encoded differences, by wire name, and what the method declares beside them.
        samples: the number of the site's training slices, its weight in the mean.
        report: losses, seconds, and whether it was stopped.
        epsilon: what the site has spent of its privacy budget. None: the job has no privacy.
    """

    wire: Tensors
    samples: int
    report: RoundReport
    epsilon: float | None = None


class Site:
    """A site in a study: builds its model and opens its data once, then serves rounds.

    Raises:
        UserFault: weights or data are missing or wrong.
    """

    def __init__(self, name: str, config: Config, places: Places) -> None:
        self.name, self.config = name, config
        self.method = methods.get(config.method)
        device = best_device()
        parts, self.base = prepared(
            config.model, places.weights, places.prepared, bf16=methods.base_in_bf16(self.method, device, config)
        )
        self.seed = seed_of(f"{config.seed}/{name}")
        torch.manual_seed(self.seed)
        self.model = self.method.model(parts, config)
        require_prompts(self.method, self.model, config)
        self.part = self.method.partition(self.model, config)
        self.model.to(device)
        self.data: dict[str, Dataset] = open_site(places.data, name, config, unlabelled=self.method.unlabelled)
        front = prefix(self.model, config, (places.scratch or places.store / "scratch") / name / self.base[:16])
        self._source = front.batch if front else Dataset.batch
        self.store = SiteStore(places.store, config.study, name).claim()
        self.budget = budget_of(places.store, name, config)
        self.scoring_seconds = 0.0  # spent on scoring since the round began
        self.validations: dict[str, Validation] = {}  # by branch
        self._first = {name: tensor.clone() for name, tensor in self.private().items()}  # until something is stored
        self._received: Tensors = {}
        self._here = Here()
        self._owed: Tensors = {}  # what rounding took from the last update, to be added to the next
        self._run: str | None = None

    def stamp(self, round_: int) -> Stamp:
        """The stamp of this site's messages in `round_`."""
        return Stamp(round_, self.config.digest(), self.base)

    def receive(
        self,
        arrived: Tensors,
        at: Moment | None = None,
        *,
        trained: bool = False,
        look: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Begin a round: load the server's tensors, then the stored private part, and merge the two.

        Args:
            arrived: the shared tensors, and what the method declares beside them.
            at: the round of the run. What the site once trained in this round, or later, is not used.
            trained: whether the server has an update of this site in an earlier round of the run.
            look: called before the two are merged, when the global branch is as the server sent it.

        Returns:
            The run and the round of the private part that the round begins with. Empty: as drawn.

        Raises:
            UserFault: the model cannot be the run's next, or the store has lost what the site trained in this run.
        """
        if at:
            accept(self.store, shared_of(arrived), at)
        self._received, self._run = shared_of(arrived), at.run if at else None
        taking(self.model, 1.0)
        self.scoring_seconds = 0.0
        self._load_shared(self._received)
        stored, facts = self.store.load(at, begin=self.config.begin_private, trained=trained) or (self._first, {})
        if trained and (self._first or self.method.tell is not nothing_told):
            require_kept(facts, at, self.store.folder)
        require_hidden(facts, self.config)
        own = stored if facts.get("run") in (at.line if at else (None,)) else {}
        self._owed = below(OWED, own)
        self._put_private(stored, facts)
        dice = self._dice if facts else None
        self._here = self._use(dice, arrived, own)
        look()
        self.method.merge(self.model, self.config, self._here)
        return facts

    def train(
        self,
        round_: int,
        rounds: int,
        *,
        progress: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Update:
        """The difference in the shared part, after training from the received tensors. The private part is stored.

        Raises:
            UserFault: the privacy budget does not suffice, or the training diverged. Nothing of the round is kept.
        """
        when = (self.seed, round_, rounds)
        known = (digest(part()) for part in (self._arrived, self._kept))  # made only if a round is paid
        paid = pay(self.budget, self.config, self.data["train"], chain((self._run, *when, self.base), known))
        report = train_round(
            self.model,
            self.part,
            self.data["train"],
            self.method.loss,
            self.config,
            when=when,
            phase=self.method.phase,
            gradient=self.method.gradient,
            stepped=self.method.stepped,
            hidden=paid.hidden if paid else None,
            augmented=lambda augment: self.method.augment(augment, self.config, self._here),
            source=self._source,
            progress=progress,
            stop=stop,
        )
        return self._update(report, round_, paid)

    def shared(self) -> Tensors:
        """A copy of the shared part, by wire name, on the CPU: the only tensors of the model that may leave."""
        live = tensors_of(self.model, self.part, Part.SHARED)
        return {wire_name(name): t.detach().cpu().clone().contiguous() for name, t in live.items()}

    def private(self) -> Tensors:
        """The private part, by name in the model."""
        return {k: v.detach().cpu() for k, v in tensors_of(self.model, self.part, Part.PRIVATE).items()}

    def _update(self, report: RoundReport, round_: int, paid: Paid | None) -> Update:
        """What goes up after a round. What stays is stored first, unless the round was stopped."""
        now = self.shared()
        difference = {name: now[name] - tensor for name, tensor in self._received.items()}
        difference = self.method.sends(self.model, self.config, difference)
        if paid:  # no noise hides the losses
            report, difference = replace(report, losses={}), paid.leaving(difference)
        wire, owed = with_feedback(difference, self._owed, self.config.wire.up)
        if report.stopped:
            return Update(wire, len(self.data["train"]), report)
        told = self.method.tell(self.model, self.config, self._here, report)
        extras = under(EXTRA, at_rest(told.extras))
        for tensors in (now, difference, self.private(), extras, told.memory):
            require_finite_weights(tensors, round_)
        require_named(report.losses, self.method, name=self.config.method)
        require_declared(extras, up_schema(self.config), self.private(), method=self.config.method)
        self._owed, self._here = owed, replace(self._here, memory=at_rest(told.memory))
        if self._run:
            note_moved(self.store, difference, self._run)
        self.save_private(round_)
        return Update(wire | extras, len(self.data["train"]), report, paid.epsilon if paid else None)

    def save_private(self, round_: int) -> None:
        """Store the private part, the rounding error for the next update, and the method's memory."""
        kept = self._kept()
        if kept or self.method.tell is not nothing_told:
            facts = {"round": str(round_), "base": self.base, "config": self.config.digest()} | facts_of(self.config)
            self.store.save(kept, facts, Moment(self._run, round_) if self._run else None)

    def recall(self, arrived: Tensors, at: Moment | None = None, *, trained: bool = False) -> dict[str, str]:
        """Load the model for prediction: the server's tensors and the private part as last trained (before `at`).

        Args:
            arrived: the shared tensors, and what the method declares beside them.
            trained: whether the server has an update of this site in the run.

        Returns:
            The run and the round of that private part. Empty if there is none.

        Raises:
            UserFault: the site has trained in the run, but its store has nothing of it.
        """
        stored, facts = self.store.load(at, trained=trained) or ({}, {})
        taking(self.model, self.config.model.experts_share)
        self._load_shared(shared_of(arrived))
        self._put_private(self._first, {})
        here = self._use(None, arrived, stored)
        self.method.merge(self.model, self.config, here)  # what follows the shared part where nothing is stored
        self._run = at.run if at else None
        if trained and (self._first or self.method.tell is not nothing_told):
            require_kept(facts, at, self.store.folder)
        if facts:
            self._put_private(stored, facts)
        return facts

    def scores(self, split: str, roles: tuple[str, ...] = ROLES) -> dict[str, list[CaseScore]]:
        """Scores of every case of a split, by role. One branch may have both roles.

        Only the test split has distances. They cost more than the rest, and no choice depends on them.
        """
        began = time.monotonic()
        branch = {"global": self.method.global_, "personal": self.method.personal}
        wanted = tuple(dict.fromkeys(branch[role] for role in roles))
        found = evaluate(self.model, self.data[split], wanted, self._source, distances=split == "test")
        self.scoring_seconds += time.monotonic() - began
        return {role: found[branch[role]] for role in roles}

    def summary(self, split: str, role: str) -> dict[str, Any]:
        """The mean scores of one role on a split."""
        return summary(self.scores(split, (role,))[role])

    def validated(self, role: str) -> dict[str, Any]:
        """The mean scores of a role on the validation split. A branch that has not changed is not scored again."""
        return dict(self._validation(role).scores)

    def _validation(self, role: str) -> Validation:
        branch = self.method.global_ if role == "global" else self.method.personal
        known, digest = self.validations.get(branch), self.model[branch].trained_digest()
        if known is None or known.digest != digest:
            with watching(self.model[branch]) as watch:
                scores = self.summary("val", role)
            known = self.validations[branch] = Validation(digest, scores, watch.facts())
        return known

    def experts(self, split: str) -> dict[str, Any]:
        """What the personal branch's experts do on the validation split, and the Dice of `split` without them.

        The keys are those of `Watch.facts`, and `dice_without`. Empty if the branch has no L-MoE.
        """
        branch = self.model[self.method.personal]
        if not any(map(has_experts, adapted(branch))):
            return {}
        facts = self._validation("personal").experts
        with without_experts(branch):
            return {**facts, "dice_without": self.summary(split, "personal")["dice"]}

    def _arrived(self) -> Tensors:
        """All that the server sent for this round."""
        return self._received | under(EXTRA, self._here.extras)

    def _kept(self) -> Tensors:
        """All that the site stores for its next round."""
        return self.private() | under(OWED, self._owed) | under(MEMORY, self._here.memory)

    def _use(self, dice: Dice | None, arrived: Tensors, stored: Tensors) -> Here:
        """What the method may use in a round, with the memory in what is stored."""
        memory, data = below(MEMORY, stored), self.data["train"]
        return Here(dice, data, extras_of(arrived), memory, self.name, self.budget.noise, self.seed)

    def _dice(self, role: str) -> float:
        dice = self.validated(role)["dice"]
        return math.nan if dice is None else float(dice)

    @torch.no_grad()
    def _load_shared(self, shared: Tensors) -> None:
        for name, target in tensors_of(self.model, self.part, Part.SHARED).items():
            target.copy_(shared[wire_name(name)])

    @torch.no_grad()
    def _put_private(self, stored: Tensors, facts: dict[str, str]) -> None:
        """Put a private part into the model: a stored one with its facts, which must fit, or the first one without."""
        private = unprefixed(stored)
        target = tensors_of(self.model, self.part, Part.PRIVATE)
        if facts:
            require_fit(private, target, facts, base=self.base, folder=self.store.folder)
        for name, tensor in target.items():
            tensor.copy_(private[name])
