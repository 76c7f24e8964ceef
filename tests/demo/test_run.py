"""`plam demo` end to end: the embedded models through lmms-eval's own command line, in the offline suites.

Its commands run in processes that are forked with their imports done. That they run in ones of their own is tested on a
command that fails, and on one that imports little.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from plam_eval.cli import app
from plam_eval.demo import hub, steps
from plam_eval.demo import run as demo
from plam_eval.errors import FolderError, InputError
from plam_eval.evaluation.attend import folder as attend_folder
from plam_eval.evaluation.attend.findings import find
from plam_eval.evaluation.records import read_run
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.merging.export_record import read_export_record
from plam_eval.terminal import Terminal
from tests.helpers import forked

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


LIMIT = 6
CELLS = 1 + 3 * (2 + 1 + 1 + 2)  # plain; per range two merges, one scale, one normalized (the other is), two noises


TRIO_CELLS = 1 + 3 + 1 + 1 + 1 + 3  # plain; three merges, of one the scale, normalized, from_ancestor; three noises


def _plam(folder: Path) -> str:
    """What `plam demo` prints."""
    stock = steps._run

    def run(words: list[str], suite: Path, log: Path, label: str, console: Terminal) -> None:
        if words[:2] == ["plam", "submit"]:
            return stock(words, suite, log, label, console)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "190")
            status, said = forked.run(steps.MODULES[words[0]], words[1:], suite, log=log)
        assert status == 0, said

    words = ["demo", "--output", str(folder), "--documents", "30", "--scanned", "10", "--limit", str(LIMIT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_run", run)
        done = CliRunner(env={"COLUMNS": "190"}).invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, _plam(folder)


@pytest.mark.slow
def test_prints_the_scan_the_merge_and_the_sweep(finished: tuple[Path, str]) -> None:
    folder, output = finished
    # Ten documents a task show the rise, and are too few for a plateau: the packaged spec is merged instead.
    assert "layers below 3" in output and "at least 16 in each task are needed" in output
    assert "packaged spec `demo`" in output
    assert (folder / "scan" / "curve.png").is_file() and not (folder / "scan" / "plateau.yaml").exists()
    assert "weighted_sum: 0.9 model, 0.3 base" in output
    assert f"0 of {9 * LIMIT} answers differ" in output
    assert "layers 4:8, qkvo, 0.9 + 0.3, self_scale" in output and "layers 0:2, qkvo, 0.7 + 0.3" in output
    assert "chosen on other documents" in output
    assert "plateau=demo,device_map=cpu" in output.replace("\n", "")
    assert not list(folder.rglob("*merged*.safetensors"))


@pytest.mark.slow
def test_the_sweep_is_whole_and_reports_what_it_did_not_choose_on(finished: tuple[Path, str]) -> None:
    found = read_findings(finished[0] / "sweep")
    assert len(found.runs) == CELLS and set(found.tasks["task"]) == {*TASKS, "overall"}
    assert found.selection.held_out and found.selection.tried == 6
    assert set(found.selection.chosen_on.values()) == {2} and set(found.selection.reported_on.values()) == {LIMIT - 2}
    assert found.warnings == ()
    # What is evaluated was not scanned.
    scanned = pd.read_parquet(finished[0] / "scan" / "samples.parquet")
    assert set(scanned["doc_id"]) == set(range(10))
    assert set(found.runs["plain"].samples["doc_id"]) <= set(range(10, 10 + LIMIT))


@pytest.mark.slow
def test_the_page_shows_scan_and_sweep(finished: tuple[Path, str]) -> None:
    folder, output = finished
    page = (folder / "report" / "index.html").read_text()
    assert "Where the image is used" in page and "Beside the controls" in page
    assert "Where it looks" in page and "Layer by layer" in page
    assert read_findings(folder / "sweep").verdict().split(":")[0] in page
    assert len(pd.read_csv(folder / "report" / "tables" / "cells.csv")) == CELLS
    assert "report/index.html" in output.replace("\n", "")


@pytest.mark.slow
def test_it_looks_at_documents_that_were_not_scanned(finished: tuple[Path, str]) -> None:
    folder, output = finished
    attended = attend_folder.load(folder / "attend")
    assert attended.settings == ["plain", "merged", "self_scale", "normalized"] and attended.merged_layers == (
        4,
        5,
        6,
        7,
    )
    assert set(attended.answers["task"]) == {"gqa", "realworldqa"} and attended.depth is not None
    assert set(attended.answers["doc_id"]) == set(range(10, 10 + LIMIT))
    said = " ".join(output.split())
    assert f"on {2 * LIMIT} documents after those: {find(attended).sentence}" in said


@pytest.mark.slow
def test_the_chosen_merge_is_exported(finished: tuple[Path, str]) -> None:
    folder, output = finished
    found = read_findings(folder / "sweep")
    record = read_export_record(folder / "export" / "checkpoint")
    assert record.digest == found.cells.set_index("cell").loc[found.selection.cell, "digest"]
    assert f"digest {record.digest[:16]}" in output.replace("\n", " ")
    assert f"exported as {record.digest[:16]}" in (folder / "report" / "index.html").read_text()


@pytest.mark.slow
def test_all_answers_of_the_plain_model_are_submitted(finished: tuple[Path, str]) -> None:
    folder, output = finished
    (about,) = (folder / "plain").rglob("*.about.json")
    submitted = json.loads(about.read_text())
    lines = [json.loads(line) for line in (about.parent / submitted["file"]).read_text().splitlines()]
    assert len(lines) == submitted["answers"] == 40 and submitted["digest"] is None
    assert {line["question_id"] for line in lines} == set(map(str, range(40)))
    assert "40 answers for SEED-Bench-2-Plus" in output.replace("\n", " ")


@pytest.mark.slow
def test_the_trio_is_swept_and_its_best_merge_looked_at_without_the_images(finished: tuple[Path, str]) -> None:
    folder, output = finished
    found = read_findings(folder / "trio" / "sweep")
    assert len(found.runs) == TRIO_CELLS and found.warnings == () and found.selection.held_out
    documents = demo.TRIO_TIMES * LIMIT
    assert found.selection.chosen_on == {"gqa": documents // 3} and found.selection.tried == 3
    assert found.cells["rule"].tolist().count("from_ancestor") == 1
    kinds = {row["kind"] for row in hub.read_manifest(folder / "trio" / "suite")["tasks"]["gqa"]["documents"]}
    assert kinds <= set(hub.GQA_KINDS["reasoning"])
    # The chosen merge, and the documents that it is reported on, in another picture each.
    swapped = read_findings(folder / "trio" / "sweep-swapped")
    digests = (of.cells.set_index("cell").loc[of.selection.cell, "digest"] for of in (found, swapped))
    assert len(set(digests)) == 1
    asked = [of.runs["plain"].samples.set_index("doc_id").sort_index() for of in (found, swapped)]
    assert list(asked[0].index) == list(asked[1].index) and len(asked[0]) == documents - documents // 3
    assert (
        set(asked[0].index) < set(range(documents))
        and list(asked[0].index) != sorted(range(documents))[-len(asked[0]) :]
    )
    assert list(asked[0]["target"]) == list(asked[1]["target"]) and list(asked[0]["answer"]) != list(asked[1]["answer"])
    assert hub.read_manifest(folder / "trio" / "suite-swapped")["images"] == "swapped"

    said = " ".join(output.split())
    assert found.verdict() in said and read_findings(folder / "sweep").verdict() in said
    for models, of in (("the pair", read_findings(folder / "sweep")), ("the trio", found), ("scenes", swapped)):
        row = of.cells.set_index("cell").loc[of.selection.cell]
        lines = (line.split("│") for line in output.splitlines())
        line = next(cells for cells in lines if len(cells) > 8 and cells[1].strip().endswith(models))
        figures = [f"{row['first']:.3f}", f"{row['second']:.3f}", f"{row['difference']:+.3f}"]
        assert [cell.strip() for cell in line[3:6]] == figures
    assert read_findings(folder / "trio" / "sweep").verdict().split(":")[0] in (
        folder / "trio" / "report" / "index.html"
    ).read_text(encoding="utf-8")


@pytest.mark.slow
def test_scores_are_those_of_the_stock_metrics(finished: tuple[Path, str]) -> None:
    run = read_run(finished[0] / "merged")
    assert set(run.accuracy().index) == TASKS and len(run.samples) == 9 * LIMIT
    assert run.block["provenance"]["spec"]["base_model"] == "pair/base"
    for task, (metric, scale) in STOCK.items():
        expected = run.results["results"][task][f"{metric},none"] / scale
        assert run.accuracy()[task] == pytest.approx(expected, abs=1e-5), task


@pytest.mark.slow
def test_the_pair_has_learned_something(finished: tuple[Path, str]) -> None:
    samples = read_run(finished[0] / "merged").samples
    letters = samples[samples["target"].str.fullmatch("[ABCD]")]
    assert letters["parsable"].all()
    assert samples["score"].mean() > 0.65  # a reader of the questions alone reaches 0.43


@pytest.mark.slow
def test_what_is_finished_is_not_repeated(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*_results.json")}
    assert _plam(folder).count("already done") == 8 + 3
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*_results.json")} == before


def test_a_failing_command_is_an_error_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = demo.scan_command(2)
    words[words.index("plam9")] = "plam10"
    monkeypatch.setattr(demo, "scan_command", lambda limit: words)
    with pytest.raises(demo.DemoError, match=r"command for scan failed .exit status 1(.|\n)*did you mean plam9"):
        demo.run(tmp_path, documents=30, scanned=2, limit=2)
    assert not (tmp_path / "scan" / "finished.json").exists()


# Without an evaluation


@pytest.mark.parametrize("given", [{"documents": 31}, {"scanned": 3}, {"limit": 3}])
def test_odd_numbers_are_refused_before_anything_is_written(tmp_path: Path, given: dict[str, Any]) -> None:
    ((name, count),) = given.items()
    with pytest.raises(InputError, match=f"{name} is {count}, but MME asks two questions of an image"):
        demo.run(tmp_path / "demo", **given)
    assert not (tmp_path / "demo").exists()


_PARENT = """
import signal, sys, time
from pathlib import Path
from plam_eval.demo import steps
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell script started with &
with steps.tethered(sys.argv[1], sys.argv[2:], Path.cwd()) as process:
    print(process.stdout.readline().decode(), end="", flush=True)
    time.sleep(120)
