"""The house rules that a reader may rely on, held against the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "custom/pfedsam"
LOWER = {  # a room may import these rooms, and itself
    "model": set(),
    "data": set(),
    "prepare": {"data"},
    "exchange": {"model"},
    "record": {"exchange"},
    "train": {"model", "data", "record", "exchange"},
    "methods": {"exchange", "train", "model", "data"},
    "report": {"settings", "record", "exchange"},
    "inference": {"settings", "study", "record", "exchange", "methods", "train", "model", "data"},
    "export": {"settings", "study", "inference", "record", "exchange", "methods", "train", "model", "data"},
    "predict": {"inference", "data"},
    "doctor": {"settings", "study", "service", "site", "exchange", "train", "model", "data"},
    "flare": {"settings", "methods", "study", "record", "exchange", "train", "data", "site", "service"}
    | {"jobs", "doctor"},
}
FREE = {"bounds", "certificates", "config", "errors", "files", "layout", "names", "pages", "quiet", "tensors", "umask"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names if node.module == "pfedsam"}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


@pytest.mark.parametrize("room", LOWER)
def test_imports_go_one_way(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        rooms = {m.split(".")[1] for m in imports(path) if m.startswith("pfedsam.")} - FREE - {"log", "__version__"}
        assert rooms <= LOWER[room] | {room}, path.name


def loaded(module: str, before: str = "pass") -> set[str]:
    """The modules that a fresh process has after it imported one."""
    told = f"import sys; {before}; import {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", ["pfedsam.exchange.guard", "pfedsam.record.site_files"])
def test_the_guard_and_the_record_load_no_model_and_no_plot(module: str) -> None:
    heavy = {"monai", "matplotlib", "nvflare", "pfedsam.methods", "pfedsam.train", "pfedsam.data", "pfedsam.site"}
    assert not loaded(module) & heavy


@pytest.mark.parametrize("module", ["executor", "results"])
def test_a_job_s_process_runs_without_matplotlib_and_loads_nothing_of_the_report(module: str) -> None:
    """MONAI loads it by itself where it is installed."""
    found = loaded(f"pfedsam.flare.{module}", before="sys.modules['matplotlib'] = None")
    assert not {name for name in found if name.startswith("pfedsam.report")}


def test_only_the_command_line_knows_the_report_and_only_the_report_draws() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("cli", "report"):
            assert not any(m.startswith(("pfedsam.report", "matplotlib")) for m in imports(path)), path


def test_only_the_flare_room_knows_flare() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "flare":
            assert not any(m.split(".")[0] == "nvflare" for m in imports(path)), path


def test_no_pickle_is_read_or_written() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        refusal = [node for node in ast.walk(tree) if ast.unparse(node) == "from pickle import UnpicklingError"]
        assert not refusal or "import pickle" not in path.read_text()
        names = {m.split(".")[0] for m in imports(path)} - ({"pickle"} if refusal else set())
        assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
                assert ast.unparse(node.func) == "torch.load"
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)


def test_only_one_module_prints_and_it_shows_no_control_character() -> None:
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        assert not calls & {"print", "sys.stdout.write", "sys.stderr.write"} or path.name == "console.py", path


def test_no_parameter_is_chosen_by_a_piece_of_its_name() -> None:
    for path in (PACKAGE / "model", PACKAGE / "methods", PACKAGE / "exchange", PACKAGE / "train"):
        for file in path.glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Compare)
                    and isinstance(node.ops[0], ast.In)
                    and isinstance(node.left, ast.Constant)
                ):
                    assert node.left.value not in ("lora", "moe", "decoder", "expert", "adapter"), file


def test_the_guide_to_a_new_method_shows_the_method_as_it_is() -> None:
    guide = (ROOT / "docs/add-a-method.md").read_text()
    shown = guide.split("+++ custom/pfedsam/methods/scaffold.py\n")[1].split("+++ benchmarks/")[0]
    assert [line.removeprefix("+") for line in shown.splitlines()] == (
        PACKAGE / "methods/scaffold.py"
    ).read_text().splitlines()
    files = [path for path in (PACKAGE / "methods").glob("*.py") if path.name != "base.py"]
    assert max(len(path.read_text().splitlines()) for path in files) <= 120
