"""Targets: files that a crash or another's hand may have changed. Stores, checkpoints, model files, datalists."""

import csv
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz.harness import ODD_TEXTS, Target, changed, fresh, json_like, mutated
from hypothesis import strategies as st

from conftest import tiny
from pfedsam.config import to_dict
from pfedsam.data import datalist
from pfedsam.data.datalist import SPLITS
from pfedsam.data.records import COLUMNS
from pfedsam.errors import UserFault
from pfedsam.exchange.accept import accept
from pfedsam.exchange.checkpoint import Checkpoint, Checkpoints
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.server import ServerState
from pfedsam.exchange.store import Moment, SiteStore
from pfedsam.export.verify import verify
from pfedsam.inference.facts import SEAL, ModelFacts, Origin, facts_of, seal
from pfedsam.inference.model_file import write_model
from pfedsam.inference.predictor import load_model
from pfedsam.model import build
from pfedsam.prepare.site import Wish, prepare
from pfedsam.study import initial_shared
from pfedsam.tensors import PAYLOAD, Tensors, digest, pack, unpack

GATE = {"gate": torch.ones(3), "owed/x": torch.zeros(2, 2)}
SHARED = {"decoder.weight": torch.ones(4), "encoder.x.lora.a.weight": torch.ones(2, 3)}
NAMES = ("private.000002.safetensors", "private.000001.safetensors", "accepted.run.safetensors", "before.run.json")
NAMES += ("owner", "ledger.jsonl")


def site_store(drawn: tuple[str, Any, str], folder: Path) -> None:
    """A store with one file changed still gives a generation or none, judges the next model, and saves the round."""
    name, edit, new_name = drawn
    store = SiteStore(folder, "study", "site")
    for round_ in (0, 1):
        store.save(GATE, {"base": "b"}, Moment("run", round_))
    accept(store, SHARED, Moment("run", 1))
    store.remember("before", "run", {"dice": 0.5})
    Ledger(store.folder / "ledger.jsonl").note("in", SHARED, task="train", round_=1, facts={})
    path = store.folder / name
    put(path, edit)
    if new_name:
        path.replace(store.folder / new_name)
    list(Ledger(store.folder / "ledger.jsonl").lines())
    store.remembered("before", "run")
    store.load()
    store.load(Moment("run", 2), begin="latest")
    store.files_of("run")
    accept(store, SHARED, Moment("run", 2))
    store.save(GATE, {"base": "b"}, Moment("run", 2))
    assert store.load(Moment("run", 3)) is not None


def put(path: Path, edit: Any) -> None:
    """Write other bytes: given ones, the file's own with edits, or whole tensors with other facts."""
    if callable(edit):
        path.write_bytes(edit(path.read_bytes()) if path.exists() else b"")
    else:
        path.write_bytes(edit)


def headed(facts: Any, tensors: Tensors) -> bytes:
    """A safetensors file with any JSON as its facts."""
    data = pack(tensors, {})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if isinstance(facts, dict):
        facts = header["__metadata__"] | facts
    text = json.dumps(header | {"__metadata__": facts}).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


FACTS = st.dictionaries(st.sampled_from(["run", "round", "base", PAYLOAD]), json_like(), max_size=3) | json_like()
DEEP = st.sampled_from([b"[" * 100_000, (100_000).to_bytes(8, "little") + b"[" * 100_000])
EDIT = (
    st.binary(max_size=60)
    | DEEP
    | FACTS.map(lambda facts: headed(facts, GATE))
    | mutated(pack(GATE, {"run": "run", "round": "1"}), 200)
)
RENAMED = st.sampled_from(["", "", *(f"private.{number}.safetensors" for number in ("²", "", "9999999"))])


def server_store(drawn: tuple[str, Any], folder: Path) -> None:
    """A checkpoint with one file changed gives the state of a round, the one before, or none."""
    name, edit = drawn
    points = Checkpoints(folder, "study")
    points.begin("run")
    for done in (1, 2):
        points.save(Checkpoint("run", done, "c", "b", {"rounds": []}, ServerState(SHARED, {"m": torch.ones(2)})))
    points.save_best("run", SHARED, {"val_dice": "0.5"})
    put(folder / "study/server/run" / name, edit)
    found = points.load(points.find("latest"))
    points.load_best("run")
    if found is not None:
        assert isinstance(found.done, int)
        assert isinstance(found.results, dict)
        points.save(Checkpoint("run", 3, "c", "b", found.results, found.state))


def of_json(edits: Any) -> bytes:
    return json.dumps(edits).encode("utf-8", "surrogatepass")