"""

_CHILD = """
import os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(os.getpid(), helper.pid, *sys.argv[1:], flush=True)
time.sleep(120)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_demo(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "child_of_demo.py").write_text(_CHILD)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", _PARENT, "child_of_demo", "--flag", "x"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        child, helper, *arguments = parent.stdout.readline().split()
        assert arguments == ["--flag", "x"] and _alive(int(child)) and _alive(int(helper))
        parent.send_signal(sent)
        parent.wait(timeout=30)
    deadline = time.monotonic() + 30
    while (_alive(int(child)) or _alive(int(helper))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(int(child)) and not _alive(int(helper))


def _step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], label: str, fresh: bool = False) -> None:
    monkeypatch.setattr(steps, "_identity", lambda suite, words: {"command": words})
    steps.Steps(tmp_path / "suite", fresh, Terminal(quiet=True)).run(label, words, tmp_path / label)


def test_the_demo_deletes_only_what_it_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_run", lambda words, suite, log, *rest: log.write_text("done"))
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match="plam-eval has not made it"):
        _step(tmp_path, monkeypatch, ["plam", "scan"], "scan", fresh=True)
    with pytest.raises(demo.DemoError, match="something that the demo has not made"):
        _step(tmp_path, monkeypatch, ["plam", "scan"], "scan")
    assert (tmp_path / "scan" / "thesis.txt").read_text() == "mine"
    for fresh in (False, True):
        _step(tmp_path, monkeypatch, ["plam", "sweep"], "sweep", fresh)
        assert (tmp_path / "sweep" / "finished.json").is_file()
        (tmp_path / "sweep" / "old.txt").touch()
    _step(tmp_path, monkeypatch, ["plam", "sweep", "other"], "sweep")  # of another command
    assert not (tmp_path / "sweep" / "old.txt").exists()
    (tmp_path / "sweep" / "finished.json").write_text("{")  # damaged: not finished
    _step(tmp_path, monkeypatch, ["plam", "sweep", "other"], "sweep")
    assert steps._finished(tmp_path / "sweep" / "finished.json") == {"command": ["plam", "sweep", "other"]}


