"""A sweep by several rules, with draws of random layers, on the page and on the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.harness import images
from plam_eval.report import plots, tables
from plam_eval.report.page import write_report
from plam_eval.report.plots import Cloud, Estimate
from plam_eval.report.sections.shared import layer_labels, layers_of_cell
from plam_eval.terminal import Terminal
from tests.helpers.pages import Page
from tests.helpers.run_folders import documents, write_sweep

GIVEN: dict[str, Any] = {
    "layers": "4:8,0+2+5:7",
    "weights": "0.9+0.3,0.5+0.5",
    "rules": "weighted_sum,trim,task_arithmetic",
    "controls": "self_scale,random_layers",
    "draws": 4,
    "model_args": "pretrained=pair/mllm,base=pair/base,ancestor=pair/ancestor,layers=4:8",
}
CHOSEN = "layers-4-8_qkvo_0.9+0.3_trim_density=0.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trim in [4, 8) is best; its draws and all else are as plain, but for weighted_sum in the same layers."""
    folder = tmp_path_factory.mktemp("rules") / "sweep"
    plain = documents(["pope"], 40, right=20)
    cells = {cell.name: plain for cell in write_sweep(folder, {}, **GIVEN).cells}
    cells[CHOSEN] = documents(["pope"], 40, right=36)
    cells["layers-4-8_qkvo_0.9+0.3"] = documents(["pope"], 40, right=24)
    write_sweep(folder, cells, **GIVEN)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "document_images", lambda wanted, *a, **k: ({}, dict.fromkeys(wanted, "not looked for")))
        return Page(write_report([folder], folder.parent / "out"))


def kept(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the page's section hands to a figure of this name."""
    calls: list[Any] = []
    draw = getattr(plots, name)

    def keeping(*args: Any, **how: Any) -> Any:
        calls.append((args, how))
        return draw(*args, **how)

    monkeypatch.setattr(plots, name, keeping)
    monkeypatch.setattr(
        images, "document_images", lambda wanted, *a, **k: ({}, dict.fromkeys(wanted, "not looked for"))
    )
    write_report([folder], folder.parent / "again", examples=0)
    call: tuple[tuple[Any, ...], dict[str, Any]]
    (call,) = calls
    return call


def test_headings_and_sentences(page: Page) -> None:
    assert page.headings[:3] == ["Rules, layers and weights", "Beside the controls", "Before as many random layers"]
    assert "What do parameters of pair/base change in pair/mllm" in page.text and "merges by 3 rules and" in page.text
    assert "Rules: of 3, trim, density 0.2 did best" in page.text
    assert "Random layers: it does better than 4 of 4 draws of as many layers" in page.text
    assert "trim: the entries in which MLLM and base differ most" in page.text


def test_each_merge_has_a_square_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (estimates, rows, columns), how = kept(monkeypatch, folder, "heat_map")
    assert rows == ["0.9 + 0.3", "0.5 + 0.5"] * 2 + ["0.9 + 0.3"]  # of 0.5 + 0.5 no share of the ancestor is left
    assert how["groups"] == [("weighted_sum", 2), ("trim, density 0.2", 2), ("task_arithmetic", 1)]
    assert columns == ["4:8", "0+2+5:7"]  # ranges first
    values = [[cell.value for cell in row] for row in estimates]
    assert values[0][0] == pytest.approx(0.1) and values[2][0] == pytest.approx(0.4) and how["chosen"] == (2, 0)
    assert sum(value != 0 for row in values for value in row) == 2


def test_rules_with_one_row_each_are_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**GIVEN, "weights": "0.9+0.3", "controls": "none"}
    plain = documents(["pope"], 20, right=10)
    sweep = tmp_path / "sweep"
    write_sweep(sweep, {cell.name: plain for cell in write_sweep(sweep, {}, **given).cells}, **given)
    (_, rows, _), how = kept(monkeypatch, sweep, "heat_map")
    assert rows == ["weighted_sum", "trim, density 0.2", "task_arithmetic"] and how["groups"] == ()