KNOWN = {"run": "run", "done": 2, "config": "c", "base": "b", "results": {"rounds": []}, "sha256": "0" * 64}
KNOWN |= {"sha256": digest(ServerState(SHARED, {"m": torch.ones(2)}).flat())}
SERVER = st.tuples(st.sampled_from(["round.000002.json", "round.000001.json"]), changed(KNOWN).map(of_json) | EDIT)
SERVER |= st.tuples(st.sampled_from(["round.000002.safetensors", "best.safetensors", "owner"]), EDIT)


@cache
def model() -> tuple[bytes, Any]:
    """A small model file with its base in it."""
    config = tiny()
    shared, base = initial_shared(config)
    facts = ModelFacts(config, config.digest(), Origin(base, run="run", round=1), ("global",))
    with fresh() as folder:
        write_model(folder / "m.safetensors", facts, shared, base=build.backbone(config.model))
        data = (folder / "m.safetensors").read_bytes()
        return data, facts_of(folder / "m.safetensors")


def model_file(edit: Any, folder: Path) -> None:
    """`verify` never says that a file is in order that `load` refuses."""
    path, (data, lines) = folder / "m.safetensors", model()
    if isinstance(edit, dict):  # a careful forger: other lines, with a seal that fits
        rest = {key: value for key, value in (lines | edit).items() if key not in (SEAL, PAYLOAD)}
        tensors, _ = unpack(data)
        path.write_bytes(headed(rest | {SEAL: seal(rest, lines[PAYLOAD])}, tensors))
    else:
        path.write_bytes(edit(data) if callable(edit) else edit)
    fine = all(check.ok is not False for check in verify(path))
    if fine:
        load_model(path, device="cpu")


def edited(edits: list[tuple[int, bytes]]) -> Any:
    def change(data: bytes) -> bytes:
        copy = bytearray(data)
        for at, piece in edits:
            at = at % len(copy) if at > 4096 else at
            copy[at : at + len(piece)] = piece
        return bytes(copy)

    return change


LINES = st.sampled_from(["config", "settings", "branches", "round", "private_round", "versions", "whole", "base"])
TEXT = st.sampled_from(ODD_TEXTS) | st.text(max_size=12) | json_like().map(json.dumps)
OTHER = changed(to_dict(tiny())).map(lambda values: {"settings": json.dumps(values)})
FORGED = st.dictionaries(LINES, TEXT, min_size=1, max_size=2) | OTHER
MODEL = (
    FORGED
    | st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4).map(edited)
    | st.integers(0, 10**6).map(lambda n: lambda data: data[:n])
    | st.binary(max_size=100)
    | DEEP
)


def listed(drawn: tuple[str, Any], folder: Path) -> None:
    """A datalist with any cells is read, or refused, by training and by prepare."""
    name, content = drawn
    for one in ("a.png", "b.png", "c.png"):
        (folder / one).write_bytes(b"")
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith("json"):
        path.write_bytes(of_json(content))
    else:
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([COLUMNS, *(list(row.values()) for row in content)])
    with suppress(UserFault):
        datalist.read(path, "site")
    prepare([folder], None, Wish())


CELLS = st.sampled_from(["a.png", "b.png", "c.png", "train", "val", "test", "p1", *ODD_TEXTS])
CELLS |= st.text(max_size=9) | st.sampled_from(
    ["x" * 5_000, "x" * 200_000, '"', '""\n"', "a\rb", "\ufeff", "/dev/zero", "~", "x/" * 3000]
)
ROW = st.fixed_dictionaries(dict.fromkeys(COLUMNS, CELLS))
RIGHT = [
    dict(zip(COLUMNS, (f"{n}.png", f"{n}.png", split, n), strict=True)) for n, split in zip("abc", SPLITS, strict=True)
]
ROWS = st.lists(ROW | st.sampled_from(RIGHT), max_size=4).map(lambda rows: [*RIGHT, *rows])
JSON_ROWS = st.lists(st.dictionaries(st.sampled_from([*COLUMNS, "site"]), json_like() | CELLS), max_size=4)
LISTS = (
    st.tuples(st.just("datalist.csv"), ROWS | st.binary(max_size=80))
    | st.tuples(st.just("datalist.json"), ROWS | JSON_ROWS.map(lambda rows: [*RIGHT, *rows]) | json_like())
    | st.tuples(st.just("datalist.json"), st.binary(max_size=80) | DEEP)
)

TARGETS = (
    Target("site's store", st.tuples(st.sampled_from(NAMES), EDIT, RENAMED), site_store, 60),
    Target("server's store", SERVER, server_store, 60),
    Target("model file", MODEL, model_file, 60),
    Target("datalist", LISTS, listed, 100),
)
