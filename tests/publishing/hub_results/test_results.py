"""Results for a model's repository: what the files hold, which runs are refused, and what a push touches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from plam_eval.errors import InputError
from plam_eval.merging.export_record import FILE
from plam_eval.publishing.hub_results.benchmarks import BENCHMARKS, benchmark_of
from plam_eval.publishing.hub_results.repository import RepositoryError
from plam_eval.publishing.hub_results.results import HubResultsError, hub_results, scale_of
from plam_eval.publishing.upload import UploadError
from tests.helpers.commands import command_line
from tests.helpers.exports import BASE, EXPORTED, MODEL, record_of, spec_of
from tests.helpers.hub import COMMIT, Hub, serving
from tests.helpers.logged_runs import MEAN, graded_rows, write_logs
from tests.helpers.run_folders import changed, documents, write_sweep

TOKEN = "hf_aVerySecretToken"
GPQA, OTHER = "gpqa_diamond_cot_zeroshot", "my_vqa"
PATH, REPO = ".eval_results/gpqa_diamond.yaml", "me/merged"
SCORES = [1.0, 1.0, 1.0, 0.0]


def run(
    folder: Path,
    change: Callable[[dict[str, Any]], None] | None = None,
    *,
    tasks: tuple[str, ...] = (GPQA,),
    scores: list[float] = SCORES,
    spec: Any = None,
    checkpoint: Any = MODEL,
) -> Path:
    """A whole run of these tasks; `change` edits its results."""
    mean = sum(scores) / len(scores)
    config = {**MEAN, "dataset_path": "Idavidrein/gpqa", "dataset_name": "d", "test_split": "train", "num_fewshot": 0}
    results: dict[str, Any] = {
        "configs": {task: dict(config) for task in tasks},
        "results": {task: {"exact_match,none": mean} for task in tasks},
        "n-samples": {task: {"original": len(scores), "effective": len(scores)} for task in tasks},
        "config": {"model": "plam_llava", "limit": None},
        "lmms_eval_version": "0.7.3",
        "plam_eval": {
            "wrapper": "plam_llava",
            "plain": spec is None,
            "mode": "chat",
            "dtype": "bfloat16",
            "generation": {"calls": len(scores), "failed": 0, "settings": [{"max_new_tokens": 8, "calls": 4}]},
            "provenance": {
                "spec": spec.to_dict() if spec else None,
                "digest": spec.digest() if spec else None,
                "checkpoint": checkpoint,
                "base": BASE if spec else None,
            },
        },
    }
    if change is not None:
        change(results)
    write_logs(folder, {task: graded_rows(scores) for task in tasks}, "20260301_120000", **results)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with an empty repository, and a board of fractions."""
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        hub.user[TOKEN] = {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        board(hub, 0.41, 0.52, 0.7)
        yield hub


def board(hub: Hub, *values: Any, dataset: str = "Idavidrein/gpqa") -> None:
    author = {"type": "user", "name": "x", "user": "x", "fullname": "x", "avatarUrl": ""}
    hub.boards[dataset] = [
        {"rank": n, "modelId": f"x/{n}", "value": value, "filename": "f", "verified": False, "author": author}
        for n, value in enumerate(values, 1)
    ]


def refused(*runs: Path, **options: Any) -> list[str]:
    with pytest.raises(HubResultsError, match="nothing was published") as caught:
        hub_results(runs, REPO, **options)
    return caught.value.problems


# ---- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_what_the_hub_reads_and_nothing_is_pushed(hub: Hub, tmp_path: Path) -> None:
    def prompted(results: dict[str, Any]) -> None:
        prompts = {"pre_prompt": "", "post_prompt": "\nA letter.", "other_vl": {"post_prompt": "Of another model."}}
        results["configs"][GPQA]["lmms_eval_specific_kwargs"] = prompts

    done = hub_results([run(tmp_path / "r", prompted, spec=spec_of())], REPO, source_url="https://x.org/bundle")
    assert list(done.files) == [PATH] and done.pushed is None and not hub.commits
    (entry,) = parse_eval_result_entries(yaml.safe_load(done.files[PATH]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Idavidrein/gpqa", "gpqa_diamond", 0.75)
    assert str(entry.date) == "2026-03-01" and entry.source_url == "https://x.org/bundle"
    for words in ("split train", "4 documents", "0-shot", spec_of().digest()[:16], "lmms-eval 0.7.3", "bfloat16", GPQA):
        assert words in str(entry.notes), words
    assert "prompt: 0-shot, post_prompt '\\nA letter.', chat;" in str(entry.notes), "and no other model's"
    assert "verif" not in done.files[PATH].lower()
    assert any("is fraction: its board has 3 results from 0.41 to 0.7" in note for note in done.notes)


def test_the_scale_is_the_board_s(hub: Hub, tmp_path: Path) -> None:
    folder = run(tmp_path / "r")
    board(hub, 20.9, 41.2, 55)
    assert "value: 75.0" in hub_results([folder], REPO).files[PATH]
    assert "value: 75.0" in hub_results([folder], REPO, scale="percent").files[PATH]
    assert "which is percent" in refused(folder, scale="fraction")[0]
    board(hub, 0.4, 41.2, 55)
    assert "results of two scales" in refused(folder)[0]
    assert "value: 0.75" in hub_results([folder], REPO, scale="fraction").files[PATH]
    hub.boards.clear()
    assert "has no board on the hub (404)" in refused(folder)[0]
    hub.refusals = {"/api/datasets/": (500, "", "busy")}
    assert "cannot be asked (status 500)" in refused(folder)[0]
    hub.refusals = {}
    board(hub, "high", 0.4)
    assert "has only 1 results" in refused(folder)[0]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.1, 0.5, 1.0], "fraction"),
        ([1.1, 50, 100], "percent"),
        ([0.1, 50, 100], None),
        ([1, 50, 100], None),
        ([0.1, 0.2], None),
        ([], None),
        ([-1, 2, 3], None),
        ([20, 50, 1400], None),
    ],
)
def test_which_scale_values_have(values: list[float], scale: str | None) -> None:
    assert scale_of(values)[0] == scale


