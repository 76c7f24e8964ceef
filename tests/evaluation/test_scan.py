"""`plam scan` on the offline suite: each cut's answers and scores against an evaluation of the masked model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import plam_eval
from plam_eval import cli
from plam_eval.decoding import all_cuts as cuts_at_once
from plam_eval.errors import ArgumentError, DamagedFileError, InputError
from plam_eval.evaluation import records
from plam_eval.evaluation.answer_store import AnswerStore
from plam_eval.evaluation.scan import conclude, scan
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.tasks import score_of_task
from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.masking import mask_vision
from plam_eval.spec import load_spec
from tests.helpers import forked
from tests.helpers.paths import PAIR
from tests.helpers.wrappers import MASKED, WRAPPER, arguments

TASKS = ["mmstar", "mme", "mmmu_val", "mmbench_cn_dev_static", "pope", "gqa"]


@pytest.fixture(scope="module")
def lm() -> Any:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    return PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The documents that `generate_all_cuts` was called for."""
    found: list[int] = []
    real = cuts_at_once.generate_all_cuts

    def generate_all_cuts(model: Any, cuts: Any, **inputs: Any) -> Any:
        found.append(len(inputs["input_ids"]))
        return real(model, cuts, **inputs)

    monkeypatch.setattr(cuts_at_once, "generate_all_cuts", generate_all_cuts)
    return found


def masked(model: Any, cut: int, tasks: Any, closed_to: ClosedTo = "text", **given: Any) -> pd.DataFrame:
    """The harness's own evaluation of the model with its vision tokens hidden from layer `cut` on."""
    with mask_vision(model.model, cut, closed_to):
        run = evaluate(model, tasks, **given)
    scores = {task: score_of_task(task, run.results["configs"][task]) for task in run.samples}
    rows = [records.sample_row(task, log, scores[task]) for task, logs in run.samples.items() for log in logs]
    return pd.DataFrame(rows).sort_values(["task", "doc_id"]).reset_index(drop=True)


def test_each_cut_is_an_evaluation_of_the_masked_model(lm, in_suite, tmp_path, capsys):
    found = scan(lm, TASKS, tmp_path, cuts="0,2,5", limit=6)
    said = capsys.readouterr().err
    assert "cannot show a plateau even where no answer changes" in said.split("answering under every cut")[0]
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert found.curve.cuts == (0, 2, 5, 8) and len(samples) == 4 * 6 * len(TASKS)
    columns = ["task", "doc_id", "target", "answer", "score", "parsable"]
    for cut in (0, 2, 5, 8):
        expected = masked(lm, cut, TASKS, limit=6)
        mine = samples[samples["cut"] == cut].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine[columns], expected[columns], check_dtype=False)
        assert (mine["kl"] == 0).all() == (cut == 8)
    # The unmasked run beside it is lmms-eval's own.
    stock = records.read_run(tmp_path / "unmasked").samples.sort_values(["task", "doc_id"])
    assert list(stock["answer"]) == list(samples[samples["cut"] == 8]["answer"])
    # Two documents of MME's show one image; GQA's say which one they show.
    groups = samples[samples["cut"] == 8].groupby("task")["group"].nunique()
    assert groups["mme"] == 3 and groups["mmstar"] == 6
    assert "generate_until" not in vars(lm) and "end_run" not in vars(lm)


@pytest.mark.parametrize("closed_to", ["question", "last"])
def test_closed_to_some_of_the_text_each_cut_is_an_evaluation_of_such_a_model(closed_to, lm, in_suite, tmp_path):
    tasks = ["mmstar", "pope"]
    found = scan(lm, tasks, tmp_path, cuts="0,2,5", limit=8, closed_to=closed_to, base_model=str(PAIR / "base"))
    assert (found.stages.closed_to, found.stages.plateau, found.spec) == (closed_to, None, None)
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    columns = ["task", "doc_id", "answer", "score"]
    for cut in (0, 2, 5, 8):
        mine = samples[samples["cut"] == cut].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine[columns], masked(lm, cut, tasks, closed_to, limit=8)[columns])
    everything = masked(lm, 0, tasks, limit=8)
    assert list(samples[samples["cut"] == 0]["answer"]) != list(everything["answer"])  # it is not blind
    assert json.loads((tmp_path / "scan.json").read_text())["closed_to"] == closed_to


