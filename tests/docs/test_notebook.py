"""The notebook: its cells run from first to last, in one namespace, without a warning.

They are run here and not by Jupyter's kernel, which would bring some thirty packages for what `exec` does.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from conftest import ROOT

NOTEBOOK = ROOT / "examples/three_hospitals.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def run(cell: str, names: dict[str, Any]) -> str:
    """Run a cell; returns what a notebook would show of its last expression."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    value = eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None
    return "" if value is None or cell.rstrip().endswith(";") else repr(value)


def test_the_notebook_runs_with_one_plot_a_cell_and_every_site_s_model_gets_better(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    plots, shown = [], []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            shown.append(run("".join(cell["source"]), names))
            plots.append(len(plt.get_fignums()))
            for number in plt.get_fignums():
                plt.figure(number).canvas.draw()
            plt.close("all")
    assert max(plots) == 1
    assert sum(plots) == 4
    assert any("'scale': 'uint8'" in one for one in shown)
    told = capsys.readouterr()
    assert "round 4 done in" in told.out
    assert told.err == ""
    for site in names["SITES"]:
        scores = names["run"].record["final"]["sites"][site]
        assert scores["personal"]["dice"] > scores["before"]["dice"] + 0.2, site


def test_no_output_is_kept_in_the_notebook_and_its_links_lead_to_files() -> None:
    for cell in CELLS:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / target).exists(), target