def test_offline_the_scale_has_to_be_given(tmp_path: Path) -> None:
    folder = run(tmp_path / "r")
    assert "HF_HUB_OFFLINE is set): look at its board, and say --scale" in refused(folder)[0]
    done = hub_results([folder], REPO, scale="percent")
    assert "value: 75.0" in done.files[PATH]
    assert any("its board was not asked" in note for note in done.notes)
    assert any("was not looked at" in note for note in done.notes)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE"):
        hub_results([folder], REPO, scale="percent", push=True)


def test_what_is_there_is_kept_entry_by_entry(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "hub" / REPO / PATH
    file.parent.mkdir()
    there = [
        {"dataset": {"id": "a/b", "task_id": "t"}, "value": 20.9, "date": "2025-01-15", "unheard": {"of": [1]}},
        {"dataset": {"id": "Idavidrein/gpqa", "task_id": "gpqa_diamond"}, "value": 0.3, "verifyToken": "x"},
    ]
    file.write_text(yaml.safe_dump(there))
    done = hub_results([run(tmp_path / "r")], REPO)
    first, second = yaml.safe_load(done.files[PATH])
    assert first == there[0] and second["value"] == 0.75 and "verifyToken" not in second
    assert done.replaced == [f"{PATH}: Idavidrein/gpqa, gpqa_diamond: 0.3 (which was verified) is replaced"]
    odd = [
        "- value: 3\n",
        "dataset: {id: a/b, task_id: t}\nvalue: 3\n",
        "- {dataset: {id: [a], task_id: t}, value: 3}\n",
    ]
    for number, text in enumerate(odd):
        file.write_text(text)
        hub.publish(REPO, tmp_path / "hub" / REPO, f"{number + 3}" * 40, "main")
        with pytest.raises(RepositoryError, match="expected a list of entries"):
            hub_results([run(tmp_path / "r")], REPO)


def test_a_push_is_one_commit_of_these_files(hub: Hub, tmp_path: Path) -> None:
    other = tmp_path / "hub" / REPO / "model.safetensors"
    other.write_text("weights")
    done = hub_results([run(tmp_path / "r", tasks=(GPQA, OTHER))], REPO, push=True)
    assert done.pushed == f"{hub.url}/{REPO}/commit/{COMMIT}"
    assert [(repository, sorted(names)) for repository, _, names in hub.commits] == [
        (REPO, sorted([PATH, "README.md"]))
    ]
    assert (tmp_path / "hub" / REPO / PATH).read_text() == done.files[PATH] and other.read_text() == "weights"
    again = hub_results([run(tmp_path / "r", tasks=(GPQA, OTHER))], REPO)
    assert again.files == done.files and len(again.replaced) == 2, "the same results replace themselves"
    with pytest.raises(HubResultsError, match="no such repository"):
        hub_results([run(tmp_path / "r")], "me/none", push=True)
    hub.refusals = {"/api/models/me/merged/commit": (403, "", "")}
    with pytest.raises(UploadError, match="refuses to write there"):
        hub_results([run(tmp_path / "r")], REPO, push=True)


# ---- model-index -----------------------------------------------------------------------------------------------------


def test_a_card_of_aliases_is_refused(hub: Hub, tmp_path: Path) -> None:
    """Ten lines of them are a billion values for whatever writes the row down."""
    readme = tmp_path / "hub" / REPO / "README.md"
    readme.write_text("---\nx: &x [a, a]\nmodel-index: [{name: n, results: [*x]}]\n---\n# A\n")
    hub.publish(REPO, readme.parent, "b" * 40, "main")
    with pytest.raises(HubResultsError, match="YAML aliases"):
        hub_results([run(tmp_path / "r", tasks=(OTHER,))], REPO)


def test_other_benchmarks_go_into_the_card(hub: Hub, tmp_path: Path) -> None:
    readme = tmp_path / "hub" / REPO / "README.md"
    index = {
        "name": "named",
        "results": [
            {
                "task": {"type": "image-text-to-text"},
                "dataset": {"type": "Idavidrein/gpqa", "name": "G", "config": "d", "split": "train"},
                "metrics": [{"type": "f1", "value": 3.5}],
            }
        ],
    }
    body = "# A\n\n---\nlicense: not this\n---\ntext  \n"
    readme.write_text(f"---\n{yaml.safe_dump({'license': 'mit', 'model-index': [index], 'x': 'y'})}---\n{body}")
    done = hub_results([run(tmp_path / "r", tasks=(OTHER,))], REPO)
    card = ModelCard(done.files["README.md"])
    assert card.text == body and card.data.to_dict()["license"] == "mit" and card.data.to_dict()["x"] == "y"
    data: Any = card.data
    assert data.model_name == "named" and [row.metric_value for row in data.eval_results] == [3.5, 0.75]
    row = data.eval_results[1]
    assert (row.metric_name, row.dataset_name) == (f"exact_match ({OTHER})", "G")
    assert "4 documents" in row.metric_args["notes"] and row.verified is None
    readme.write_text(done.files["README.md"])
    hub.publish(REPO, readme.parent, "b" * 40, "main")
    again = hub_results([run(tmp_path / "r", tasks=(OTHER,), scores=[1.0, 0.0])], REPO)
    assert len(again.replaced) == 1 and "0.75 is replaced" in again.replaced[0]
    readme.write_text("---\nmodel-index: [3]\n---\n")
    hub.publish(REPO, readme.parent, "c" * 40, "main")
    with pytest.raises(HubResultsError, match="mend it there"):
        hub_results([run(tmp_path / "r", tasks=(OTHER,))], REPO)


def test_a_task_that_reports_several_values_or_another_mean(hub: Hub, tmp_path: Path) -> None:
    def mme(results: dict[str, Any]) -> None:
        results["results"]["mme"] = {"mme_perception_score,none": 1412.5, "mme_cognition_score,none": 300.0}

    def mmstar(results: dict[str, Any]) -> None:
        results["results"]["mmstar"] = {"average,none": 0.6}

    for task, metric, change in (("mme", "mme_perception_score", mme), ("mmstar", "average", mmstar)):
        folder = run(tmp_path / task, change, tasks=(task,))
        log = next(folder.glob("*_samples_*"))
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        entries = [{**row, metric: {"score": row.pop("exact_match"), "question_id": "1"}} for row in rows]
        log.write_text("".join(json.dumps(row) + "\n" for row in entries))

    def values(folder: Path, **options: Any) -> dict[str, float]:
        data: Any = ModelCard(hub_results([folder], REPO, **options).files["README.md"]).data
        return {row.metric_type: row.metric_value for row in data.eval_results}

    assert values(tmp_path / "mme") == {"mme_perception_score": 1412.5, "mme_cognition_score": 300.0}
    assert "in pairs, which is no share" in refused(tmp_path / "mme", scale="percent")[0]
    board(hub, 10, 20, 30, dataset="lab/mme")
    assert "in pairs" in refused(tmp_path / "mme", dataset="lab/mme", task_id="t")[0]
    hub.boards.clear()
    assert (
        "an entry of a benchmark has one value"
        in refused(tmp_path / "mme", dataset="lab/mme", task_id="t", scale="own")[0]
    )
    assert values(tmp_path / "mmstar") == {"average": 0.6}, "the task's own mean is of categories"
    assert values(tmp_path / "mmstar", scale="percent") == {"average, mean over documents": 75.0}


def test_lower_is_better_is_said_and_nothing_that_is_no_number_is_a_value(hub: Hub, tmp_path: Path) -> None:
    def falling(results: dict[str, Any]) -> None:
        row = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}
        results["configs"][OTHER]["metric_list"] = [row]

    done = hub_results([run(tmp_path / "f", falling, tasks=(OTHER,))], REPO)
    assert "exact_match (lower is better);" in done.files["README.md"].replace("\n         ", "")
    assert "lower" not in hub_results([run(tmp_path / "r", tasks=(OTHER,))], REPO).files["README.md"]

    def judged(results: dict[str, Any]) -> None:  # a task whose value is another mean than that of its documents
        results["results"]["mmstar"] = {"average,none": float("nan")}

    folder = run(tmp_path / "n", judged, tasks=("mmstar",))
    log = next(folder.glob("*.jsonl"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**line, "average": {"score": line["exact_match"]}}) + "\n" for line in lines))
    assert any("no value of average" in problem for problem in refused(folder, scale="own"))