def test_scans_closed_to_other_text_are_not_mixed_and_go_on_where_they_were(lm, in_suite, tmp_path, calls):
    given: dict[str, Any] = {"cuts": "0,4", "limit": 2}
    scan(lm, "pope", tmp_path / "text", **given)
    assert "closed_to" not in json.loads((tmp_path / "text" / "scan.json").read_text())
    with pytest.raises(ScanError, match=r"closed_to \(was None, is 'last'\)"):
        scan(lm, "pope", tmp_path / "text", closed_to="last", **given)
    scan(lm, "pope", tmp_path / "last", closed_to="last", **given)
    with pytest.raises(ScanError, match=r"closed_to \(was 'last', is None\)"):
        scan(lm, "pope", tmp_path / "last", **given)
    with pytest.raises(ScanError, match=r"closed_to \(was 'last', is 'question'\)"):
        scan(lm, "pope", tmp_path / "last", closed_to="question", **given)
    calls.clear()
    more = scan(lm, "pope", tmp_path / "last", closed_to="last", **{**given, "limit": 3})
    assert len(calls) == 1 and more.stages.closed_to == "last"
    with pytest.raises(ProbeError, match=r"closed_to is 'lst'; expected text, question or last \(did you mean last\?"):
        scan(lm, "pope", tmp_path / "wrong", closed_to="lst", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(("family", "mode"), MASKED)
def test_any_hf_wrapper(family, mode, pico, in_suite, tmp_path):
    from lmms_eval.models import get_model

    wrapper = get_model(WRAPPER[family][0], force_simple=mode == "simple")
    model = wrapper.create_from_arg_string(arguments(pico(family)), {"batch_size": 1})
    scan(model, "mmstar", tmp_path, limit=2, gen_kwargs="max_new_tokens=4")
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    for cut in (0, 3, 4):
        expected = masked(model, cut, "mmstar", limit=2, gen_kwargs="max_new_tokens=4")
        assert list(samples[samples["cut"] == cut]["answer"]) == list(expected["answer"]), cut
    assert samples.groupby("doc_id")["answer"].nunique().max() > 1


BATCHED = [("qwen2_5_vl", "chat"), ("qwen2_5_vl", "simple"), ("qwen3_vl", "chat")]


@pytest.mark.parametrize(("family", "mode"), BATCHED)
def test_documents_in_batches_are_answered_as_one_by_one(family, mode, pico, in_suite, tmp_path):
    from lmms_eval.models import get_model

    wrapper = get_model(WRAPPER[family][0], force_simple=mode == "simple")
    model = wrapper.create_from_arg_string(arguments(pico(family)), {"batch_size": 3})
    given: dict[str, Any] = {"cuts": "0,2", "limit": 5, "gen_kwargs": "max_new_tokens=4"}
    scan(model, "mmstar", tmp_path / "three", batch_size=3, **given)  # and a last batch of two
    model.batch_size_per_gpu = 1
    scan(model, "mmstar", tmp_path / "one", **given)
    three, one = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("three", "one"))
    assert three.groupby("cut")["answer"].nunique().max() > 1  # a document is not taken for another
    columns = ["task", "doc_id", "cut", "answer", "score"]
    pd.testing.assert_frame_equal(three[columns], one[columns])
    assert (three["kl"] - one["kl"]).abs().max() < 1e-4
    with pytest.raises(ScanError, match=r"batch_size \(was 3, is None\)"):
        scan(model, "mmstar", tmp_path / "three", **given)


def test_a_batch_where_there_is_none_is_refused(lm, in_suite, tmp_path):
    with pytest.raises(InputError, match="batch_size is 2; plam_llava answers one document at a time"):
        scan(lm, "mmstar", tmp_path / "scan", batch_size=2)
    assert not (tmp_path / "scan").exists()


