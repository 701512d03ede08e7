"""Hostile messages of a server, family by family: a site refuses each with the reason, or loses nothing by it.

What a site has trained counts: no message may delete or change it. This module, run as a program, prints the table of
the families.
"""

import json
import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attacks.test_corpus import text
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.workspace import Workspace

from conftest import tiny
from pfedsam.config import Config, to_dict
from pfedsam.errors import UserFault
from pfedsam.exchange.codec import encode
from pfedsam.exchange.schema import STAMP
from pfedsam.exchange.store import Moment
from pfedsam.flare.context import RUN, TRAINED
from pfedsam.flare.executor import _asked
from pfedsam.flare.filters import OnlyDeclaredEnters
from pfedsam.layout import Places
from pfedsam.service import taken
from pfedsam.site import Site
from pfedsam.study import initial_shared
from pfedsam.tensors import not_finite

SEEDS, MANY = 2, 25  # messages of a family in the fast tests, and in all
NEXT, ROUNDS = 3, 2000  # the site has trained rounds 0, 1, 2
HEAD = "head.weight"


@dataclass(frozen=True)
class Task:
    """What a server sends, before it is packed."""

    tensors: Any
    config: Any
    base: Any
    round: Any = NEXT
    rounds: Any = ROUNDS
    run: Any = "run"
    trained: Any = ("site-1",)
    kind: str = DataKind.WEIGHTS
    more: Any = None
    stamp: Any = None


@dataclass(frozen=True)
class Ward:
    """A site that has trained three rounds, and the context in which FLARE gives it a task."""

    site: Site
    fl_ctx: FLContext

    def honest(self, rng: random.Random) -> Task:
        """The last model after a small step."""
        last = self.site.store.accepted("run")
        assert last is not None
        draw = torch.Generator().manual_seed(rng.randrange(2**31))
        steps = {n: t + 0.02 * t.std().nan_to_num() * torch.randn(t.shape, generator=draw) for n, t in last[0].items()}
        return Task(encode(steps, self.site.config.wire.down), self.site.config.digest(), self.site.base)

    def serve(self, task: Any) -> None:
        """As the site does before it trains: fence, translation, checks. It raises if the message is refused."""
        wire, turn = _asked(OnlyDeclaredEnters().process(packed(task), self.fl_ctx), self.fl_ctx)
        taken(self.site, wire, turn)

    def kept(self) -> dict[str, bytes]:
        """What the site has trained in its run."""
        files = self.site.store.folder.glob("private.*")
        return {path.name: path.read_bytes() for path in files}


def packed(task: Any) -> Shareable:
    """The message as FLARE delivers it."""
    if isinstance(task, Shareable):
        return task
    stamp = {"config": task.config, "base": task.base} if task.stamp is None else task.stamp
    message = DXO(task.kind, data={}, meta={STAMP: stamp, **(task.more or {})}).to_shareable()
    message["DXO"]["data"] = task.tensors  # FLARE's class takes no other kind than it expects, but its bytes do
    headers = {"current_round": task.round, "num_rounds": task.rounds, RUN: task.run, TRAINED: task.trained}
    headers[TRAINED] = list(task.trained) if isinstance(task.trained, tuple) else task.trained
    for name, value in headers.items():
        message.set_header(name, value)
    return message


def ward(hospital: Path, folder: Path, config: Config) -> Ward:
    for sub in ("startup", "local", "job/app_site-1/config"):
        (folder / sub).mkdir(parents=True)
    (folder / "job/app_site-1/config/pfedsam.json").write_text(json.dumps(to_dict(config)))
    workspace, context = Workspace(str(folder), site_name="site-1"), FLContext()
    engine = SimpleNamespace(get_workspace=lambda: workspace, get_component=lambda _: None)
    for key, value in {
        ReservedKey.ENGINE: engine,
        ReservedKey.IDENTITY_NAME: "site-1",
        FLContextKey.CURRENT_RUN: "job",
        FLContextKey.SIMULATE_MODE: True,
    }.items():
        context.set_prop(key, value, private=True, sticky=False)
    site = Site("site-1", config, Places(hospital, folder / "store"))
    shared, base = initial_shared(config)
    assert base == site.base
    for round_ in range(NEXT):
        site.receive(shared, Moment("run", round_), trained=round_ > 0)
        site.train(round_, ROUNDS)
        shared = site.shared()
    return Ward(site, context)