def test_a_benchmark_can_be_named(hub: Hub, tmp_path: Path) -> None:
    board(hub, 10, 20, 30, dataset="lab/bench")
    done = hub_results([run(tmp_path / "r", tasks=(GPQA, OTHER))], REPO, dataset="lab/bench", task_id="t", task=OTHER)
    (entry,) = yaml.safe_load(done.files[".eval_results/t.yaml"])
    assert entry["dataset"] == {"id": "lab/bench", "task_id": "t"} and entry["value"] == 75.0
    assert "name it with --task" in refused(tmp_path / "r", dataset="lab/bench", task_id="t")[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": "points"}, "--scale: found 'points'"),
        ({"dataset": "a/b"}, "give both"),
        ({"dataset": "../x", "task_id": "a b"}, "--task-id: found 'a b'"),
        ({"source_url": "javascript:alert(1)"}, "--source-url"),
        ({"source_url": "https://x.org/a\nb"}, "--source-url"),
    ],
)
def test_options_that_cannot_be_used(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        hub_results([tmp_path], REPO, **options)
    with pytest.raises(InputError, match="expected owner/name"):
        hub_results([tmp_path], "no repository", **options)


def test_the_table_of_benchmarks_says_where_it_is_from() -> None:
    for benchmark in BENCHMARKS:
        assert benchmark.source.startswith("https://") and benchmark.read_on and benchmark.file.endswith(".yaml")
        assert all(benchmark_of(task) is benchmark for task in benchmark.tasks), "a task asks one benchmark's questions"
    assert benchmark_of("mmstar") is None


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_every_fault_of_every_run_is_told_at_once(hub: Hub, tmp_path: Path) -> None:
    def limited(results: dict[str, Any]) -> None:
        results["config"] |= {"limit": 4, "offset": 2}
        results["n-samples"][GPQA]["original"] = 10

    def failed(results: dict[str, Any]) -> None:
        results["plam_eval"]["generation"]["failed"] = 3

    def unscored(results: dict[str, Any]) -> None:
        results["configs"][OTHER] = {"metric_list": [{"metric": "bleu", "aggregation": "corpus"}]}

    def differing(results: dict[str, Any]) -> None:
        results["results"][GPQA] = {"exact_match,none": 0.1}

    problems = refused(
        run(tmp_path / "limited", limited),
        run(tmp_path / "failed", failed),
        run(tmp_path / "unscored", unscored, tasks=(OTHER,)),
        run(tmp_path / "differing", differing),
        tmp_path / "none",
    )
    said = "\n".join(problems)
    for words in ("--limit 4", "--offset 2", "3 generations failed", "has no score", "is not what the task reports"):
        assert words in said, words
    assert "no such file or folder" in said and "results for one entry" in said


def test_two_results_for_one_entry_are_refused(hub: Hub, tmp_path: Path) -> None:
    assert "2 results for one entry" in refused(run(tmp_path / "a"), run(tmp_path / "b"))[0]
    said = refused(run(tmp_path / "a", tasks=(OTHER,)), run(tmp_path / "b", tasks=(OTHER,)))
    assert "another run has a result of my_vqa" in said[0]


@pytest.mark.parametrize("scanned", [GPQA, GPQA + "_lite", "gpqa_diamond"])
def test_documents_that_the_plateau_was_scanned_on_are_refused(hub: Hub, tmp_path: Path, scanned: str) -> None:
    spec = spec_of(evidence={"scan": "s", "documents": {scanned: 64}})
    if scanned == "gpqa_diamond":  # of another name, and the same questions

        def same(results: dict[str, Any]) -> None:
            results["configs"][scanned] = dict(results["configs"][GPQA])
            results["results"][scanned] = dict(results["results"][GPQA])

        folder = run(tmp_path / "r", same, tasks=(GPQA, scanned), spec=spec)
    else:
        folder = run(tmp_path / "r", spec=spec)
    assert f"the plateau was scanned on 64 documents of {scanned}" in refused(folder, task=GPQA)[0]
    seen = hub_results([run(tmp_path / "r", spec=spec_of(evidence={"documents": {"pope": 9}}))], REPO)
    assert not any("records no scan" in note for note in seen.notes)
    unknown = hub_results([run(tmp_path / "r", spec=spec_of())], REPO)
    assert any("records no scan" in note for note in unknown.notes)


def test_documents_that_a_sweep_chose_on_are_refused(hub: Hub, tmp_path: Path) -> None:
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    cells = {"plain": plain, "layers-6-8_qkvo_0.9+0.3": better, "layers-0-8_qkvo_0.9+0.3": plain}
    write_sweep(tmp_path / "sweep", cells, select=5)
    for results in (tmp_path / "sweep").rglob("*_results.json"):
        content = json.loads(results.read_text())
        content["config"]["limit"] = None
        results.write_text(json.dumps(content))
    said = refused(tmp_path / "sweep" / "cells" / "layers-6-8_qkvo_0.9+0.3")
    assert any("chose this merge among 2 on 5 of these documents" in problem for problem in said)
    done = hub_results([tmp_path / "sweep" / "cells" / "layers-0-8_qkvo_0.9+0.3"], REPO, task="pope")
    assert any("one of 2 merges that a sweep tried, and not the one" in note for note in done.notes)


def test_runs_of_another_model_than_the_repository_s_are_refused(hub: Hub, tmp_path: Path) -> None:
    spec = spec_of(evidence={"documents": {OTHER: 10}})
    record_of(spec).write(tmp_path / "hub" / REPO)
    assert hub_results([run(tmp_path / "r", spec=spec)], REPO).files
    exported = {"name": "m", "folder": "/x/m", "files": EXPORTED}
    assert hub_results([run(tmp_path / "r", checkpoint=exported)], REPO).files, "of the exported files themselves"
    assert "this is a run of its plain" in refused(run(tmp_path / "r"))[0]
    assert "another merge" in refused(run(tmp_path / "r", spec=spec_of(layer_range=[0, 8])))[0]
    assert "scanned on 10 documents of my_vqa" in refused(run(tmp_path / "r", tasks=(OTHER,), checkpoint=exported))[0]
    (tmp_path / "hub" / REPO / FILE).write_text("{}")
    hub.publish(REPO, tmp_path / "hub" / REPO, "b" * 40, "main")
    with pytest.raises(RepositoryError, match=FILE):
        hub_results([run(tmp_path / "r", spec=spec)], REPO)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plam = command_line(monkeypatch, capsys)
    folder = run(tmp_path / "r")
    code, out, _ = plam("submit", folder, "--hub", REPO)
    assert code == 0 and f"{PATH} in {REPO}:" in out and "value: 0.75" in out and "Nothing was pushed" in out
    code, out, _ = plam("submit", folder, "--hub", REPO, "--push", "--json")
    assert code == 0 and json.loads(out)["pushed"].startswith(hub.url)
    for words, said in (
        (("submit", folder, "--push"), "--push: of --hub REPO"),
        (("submit", folder, "--hub", REPO, "--board", "vqav2"), "--board with --hub"),
        (("submit", "--hub", REPO), "give run folders, or results files, whose results"),
        (("submit", "--hub", REPO, "--boards"), "exclude each other"),
    ):
        code, _, err = plam(*words)
        assert code == 1 and said in err, err
