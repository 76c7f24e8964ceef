"""Sweeps whose cells are answered together, against cells that are answered one by one."""

from __future__ import annotations

import gc
import json
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from plam_eval.decoding import all_merges
from plam_eval.errors import MergeError
from plam_eval.evaluation import answer_store, records
from plam_eval.evaluation.answer_store import AnswerStore
from plam_eval.evaluation.sweep import folder as sweep_folder
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.evaluation.sweep.folder import TOGETHER, read_cell
from plam_eval.evaluation.sweep.job import Job
from plam_eval.evaluation.sweep.joint import Together
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.wrapper import text_of
from plam_eval.merging import merge
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import CELLS, GRID, SPEC, plam
from tests.helpers.wrappers import MASKED, WRAPPER, arguments

TASKS = "pope,mmstar,mme"
DOCUMENTS = 18


@pytest.fixture(scope="module")
def lm() -> Any:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    return PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")


def job(folder: Path, together: int = CELLS, **given: Any) -> Job:
    settings: dict[str, Any] = {
        "model": "plam_llava",
        "model_args": SPEC,
        "tasks": TASKS,
        "limit": 6,
        "together": together,
        **GRID,
    }
    return Job.plan(SweepConfig.load(**(settings | given)), folder)


def evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """By cell: everything that an evaluation says of its answers."""
    found = {}
    for cell in sorted((folder / sweep_folder.CELLS).iterdir()):
        record = read_cell(folder, cell.name)
        assert record is not None and record["status"] == "finished", record
        run = records.read_run(cell / record["results"])
        found[cell.name] = {
            "answers": {(row.task, row.doc_id): (row.answer, row.score) for row in run.samples.itertuples()},
            "results": run.results["results"],
            "generation": run.block["generation"],
            "spec": run.block["provenance"]["spec"],
            "tensors": run.block["provenance"]["merge"] and run.block["provenance"]["merge"]["relative_change"],
            "tokens": [
                json.loads(line)["token_counts"]
                for file in sorted(run.file.parent.glob("*_samples_*.jsonl"))
                for line in file.read_text().splitlines()
            ],
        }
    return found


