"""docs/api.md: its names and signatures are those of the code, and its examples run."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import pfedsam
from conftest import ROOT

PAGE = (ROOT / "docs/api.md").read_text()
CALLS = {
    "pfedsam.load": pfedsam.load,
    "pfedsam.simulate": pfedsam.simulate,
    "pfedsam.PFedSAMRecipe": pfedsam.PFedSAMRecipe,
    "Model.predict": pfedsam.Model.predict,
    "Results.table": pfedsam.Results.table,
    "Results.export": pfedsam.Results.export,
    "Results.before": pfedsam.Results.before,
}


def spelt(call: Any) -> str:
    """A signature without types, and without self."""
    signature = inspect.signature(call)
    plain = [
        one.replace(annotation=inspect.Parameter.empty) for name, one in signature.parameters.items() if name != "self"
    ]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", CALLS)
def test_each_signature_on_the_page_is_the_code_s_and_each_argument_is_explained(name: str) -> None:
    assert f"{name}{spelt(CALLS[name])}" in PAGE
    if name in ("pfedsam.load", "pfedsam.simulate", "pfedsam.PFedSAMRecipe", "Model.predict"):
        after = PAGE.split(f"\n{name}(")[1]
        explained = re.findall(r"^\| `(\**\w+)` \|", after.split("```python")[0], re.MULTILINE)
        arguments = [str(one.replace(annotation=one.empty, default=one.empty)) for one in parameters(CALLS[name])]
        assert explained == arguments


def parameters(call: Any) -> list[inspect.Parameter]:
    return [one for name, one in inspect.signature(call).parameters.items() if name != "self"]


def test_the_page_names_all_that_is_public_and_nothing_else() -> None:
    listed = set(re.findall(r"^\| \[?`pfedsam\.(\w+)`", PAGE.split("## ")[0], re.MULTILINE))
    assert listed == set(pfedsam.__all__)
    for kind in (pfedsam.Model, pfedsam.Results):
        public = {name for name in vars(kind) if not name.startswith("_")} | {one.name for one in fields(kind)}
        assert public == set(re.findall(rf"\b{kind.__name__}\.(\w+)", PAGE)), kind


def test_the_examples_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        exec(compile(example, "docs/api.md", "exec"), names)
    told = capsys.readouterr().out
    assert "pfedsam, test split (synthetic data)" in told
    assert "{1: 'class 1'} uint8 axial" in told
    assert "(128, 128) uint8 (1, 128, 128) float32" in told
    assert "cut the transparency off" in told
    assert (tmp_path / "jobs/mine/meta.json").is_file()
