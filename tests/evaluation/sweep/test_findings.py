"""What a sweep's folder says, from folders written by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plam_eval.evaluation import stats
from plam_eval.evaluation.stats import format_p
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.documents import split_documents
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from plam_eval.evaluation.sweep.grid import Grid, describe_cell, make_grid
from plam_eval.harness.task_row import ONE_EACH, Score, Task
from plam_eval.harness.tasks import TASKS, as_score
from plam_eval.table_files import write_table

SPEC = "layers-6-8_qkvo_0.9+0.3"
OTHER = "layers-0-8_qkvo_0.9+0.3"
SCALE = f"{SPEC}_self_scale"
N = 120

Answers = Mapping[str, Sequence[bool]]


def base_answers(n: int = N) -> list[bool]:
    return (np.arange(n) % 3 > 0).tolist()


def changed(gain: Sequence[int] = (), lose: Sequence[int] = (), n: int = N) -> list[bool]:
    """Plain's answers, with some documents right that it has wrong (0, 3, 6, ...) and some wrong that it has right."""
    answers = base_answers(n)
    for document in gain:
        assert not answers[document]
        answers[document] = True
    for document in lose:
        assert answers[document]
        answers[document] = False
    return answers


def wrong(first: int, count: int) -> list[int]:
    """Documents from `first` on that plain has wrong."""
    return [d for d in range(first, N) if d % 3 == 0][:count]


