"""The reference pages: what they list is what the code has, no more and no less."""

import dataclasses
import hashlib
import json
import re
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.app_opt.pt.tensor_downloader import TensorDownloadable
from page_tables import block, check, fields, listed, page, rows, section
from reference_run import SETTINGS, Run, alone, through_flare

from conftest import ROOT
from pfedsam import methods
from pfedsam.bounds import number
from pfedsam.config import ABSENT, SECTIONS, to_dict
from pfedsam.exchange.codec import BLOCK, CODECS, decode, encode
from pfedsam.exchange.guard import FACTS, TEXT, Accepted, Rejected, judge_samples
from pfedsam.exchange.ledger import Ledger
from pfedsam.exchange.roster import sent_names
from pfedsam.exchange.schema import Spec
from pfedsam.settings import from_dict
from pfedsam.tensors import PAYLOAD, digest, facts_of

EXAMPLE = torch.tensor([[0.5, -1.0, 0.25], [2.0, 0.0, -0.125]])


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/reference.py")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One round and the final test, through FLARE's parts."""
    torch.set_num_threads(1)
    return through_flare(tmp_path_factory.mktemp("flare"))


@pytest.fixture(scope="module")
def apart(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with runs in one process, and their records."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("apart")
    return folder, alone(hospital, folder)


def test_the_pages_of_settings_and_verbs_are_those_of_the_code(
    script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PFEDSAM_DATA", "PFEDSAM_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    for name, text in script.pages().items():
        assert page(name) == text, "run: make reference"


def test_the_page_of_settings_has_each_setting_with_its_default_and_a_meaning() -> None:
    told = [row for row in rows(page("settings.md").partition("## Settings of every method")[2]) if len(row) == 5]
    assert [row[0] for row in told if not row[4]] == []
    real = {(name, json.dumps(one)) for name, one in ABSENT.items()}  # left out of the settings where they are not set
    for method in methods.OURS:
        values = to_dict(from_dict({"method": method}))
        values["method"].pop("name")
        for name, value in values.items():
            parts = {f"{name}.{key}": one for key, one in value.items()} if name in SECTIONS else {name: value}
            real |= {(key, json.dumps(one)) for key, one in parts.items()}
    assert {(row[0].strip("`"), row[2].strip("`")) for row in told} == real


@dataclasses.dataclass
class Told:
    """Settings whose meanings stand in all places that there are.

    Attributes:
        doc: in the docstring,
            over two lines.
    """

    doc: int = 1
    beside: int = number(1, least=0, most=2)  # at the line's end
    # over
    # it
    above: int = 1
    broken: str = "x"  # within
    below: int = 1
    """Under it."""
    silent: int = 1


def test_a_setting_s_meaning_is_read_wherever_the_code_says_it(script: SimpleNamespace) -> None:
    assert script.meanings(Told) == {
        "doc": "in the docstring, over two lines.",
        "beside": "at the line's end",
        "above": "over it",
        "broken": "within",
        "below": "Under it.",
    }


def test_the_page_of_results_lists_every_field_and_no_other(run: Run, apart: tuple[Path, list[Any]]) -> None:
    known = listed("results.md", "results.json")
    found = check([run.results, *apart[1]], known)
    scores = [value for name, value in found if known[name].startswith("scores") and value is not None]
    check(scores, listed("results.md", "Scores"))


def test_a_field_that_the_page_gives_to_one_runner_is_in_its_records_alone(
    run: Run, apart: tuple[Path, list[Any]]
) -> None:
    known = listed("results.md", "results.json")
    through, within = ({n for one in found for n, _ in fields(one, known)} for found in ([run.results], apart[1]))
    told = {row[0].strip("`"): row[3].split(":")[0] for row in rows(section("results.md", "results.json"))}
    assert {name for name, mark in told.items() if mark == "one process"} == within - through - BEGUN - HIDDEN
    assert {name for name, mark in told.items() if mark == "FLARE"} == through - within - EARLIER


EARLIER = {f"begun_with.private.SITE.{name}" for name in ("run", "round")}  # of a study with an earlier run
HIDDEN = {"rounds[].sites.SITE.epsilon"}  # of a job with privacy
BEGUN = {f"begun_with.{name}" for name in ("run", "rounds", "sha256")}  # of a run that begins with another's model


def test_the_page_of_results_names_the_files_that_a_site_keeps(run: Run) -> None:
    text = page("results.md").partition("## Files at a site")[2].partition("## results.json")[0]
    names = [name for row in rows(text) for name in re.findall(r"`(.+?)`", row[0])]
    assert len(names) > 6
    for name in names:
        assert list(run.site.rglob(re.sub("NUMBER|RUN", "*", name))), name


def test_the_page_of_results_lists_every_field_of_a_site_s_cases(run: Run) -> None:
    (path,) = run.site.rglob("cases.json")
    check([json.loads(path.read_text())], listed("results.md", "cases.json"))


@pytest.mark.parametrize("format_", CODECS)
def test_the_example_on_the_wire_has_the_bytes_and_the_digest_of_the_page(format_: Any) -> None:
    told = {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows(section("wire.md", "Example"))}
    raw, wire = bytes.fromhex(told[format_][0]), encode({"t": EXAMPLE}, format_)["t"]
    assert wire.flatten().view(torch.uint8).tolist() == list(raw)
    head = f"t\0{wire.dtype}\0{tuple(wire.shape)}\0".encode()
    assert told[format_][1] == hashlib.sha256(head + raw).hexdigest() == digest({"t": wire})


def test_the_bytes_on_the_page_decode_to_the_values_that_it_says() -> None:
    detail = rows(section("wire.md", "Example"))[len(CODECS) :]
    raw = bytes.fromhex("".join(row[0].strip("`") for row in detail))
    came = decode({"t": torch.tensor(list(raw), dtype=torch.uint8)}, {"t": Spec((2, 3), torch.float32)}, "int8")["t"]
    assert came.flatten().tolist() == pytest.approx([float(row[2]) for row in detail[1:]], rel=1e-7)
    assert [int(row[1]) for row in detail[1:]] == [int.from_bytes([byte], signed=True) for byte in raw[2:]]
    scale = torch.tensor(list(raw[:2]), dtype=torch.uint8).view(torch.bfloat16).item()
    assert f": {scale:.8f} as" in detail[0][1]


def test_flare_carries_the_example_in_the_bytes_of_the_page() -> None:
    *_, told = re.findall(r"```text\n(.*?)```", page("wire.md"), re.DOTALL)
    sent = TensorDownloadable({"T0": encode({"t": EXAMPLE}, "int8")["t"]}, 2 << 20).produce_item(0)
    assert bytes.fromhex(told) == sent
    assert f"these {len(sent)} bytes" in page("wire.md")


def test_the_page_of_the_wire_has_the_guard_s_figures() -> None:
    guard = section("wire.md", "What the guard demands")
    for figure in (f"at most {FACTS} characters", f"at most {TEXT} characters", "from 1 to 10 000 000"):
        assert figure in guard
    assert f"blocks of {BLOCK}" in page("wire.md")
    assert isinstance(judge_samples(10_000_000), Accepted)
    assert isinstance(judge_samples(10_000_001), Rejected)


def test_the_page_of_the_wire_lists_the_facts_of_an_update_and_of_a_task(run: Run) -> None:
    check([run.update.meta], listed("wire.md", "Facts of an update"))
    ours = {key: value for key, value in run.headers.items() if key.startswith(("pfedsam_", "current_", "num_"))}
    check([ours | (run.task.meta or {})], listed("wire.md", "Facts of a task"))


def test_the_page_of_the_wire_lists_the_facts_in_each_file_s_header(
    run: Run, apart: tuple[Path, list[Any]], model_file: Path
) -> None:
    files = {
        "`models/shared.safetensors` at the server": apart[0] / "first/models/shared.safetensors",
        "`shared.safetensors` at a site": next(run.site.rglob("shared.safetensors")),
        "`private.safetensors` at a site": next(run.site.rglob("private.safetensors")),
        "`private.NUMBER.safetensors` in the site's store": next(run.site.rglob("private.0*.safetensors")),
        "`round.NUMBER.safetensors` in the server's store": next(apart[0].rglob("round.*.safetensors")),
        "an exported model": model_file,
    }
    told = {row[0]: set(re.findall(r"`(\w+)`", row[2])) for row in rows(section("wire.md", "Files"))}
    assert told == {name: set(facts_of(path)) for name, path in files.items()}


def test_the_page_of_the_ledger_lists_the_fields_of_its_lines_and_what_each_task_tells(run: Run) -> None:
    names, told = [row[0] for row in rows(section("ledger.md", "A line"))], listed("ledger.md", "A line")
    tasks = [(line["direction"], line["task"], bool(line["tensors"]), set(line["facts"])) for line in run.lines]
    update = {name.split(".")[0] for name in listed("wire.md", "Facts of an update")}
    assert tasks == [
        ("in", "train", True, set()),
        ("out", "train", True, update),
        ("in", "validate", True, set()),
        ("out", "validate", False, {"metrics"}),
    ]
    assert names[-len(tasks) :] == [f"`{way}`, `{task}`" for way, task, *_ in tasks]
    check(run.lines, dict(list(told.items())[: -len(tasks)]))


def test_the_ledger_s_example_is_the_line_of_the_wire_s_example(tmp_path: Path) -> None:
    told = json.loads(block("ledger.md", "json"))
    book = Ledger(tmp_path / "ledger.jsonl", clock=lambda: told["time"])
    wire = encode({"t": EXAMPLE}, "int8")
    book.note("out", wire, task=told["task"], round_=told["round"], facts=told["facts"], run=told["run"])
    assert list(book.lines()) == [told]


def test_the_ledger_s_program_finds_a_tensor_that_nobody_declared(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pfedsam.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "ledger.jsonl").write_bytes(run.ledger.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(block("ledger.md", "python"), {})
    left = sum(line["direction"] == "out" for line in Ledger(run.ledger).lines())
    assert left
    assert capsys.readouterr().out == f"{left} messages left, 0 of them not declared\n"
    facts = {"task": "train", "round_": 7, "facts": {}}
    Ledger(Path("ledger.jsonl")).note("out", {"encoder.experts.0": EXAMPLE}, **facts)
    for names in sent_names():  # of a masked sum's steps, which this job has none of
        Ledger(Path("ledger.jsonl")).note("out", dict.fromkeys(names, EXAMPLE), **facts)
    exec(block("ledger.md", "python"), {})
    assert "not declared:  7 ['encoder.experts.0']" in capsys.readouterr().out
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("ledger.md", "sh")], capture_output=True, check=True
    )
    assert json.loads(shown.stdout)["round"] == 7


def test_the_last_model_that_came_is_the_one_in_the_site_s_folder(run: Run) -> None:
    came = [line["sha256"] for line in run.lines if line["direction"] == "in"]
    assert facts_of(next(run.site.rglob("shared.safetensors")))[PAYLOAD] == came[-1]
