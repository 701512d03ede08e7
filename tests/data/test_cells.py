"""A spreadsheet that opens a table of ours computes nothing, and we read the same paths back."""

import ast
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from pfedsam.cli import main
from pfedsam.data.cells import inert, write_cells
from pfedsam.data.datalist import Row, read, write_csv

FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_like_a_formula(text: str) -> None:
    file = io.StringIO()
    write_cells(file, ["path", "text"], [{"path": text, "text": text}], {"path"})
    (row,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert row == {"path": f"./{text}", "text": f"'{text}"}


@pytest.mark.parametrize("text", ["", "a=1", "images/-1.png", " =1", "0", "'"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert inert(text) == text


def test_an_image_with_a_formula_as_its_name_is_still_found(tmp_path: Path) -> None:
    rows = [Row(f"={split}.png", f"-{split}.png", split, f"=g{split}") for split in ("train", "val", "test")]
    for row in rows:
        for name in (row.image, row.mask):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    found = read(write_csv(tmp_path / "datalist.csv", rows))
    assert (tmp_path / found["train"][0].image).resolve() == tmp_path / "=train.png"
    assert (tmp_path / found["train"][0].mask).resolve() == tmp_path / "-train.png"


def test_a_hospital_s_own_list_of_names_computes_nothing(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(6):
        for part in ("images", "masks"):
            folder = tmp_path / "in" / part / f"=cmd{i}"
            folder.mkdir(parents=True)
            values = draw.integers(0, 256, (32, 32)) if part == "images" else draw.integers(0, 2, (32, 32)) * 255
            Image.fromarray(values.astype(np.uint8)).save(folder / f"@{i}.png")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    for name in ("names.csv", "datalist.csv"):
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert cells
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in cells)
    assert any("=cmd" in cell for cell in (tmp_path / "out/names.csv").read_text().split(","))


def test_one_module_writes_tables() -> None:
    for folder in ("custom", "scripts", "benchmarks", "poc"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
            assert not calls & {"csv.writer", "csv.DictWriter"} or path.name == "cells.py", path