class Sweep:
    """A sweep's folder, made cell by cell."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        given: dict[str, Any] = {"layers": "6:8", "controls": "self_scale", **config}
        arguments = "pretrained=mllm,base=org/base,layers=6:8"
        self.config = SweepConfig.load(model="plam_llava", model_args=arguments, tasks="gqa", **given)
        self.grid = make_grid(self.config, 8)
        self._write_plan(self.grid)

    def _write_plan(self, grid: Grid) -> None:
        plan = {"config": self.config.model_dump(mode="json"), "grid": grid.to_dict()}
        (self.folder / "sweep.json").write_text(json.dumps(plan))

    def cell(
        self, name: str, right: Sequence[bool] | None = None, *, task: str = "gqa", group: int = 1, **changes: Any
    ) -> None:
        """A finished cell with these answers."""
        self.cell_of(name, {task: base_answers() if right is None else right}, group=group, **changes)

    def cell_of(self, name: str, right: Answers, *, group: int = 1, **changes: Any) -> None:
        assert name in [cell.name for cell in self.grid.cells]
        folder = self.folder / "cells" / name
        run = folder / "run"
        run.mkdir(parents=True)
        for task, answers in right.items():
            rows = []
            for doc, good in enumerate(answers):
                row = {"doc_id": doc, "target": "yes", "input": changes.get("prompt", "?")}
                row |= {"average": {"score": float(good)}} if task == "mmstar" else {"exact_match": float(good)}
                rows.append(row | {"filtered_resps": ["yes" if good else "no"], "group": f"i{doc // group}"})
            (run / f"now_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        block: dict[str, Any] = {"dtype": changes.get("dtype", "float32"), "provenance": {}}
        if name != "plain":
            block["provenance"]["merge"] = {"relative_change": {"6": 0.1, "7": 0.3}}
        direction = {task: {"exact_match": changes.get("higher", True)} for task in right}
        if "lower" in changes:
            direction[changes["lower"]] = {"exact_match": False}
        mean = {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}]}
        content = {"configs": dict.fromkeys(right, mean), "results": {}, "higher_is_better": direction}
        (run / "now_results.json").write_text(json.dumps({**content, "plam_eval": block}))
        record = {"status": "finished", "results": "run/now_results.json", "seconds": {"merge": 0.5, "evaluate": 2.0}}
        (folder / "cell.json").write_text(json.dumps(record))

    def failed(self, name: str, error: str) -> None:
        folder = self.folder / "cells" / name
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps({"status": "failed", "error": error, "seconds": {"merge": 0.25}}))

    def read(self, select: int | None = None) -> Findings:
        return read_findings(self.folder, select)


def row(found: Findings, cell: str) -> Any:
    return found.cells.set_index("cell").loc[cell]


# The answer in words


def test_better_than_plain_but_no_more_than_the_scale_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(3, 12)))
    assert sweep.read().verdict() == (
        "One merge: layers 6:8, qkvo, 0.9 + 0.3. It scores +0.100 against plain (12 gained, 0 lost, "
        "p = 0.0005): better than plain, but not shown to differ from the same scale without the base. "
        "Merge against scale control: +0.000, 1 gained, 1 lost, p = 1.00; 2 of 120 answers differ."
    )
    conclusion = sweep.read().conclusion
    assert conclusion is not None and conclusion.scale is not None
    assert (conclusion.against_plain, conclusion.against_scale, conclusion.positive) == ("better", None, False)
    assert (conclusion.cell, conclusion.tried, conclusion.held_out) == (SPEC, 1, False)
    assert (conclusion.plain.cell, conclusion.plain.gained, conclusion.plain.lost) == ("plain", 12, 0)
    assert (conclusion.scale.cell, conclusion.scale.p, conclusion.answers_differ) == (SCALE, 1.0, 2)
    assert (conclusion.plain.difference, conclusion.scale.difference) == (pytest.approx(0.1), 0)


def test_better_than_both(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(0, 2)))
    text = sweep.read().verdict()
    assert ": better than plain, and better than the same scale without the base. Merge against" in text
    assert "+0.083, 10 gained, 0 lost, p = 0.002; 10 of 120 answers differ." in text
    said = sweep.read().to_dict()["conclusion"]
    assert (said["against_plain"], said["against_scale"], said["positive"]) == ("better", "better", True)
    assert (said["scale"]["cell"], said["documents"]) == (SCALE, N) and json.loads(json.dumps(said)) == said


def test_better_than_plain_but_worse_than_the_scale_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(0, 30)))
    found = sweep.read()
    assert ": better than plain, but worse than the same scale without the base." in found.verdict()
    assert found.conclusion and (found.conclusion.against_scale, found.conclusion.positive) == ("worse", False)


def test_worse_than_plain_without_a_control(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="none")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(lose=range(1, 40, 3)))
    found = sweep.read()
    assert "worse than plain, and no scale control was run that would say" in found.verdict()
    assert found.conclusion and (found.conclusion.against_plain, found.conclusion.scale) == ("worse", None)


def test_no_difference_shown(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 3), [1]))
    sweep.cell(SCALE)
    text = sweep.read().verdict()
    assert "+0.017 against plain (3 gained, 1 lost, p = 0.62): no difference is shown. Merge against" in text
    conclusion = sweep.read().conclusion
    assert conclusion and (conclusion.against_plain, conclusion.against_scale) == (None, None)


def test_lower_is_better_is_worded_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain", higher=False)
    sweep.cell(SPEC, changed(wrong(0, 12)), higher=False)
    sweep.cell(SCALE, higher=False)
    found = sweep.read()
    assert "(0 gained, 12 lost, p = 0.0005): worse than plain, and worse than the same scale" in found.verdict()
    assert found.selection is not None and found.selection.difference_chosen == pytest.approx(-0.1)


def test_a_mean_of_both_directions_is_warned_of(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="none")
    for name in ("plain", SPEC):
        sweep.cell_of(name, {"gqa": base_answers(), "loss": base_answers()}, lower="loss")
    assert sweep.read().warnings == ("lower is better in loss, higher in the others: their mean says nothing",)


# Selection


def test_a_task_that_a_judge_left_no_documents_of_to_report_on_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Score("exact_match", as_score, unjudged=frozenset({-1.0}))
    monkeypatch.setitem(TASKS, "judged", Task(judged, ONE_EACH))
    sweep = Sweep(tmp_path, controls="none", select=10)
    sweep.cell_of("plain", {"gqa": base_answers(), "judged": base_answers()})
    verdicts: Any = [1.0] * 5 + [-1.0] * (N - 5)
    sweep.cell_of(SPEC, {"gqa": changed(wrong(30, 12)), "judged": verdicts})
    found = sweep.read()
    assert [task.task for task in found.compared[SPEC]] == ["gqa", "overall"]
    expected = "judged: left out, its documents that a judge came to a verdict on are all among the 10 to choose on"
    assert expected in found.warnings


def test_chosen_on_the_first_documents_and_reported_on_the_others(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, layers="6:8,all", select=30)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 5)))  # looks best where it is chosen, is nothing where it is reported
    sweep.cell(OTHER, changed(wrong(0, 2) + wrong(30, 20)))
    found = sweep.read()
    assert found.selection is not None
    chosen = found.selection
    assert (chosen.cell, chosen.tried, chosen.held_out) == (SPEC, 2, True)
    assert (chosen.chosen_on, chosen.reported_on) == ({"gqa": 30}, {"gqa": 90})
    assert chosen.difference_chosen == pytest.approx(5 / 30)
    assert (row(found, SPEC)["documents"], row(found, SPEC)["difference"]) == (90, 0)
    assert (row(found, OTHER)["gained"], row(found, OTHER)["difference"]) == (20, pytest.approx(20 / 90))
    assert {len(run.samples) for run in found.runs.values()} == {90}
    assert min(found.runs[SPEC].samples["doc_id"]) == 30
    assert found.verdict().startswith("Best of 2 merges, chosen on other documents: layers 6:8, qkvo, 0.9 + 0.3. It")
    assert "same documents" not in found.verdict()


def test_choosing_on_all_documents_says_so_and_judges_by_the_adjusted_p(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, layers="6:8,all", select=30, controls="none")
    sweep.cell("plain")
    sweep.cell(SPEC)
    sweep.cell(OTHER, changed(wrong(0, 6)))
    found = sweep.read(select=0)
    assert found.selection is not None
    assert (found.selection.cell, found.selection.held_out, found.selection.chosen_on) == (OTHER, False, {"gqa": N})
    assert (row(found, OTHER)["p"], row(found, OTHER)["p_holm"]) == (0.03125, 0.0625)
    assert found.conclusion and (found.conclusion.plain.p, found.conclusion.plain.p_adjusted) == (0.03125, 0.0625)
    assert found.conclusion.against_plain is None
    text = found.verdict()
    assert "Best of 2 merges, chosen on the same documents: layers 0:8" in text
    assert "p = 0.031): no difference is shown. Chosen and reported on the same documents" in text
    assert text.endswith("looks better than it is; adjusted for all settings p = 0.062.")


def test_a_scale_control_of_the_best_of_several_is_judged_by_the_adjusted_p(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, layers="6:8,all")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(0, 6)))  # the merge gains 6 over it: p = 0.031 by itself
    sweep.cell(OTHER, changed(wrong(0, 2)))
    sweep.cell(f"{OTHER}_self_scale", changed(wrong(0, 2)))
    found = sweep.read()
    assert found.conclusion is not None and found.conclusion.scale is not None
    assert (found.conclusion.scale.p, found.conclusion.scale.p_adjusted) == (0.03125, 0.0625)
    assert (found.conclusion.against_plain, found.conclusion.against_scale) == ("better", None)
    assert "better than plain, but not shown to differ from the same scale without the base." in found.verdict()
    assert found.verdict().endswith("p = 0.002, against the scale control p = 0.062.")
    held_out = sweep.read(select=1).conclusion  # chosen on another document, so p itself counts
    assert held_out is not None and held_out.scale is not None and held_out.optimistic is False
    assert held_out.against_scale == "better" and held_out.scale.p_adjusted > held_out.scale.p


def test_select_of_the_call_goes_over_the_configs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, select=30, controls="none")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 6)))
    sizes = [
        (f.selection.chosen_on["gqa"], f.selection.reported_on["gqa"])
        for f in map(sweep.read, (None, 50, 0))
        if f.selection
    ]
    assert sizes == [(30, 90), (50, 70), (120, 120)]


def test_documents_of_one_image_are_not_torn_apart(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, select=31, controls="none")
    sweep.cell("plain", group=4)
    sweep.cell(SPEC, group=4)
    found = sweep.read()
    assert found.selection is not None
    assert (found.selection.chosen_on, found.selection.reported_on) == ({"gqa": 32}, {"gqa": 88})


def _samples(**groups: Sequence[str]) -> pd.DataFrame:
    return pd.concat(
        [pd.DataFrame({"task": task, "doc_id": range(len(g)), "group": g}) for task, g in groups.items()],
        ignore_index=True,
    )


def test_split() -> None:
    samples = _samples(a=["image x", "image y", "image x", "image z"], b=["document 0", "document 1", "document 2"])
    chosen, others = split_documents(samples.sample(frac=1, random_state=0), 1)
    assert sorted(chosen.itertuples(index=False, name=None)) == [("a", 0), ("a", 2), ("b", 0)]
    assert sorted(others.itertuples(index=False, name=None)) == [("a", 1), ("a", 3), ("b", 1), ("b", 2)]
    everything = split_documents(samples, None)
    assert all(len(keys) == 7 for keys in everything)


def test_questions_of_one_subject_may_be_split() -> None:
    chosen, others = split_documents(_samples(mmmu=["subject Art", "subject Music"] * 4), 2)
    assert (len(chosen), len(others)) == (2, 6)


def test_ten_comes_after_nine() -> None:
    samples = _samples(a=[f"document {n}" for n in range(12)]).assign(doc_id=[str(n) for n in range(12)])
    assert sorted(split_documents(samples, 3)[0]["doc_id"]) == ["0", "1", "2"]


def test_a_selection_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="none")
    sweep.cell_of("plain", {"gqa": base_answers(), "mmstar": base_answers(40)})
    sweep.cell_of(SPEC, {"gqa": base_answers(), "mmstar": base_answers(40)})
    with pytest.raises(ValueError, match="choosing on 40 documents leaves none of mmstar to report on"):
        sweep.read(select=40)
    assert sweep.read(select=39).selection is not None


# Without labels


LINE = [f"layers-6-8_qkvo_{weights}" for weights in ("0.9+0.3", "0.8+0.4", "0.7+0.5")]


def a_line(folder: Path, **config: Any) -> Sweep:
    """Plain and three merges on a line: of the first 30 documents one, two and nine differ from the one before."""
    sweep = Sweep(folder, weights="0.7+0.5,0.9+0.3,0.8+0.4", controls="none", **config)
    sweep.cell("plain")
    sweep.cell(LINE[0], changed(wrong(0, 5) + wrong(60, 10)))
    sweep.cell(LINE[1], changed(wrong(0, 6) + wrong(60, 3)))
    sweep.cell(LINE[2], changed(wrong(0, 8)))
    return sweep


def test_the_merge_that_differs_least_from_its_neighbours(tmp_path: Path) -> None:
    found = a_line(tmp_path, select=30).read()
    differ = found.cells.set_index("cell")["differ_from_neighbours"]
    assert differ[LINE[:2]].tolist() == [6, 3]  # 5 + 1 and 1 + 2 of the 30 to choose on
    assert differ[["plain", LINE[2]]].isna().all()  # the ends
    choice = found.label_free
    assert choice is not None and found.selection is not None
    assert (choice.cell, choice.along, choice.before, choice.after) == (LINE[1], "weights", LINE[0], LINE[2])
    assert (choice.differ, choice.documents, choice.tied, choice.candidates) == (3, 30, 1, 2)
    assert choice.held_out and choice.by_line == (LINE[1],) and found.selection.cell == LINE[2]
    assert (choice.difference, choice.p) == (row(found, LINE[1])["difference"], row(found, LINE[1])["p"])
    assert choice.difference == pytest.approx(3 / 90)
    assert choice.text() == (
        "Chosen without labels, as the one of 2 that differs least from its neighbours: layers 6:8, qkvo, 0.8 + 0.4 "
        "(3 of 30 answers). On other documents it scores +0.033 against plain (p = 0.25)."
    )
    assert found.to_dict()["label_free"]["cell"] == LINE[1]
    found.write()
    assert pd.read_parquet(tmp_path / "cells.parquet")["differ_from_neighbours"].dropna().tolist() == [6, 3]
    whole = read_findings(tmp_path, 0).label_free
    assert whole is not None and (whole.held_out, whole.documents) == (False, N)


def test_no_score_and_no_target_has_a_part_in_it(tmp_path: Path) -> None:
    sweep = a_line(tmp_path, select=30)
    before = sweep.read()
    for log in sorted(tmp_path.glob("cells/*/run/*.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        changed_rows = [r | {"exact_match": 1.0 - r["exact_match"], "target": "something else"} for r in rows]
        log.write_text("".join(json.dumps(r) + "\n" for r in changed_rows))
    after = sweep.read()
    assert before.label_free is not None and after.label_free is not None
    assert (after.label_free.cell, after.label_free.differ) == (before.label_free.cell, before.label_free.differ)
    column = "differ_from_neighbours"
    pd.testing.assert_series_equal(before.cells[column], after.cells[column])
    assert after.label_free.difference == pytest.approx(-before.label_free.difference)
    assert after.selection is not None and before.selection is not None
    assert after.selection.cell != before.selection.cell


def test_documents_without_a_score_are_chosen_on_and_reported_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Score("exact_match", as_score, unjudged=frozenset({-1.0}))
    monkeypatch.setitem(TASKS, "judged", Task(judged, ONE_EACH))
    sweep = Sweep(tmp_path, weights="0.9+0.3,0.8+0.4", controls="none", select=10)
    verdicts: Any = [-1.0] * 5 + [float(good) for good in base_answers()[5:]]
    for name in ("plain", *LINE[:2]):
        sweep.cell_of(name, {"gqa": base_answers(), "judged": verdicts})
    found = sweep.read()
    assert found.selection is not None and found.label_free is not None
    assert found.selection.chosen_on == {"gqa": 10, "judged": 10}  # 5 to 14 of the second
    assert found.label_free.documents == 20  # 0 to 9 of both
    assert (found.label_free.cell, found.label_free.tied) == (LINE[0], 1)


def test_a_single_merge_has_no_two_neighbours(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    for name in ("plain", SPEC, SCALE):
        sweep.cell(name)
    found = sweep.read()
    assert found.label_free is None and found.to_dict()["label_free"] is None
    assert found.cells["differ_from_neighbours"].isna().all()


# Unfinished and unfit cells


def test_failed_and_missing_cells_do_not_disturb_the_others(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, layers="6:8,all,0:2", controls="self_scale")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(0, 11)))
    sweep.failed(OTHER, "MergeError: shapes")
    found = sweep.read()
    assert found.cells["cell"].tolist() == [cell.name for cell in sweep.grid.cells]
    assert row(found, OTHER)[["status", "error"]].tolist() == ["failed", "MergeError: shapes"]
    assert row(found, OTHER)["merge_seconds"] == 0.25 and math.isnan(row(found, OTHER)["evaluate_seconds"])
    assert row(found, "layers-0-2_qkvo_0.9+0.3")["status"] == "missing"
    assert found.cells.set_index("cell")["difference"].dropna().index.tolist() == [SPEC, SCALE]
    assert sorted(found.runs) == sorted(["plain", SPEC, SCALE])
    assert found.controls["merged"].tolist() == [SPEC]
    assert found.selection is not None and found.selection.tried == 1
    p = found.cells.set_index("cell")
    assert p.loc[[SPEC, SCALE], "p_holm"].tolist() == pytest.approx(stats.holm(p.loc[[SPEC, SCALE], "p"].tolist()))


@pytest.mark.parametrize("finished", [[], ["plain"], [SPEC, SCALE]])
def test_nothing_to_say_yet(tmp_path: Path, finished: list[str]) -> None:
    sweep = Sweep(tmp_path)
    for name in finished:
        sweep.cell(name)
    found = sweep.read()
    assert found.verdict().startswith("Nothing to say yet")
    assert found.conclusion is None and found.to_dict()["conclusion"] is None
    assert found.selection is None and found.tasks.empty and found.controls.empty
    assert found.cells["difference"].isna().all() and "p_holm" in found.cells
    assert sorted(found.runs) == sorted(finished)
    found.write()
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == len(found.cells)


def test_plain_and_a_control_choose_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SCALE, changed(wrong(0, 12)))
    found = sweep.read()
    assert found.selection is None
    assert row(found, SCALE)["gained"] == 12


def test_a_cell_that_asked_otherwise_is_left_out_and_named(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, prompt="!")
    sweep.cell(SCALE, changed(wrong(0, 12)))
    found = sweep.read()
    asked = row(found, SPEC)
    assert asked["status"] == "damaged" and set(found.runs) == {"plain", SCALE}
    assert re.search(r"plain and layers-6-8_qkvo_0\.9\+0\.3 cannot be compared(.|\n)*prompts", asked["error"])
    assert asked["error"].endswith(f"delete {found.folder / 'cells' / SPEC}, and the same sweep evaluates it again")
    assert any(asked["error"] in warning for warning in found.warnings)
    assert row(found, SCALE)["gained"] == 12


def test_warnings_name_their_cell(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, dtype="bfloat16")
    assert sweep.read().warnings == (f"{SPEC}: dtype differs: float32 and bfloat16",)


def test_no_sweep_and_a_broken_cell(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no sweep there"):
        read_findings(tmp_path)
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    (tmp_path / "cells" / "plain" / "run" / "now_samples_gqa.jsonl").unlink()
    found = sweep.read()  # as if it had not been evaluated, and says so
    assert row(found, "plain")["status"] == "damaged" and "log_samples" in row(found, "plain")["error"]
    assert found.selection is None and "plain counts as not evaluated" in found.warnings[0]


# The tables


def test_cells_against_plain(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="self_scale,noise", seeds="4")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12), [1, 2]))
    sweep.cell(SCALE, changed(wrong(0, 11)))
    sweep.cell(f"{SPEC}_noise4", changed(lose=[1]))
    found = sweep.read()
    one = row(found, SPEC)
    assert one[["kind", "layers", "start", "end", "modules"]].tolist() == ["merged", "6:8", 6, 8, "qkvo"]
    assert one[["model_weight", "base_weight", "rule", "seed"]].tolist() == [0.9, 0.3, "weighted_sum", 0]
    assert one[["status", "merge_seconds", "evaluate_seconds"]].tolist() == ["finished", 0.5, 2.0]
    assert one["relative_change"] == pytest.approx(0.2)
    assert one[["documents", "groups", "gained", "lost", "test"]].tolist() == [N, N, 12, 2, "mcnemar"]
    (expected,) = stats.compare(found.runs["plain"].samples, found.runs[SPEC].samples)[:1]
    assert (one["p"], one["low"], one["high"]) == (expected.p, expected.low, expected.high)
    assert found.compared[SPEC][0] == expected
    plain = row(found, "plain")
    assert plain["second"] == one["first"] == pytest.approx(2 / 3)
    assert plain["parsable_second"] == 1.0 and math.isnan(plain["difference"])
    assert row(found, f"{SPEC}_noise4")[["kind", "rule", "seed"]].tolist() == ["control", "noise", 4]
    others = found.cells[found.cells["kind"] != "plain"]
    assert others["p_holm"].tolist() == pytest.approx(stats.holm(others["p"].tolist()))
    assert others["p_holm"].gt(others["p"]).any()


def test_tasks_and_their_mean(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="none")
    sweep.cell_of("plain", {"gqa": base_answers(), "mmstar": base_answers(30)})
    sweep.cell_of(SPEC, {"gqa": changed(wrong(0, 12)), "mmstar": changed(lose=[1], n=30)})
    found = sweep.read()
    assert found.tasks[["cell", "task"]].values.tolist() == [[SPEC, "gqa"], [SPEC, "mmstar"], [SPEC, "overall"]]
    assert found.tasks["difference"].tolist() == pytest.approx([0.1, -1 / 30, (0.1 - 1 / 30) / 2])
    assert row(found, SPEC)["difference"] == pytest.approx((0.1 - 1 / 30) / 2)


def test_controls_are_first_and_the_merge_second(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, layers="6:8,all")
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    sweep.cell(SCALE, changed(wrong(0, 4), [1, 2]))
    sweep.cell(OTHER)  # its control is missing
    (found,) = sweep.read().controls.to_dict("records")
    assert (found["merged"], found["rule"], found["control"]) == (SPEC, "self_scale", SCALE)
    assert (found["gained"], found["lost"], found["answers_differ"]) == (10, 0, 10)
    assert found["difference"] == pytest.approx(10 / N) == pytest.approx(found["second"] - found["first"])
    assert found["p"] == pytest.approx(2 / 2**10)


def test_written_tables_are_those_shown(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.cell("plain")
    sweep.cell(SPEC, changed(wrong(0, 12)))
    found = sweep.read()
    found.write()
    for name in ("cells", "tasks", "controls"):
        shown = getattr(found, name)
        assert (
            len(pd.read_csv(tmp_path / f"{name}.csv"))
            == len(pd.read_parquet(tmp_path / f"{name}.parquet"))
            == len(shown)
        )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tasks.parquet"), found.tasks)
    assert not list(tmp_path.glob(".*partial"))


def test_cells_in_words() -> None:
    cell = {"kind": "control", "layers": "6:8", "modules": "qkvo", "weights": "0.9 + 0.3", "seed": 0}
    assert describe_cell({**cell, "rule": "noise"}) == "layers 6:8, qkvo, 0.9 + 0.3, noise"
    assert describe_cell({**cell, "rule": "noise", "seed": 4}) == "layers 6:8, qkvo, 0.9 + 0.3, noise, seed 4"
    assert describe_cell({**cell, "rule": "weighted_sum"}) == "layers 6:8, qkvo, 0.9 + 0.3"
    assert describe_cell({"kind": "plain"}) == "plain"
    assert [format_p(p) for p in (1.0, 0.049, 0.01, 0.0099, 7.3e-5, math.nan)] == [
        "1.00",
        "0.049",
        "0.01",
        "0.0099",
        "7e-05",
        "-",
    ]


def test_a_task_without_scores_is_left_out_and_named(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, controls="none")
    right = {"gqa": base_answers(), "odd": base_answers()}
    sweep.cell_of("plain", right)
    sweep.cell_of(SPEC, right | {"gqa": changed(gain=wrong(0, 5))})
    log = tmp_path / "cells" / SPEC / "run" / "now_samples_odd.jsonl"
    log.write_text(log.read_text().replace('"exact_match": 1.0, ', ""))
    found = sweep.read()
    assert (
        f"odd: left out, no score per document is known ({SPEC}: expected exact_match in its log, found nothing)"
        in found.warnings
    )
    assert set(found.tasks["task"]) == {"gqa", stats.OVERALL} and row(found, SPEC)["gained"] == 5

    gqa = tmp_path / "cells" / SPEC / "run" / "now_samples_gqa.jsonl"
    gqa.write_text(gqa.read_text().replace('"exact_match": 1.0, ', ""))
    with pytest.raises(ValueError, match="nothing can be compared:\n  - gqa: left out"):
        sweep.read()


def test_too_many_settings_for_the_correction_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "SMALLEST_P", 0.03)
    sweep = Sweep(tmp_path)
    for name in ("plain", SPEC):
        sweep.cell(name)
    assert sweep.read().warnings == ()
    sweep.cell(SCALE)
    (warning,) = sweep.read().warnings
    assert warning == "2 settings: sign flips give no p below 0.03, so p Holm cannot fall below 0.05"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_spreadsheets_run_no_answer(tmp_path: Path, start: str) -> None:
    formula = f"{start}HYPERLINK(1)"
    table = pd.DataFrame({"answer": [formula, "a=1", None], "n": [-1, 2, 3], "score": [-0.5, 1.0, math.nan]})
    table["kind"] = pd.Categorical([formula, "b", "b"])
    write_table(table, tmp_path / "answers")
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    assert rows == [
        [f"'{formula}", "-1", "-0.5", f"'{formula}"],
        ["a=1", "2", "1.0", "b"],
        ["", "3", "", "b"],
    ]
    assert pd.read_parquet(tmp_path / "answers.parquet", columns=["answer"])["answer"].tolist()[:2] == [formula, "a=1"]


def test_tables_survive_what_models_say(tmp_path: Path) -> None:
    table = pd.DataFrame({"answer": ['a\rb"c', "x,\ny"], "score": [1.0, math.nan]})
    write_table(table, tmp_path / "answers")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "answers.csv", lineterminator="\n"), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "answers.parquet"), table)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.csv", "answers.parquet"]


def test_ramps_are_told_apart_from_pairs_in_the_table(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, weights="0.9:0.5+0.3,0.9+0.3")
    ramp, scale = "layers-6-8_qkvo_0.9to0.5+0.3", "layers-6-8_qkvo_0.9to0.5+0.3_self_scale"
    for name in ("plain", SPEC, scale):
        sweep.cell(name)
    sweep.cell(ramp, changed(wrong(0, 12)))
    found = sweep.read()
    assert row(found, ramp)[["weights", "model_weight", "base_weight"]].tolist() == ["0.9:0.5 + 0.3", 0.9, 0.3]
    assert row(found, SPEC)[["weights", "model_weight", "base_weight"]].tolist() == ["0.9 + 0.3", 0.9, 0.3]
    assert found.verdict().startswith(
        "Best of 2 merges, chosen on the same documents: layers 6:8, qkvo, 0.9:0.5 + 0.3."
    )
    found.write()
    stored = pd.read_parquet(tmp_path / "cells.parquet").set_index("cell")
    assert stored.loc[ramp, "weights"] == "0.9:0.5 + 0.3" and stored["model_weight"].dtype == float
