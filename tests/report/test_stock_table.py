"""Stock scores in the terminal, at every width, and as blocks of the page."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stock_scores import invented, write_run
from plam_eval.evaluation.stock_scores import StockScore
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.report.page import write_report
from plam_eval.report.stock_table import show, show_sweep, stock_blocks
from plam_eval.terminal import Terminal
from tests.helpers.commands import command_line
from tests.helpers.nasty import NASTY, SHOWN
from tests.helpers.pages import Page
from tests.helpers.run_folders import documents, write_sweep

SHARE = StockScore(
    "mmstar", "average", unit="share", higher_is_better=True, documents=1500, clusters=1500, differing=80,
    first=0.5, second=0.52, difference=0.02, low=-0.001, high=0.041, resamples=10_000, first_stored=0.5,
    second_stored=0.52,
)  # fmt: skip
POINTS = replace(
    SHARE, task="mme", metric="mme_perception_score", unit="points", first=1500.0, second=1482.5, difference=-17.5,
    low=-30.25, high=-4.0, first_stored=1500.0, second_stored=1482.5, over="clusters",
)  # fmt: skip
FEW = replace(POINTS, metric="mme_cognition_score", low=math.nan, high=math.nan, differing=4, why="only 4 differ")
LONG = replace(
    SHARE,
    task="mmvet",
    metric="gpt_eval_score",
    unit="percent",
    low=math.nan,
    high=math.nan,
    why=f"a judge makes it {'x' * 40}",
)


def shown(*scores: StockScore, width: int = 170, **beside: tuple[StockScore, ...]) -> str:
    console = Terminal(file=io.StringIO(), width=width)
    show(console, scores, "plain", "merged", beside)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_metric_is_told_on_its_own_scale() -> None:
    out = shown(SHARE, POINTS, FEW, LONG)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == ["mmstar", "average", "0.500", "0.520", "+0.020", "-0.001 to +0.041"]
    assert rows[1] == ["mme", "mme_perception_score", "1500.0", "1482.5", "-17.5", "-30.2 to -4.0"]
    assert rows[2][0] == "" and rows[2][-1] == "only 4 differ"
    assert rows[3][-1] == "none (1)" and f"(1) {LONG.why}" in out.replace("\n", "")
    assert "results files" not in out and "!" not in out


def test_what_has_to_be_known_of_a_figure_stands_below() -> None:
    some = replace(SHARE, complete=False, first_stored=0.61, second_stored=0.62)
    few = replace(SHARE, task="mmmu_val", metric="mmmu_acc", clusters=7, over="clusters")
    part = replace(few, part="Science", clusters=150, over="documents")
    damaged = replace(SHARE, task="gqa", second_stored=0.9, note="the second run's results file says 0.9")
    out = " ".join(shown(some, few, part, damaged).split())
    assert "0.610, 0.620" in out and "of the documents compared" in out
    assert "-0.001 to +0.041 !" in out and "!: of 7 to 9 clusters" in out
    assert "mmmu_acc: Science" in out and "domains of MMMU" in out
    assert "gqa, average: the second run's results file says 0.9" in out
    falling = replace(SHARE, metric="wer", higher_is_better=False)
    assert "wer (lower is better)" in shown(falling)


def test_the_scale_control_stands_beside_in_the_same_line() -> None:
    control = replace(SHARE, difference=0.004, low=-0.01, high=0.02)
    out = shown(SHARE, POINTS, self_scale=(control,))
    assert "minus self_scale" in out
    [line] = [line for line in out.splitlines() if "average" in line]
    assert "+0.020" in line and "+0.004" in line and "-0.010 to +0.020" in line


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_and_no_number_is_cut(width: int) -> None:
    rows = [replace(score, part="Humanities and Social Science") for score in (SHARE, POINTS, FEW, LONG)]
    out = shown(*rows, width=width, self_scale=tuple(rows))
    assert max(map(len, out.splitlines())) <= width and "…" not in out
    assert out.count("-30.2 to -4.0") == 2


def test_names_and_reasons_are_text() -> None:
    score = replace(SHARE, task=NASTY, metric=NASTY, low=math.nan, high=math.nan, why=NASTY * 3, note=NASTY)
    out = shown(score, width=600)
    assert "\x1b" not in out and out.count(SHOWN) >= 5


def test_nothing_is_shown_of_nothing() -> None:
    assert shown() == "" and stock_blocks((), "plain", "merged") == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {task: invented(task, 60, np.random.default_rng(1)) for task in ("pope", "mme")}
    for number, name in enumerate(("plain", "merged")):
        write_run(folder / name, {task: lines[number] for task, lines in made.items()})
    return [folder / "plain", folder / "merged"]


def test_the_commands_print_them_and_leave_them_out(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plam = command_line(monkeypatch, capsys)
    code, out, _ = plam("compare", *folders)
    assert code == 0 and "Stock scores, as lmms-eval reports them" in out and "pope_f1_score" in out
    code, out, _ = plam("compare", *folders, "--no-stock")
    assert code == 0 and "Stock" not in out
    code, out, _ = plam("compare", *folders, "--json")
    rows = json.loads(out)["stock"]
    assert code == 0 and {row["metric"] for row in rows} >= {"pope_f1_score", "mme_perception_score"}
    assert [row["low"] for row in rows if row["metric"] == "pope_yes_ratio"] == [None]
    code, out, _ = plam("compare", *folders, "--json", "--no-stock")
    assert code == 0 and "stock" not in json.loads(out)


def test_the_page_has_them_before_what_the_results_files_say(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(write_report(folders, tmp_path / "out", examples=0))
    assert page.headings.count("Stock metrics") == 1
    section = page.text.partition("Stock scores of merged against plain")[2]
    table, _, folded = section.partition("All runs, as their results files have it")
    assert "pope_f1_score" in table.replace("_ ", "_") and "60 clusters" in table and "points" in table
    assert "no cluster differs" in table and "Stock metrics, by task" in folded


def test_a_sweep_has_those_of_its_chosen_merge(tmp_path: Path) -> None:
    plain, merged, control = (documents(["pope", "mmstar"], 30, right) for right in (10, 25, 12))
    names = {"plain": plain, "layers-6-8_qkvo_0.9+0.3": merged, "layers-6-8_qkvo_0.9+0.3_self_scale": control}
    grid = write_sweep(tmp_path, {}, layers="6:8")
    cells = {cell.name: given for cell, given in zip(grid.cells, names.values(), strict=True)}
    write_sweep(tmp_path, cells, layers="6:8")
    findings = read_findings(tmp_path)
    assert [*findings.stock] == ["plain", "self_scale"]
    by_name = {name: {s.metric: s for s in scores if s.task == "pope"} for name, scores in findings.stock.items()}
    against_plain, against_scale = by_name["plain"]["pope_accuracy"], by_name["self_scale"]["pope_accuracy"]
    assert (against_plain.first, against_plain.second) == (10 / 30, 25 / 30) and against_plain.low > 0
    assert against_scale.first == 12 / 30 and against_scale.low < against_scale.difference < against_plain.high
    console = Terminal(file=io.StringIO(), width=200)
    show_sweep(console, findings)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "minus self_scale" in out and "0.833" in out and "chosen" in out
    assert {row["against"] for row in findings.to_dict()["stock"]} == {"plain", "self_scale"}
    assert "stock" not in findings.to_dict(stock=False)
    half = read_findings(tmp_path, select=10).stock["plain"]
    accuracy = next(score for score in half if score.metric == "pope_accuracy")
    assert not accuracy.complete and accuracy.first_stored == 10 / 30 and accuracy.first != 10 / 30