@pytest.fixture(scope="module")
def apart(lm, suite, tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        runner.run(job(folder, 1), lm)
    found = evaluations(folder)
    assert len({str(sorted(each["answers"].items())) for each in found.values()}) > 2
    return found


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many merges each joint generation answered for."""
    found: list[int] = []
    real = all_merges.generate_all_merges

    def counting(model: Any, held: Any, **inputs: Any) -> Any:
        found.append(len(held.specs))
        return real(model, held, **inputs)

    monkeypatch.setattr(all_merges, "generate_all_merges", counting)
    return found


@pytest.mark.parametrize("together", [CELLS, 3])
def test_the_same_evaluations_as_one_by_one(together, lm, apart, in_suite, tmp_path, calls):
    started = time.perf_counter()
    done = runner.run(job(tmp_path, together), lm)
    wall = time.perf_counter() - started
    assert evaluations(tmp_path) == apart
    assert calls == ([CELLS] * DOCUMENTS if together == CELLS else [3] * 2 * DOCUMENTS)  # the last one is alone
    assert lm.spec is not None and lm.merge_report.digest == lm.spec.digest()
    counts = {"documents": DOCUMENTS, "apart": 0, "rechecked": 6, "differ": 0, "reasons": []}
    parts = [record["together"] for record in done.values() if "together" in record]
    assert len(parts) == CELLS // together * together
    for index, part in enumerate(parts):
        first = index % together == 0
        assert part.pop("cells") == (together if first else 0) and (part.pop("seconds") > 0) == first
        assert part == counts
    assert not (tmp_path / TOGETHER).exists()
    # No time is counted twice, and that of answering together is shared out.
    times = [
        {**record["seconds"], "together": read_cell(tmp_path, n)["together"]["seconds"]}
        for n, record in done.items()
        if "together" in record
    ]
    assert sum(map(sum, (each.values() for each in times))) <= wall
    shared = sum(each["together"] for each in times) / len(times)
    own = [sum(record["seconds"].values()) for record in done.values()]
    assert job(tmp_path, together).seconds_per_cell() == pytest.approx(sum(own) / CELLS + shared)
    assert read_findings(tmp_path).warnings == ()


@pytest.mark.parametrize(("family", "mode"), MASKED)
def test_any_hf_wrapper(family, mode, pico, in_suite, tmp_path):
    from lmms_eval.models import get_model

    pair = pico(family)
    settings = {
        "model": WRAPPER[family][0],
        "model_args": arguments(pair, base=pair.base, layers="2:4"),
        "tasks": "mmstar",
        "limit": 2,
        "gen_kwargs": "max_new_tokens=6",
        "layers": "2:4,0:3",
        "weights": "0.2+1.2",
        "controls": "noise",
    }
    wrapper = get_model(WRAPPER[family][0], force_simple=mode == "simple")
    model = wrapper.create_from_arg_string(arguments(pair), {"batch_size": 1})
    for name, together in (("together", 9), ("apart", 1)):
        runner.run(job(tmp_path / name, together, **settings), model)
    found = evaluations(tmp_path / "together")
    assert found == evaluations(tmp_path / "apart")
    assert len({str(each["answers"]) for each in found.values()}) > 2
    assert read_cell(tmp_path / "together", "plain")["together"]["documents"] == 2


def test_a_killed_sweep_goes_on_where_it_was(lm, apart, in_suite, tmp_path, monkeypatch, calls):
    add, run_cell = AnswerStore.add, runner.run_cell

    def killed(self: Any, line: Any) -> None:
        if len(list(self.read())) == 7:
            with self._file.open("a") as file:
                file.write('{"task": "pope", "doc')  # a line that was being written
            raise KeyboardInterrupt
        add(self, line)

    def killed_later(lm: Any, cell: Any, *args: Any, **kwargs: Any) -> Any:
        if cell.name == "layers-6-8_qkvo_0.3+1.2":
            raise KeyboardInterrupt
        return run_cell(lm, cell, *args, **kwargs)

    for patched, owner, name in ((killed, AnswerStore, "add"), (killed_later, runner, "run_cell")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, patched)
            with pytest.raises(KeyboardInterrupt):
                runner.run(job(tmp_path), lm)
    assert len(calls) == 8 + (DOCUMENTS - 7)  # what was answered was not answered again, the line cut off was
    runner.run(job(tmp_path), lm)
    assert len(calls) == 8 + (DOCUMENTS - 7)
    assert evaluations(tmp_path) == apart


def test_what_cannot_be_answered_together_is_answered_apart(lm, in_suite, tmp_path, calls):
    settings: dict[str, Any] = {"gen_kwargs": "num_beams=2", "layers": "6:8", "controls": "self_scale"}
    runner.run(job(tmp_path / "together", **settings), lm)
    runner.run(job(tmp_path / "apart", 1, **settings), lm)
    assert evaluations(tmp_path / "together") == evaluations(tmp_path / "apart")
    assert len(calls) == 3  # once for each task, and that in the first cell only
    record = read_cell(tmp_path / "together", "plain")
    assert record["together"]["apart"] == DOCUMENTS and record["together"]["documents"] == 0
    (warning,) = read_findings(tmp_path / "together").warnings
    assert "num_beams=2" in warning


def test_a_merge_that_fails_costs_its_cell_only(lm, apart, in_suite, tmp_path, monkeypatch):
    values, bring = merge.merged_values, lm.bring_weights_to

    def failing(module: Any, spec: Any, **kwargs: Any) -> Any:
        if spec.rule == "noise":
            raise MergeError("no disk left")
        return values(module, spec, **kwargs)

    def bring_to(spec: Any, base: Any) -> Any:
        if spec is not None and spec.rule == "noise":
            raise MergeError("no disk left")
        return bring(spec, base)

    monkeypatch.setattr(all_merges, "merged_values", failing)
    monkeypatch.setattr(lm, "bring_weights_to", bring_to)
    done = runner.run(job(tmp_path), lm)
    assert {name for name, record in done.items() if record["status"] == "failed"} == {n for n in apart if "noise" in n}
    assert done["plain"]["together"]["apart"] == DOCUMENTS
    assert any("no disk left" in warning for warning in read_findings(tmp_path).warnings)
    assert (tmp_path / TOGETHER).is_dir()  # until all cells are finished
    monkeypatch.undo()
    monkeypatch.chdir(in_suite)
    runner.run(job(tmp_path), lm)
    assert evaluations(tmp_path) == apart


def test_answers_that_are_not_the_merged_models_own_are_told(lm, in_suite, tmp_path, monkeypatch):
    real = all_merges.generate_all_merges

    def wrong(model: Any, held: Any, **inputs: Any) -> Any:
        answers = real(model, held, **inputs)
        answers.tokens[1] = 77
        return answers

    monkeypatch.setattr(all_merges, "generate_all_merges", wrong)
    done = runner.run(job(tmp_path, layers="6:8", controls="self_scale"), lm)
    assert [record["together"]["differ"] for record in done.values()] == [0, 6, 0]
    (warning,) = read_findings(tmp_path).warnings
    assert warning.startswith("6 of 18 answers")


def test_a_document_that_fails_is_answered_apart(lm, apart, in_suite, tmp_path, monkeypatch):
    """As where many answers at once take more memory than there is: one document, and a task that fails often."""
    real = all_merges.generate_all_merges
    seen: list[int] = []

    def failing(model: Any, held: Any, **inputs: Any) -> Any:
        seen.append(len(seen))
        if len(seen) == 2 or 7 <= len(seen) <= 9:  # of mme; of mmstar, the first three
            raise RuntimeError("out of memory")
        return real(model, held, **inputs)

    monkeypatch.setattr(all_merges, "generate_all_merges", failing)
    done = runner.run(job(tmp_path), lm)
    assert evaluations(tmp_path) == apart
    assert {record["together"]["apart"] for record in done.values()} == {1 + 6}
    assert len(seen) == 6 + 3 + 6  # nothing was tried again for the other cells
    assert any("out of memory" in warning for warning in read_findings(tmp_path).warnings)


def test_requests_that_are_repeated_have_an_answer_each(lm, in_suite, tmp_path, monkeypatch):
    """lmms-eval repeats the very same request for tasks that want several samples of an answer."""
    asked: list[Any] = []
    stock = type(lm).generate_until
    with monkeypatch.context() as patch:

        def generate_until(requests: list[Any]) -> Any:
            asked.extend(requests)
            return stock(lm, requests)

        patch.setattr(lm, "generate_until", generate_until, raising=False)
        lm.merge(None)
        evaluate(lm, "mmstar", limit=2)
    together = Together(lm, [None, job(tmp_path).grid.cells[1].spec], tmp_path / "answers")
    with together.installed():
        given = together.answer([*asked, asked[0]])
    assert [text_of(answer) for answer in given] == [text_of(a) for a in stock(lm, [*asked, asked[0]])]
    assert together.record()["documents"] == 3
    assert len(list(AnswerStore(tmp_path / "answers", 0).read())) == 2  # answered once
    # Where they are answered apart, every repetition is asked for.
    together = Together(lm, [None, job(tmp_path).grid.cells[1].spec], tmp_path / "others")
    together._tasks_apart["mmstar"] = "it samples"
    monkeypatch.setattr(type(lm), "own_answers", lambda self, requests: [str(i) for i in range(len(requests))])
    with together.installed():
        assert together.answer([*asked, asked[0]]) == ["0", "1", "2"]
    assert together.record()["apart"] == 3


def test_what_a_group_held_is_freed_without_a_collector(lm, in_suite, tmp_path, monkeypatch):
    made: list[Any] = []
    real = vars(all_merges.Merges)["of"].__func__

    def of(cls: Any, *args: Any, **kwargs: Any) -> Any:
        held = real(cls, *args, **kwargs)
        made.append(weakref.ref(held))
        return held

    monkeypatch.setattr(all_merges.Merges, "of", classmethod(of))
    alive: list[int] = []
    stock = Together._recheck

    def recheck(self: Together, *args: Any) -> Any:
        alive.append(sum(ref() is not None for ref in made))
        return stock(self, *args)

    monkeypatch.setattr(Together, "_recheck", recheck)
    gc.collect()
    gc.disable()
    try:
        runner.run(job(tmp_path, 3, layers="6:8"), lm)
    finally:
        gc.enable()
    assert len(made) == 1 and alive == [0, 0, 0]


def test_answers_of_other_settings_are_not_taken(lm, in_suite, tmp_path):
    """Where only what is seen of an unfinished sweep was deleted."""
    first, second = job(tmp_path), job(tmp_path, gen_kwargs="max_new_tokens=1")
    assert first.answers_together != second.answers_together
    assert first.answers_together == job(tmp_path, 3, layers="6:8").answers_together  # the grid is no such setting


def test_a_failed_recheck_says_nothing(lm, in_suite, tmp_path, monkeypatch):
    generate = lm.own_generate

    def failing(**inputs: Any) -> Any:
        if "custom_generate" not in inputs:  # the model by itself
            raise RuntimeError("out of memory")
        return generate(**inputs)

    monkeypatch.setattr(lm, "own_generate", failing)
    done = runner.run(job(tmp_path, layers="6:8", controls="self_scale"), lm)
    assert {record["status"] for record in done.values()} == {"finished"}
    assert {(r["together"]["rechecked"], r["together"]["differ"]) for r in done.values()} == {(0, 0)}


def test_another_prompt_than_the_one_answered_is_refused(lm, in_suite, tmp_path, monkeypatch):
    settings: dict[str, Any] = {"layers": "6:8", "controls": "self_scale"}

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answer_store, "prompt_of", lambda request: "another")
        patch.setattr(runner, "finish_cell", killed)  # answered, and before any cell was finished
        with pytest.raises(KeyboardInterrupt):
            runner.run(job(tmp_path, **settings), lm)
    done = runner.run(job(tmp_path, **settings), lm)
    assert {record["status"] for record in done.values()} == {"failed"}
    assert "its prompt changed" in done["plain"]["error"]


def test_plam_vllm_does_not_answer_together(in_suite, tmp_path):
    with pytest.raises(SweepError, match="plam_vllm answers for one merge at a time"):
        job(tmp_path, model="plam_vllm")


@pytest.mark.needs("ray")
def test_ray_workers_do_not_answer_together(in_suite, tmp_path):
    from plam_eval.evaluation.sweep import ray

    with pytest.raises(SweepError, match="shares out single cells"):
        ray.run(job(tmp_path))


def test_compare_together(lm, in_suite, tmp_path, monkeypatch, calls):
    monkeypatch.setattr(runner, "load_model", lambda config: lm)
    given = ["compare", "--model", "plam_llava", "--model_args", SPEC, "--tasks", TASKS, "--limit", "6", "--no-stock"]
    given += ["--output"]
    outputs = [plam(*given, str(tmp_path / "apart")), plam(*given, str(tmp_path / "together"), "--together")]
    tables = [[line for line in output.splitlines() if "│" in line] for output in outputs]
    assert tables[0] == tables[1] and len(tables[0]) == 4
    assert evaluations(tmp_path / "together") == evaluations(tmp_path / "apart") and calls == [2] * DOCUMENTS


def test_dry_run_says_what_it_holds(in_suite, tmp_path):
    given = ["sweep", "--model", "plam_llava", "--model_args", SPEC, "--tasks", TASKS, "--limit", "6"]
    output = plam(*given, "--output", str(tmp_path), "--together", "3", "--dry-run=0")
    # Two cells beside plain, each of 2 layers with 4 matrices of 256 x 256 in bfloat16.
    assert f"3 cells are answered together, with up to {2 * 2 * 4 * 256**2 * 2 / 1e6:.1f} MB of merged" in output