@pytest.fixture(scope="module")
def plain(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Ward:
    torch.set_num_threads(1)
    return ward(hospital, tmp_path_factory.mktemp("plain"), tiny())


@pytest.fixture(scope="module")
def quantised(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Ward:
    return ward(hospital, tmp_path_factory.mktemp("int8"), tiny(wire={"down": "int8"}))


Change = Callable[[random.Random, Task], Any]


def but(**fields: Callable[[random.Random], Any]) -> Change:
    """A family that changes fields of the task."""
    return lambda rng, task: replace(task, **{name: make(rng) for name, make in fields.items()})


def tensors(change: Callable[[random.Random, dict[Any, Any], str], object]) -> Change:
    """A family that changes the tensors: `change` gets a copy, and one tensor's name."""

    def made(rng: random.Random, task: Task) -> Task:
        copy = dict(task.tensors)
        change(rng, copy, rng.choice(sorted(copy)))
        return replace(task, tensors=copy)

    return made


def each(change: Callable[[str, torch.Tensor], Any]) -> Change:
    """A family that changes every tensor."""
    return lambda _, task: replace(task, tensors={name: change(name, t) for name, t in task.tensors.items()})


def put(value: Callable[[torch.Tensor], Any]) -> Change:
    return tensors(lambda _, held, name: held.__setitem__(name, value(held[name])))


def one_bad(value: float) -> Change:
    def change(rng: random.Random, held: dict[Any, Any], name: str) -> None:
        flat = held[name].clone().flatten()
        flat[rng.randrange(len(flat))] = value
        held[name] = flat.reshape(held[name].shape)

    return tensors(change)


def scale(value: float) -> Change:
    def change(rng: random.Random, held: dict[Any, Any], name: str) -> None:
        held[name] = held[name].clone()
        held[name][:2] = torch.tensor([value]).bfloat16().view(torch.uint8)

    return tensors(change)


REFUSED: dict[str, tuple[Change, str]] = {
    "an update in a model's place": (but(kind=lambda _: DataKind.WEIGHT_DIFF), "the server's model"),
    "metrics in a model's place": (but(kind=lambda _: DataKind.METRICS), "the server's model"),
    "a kind of its own": (but(kind=text(1, 200)), "the server's model"),
    "no message of FLARE's form": (lambda rng, _: Shareable({"images": text(1, 99)(rng)}), "a task with the server's"),
    "a list in the tensors' place": (but(tensors=lambda _: [1, 2]), "DXO"),
    "text in the tensors' place": (but(tensors=text(1, 99)), "DXO"),
    "a stamp of text": (but(stamp=text(1, 99)), "expected config"),
    "a stamp of a list": (but(stamp=lambda _: [1]), "expected config"),
    "other settings": (but(config=text(1, 64)), "expected config"),
    "settings of another kind": (but(config=lambda _: {"a": [1]}), "expected config"),
    "another base": (but(base=lambda rng: f"{rng.randrange(2**64):064x}"), "the server's base model"),
    "no base": (but(base=lambda _: ""), "the server's base model"),
    "base of another kind": (but(base=lambda _: 5), "the server's base model"),
    "a negative round": (but(round=lambda rng: -rng.randint(1, 10**9)), "a round within a run"),
    "a broken round": (but(round=lambda rng: NEXT + rng.uniform(0.01, 0.9)), "a round within a run"),
    "a whole round as a broken number": (but(round=lambda _: float(NEXT)), "a round within a run"),
    "a round beyond the run": (but(round=lambda rng: rng.randint(ROUNDS + 1, 10**12)), "a round within a run"),
    "a run without end": (but(rounds=lambda rng: rng.randint(100_001, 10**12)), "a round within a run"),
    "a run of no rounds": (but(round=lambda _: 0, rounds=lambda _: 0), "a round within a run"),
    "rounds of another kind": (but(rounds=text(1, 9)), "a round within a run"),
    "a round True": (but(round=lambda _: True), "a round within a run"),
    "a round NaN": (but(round=lambda _: math.nan), "a round within a run"),
    "a round of text": (but(round=text(1, 9)), "a round within a run"),
    "a tensor as round": (but(round=lambda _: torch.ones(3)), "a round within a run"),
    "a round long done": (but(round=lambda rng: rng.randint(0, NEXT - 3)), "not before round"),
    "a run that leads elsewhere": (but(run=lambda rng: "../" * rng.randint(1, 9) + "x"), "a run's name"),
    "a run with a folder": (but(run=lambda _: "a/b"), "a run's name"),
    "a hidden run": (but(run=lambda _: ".run"), "a run's name"),
    "a run with escape codes": (but(run=lambda _: "\x1b[2Jrun"), "a run's name"),
    "a run's name without end": (but(run=lambda rng: "r" * rng.randint(101, 9999)), "a run's name"),
    "a run with a null": (but(run=lambda _: "run\0"), "a run's name"),
    "a run of another kind": (but(run=lambda _: ["run"]), "a run's name"),
    "a run that the site should know": (but(run=lambda rng: f"forged-{rng.random()}"), "in all tasks of the job"),
    "a tensor is missing": (tensors(lambda _, held, name: held.pop(name)), "are missing"),
    "all are missing": (tensors(lambda _, held, __: held.clear()), "are missing"),
    "renamed": (tensors(lambda _, held, name: held.__setitem__(name.upper(), held.pop(name))), "are missing"),
    "a path as name": (tensors(lambda _, held, __: held.__setitem__("../../x", torch.ones(3))), "not declared"),
    "an undeclared extra": (tensors(lambda _, held, __: held.__setitem__("extra/c", torch.ones(3))), "not declared"),
    "a private tensor": (tensors(lambda _, held, __: held.__setitem__("x.mix.gate", torch.ones(3))), "not declared"),
    "a thousand more": (
        tensors(lambda _, held, __: held.update({f"n{i}": torch.ones(1) for i in range(1000)})),
        "1000",
    ),
    "oversize": (put(lambda t: torch.zeros(10**6)), "expected shape"),
    "spread from one value": (put(lambda t: torch.ones(1).expand(10**9)), "expected shape"),
    "empty": (put(lambda t: torch.ones(0)), "expected shape"),
    "one axis more": (put(lambda t: t[None]), "expected shape"),
    "float64": (put(lambda t: t.double()), "float64"),
    "float16": (put(lambda t: t.half()), "float16"),
    "integers": (put(lambda t: t.long()), "int64"),
    "sparse": (put(lambda t: t.to_sparse()), "dense"),
    "without values": (put(lambda t: t.to("meta")), "dense"),
    "a list as tensor": (put(lambda t: t.tolist()), "expected a tensor"),
    "pickled bytes as tensor": (put(lambda _: b"\x80\x04cos\nsystem\n"), "expected a tensor"),
    "one NaN": (one_bad(math.nan), "NaN or infinite"),
    "one infinite value": (one_bad(math.inf), "NaN or infinite"),
    "NaN everywhere": (each(lambda _, t: torch.full_like(t, math.nan)), "NaN or infinite"),
    "signs turned round": (each(lambda _, t: -t), "a model near the last one"),
    "zeros": (each(lambda _, t: torch.zeros_like(t)), "a model near the last one"),
    "noise": (each(lambda _, t: torch.randn(t.shape)), "a model near the last one"),
    "ten times as large": (each(lambda _, t: 10 * t), "a model near the last one"),
    "LoRA ten times as large": (each(lambda n, t: 10 * t if ".lora." in n else t), "a model near the last one"),
    "the decoder turned round": (each(lambda n, t: t if ".lora." in n else -t), "a model near the last one"),
    "huge and finite": (each(lambda _, t: torch.full_like(t, 3e38)), "a model near the last one"),
    "zeros and a later round": (
        lambda rng, task: replace(zeroed(task), round=rng.randint(10, ROUNDS)),
        "a model near the last one",
    ),
}
SCALES: dict[str, tuple[Change, str]] = {
    "a scale of NaN": (scale(math.nan), "scales"),
    "an infinite scale": (scale(math.inf), "scales"),
    "a negative scale": (scale(-1.0), "scales"),
    "a subnormal scale": (scale(1e-39), "scales"),
    "a scale that overflows": (scale(3e38), "NaN or infinite"),
}
HARMLESS: dict[str, Change] = {
    "a forged run": but(run=lambda rng: f"forged-{rng.random()}", round=lambda _: 0, trained=lambda _: ()),
    "a forged run far on": but(run=lambda rng: f"r-{rng.random()}", round=lambda _: 999, trained=lambda _: ()),
    "the same round again": but(round=lambda _: NEXT - 1),
    "a later round of the run": but(round=lambda rng: rng.randint(NEXT, ROUNDS)),
    "facts of a page beside the tensors": but(more=lambda rng: {"note": text(9_000, 99_000)(rng)}),
    "names of sites that are a number": but(trained=lambda _: 5),
    "names of sites that are a text": but(trained=lambda _: "site-1"),
    "no names of sites": but(trained=lambda _: None),
}


def zeroed(task: Task) -> Task:
    return replace(task, tensors={name: torch.zeros_like(t) for name, t in task.tensors.items()})


@pytest.mark.parametrize("name", REFUSED)
def test_every_message_of_a_hostile_family_is_refused_for_its_reason(plain: Ward, name: str) -> None:
    refused(plain, name, SEEDS)


@pytest.mark.parametrize("name", SCALES)
def test_so_is_one_whose_scales_no_server_writes(quantised: Ward, name: str) -> None:
    refused(quantised, name, SEEDS)


@pytest.mark.long
def test_so_are_all_of_the_corpus(plain: Ward, quantised: Ward) -> None:
    for name in REFUSED | SCALES:
        refused(quantised if name in SCALES else plain, name, MANY)


def refused(at: Ward, name: str, seeds: int) -> None:
    (change, reason), before = (REFUSED | SCALES)[name], at.kept()
    for seed in range(seeds):
        rng = random.Random(f"{name}{seed}")
        with pytest.raises((ContentBlockedException, UserFault)) as told:
            at.serve(change(rng, at.honest(rng)))
        assert reason in str(told.value), seed
        assert len(str(told.value)) < 1000
    assert at.kept() == before


@pytest.mark.parametrize("name", HARMLESS)
def test_a_message_that_cannot_be_refused_deletes_nothing_of_another_run_and_leaves_three_rounds_of_its_own(
    hospital: Path, tmp_path: Path, name: str
) -> None:
    """It is trained on like any other. What another run has stays, and this run keeps its newest three rounds."""
    at = ward(hospital, tmp_path, tiny())
    before = at.kept()
    for seed in range(3):
        rng = random.Random(f"{name}{seed}")
        task = HARMLESS[name](rng, at.honest(rng))
        with suppress(UserFault):  # what came before may have moved the site's last round
            at.serve(task)
            at.site.train(task.round, ROUNDS)
    if task.run != "run":
        assert before.items() <= at.kept().items()
    found = at.site.store.load(Moment("run", ROUNDS + 1))
    assert found is not None
    assert not_finite(found[0]) is None
    assert len(at.kept()) >= NEXT


def none_refused(at: Ward, count: int) -> None:
    for seed in range(count):
        at.serve(replace(at.honest(random.Random(seed)), round=NEXT + seed // 2))


def test_no_honest_message_is_refused(plain: Ward, quantised: Ward) -> None:
    for at in (plain, quantised):
        none_refused(at, 20)


@pytest.mark.long
def test_nor_is_one_of_a_thousand(plain: Ward, quantised: Ward) -> None:
    for at in (plain, quantised):
        none_refused(at, 500)


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(REFUSED) + len(SCALES) + len(HARMLESS) >= 70


def table() -> str:
    """The families and what becomes of each, as Markdown."""
    rows = [f"| {name} | refused: {reason} |" for name, (_, reason) in (REFUSED | SCALES).items()]
    rows += [f"| {name} | taken; what the site has trained stays |" for name in HARMLESS]
    return "\n".join(["| a server's message | what a site does |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
