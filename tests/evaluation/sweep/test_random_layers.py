"""Merges before their random layers, and rules beside each other, from folders written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.sweep import by_rule, random_layers
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from tests.helpers.run_folders import Document, changed, documents, write_sweep

MERGED = "layers-4-8_qkvo_0.9+0.3"


def right(count: int, *, of: int = 60) -> list[Document]:
    """So many documents answered right, the first ones."""
    return documents(["pope"], of, right=count)


def swept(folder: Path, merged: int, draws: list[int | str], *, plain: int = 20, **given: Any) -> Findings:
    """A merge of layers 4:8 with so many right, and its draws with as many as they say, or failed."""
    settings: dict[str, Any] = {"layers": "4:8", "controls": "self_scale,random_layers", "draws": len(draws), **given}
    grid = write_sweep(folder, {}, **settings)
    names = grid.controls[MERGED]["random_layers"]
    content = [one if isinstance(one, str) else right(one) for one in draws]
    cells = {"plain": right(plain), MERGED: right(merged), f"{MERGED}_self_scale": right(plain)}
    write_sweep(folder, {**cells, **dict(zip(names, content, strict=True))}, **settings)
    return read_findings(folder)


def test_a_merge_is_counted_in_among_its_draws(tmp_path: Path) -> None:
    (row,) = swept(tmp_path, 40, [20, 26, 32, 20, 22]).random_layers.to_dict("records")
    assert (row["merged"], row["draws"], row["planned"], row["sets"]) == (MERGED, 5, 5, 69)
    assert (row["better"], row["equal"], row["worse"], row["rank_p"]) == (5, 0, 0, pytest.approx(1 / 6))
    assert row["mean"] == pytest.approx(4 / 60) and (row["least"], row["most"]) == (0, pytest.approx(12 / 60))
    assert row["spread"] == pytest.approx(math.sqrt((16 + 4 + 64 + 16 + 4) / 4) / 60)
    assert row["difference"] == pytest.approx(16 / 60) and row["first"] == pytest.approx(24 / 60)
    assert 0 < row["low"] < row["difference"] < row["high"] and row["p"] < 0.01
    assert 0 < row["shared"] < 1


def test_draws_that_do_as_well_count_against_the_merge(tmp_path: Path) -> None:
    found = swept(tmp_path, 30, [30, 34, 20, 20])
    (row,) = found.random_layers.to_dict("records")
    assert (row["better"], row["equal"], row["worse"], row["rank_p"]) == (2, 1, 1, pytest.approx(3 / 5))
    assert random_layers.standing({str(key): row[key] for key in row}) == "better than 2 of 4, equal to 1"
    said = found.random_layers_in_words()
    assert "better than 2 of 4 draws of as many layers and does as well as 1, rank p = 0.60" in said
    assert "not shown that these layers do better than others: 2 of 4 do at least as well." in said


def test_where_lower_is_better(tmp_path: Path) -> None:
    swept(tmp_path, 10, [20, 5, 20])
    for file in tmp_path.rglob("*_results.json"):
        file.write_text(file.read_text().replace('"pope_accuracy": true', '"pope_accuracy": false'))
    found = read_findings(tmp_path)
    (row,) = found.random_layers.to_dict("records")
    assert found.runs["plain"].directions == {"pope": -1}
    assert (row["better"], row["worse"]) == (2, 1)


def test_tasks_of_both_directions_are_ranked_each_by_its_own(tmp_path: Path) -> None:
    """Two more right on gqa, and four fewer wrong on pope, is better; a sum of scores would call it worse."""
    settings: dict[str, Any] = {"layers": "4:8", "controls": "random_layers", "draws": 1}
    grid = write_sweep(tmp_path, {}, **settings)
    (draw,) = grid.controls[MERGED]["random_layers"]
    of = {"plain": (20, 20), MERGED: (32, 16), draw: (30, 20)}
    cells = {name: [*documents(["gqa"], 60, right=a), *documents(["pope"], 60, right=b)] for name, (a, b) in of.items()}
    write_sweep(tmp_path, cells, **settings)
    for file in tmp_path.rglob("*_results.json"):
        file.write_text(file.read_text().replace('"pope_accuracy": true', '"pope_accuracy": false'))
    found = read_findings(tmp_path)
    assert found.runs["plain"].directions == {"gqa": 1, "pope": -1}
    (row,) = found.random_layers.to_dict("records")
    assert (row["better"], row["worse"]) == (1, 0)


def test_only_finished_draws_count(tmp_path: Path) -> None:
    found = swept(tmp_path, 40, [20, "MergeError: no", 20])
    (row,) = found.random_layers.to_dict("records")
    assert (row["draws"], row["planned"], row["rank_p"]) == (2, 3, pytest.approx(1 / 3))
    assert "2 of 2 draws of as many layers (of 3 drawn)" in found.random_layers_in_words()
    (single,) = swept(tmp_path / "one", 40, [20]).random_layers.to_dict("records")
    assert math.isnan(single["spread"]) and single["rank_p"] == 0.5


def test_what_so_many_draws_cannot_say_is_said(tmp_path: Path) -> None:
    found = swept(tmp_path, 40, [20, 20, 20, 20, 20])
    said = found.random_layers_in_words()
    assert "the first of 6 is so by chance with p = 0.17, and it takes 20 draws for p below 0.05." in said
    assert "+0.333 (" in said and "better than their mean" in said and "best of" not in said
    assert found.further_verdicts() == [said] == found.to_dict()["further_verdicts"]
    found.write()
    assert (tmp_path / "random_layers.csv").is_file() and not (tmp_path / "rules.csv").exists()
    # seven other sets of one layer: none could show it
    folder, name = tmp_path / "one layer", "layers-4-5_qkvo_0.9+0.3"
    grid = write_sweep(folder, {}, layers="4:5", controls="random_layers", draws=9)
    drawn = grid.controls[name]["random_layers"]
    cells = {"plain": right(20), name: right(40), **dict.fromkeys(drawn, right(20))}
    write_sweep(folder, cells, layers="4:5", controls="random_layers", draws=9)
    said = read_findings(folder).random_layers_in_words()
    assert "better than 7 of all 7 other sets of as many layers" in said
    assert "with 7 other sets in all no number of draws could show it" in said


def test_enough_draws_show_it_and_a_choice_among_sets_takes_it_back(tmp_path: Path) -> None:
    assert (
        "So these layers do better than others of that number."
        in swept(tmp_path / "a", 40, [20] * 20).random_layers_in_words()
    )
    chosen = swept(tmp_path / "b", 40, [20] * 20, layers="4:8,0:4").random_layers_in_words()
    assert "do better than others of" not in chosen and "that the layers are the best of 2 sets" in chosen


def test_nothing_is_said_without_draws(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"plain": right(20), MERGED: right(30)}, layers="4:8")
    found = read_findings(tmp_path)
    assert found.random_layers.empty and found.rules.empty and found.further_verdicts() == []
    assert set(found.tables) == {"cells", "tasks", "controls"}
    write_sweep(tmp_path / "new", {}, layers="4:8", controls="random_layers")
    assert read_findings(tmp_path / "new").further_verdicts() == []


# ---- rules -----------------------------------------------------------------------------------------------------------

RULES: dict[str, Any] = {"layers": "4:8,0:4", "rules": "weighted_sum,trim,slerp", "controls": "self_scale"}


def by_rules(folder: Path, **given: int) -> Findings:
    """Merges of [4, 8) by three rules, with so many documents right; others as plain."""
    names = {"trim": f"{MERGED}_trim_density=0.2", "slerp": f"{MERGED}_slerp", "weighted_sum": MERGED}
    grid = write_sweep(folder, {}, **RULES)
    cells: dict[str, Any] = {cell.name: right(20) for cell in grid.cells}
    write_sweep(folder, cells | {names[rule]: right(count) for rule, count in given.items()}, **RULES)
    return read_findings(folder)


def test_the_best_merge_by_each_rule_stands_beside_its_control(tmp_path: Path) -> None:
    found = by_rules(tmp_path, trim=45, slerp=40, weighted_sum=22)
    assert found.selection is not None and max(found.selection.gains.values()) == found.selection.difference_chosen
    rows = found.rules.set_index("rule")
    assert list(rows.index) == ["trim", "slerp", "weighted_sum"] and set(rows["merges"]) == {2}
    assert rows.loc["trim", "cell"] == found.selection.cell and rows.loc["trim", "difference"] == 0
    assert rows.loc["slerp", "difference"] == pytest.approx(5 / 60) and rows.loc["slerp", "gain"] == pytest.approx(
        1 / 3
    )
    assert rows.loc["slerp", "minus_scale"] == pytest.approx(20 / 60) and rows.loc["slerp", "scale_p"] < 0.001
    assert "Rules may differ in scale too: hold each against its own scale control." in found.rules_in_words()


def test_a_rule_is_best_only_where_that_is_shown(tmp_path: Path) -> None:
    plain = right(30)
    gained = {("pope", n): (["no", "yes"][n % 2], 1.0) for n in range(30, 50)}
    names = {cell.name: plain for cell in write_sweep(tmp_path, {}, **RULES).cells}
    trim = f"{MERGED}_trim_density=0.2"
    write_sweep(tmp_path, {**names, trim: changed(plain, gained)}, **RULES)
    said = read_findings(tmp_path).rules_in_words()
    assert said.startswith("Rules: of 3, trim, density 0.2 did best on the documents to choose on; on these same")
    assert "it does better than the best merge by each of the others (next: " in said
    near = {("pope", 30): ("no", 1.0)}
    write_sweep(tmp_path, {**names, trim: changed(plain, near)}, **RULES)
    assert "it is not shown to do better than the best merge by any other" in read_findings(tmp_path).rules_in_words()


def test_rules_are_told_with_their_parameters() -> None:
    assert by_rule.rule_of({"rule": "dare", "parameters": "drop_rate 0.5"}) == "dare, drop_rate 0.5"
    assert by_rule.rule_of({"rule": "slerp", "parameters": ""}) == "slerp"
