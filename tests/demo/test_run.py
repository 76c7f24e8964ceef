"""`plam demo` end to end: the embedded pair through lmms-eval's own command line, in the offline suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from plam_eval.demo import run as demo
from plam_eval.evaluation.records import read_run

STOCK = {  # task -> the stock metric that is the mean of its documents' scores, and its scale
    "mmbench_en_dev_static": ("gpt_eval_score", 100),
    "mmbench_cn_dev_static": ("gpt_eval_score", 100),
    "mmmu_val": ("mmmu_acc", 1),
    "gqa": ("exact_match", 1),
    "pope": ("pope_accuracy", 1),
    "realworldqa": ("exact_match", 1),
    "seedbench_2_plus": ("seedbench_2_plus_all", 1),
}

TASKS = {*STOCK, "mmstar", "mme"}


def _plam(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "plam_eval.cli", "demo", "--output", str(folder), "--documents", "30"]
    command += ["--scanned", "10", *words]
    environment = os.environ | {"COLUMNS": "160"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    process = _plam(folder)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process.stdout


def test_prints_the_scan_the_merge_and_all_nine_tasks(finished: tuple[Path, str]) -> None:
    folder, output = finished
    # Ten documents a task show the rise, and are too few for a plateau: the packaged spec is merged instead.
    assert "layers below 3" in output and "at least 16 in each task are needed" in output
    assert "packaged spec `demo`" in output
    assert "of 270 answers differ" in output.replace("\n", " ")
    assert (folder / "scan" / "curve.png").is_file() and not (folder / "scan" / "plateau.yaml").exists()
    assert "weighted_sum: 0.9 model, 0.3 base" in output
    for task in TASKS:
        assert task in output
    assert "plateau=demo,device_map=cpu" in output.replace("\n", "")
    assert not list(folder.rglob("*merged*.safetensors"))


def test_scores_are_those_of_the_stock_metrics(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for label in demo.LABELS:
        run = read_run(folder / label)
        assert set(run.accuracy().index) == TASKS
        for task, (metric, scale) in STOCK.items():
            assert run.accuracy()[task] == pytest.approx(
                run.results["results"][task][f"{metric},none"] / scale, abs=1e-5
            ), task


def test_plain_and_merged_are_what_they_say(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    plain, merged, control = (read_run(folder / label) for label in demo.LABELS)
    assert control.results["plam_eval"]["provenance"]["spec"]["rule"] == "self_scale"
    assert plain.results["plam_eval"]["plain"] and not merged.results["plam_eval"]["plain"]
    assert merged.results["plam_eval"]["provenance"]["spec"]["base_model"] == "pair/base"
    assert len(plain.samples) == len(merged.samples) == 9 * 30
    assert list(plain.samples["prompt"]) == list(merged.samples["prompt"])
    # What is evaluated was not scanned.
    scanned = pd.read_parquet(folder / "scan" / "samples.parquet")
    assert set(scanned["doc_id"]) == set(range(10)) and set(plain.samples["doc_id"]) == set(range(10, 40))


def test_the_pair_has_learned_something(finished: tuple[Path, str]) -> None:
    plain = read_run(finished[0] / "plain").samples
    letters = plain[plain["target"].str.fullmatch("[ABCD]")]
    assert letters["parsable"].all()
    assert plain["score"].mean() > 0.5  # a reader of the questions alone reaches 0.43


def test_a_finished_evaluation_is_not_repeated(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*_results.json")}
    process = _plam(folder)
    assert process.returncode == 0 and process.stdout.count("already done") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*_results.json")} == before


def test_a_failing_command_is_an_error_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = demo.scan_command(2)
    words[words.index("plam9")] = "plam10"
    monkeypatch.setattr(demo, "scan_command", lambda limit: words)
    with pytest.raises(demo.DemoError, match=r"command for scan failed .exit status 1(.|\n)*did you mean plam9"):
        demo.run(tmp_path, documents=30, scanned=2, limit=2)
    assert not (tmp_path / "scan" / "finished.json").exists()