def test_the_merge_is_the_last_one_whatever_the_clock_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dates = iter(["20270101_000000", "20260101_000000"])

    def evaluate(words: list[str], suite: Path, log: Path, *rest: object) -> None:
        (log.parent / "pair").mkdir(exist_ok=True)
        (log.parent / "pair" / f"{next(dates)}_results.json").write_text("{}")

    monkeypatch.setattr(steps, "_run", evaluate)
    _step(tmp_path, monkeypatch, ["lmms-eval", "--tasks"], "merged")
    _step(tmp_path, monkeypatch, ["lmms-eval", "--tasks"], "merged", fresh=True)
    assert steps.results(tmp_path / "merged").name == "20260101_000000_results.json"
    monkeypatch.setattr(steps, "_run", lambda words, suite, log, *rest: log.write_text("no such task"))
    with pytest.raises(demo.DemoError, match=r"0 results files, expected 1(.|\n)*no such task"):
        _step(tmp_path, monkeypatch, ["lmms-eval", "--tasks"], "merged", fresh=True)


def test_the_environment_is_named_where_plam_is_another(tmp_path, monkeypatch):
    ours = Path(sys.executable).parent
    monkeypatch.chdir(tmp_path)
    for name in ("plam", "python"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert demo._environment() == f"with the environment active (source {ours / 'activate'}) and "
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    assert demo._environment() == ""
    monkeypatch.setenv("PATH", "")
    assert demo._environment() == "with the environment active (source bin/activate) and "