def test_controls_of_each_rule_have_a_panel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (panels,), how = kept(monkeypatch, folder, "controls")
    assert list(panels) == ["weighted_sum", "trim, density 0.2", "task_arithmetic"]
    assert [len(by_merge) for by_merge in panels.values()] == [4, 4, 2]
    assert how["chosen"] == ("trim, density 0.2", "4:8\n0.9 + 0.3")
    names = [estimate.name for estimate in panels["trim, density 0.2"]["4:8\n0.9 + 0.3"]]
    assert names == ["trim", "self_scale", *["random_layers"] * 4]


def test_draws_stand_behind_their_merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clouds,), how = kept(monkeypatch, folder, "clouds")
    assert len(clouds) == 10 and [count for _, count in how["groups"]] == [4, 4, 2]
    chosen = clouds[how["chosen"]]
    assert chosen.merge.value == pytest.approx(0.4) and chosen.draws == [0.0] * 4 and chosen.scale.value == 0
    assert [cloud.scale is None for cloud in clouds[:2]] == [False, True]  # weights that sum to one: plain


def test_clouds() -> None:
    merge = Estimate("4:8, 0.9 + 0.3", 0.1, 0.05, 0.15)
    figure = plots.clouds([Cloud(merge, [0.0, 0.02, 0.02], merge), Cloud(merge, [0.01], None)], chosen=1)
    (axes,) = figure.axes
    drawn = [(line.get_marker(), np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]
    assert [list(across) for mark, across, _ in drawn if mark == "s"] == [[0.1]]
    assert len(axes.patches) == 1  # one draw has no standard deviation
    (heights,) = [list(down) for _, across, down in drawn if len(across) == 3]
    assert len(set(heights)) == 3  # equal draws do not hide each other
    assert [tick.get_fontweight() for tick in axes.get_yticklabels()] == ["normal", "bold"]


def test_many_draws_of_a_control_share_a_place() -> None:
    drawn = [Estimate("random_layers", 0.01 * n, 0.0, 0.1) for n in range(5)]
    figure = plots.controls({"": {"4:8": [Estimate("trim", 0.1, 0.0, 0.2), *drawn]}})
    assert len(figure.axes[0].collections) == 2  # the merge's interval, and the mean of the draws
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trim", "random_layers"]


def test_layer_sets_on_an_axis() -> None:
    sets = ["8:12", "4:8", "10+12", "0+2+5:7", "2+4"]
    assert sorted(sets, key=lambda text: layers_of_cell({"layers": text})) == ["4:8", "8:12", "0+2+5:7", "2+4", "10+12"]
    long = "+".join(str(layer) for layer in range(0, 60, 2))
    other = "+".join(str(layer) for layer in range(0, 60, 2) if layer != 30)
    third = "+".join(str(layer) for layer in range(0, 60, 2) if layer != 32)
    labels = layer_labels(["4:8", "0+2+5:7+10", long, other, third])
    assert labels["4:8"] == "4:8" and labels["0+2+5:7+10"].replace("\n", "") == "0+2+5:7+10"
    assert labels[long] == "30 of\n0:59" and len(set(labels.values())) == 5  # sets of one size and ends are told apart


def test_the_terminal_says_it_in_one_column(folder: Path) -> None:
    found = read_findings(folder)
    wide = Terminal(file=io.StringIO(), width=260)
    wide.show(tables.sweep(found))
    text = wide.file.getvalue()  # type: ignore[attr-defined]
    chosen = next(line for line in text.splitlines() if "trim" in line and "*" in line)
    assert "+0.400 (p " in chosen and "4 of 4" in chosen
    merges_and_scales = [line for line in text.splitlines() if line.startswith("│ layers ")]
    drawn = {name for by_rule in found.plan["grid"]["controls"].values() for name in by_rule.get("random_layers", ())}
    assert len(merges_and_scales) == len(found.cells) - 1 - len(drawn)
    narrow = Terminal(file=io.StringIO(), width=80)
    narrow.show(tables.sweep(found), tables.sweep(found, narrow=True))
    lines = narrow.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80 and "4 of 4" in "".join(lines)
