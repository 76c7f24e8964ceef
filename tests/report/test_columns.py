"""Tables in a terminal of 80 columns: every number is there, whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation import scan_folder
from plam_eval.evaluation.stats import OVERALL, Paired, format_p
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.probing.plateau import find_plateau
from plam_eval.report import tables
from plam_eval.report.sections.cells import all_cells
from plam_eval.terminal import Terminal
from tests.helpers.curves import curve_of
from tests.helpers.run_folders import changed, documents, write_sweep


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal(file=io.StringIO(), least_width=150)


def lines(console: Terminal) -> list[str]:
    out: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\N{HORIZONTAL ELLIPSIS}" not in out and max(map(len, out.splitlines())) <= 80, out
    return out.splitlines()


def test_a_comparison(narrow: Terminal) -> None:
    rows = [
        Paired(task, 7500, 7500, 0.501, 0.612, 0.1113, -0.0214, 0.1231, 1203, 1101, 0.0512, "mcnemar", 1.0, 0.99, 100)
        for task in ("mmbench_cn_dev_static", "a_task_of_which_the_name_is_longer_than_that", OVERALL)
    ]
    for form in (False, True):
        wide = tables.comparison(rows, "plain", "merged", {rows[1].task: -1}, narrow=form)
        Terminal(file=io.StringIO(), width=200).print(wide)
    narrow.show(*(tables.comparison(rows, "plain", "merged", {rows[1].task: -1}, narrow=n) for n in (False, True)))
    text = " ".join(lines(narrow))
    for number in ("0.501", "0.612", "+0.111", "-0.021 to +0.123", "1203", "1101", "0.051", "100%", "99%", "n = 7500"):
        assert text.count(number) >= 3, number


@pytest.mark.parametrize("p", [0.0083, 3e-05])
def test_small_p_values_fit(narrow: Terminal, tmp_path: Path, p: float) -> None:
    rows = [
        Paired(task, 7500, 7500, 0.501, 0.612, 0.1113, -0.0214, 0.1231, 12034, 1101, p, "mcnemar", 1.0, 0.99, 100)
        for task in ("mmbench_cn_dev_static", OVERALL)
    ]
    narrow.show(*(tables.comparison(rows, narrow=form) for form in (False, True)))
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    names = ["layers-24-36_qkvo_0.9+0.3", "layers-24-36_qkvo_0.9+0.3_self_scale"]
    write_sweep(tmp_path, {"plain": plain, names[0]: better, names[1]: plain}, layers="24:36", num_layers=36)
    found = read_findings(tmp_path)
    for table in (found.cells, found.controls):
        table["p"] = p
    found.cells["p_holm"] = p
    narrow.show(tables.sweep(found), tables.sweep(found, narrow=True))
    assert " ".join(lines(narrow)).count(format_p(p)) >= 6


def test_a_sweep(narrow: Terminal, tmp_path: Path) -> None:
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    names = ["layers-24-36_qkvo_0.9+0.3", "layers-24-36_qkvo_0.9+0.3_self_scale"]
    write_sweep(tmp_path, {"plain": plain, names[0]: better, names[1]: plain}, layers="24:36", num_layers=36)
    found = read_findings(tmp_path)
    narrow.show(tables.sweep(found), tables.sweep(found, narrow=True))
    text = " ".join(lines(narrow))
    wide = Terminal(file=io.StringIO(), width=200)
    wide.show(tables.sweep(found), tables.sweep(found, narrow=True))
    row = next(line for line in wide.file.getvalue().splitlines() if "0.3 *" in line)  # type: ignore[attr-defined]
    numbers = [cell.strip() for cell in row.split("\N{BOX DRAWINGS LIGHT VERTICAL}")[2:-3]]
    assert len(numbers) == 8 and all(number in text for number in numbers), (numbers, text)
    assert "layers 24:36, qkvo" in text and "0.9+0.3 self_scale" in text


def test_what_is_chosen_without_labels(narrow: Terminal, tmp_path: Path) -> None:
    plain = documents(["pope", "mmstar"], 40, right=20)
    runs = {"plain": plain}
    for count, weights in ((3, "0.9+0.3"), (4, "0.8+0.4"), (9, "0.7+0.5")):
        wrong = {("pope", n): ("yes", 1.0) for n in range(20, 20 + count)}
        runs[f"layers-24-36_qkvo_{weights}"] = changed(plain, wrong)
    write_sweep(tmp_path, runs, layers="24:36", weights="0.9+0.3,0.8+0.4,0.7+0.5", controls="none", num_layers=36)
    found = read_findings(tmp_path)
    assert found.label_free is not None
    words = found.label_free.text()
    assert "layers 24:36, qkvo, 0.9 + 0.3 (4 of 80 answers)" in words
    narrow.show(tables.sweep(found), tables.sweep(found, narrow=True))
    assert words in " ".join(" ".join(lines(narrow)).split())
    wide = Terminal(file=io.StringIO(), width=200)
    wide.show(tables.sweep(found), tables.sweep(found, narrow=True))
    rows = wide.file.getvalue().splitlines()  # type: ignore[attr-defined]
    settings = [line.split("\N{BOX DRAWINGS LIGHT VERTICAL}") for line in rows if "qkvo, 0" in line]
    last = [cells[-2].strip() for cells in settings if len(cells) > 2]
    assert last == ["4", "6", ""]
    rows_of_page: Any = {row["cell"]: row for row in found.cells.to_dict("records")}
    table, note, *_ = all_cells(found, rows_of_page)
    column = table.columns.index("neighbours differ")
    assert [row.cells[column] for row in table.rows] == ["\N{EN DASH}", "4", "6", "\N{EN DASH}"]
    assert note.text == words


def test_a_scan(narrow: Terminal, tmp_path: Path) -> None:
    curve = curve_of(36, ["mmstar", "pope", "mmbench_en_dev_static", "realworldqa"])
    spec: Any = object()
    tables.show_scan(scan_folder.Scan(tmp_path, curve, find_plateau(curve), spec), narrow)
    table = [line for line in narrow.file.getvalue().splitlines() if line.startswith(("below", "none", "all "))]  # type: ignore[attr-defined]
    assert len(table) == 37 and max(map(len, table)) <= 80
    assert all(line.split()[-1] in ("separation", "alignment", "plateau", "degradation") for line in table[:-1]), table


def test_where_there_is_no_edge_tables_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Terminal(file=io.StringIO(), least_width=150).width == 150