def test_a_loaded_wrapper_from_python(lm, in_suite, tmp_path, capsys):
    found = plam_eval.scan(lm, tasks=["pope"], output=tmp_path / "scan", limit=2, cuts="0,4")
    assert found.curve.cuts == (0, 4, 8) and f"Scan({tmp_path / 'scan'}, 2 documents" in repr(found)
    assert "No plateau spec will be written" in capsys.readouterr().err
    assert lm.model is not None and plam_eval.read_scan(tmp_path / "scan").stages == found.stages
    with pytest.raises(ArgumentError, match="model_args with a model that is loaded"):
        plam_eval.scan(lm, "pretrained=x", "pope", tmp_path / "other")


def test_images_are_processed_once(lm, in_suite, tmp_path, monkeypatch):
    from plam_eval.model_wrappers import hf

    processor, processed = lm._image_processor, []

    class Counting:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            processed.append(1)
            return processor(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(processor, name)

    monkeypatch.setattr(hf, "is_processor", lambda value: isinstance(value, Counting))
    monkeypatch.setattr(lm, "_image_processor", Counting())
    found = scan(lm, "mmstar", tmp_path, limit=5)
    assert pd.read_parquet(tmp_path / "samples.parquet").groupby("doc_id")["answer"].nunique().max() > 1
    assert len(processed) == 5 == sum(found.curve.documents.values())


def test_a_killed_scan_goes_on_where_it_was(lm, in_suite, tmp_path, monkeypatch, calls):
    whole = scan(lm, "mmstar,pope", tmp_path / "whole", cuts="0,4", limit=6)
    assert len(calls) == 12
    add, folder = AnswerStore.add, tmp_path / "killed"

    def killed(self: Any, record: Any) -> None:
        if len(list(self.read())) == 7:
            with self._file.open("a") as file:
                file.write('{"task": "pope", "doc')  # a line that was being written
            raise KeyboardInterrupt
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerStore, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            scan(lm, "mmstar,pope", folder, cuts="0,4", limit=6)
    with pytest.raises(ScanError, match="has not finished"):
        conclude(folder)
    calls.clear()
    again = scan(lm, "mmstar,pope", folder, cuts="0,4", limit=6)
    assert len(calls) == 5
    pd.testing.assert_frame_equal(again.curve.samples, whole.curve.samples)
    assert again.curve.digest() == whole.curve.digest()

    calls.clear()
    more = scan(lm, "mmstar,pope,gqa", folder, cuts="0,4", limit=8)
    assert len(calls) == 2 + 2 + 8 and more.curve.documents == {"gqa": 8, "mmstar": 8, "pope": 8}


@pytest.mark.slow
def test_two_processes_scan_like_one(pico, suite, tmp_path, monkeypatch):
    """And go on after a kill that cut off a line of the other process."""
    model_args = arguments(pico("llava"))
    words = ["scan", "--model", "plam_llava", "--model_args", model_args, "--tasks", "pope,mmstar", "--limit", "5"]
    words += ["--cuts", "0,2", "--gen_kwargs", "max_new_tokens=4", "--output"]
    monkeypatch.chdir(suite)
    alone = CliRunner().invoke(cli.app, [*words, str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    status, said = forked.run("plam_eval.cli", [*words, str(tmp_path / "two")], processes=2)
    assert status == 0, said
    one, two = (pd.read_parquet(tmp_path / name / "samples.parquet").reset_index(drop=True) for name in ("one", "two"))
    # Other numbers of threads add in another order, which the seventh digit of a divergence may show.
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)
    files = sorted((tmp_path / "two").glob("answers.rank*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [6, 4]

    files[1].write_bytes(files[1].read_bytes()[:-9])
    again = CliRunner().invoke(cli.app, [*words, str(tmp_path / "two")])
    assert again.exit_code == 0, again.output
    assert len(files[0].read_text().splitlines()) == 7
    again_two = pd.read_parquet(tmp_path / "two" / "samples.parquet").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, again_two, rtol=0, atol=1e-6)


def test_scans_of_different_settings_are_not_mixed(lm, in_suite, tmp_path):
    scan(lm, "pope", tmp_path, cuts="0,4", limit=2)
    with pytest.raises(ScanError, match=r"other settings: cuts \(was \[0, 4, 8\], is \[0, 5, 8\]\)"):
        scan(lm, "pope", tmp_path, cuts="0,5", limit=2)
    with pytest.raises(ScanError, match="gen_kwargs"):
        scan(lm, "pope", tmp_path, cuts="0,4", limit=2, gen_kwargs="max_new_tokens=2")
    lm.merge("demo", base=str(PAIR / "base"))
    try:
        with pytest.raises(ScanError, match="weights and arguments"):
            scan(lm, "pope", tmp_path, cuts="0,4", limit=2)
        merged = scan(lm, "pope", tmp_path / "merged", cuts="0,4", limit=2, base_model=str(PAIR / "base"))
    finally:
        lm.merge("none")
    assert merged.spec is None
    answers = tmp_path / "answers.rank0.jsonl"
    answers.write_text(answers.read_text().replace('"prompt": "', '"prompt": "0'))
    with pytest.raises(ScanError, match="its prompt changed"):
        scan(lm, "pope", tmp_path, cuts="0,4", limit=2)


def test_errors_come_before_work_or_name_the_document(lm, in_suite, tmp_path, monkeypatch):
    with pytest.raises(ProbeError, match="found only 8, the unmasked model; expected at least one below it"):
        scan(lm, "pope", tmp_path / "zero", cuts="8", limit=2)
    with pytest.raises(ProbeError, match="expected layers from 0 to 8"):
        scan(lm, "pope", tmp_path / "one", cuts="0,9", limit=2)
    with pytest.raises(EvaluationError, match="did you mean"):
        scan(lm, "poppe", tmp_path / "two", limit=2)
    with pytest.raises(InputError, match=r"temperature: found 0\.7"):
        scan(lm, "pope", tmp_path / "three", limit=2, gen_kwargs="temperature=0.7")
    assert not (tmp_path / "three").exists()
    with pytest.raises(ScanError, match="no scan there"):
        conclude(tmp_path / "four")
    # A task's own settings are not among gen_kwargs: those that are not greedy are met when it is asked.
    monkeypatch.setattr("plam_eval.harness.checks.check_generation", lambda given, *, greedy=False: None)
    with pytest.raises(EvaluationError, match=r"do_sample|greedy"):
        scan(lm, "pope", tmp_path / "five", limit=2, gen_kwargs="temperature=0.7")


# ---- what is concluded -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(lm: Any, in_suite: Path, tmp_path: Path) -> Path:
    """A finished scan whose scores are made up: the image is used by layers 0 and 1 and needed no longer."""
    scan(lm, "pope,mmstar", tmp_path, limit=2)
    tasks = ("mmstar", "pope")
    rows = [
        {"task": task, "doc_id": n, "cut": cut, "kl": 0.0 if cut > 2 else 1.0, "parsable": True, "num_layers": 8}
        | {"score": float(cut >= 2 or n % 2 == 0), "answer": "A"}
        for task in tasks
        for n in range(200)
        for cut in range(9)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "samples.parquet")
    return tmp_path


def test_a_plateau_becomes_a_spec_for_the_wrappers(folder, lm, in_suite):
    assert not (folder / "plateau.yaml").exists()
    found = conclude(folder, base_model=str(PAIR / "base"))
    assert found.stages.plateau == (2, 8) and found.spec.layer_range == (2, 8)
    assert load_spec(folder / "plateau.yaml") == found.spec
    assert found.spec.evidence["documents"] == {"mmstar": 200, "pope": 200}
    assert (folder / "curve.png").stat().st_size > 10_000 and "plateau" in (folder / "curve.svg").read_text()
    table = pd.read_csv(folder / "curve.csv")
    assert set(table["task"]) == {"mmstar", "pope", "overall"} and len(table) == 27
    pd.testing.assert_frame_equal(table, pd.read_parquet(folder / "curve.parquet"), check_dtype=False)
    report = lm.merge(folder / "plateau.yaml")
    lm.merge("none")
    assert report.tensors == 6 * 4 and report.digest == found.spec.digest()


def test_a_spec_names_the_commits_of_the_hub_that_it_came_from(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "scan")
    settings = json.loads((copy / "scan.json").read_text())
    (copy / "scan.json").write_text(json.dumps({**settings, "pretrained": "org/mllm@v2", "commit": "a" * 40}))
    found = conclude(copy, base_model=f"org/base@{'b' * 40}")
    assert found.spec.evidence["commits"] == {"model": "a" * 40, "base_model": "b" * 40}
    assert (found.spec.model, load_spec(copy / "plateau.yaml")) == ("org/mllm@v2", found.spec)


def test_plam_plateau_derives_the_stages_again(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    runner = CliRunner()
    done = runner.invoke(cli.app, ["plateau", str(folder), "--base", str(PAIR / "base"), "--margin", "0.05"])
    assert done.exit_code == 0, done.output
    assert "plateau.yaml" in done.output and "separation" in done.output
    assert json.loads((folder / "stages.json").read_text())["stages"]["margin"] == 0.05
    found = json.loads(runner.invoke(cli.app, ["plateau", str(folder), "--margin", "0.05", "--json"]).stdout)
    assert found["spec_file"] == str(folder / "plateau.yaml") and found["spec"]["layer_range"] == [2, 8]
    assert len(found["curve"]) == 27 and found["stages"]["margin"] == 0.05
    # Remembers the base; without a plateau the spec of before goes.
    done = runner.invoke(cli.app, ["plateau", str(folder / "samples.parquet"), "--tasks", "pope", "--margin", "0.001"])
    assert done.exit_code == 0, done.output
    stored = json.loads((folder / "stages.json").read_text())
    assert stored["stages"]["plateau"] is None and stored["base_model"] == str(PAIR / "base")
    assert not (folder / "plateau.yaml").exists()


def test_a_scan_closed_to_some_of_the_text_gives_no_spec(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    copy = shutil.copytree(folder, tmp_path / "scan")
    conclude(copy, base_model=str(PAIR / "base"))
    assert (copy / "plateau.yaml").exists()
    settings = json.loads((copy / "scan.json").read_text())
    (copy / "scan.json").write_text(json.dumps({**settings, "closed_to": "question"}))
    with pytest.raises(DamagedFileError, match=r"says closed to question, stages.json closed to text"):
        plam_eval.read_scan(copy)
    done = CliRunner().invoke(cli.app, ["plateau", str(copy), "--base", str(PAIR / "base")])
    assert done.exit_code == 0, done.output
    assert "From cut 2 on, the question no longer needs to see the image" in done.output
    assert "No spec was written: the image was closed to the question alone (--closed-to)" in done.output
    assert "image open in" in done.output and "separation" not in done.output and "plateau" not in done.output
    assert not (copy / "plateau.yaml").exists()
    read = plam_eval.read_scan(copy)
    assert (read.stages.needed_until, read.stages.plateau, read.spec) == (2, None, None)
    (copy / "scan.json").write_text(json.dumps({**settings, "closed_to": "nobody"}))
    with pytest.raises(DamagedFileError, match="closed_to: found 'nobody', expected one of text, question, last"):
        plam_eval.read_scan(copy)


def test_without_a_base_there_is_no_spec(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    done = CliRunner().invoke(cli.app, ["plateau", str(folder)])
    assert done.exit_code == 0 and "the base LLM is not known (--base)" in done.output
    assert not (folder / "plateau.yaml").exists()


def test_plam_scan(in_suite, tmp_path, monkeypatch, pico: Callable[[str], Any]):
    monkeypatch.setenv("COLUMNS", "150")
    pair = pico("llava")
    words = ["scan", "--model", WRAPPER["llava"][0], "--model_args", arguments(pair), "--tasks", "pope"]
    words += ["--limit", "2", "--output", str(tmp_path / "scan"), "--base", str(pair.base), "--cuts", "0,2:4"]
    done = CliRunner().invoke(cli.app, [*words, "--gen_kwargs", "max_new_tokens=3"])
    assert done.exit_code == 0, done.output
    assert "no layer" in done.output and "all layers" in done.output and "ocuments" in done.output
    refused = CliRunner().invoke(cli.app, [*words[:2], "plam_vllm", *words[3:]])
    assert refused.exit_code != 0 and "needs one of our HF wrappers" in str(refused.exception)
