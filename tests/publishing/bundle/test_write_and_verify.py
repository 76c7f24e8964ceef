"""Bundles of real runs: what is in them, what is left out, and that what they claim is recomputed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plam_eval.harness.recompute import UnavailableError, find_task
from plam_eval.harness.tasks import TASKS
from plam_eval.publishing.bundle import verify, write
from plam_eval.publishing.bundle.archive import BundleError
from plam_eval.publishing.bundle.scrub import Scrubber
from plam_eval.publishing.bundle.verification import Verification
from plam_eval.publishing.bundle.verify import verify_bundle
from plam_eval.publishing.bundle.write import make_bundle
from tests.helpers import run_folders
from tests.helpers.bundles import (
    NINE,
    SPEC,
    Members,
    edited_manifest,
    edited_results,
    edited_sample,
    forged,
    members_of,
    merged_run,
    stock_run,
)
from tests.helpers.logged_runs import graded_rows, write_logs

HELLO = hashlib.sha256(b"hello").hexdigest()


@pytest.fixture(scope="module")
def runs(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A merged run over the nine tasks, and a stock run whose MMMU draws at random. Do not modify."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        return [merged_run(folder / "merged", "plam9"), stock_run(folder / "stock", "mmmu_val,gqa")]


@pytest.fixture(scope="module")
def bundle(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(runs, tmp_path_factory.mktemp("bundles") / "appendix.zip").path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no task finds its dataset."""
    monkeypatch.chdir(tmp_path)


def differing(done: Verification) -> set[tuple[str, str]]:
    return {(each.run, each.task) for each in done.answers if each.differing}


@pytest.mark.parametrize("with_datasets", [False, True])
def test_honest_runs_hold(bundle: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, with_datasets: bool) -> None:
    if with_datasets:
        monkeypatch.chdir(suite)
    done = verify_bundle(bundle)
    assert done.holds and done.differences() == []
    assert {each.task for each in done.metrics if each.equal} == set(NINE)
    assert all(each.equal for each in done.metrics) and len(done.metrics) > 35
    assert [(each.task, each.checked) for each in done.answers[:9]] == [(task, 30) for task in sorted(NINE)]
    assert {each.how for each in done.answers} == {
        f"scored again, {'on the dataset' if with_datasets else 'from the log'}"
    }
    drawn = {(each.run, each.task): each.drawn for each in done.answers if each.drawn}
    assert set(drawn) <= {("run", "mmmu_val")} and sum(drawn.values()) > 3, "ours is not drawn, the stock one is"
    assert len(done.unverified) == 1 and "drawn at random" in done.unverified[0]
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted(
        path.name for path in (suite.iterdir() if with_datasets else [])
    ), "tasks write files as they aggregate; none stays"


def test_the_same_runs_give_the_same_bytes(runs: list[Path], bundle: Path, tmp_path: Path) -> None:
    again = make_bundle(runs, tmp_path / "again.zip")
    assert again.path.read_bytes() == bundle.read_bytes()
    assert again.sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert make_bundle(runs, tmp_path / "again.zip").sha256 == again.sha256, "an older bundle is replaced"


def test_no_place_or_name_of_the_machine_is_in_it(runs: list[Path], bundle: Path, tmp_path: Path) -> None:
    own = {str(runs[0].parent), str(Path.home()) + "/", "jane.doe", "jd12", "doe-lab", "/scratch"}
    text = b"\n".join(members_of(bundle).values()).decode()
    assert [word for word in own if word in text] == []
    assert "Jane Doe" in text and "org/mllm" in text, "an author's own words stay, but for reviewers"
    log = members_of(bundle)["runs/001/samples_pope.jsonl"]
    assert log == (runs[0].parent / runs[0].name.replace("results.json", "samples_pope.jsonl")).read_bytes()
    blind = make_bundle(runs, tmp_path / "blind.zip", anonymous=True, hide=["ORG"])
    text = b"\n".join(members_of(blind.path).values()).decode()
    assert [word for word in {*own, "Jane Doe", "c0ffee", "org/"} if word in text] == []
    manifest = json.loads(members_of(blind.path)["manifest.json"])
    left_out = manifest["files"]["runs/001/results.json"]["left_out"]
    assert left_out["plam_eval/provenance/spec/source"] == "free text of an author"
    assert manifest["files"]["runs/001/results.json"]["original"] == hashlib.sha256(runs[0].read_bytes()).hexdigest()
    done = verify_bundle(blind.path)
    assert done.holds and any("digest of its spec" in line for line in done.unverified), "the base's name was hidden"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("pretrained=/home/jane/m/llava-7b,dtype=auto", "pretrained=[path]/llava-7b,dtype=auto"),
        ("/mnt/data/jane/", "[path]/jane"),
        ("~/models/x and C:\\Users\\jane\\x.bin", "[path]/x and [path]/x.bin"),
        ("\\\\server\\share\\x", "[path]/x"),
        ("file:///home/jane/x.png", "[path]"),
        ("base:/srv/jane/y", "base:[path]/y"),
        ("token=abcdefgh, hf_abcdefghijklmnopqrstuvwx", "token=[left out], [left out]"),
        (f"AKIA{'X' * 16}, github_pat_{'x' * 40} and AIza{'x' * 35}", "[left out], [left out] and [left out]"),
        ("eyJ" + "x" * 20 + ".eyJ" + "x" * 20 + "." + "x" * 20, "[left out]"),
        ("https://jane:abc@proxy:8080/x", "https://[left out]@proxy:8080/x"),
        ("Authorization: Bearer abcdefghij123", "Authorization: Bearer [left out]"),
        ('{"api-key": "abcdefgh"}', '{"api-key": "[left out]"}'),
        ("--api-key abcdefgh --token-limit", "--api-key [left out] --token-limit"),
        ("bearer of understanding, the password is long, tokens=1024, pad_token: <pad>", None),
        ("https://huggingface.co/org/model and/or yes/no </think> 3/4 a / b", None),
        ("Answer with <image 1>.\nimg_token=<image> A/B/C", None),
        ("data:image/png;base64,aGVsbG8=", f"[image of 5 bytes left out, SHA-256 {HELLO}]"),
    ],
)  # fmt: skip
def test_what_is_left_out_of_a_text(value: str, kept: str | None) -> None:
    assert Scrubber().text(value) == (value if kept is None else kept)


def test_secrets_of_the_environment_and_of_fields_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_API_KEY", "azure-azure-azure")
    content = {"a": "azure-azure-azure", "apiKey": "x1", "Authorization": "y1", "token": ["z1"], "pad_token": "<pad>"}
    kept = {**dict.fromkeys(content, "[left out]"), "pad_token": "<pad>"}
    assert Scrubber().record(content)[0] == kept
    assert json.loads(Scrubber().sample(json.dumps(["azure-azure-azure"]).encode())[0]) == ["[left out]"]


@pytest.mark.parametrize("text", ["a-" * 200_000, "eyJabcdefghijk-" * 30_000, "bearer " * 60_000, "://a:b " * 60_000])
def test_no_text_takes_long_to_look_through(text: str) -> None:
    """Where it did, these would take hours."""
    assert Scrubber().text(text) == text


def test_a_log_that_is_a_link_is_not_bundled(tmp_path: Path) -> None:
    """Whoever is sent a folder bundles no file of his own with it."""
    file = write_logs(tmp_path / "run", {"some_task": graded_rows([1, 0])})
    log = file.with_name(file.name.replace("results.json", "samples_some_task.jsonl"))
    log.rename(tmp_path / "own.jsonl")
    log.symlink_to(tmp_path / "own.jsonl")
    for named in (file, file.parent):
        with pytest.raises(BundleError, match=r"samples_some_task\.jsonl' leads to"):
            make_bundle([named], tmp_path / "b.zip")


def test_images_are_left_out_of_logs_and_answers_stay(tmp_path: Path) -> None:
    rows = graded_rows([1, 0])
    rows[0] |= {"input_media": ["data:image/png;base64,aGVsbG8=", "/data/jane/pictures/1.png"], "group": "g"}
    rows[1] |= {"filtered_resps": ["/usr/lib/x"], "input": "Is it /usr/lib/x or /etc/passwd/y?"}
    file = write_logs(tmp_path / "run", {"some_task": rows})
    made = make_bundle([file], tmp_path / "b.zip")
    first, second = members_of(made.path)["runs/001/samples_some_task.jsonl"].splitlines()
    assert b"base64" not in first and b"jane" not in first and b"[path]/1.png" in first
    assert json.loads(second) == rows[1]
    entry = made.manifest.files["runs/001/samples_some_task.jsonl"]
    assert list(entry.left_out) == ["1"] and entry.original is not None


@pytest.mark.parametrize("task", NINE)
def test_a_changed_answer_is_found_though_hashes_were_made_again(bundle: Path, tmp_path: Path, task: str) -> None:
    def change(sample: dict[str, Any]) -> None:  # one that scores otherwise
        right = TASKS[task].score.of(sample) == 1.0
        other = {"A": "B", "Yes": "no", "yes": "no", "No": "yes", "no": "yes"}.get(sample["target"], "A")
        sample.pop("resps", None)
        sample["filtered_resps"] = other if right else sample["target"]

    done = verify_bundle(forged(bundle, tmp_path / "f.zip", edited_sample(task, change)))
    assert not done.holds and done.problems == []
    assert differing(done) == {(_label(), task)}
    assert "does not follow from the answer" in done.differences()[0]


def _label() -> str:
    return f"merged {SPEC.digest()[:12]}"


@pytest.mark.parametrize("task", NINE)
def test_a_changed_score_is_found_though_hashes_were_made_again(bundle: Path, tmp_path: Path, task: str) -> None:
    def change(sample: dict[str, Any]) -> None:
        for entry in (value for value in sample.values() if isinstance(value, dict)):
            if "score" in entry:
                entry["score"] = 1.0 - entry["score"]
            for given in ("pred", "prediction", "parsed_pred"):
                if given in entry:
                    entry[given] = ["Z"] if given == "parsed_pred" else "Z"
        if isinstance(sample.get("exact_match"), float):
            sample["exact_match"] = 1.0 - sample["exact_match"]

    done = verify_bundle(forged(bundle, tmp_path / "f.zip", edited_sample(task, change)))
    assert done.problems == [] and differing(done) == {(_label(), task)}


@pytest.mark.parametrize("task", NINE)
def test_a_changed_metric_is_found_though_hashes_were_made_again(bundle: Path, tmp_path: Path, task: str) -> None:
    changed = []

    def change(results: dict[str, Any]) -> None:
        values = results["results"][task]
        for name in [name for name, value in values.items() if "," in name and isinstance(value, float)]:
            values[name] += 0.001
            changed.append(name)

    done = verify_bundle(forged(bundle, tmp_path / "f.zip", edited_results(change)))
    assert done.problems == [] and changed
    assert [each.metric for each in done.metrics if each.equal is False] == changed
    assert {each.task for each in done.metrics if each.equal is False} == {task}


def test_a_right_answer_that_was_changed_is_found_where_the_dataset_is(
    bundle: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(sample: dict[str, Any]) -> None:  # with all that follows from it
        sample["target"], sample["exact_match"] = sample["filtered_resps"], 1.0

    bad = forged(bundle, tmp_path / "f.zip", edited_sample("gqa", change, number=2))
    assert differing(verify_bundle(bad)) == set()
    monkeypatch.chdir(suite)
    assert differing(verify_bundle(bad)) == {(_label(), "gqa")}

    def change_all(members: Members) -> None:  # right answers to questions that were answered wrong all the same
        name = "runs/001/samples_gqa.jsonl"
        samples = [json.loads(line) for line in members[name].splitlines()]
        changed = [{**each, "target": "zebra"} if each["exact_match"] == 0.0 else each for each in samples]
        members[name] = b"".join(json.dumps(each).encode() + b"\n" for each in changed)

    done = verify_bundle(forged(bundle, tmp_path / "g.zip", change_all))
    assert "the right answer is not the dataset's" in "".join(done.differences())


def test_the_models_own_words_are_those_that_were_scored(bundle: Path, tmp_path: Path) -> None:
    bad = forged(bundle, tmp_path / "f.zip", edited_sample("gqa", lambda sample: sample.update(resps="another")))
    assert "not the one that the model gave" in "".join(verify_bundle(bad).differences())


def _without_line(members: Members) -> None:
    name = "runs/001/samples_gqa.jsonl"
    members[name] = b"".join(members[name].splitlines(keepends=True)[1:])


def _line_of_other_weights(members: Members) -> None:
    name = "runs/001/samples_gqa.jsonl"
    lines = [json.loads(line) for line in members[name].splitlines()]
    lines[3]["digest"] = "0" * 64
    members[name] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _one_log_told(members: Members) -> None:
    name = "runs/001/samples_gqa.jsonl"
    digest = json.loads(members["runs/001/results.json"])["plam_eval"]["provenance"]["digest"] or "plain"
    lines = [json.loads(line) | {"digest": digest} for line in members[name].splitlines()]
    members[name] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _block(results: dict[str, Any]) -> dict[str, Any]:
    provenance: dict[str, Any] = results["plam_eval"]["provenance"]
    return provenance


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited_results(lambda results: _block(results)["spec"].update(layer_range=[0, 6])), "the digest of its spec"),
        (edited_results(lambda results: _block(results).update(digest="0" * 64)), "the manifest"),
        (edited_results(lambda results: _block(results)["spec"].update(rule="no_such")), "its spec cannot be read"),
        (edited_results(lambda results: results["configs"]["gqa"].update(num_fewshot=5)), "manifest has the hash"),
        (edited_results(lambda results: results["versions"].update(gqa=2)), "the version in the results"),
        (edited_results(lambda results: results["configs"].pop("gqa")), "'gqa' is in the manifest only"),
        (edited_results(lambda results: results["results"]["gqa"].pop("exact_match,none")), "is missing"),
        (edited_manifest(lambda m: m["runs"][0].update(digest=None)), "the manifest None"),
        (edited_manifest(lambda m: m["runs"][0]["tasks"]["gqa"].update(documents=29)), "holds 30 documents"),
        (lambda members: members.update({"more.json": b"{}"}), "is not listed"),
        (lambda members: members.pop("runs/001/samples_gqa.jsonl"), "is missing"),
        (_without_line, "holds 29 documents"),
        (_line_of_other_weights, "its lines say that they were answered by weights of digest none"),
        (_one_log_told, "its lines do not say which weights answered them"),
        (lambda members: members.update({"runs/001/samples_gqa.jsonl": b"[]\n"}), "is not a sample"),
        (lambda members: members.update({"runs/001/results.json": b"[]"}), "expected a JSON object"),
    ],
)
def test_each_change_is_found_though_hashes_were_made_again(
    bundle: Path, tmp_path: Path, change: Any, said: str
) -> None:
    done = verify_bundle(forged(bundle, tmp_path / "f.zip", change))
    assert not done.holds and said in "\n".join(done.differences())


@pytest.mark.parametrize("name", ["README.md", "runs/001/results.json", "runs/002/samples_gqa.jsonl"])
def test_a_changed_byte_is_found_by_its_hash(bundle: Path, tmp_path: Path, name: str) -> None:
    bad = forged(
        bundle,
        tmp_path / "f.zip",
        lambda members: members.update({name: members[name].replace(b"e", b"f", 1)}),
        hashes=False,
    )
    assert any(name in problem and "was changed" in problem for problem in verify_bundle(bad).problems)


def test_another_version_of_lmms_eval_is_verified_as_far_as_it_goes(bundle: Path, tmp_path: Path) -> None:
    older = edited_manifest(lambda manifest: manifest["runs"][0].update(lmms_eval="0.7.1"))
    assert verify_bundle(forged(bundle, tmp_path / "a.zip", older)).holds

    def scored_otherwise(members: Members) -> None:
        older(members)
        edited_sample("realworldqa", lambda sample: sample.update(exact_match=1.0 - sample["exact_match"]))(members)

    done = verify_bundle(forged(bundle, tmp_path / "b.zip", scored_otherwise))
    assert not done.holds, "the mean of what is logged is the mean in any version"
    assert differing(done) == set() and any("0.7.1" in line and "realworldqa" in line for line in done.unverified)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("os.system", {}),
        ("../../gqa", {}),
        ("plam9", {}),
        ("mathvision_test", {}),
        ("pope", {"process_results": "<function system at 0x7f>"}),
        ("pope", {"process_results": {"a": 1}}),
    ],
)
def test_a_name_in_a_bundle_chooses_no_code(task: str, config: dict[str, Any]) -> None:
    with pytest.raises(UnavailableError):
        find_task(task, config)


def test_code_that_was_not_read_is_not_run_on_samples_of_others() -> None:
    with pytest.raises(UnavailableError, match="not run on somebody's samples"):
        find_task("mathvision_test", {})  # it evaluates answers as Python


def test_the_network_is_not_asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval.harness import recompute

    asked = find_task("gqa", {"process_results": None})

    def judge(*_: Any) -> float:
        import urllib.request

        try:
            urllib.request.urlopen("http://192.0.2.1/judge", timeout=1)
        except Exception:
            return 0.0  # as tasks do when a judge does not answer
        return 1.0

    monkeypatch.setattr(type(asked.task), "process_results", judge)
    with pytest.raises(UnavailableError, match="a judge"):
        asked.rescore({"answer": "x"}, "x")
    monkeypatch.setitem(asked.task._aggregation_list, "exact_match", judge)
    assert asked.metrics([{"exact_match": 1.0}], "none")[1] == {
        "exact_match": "a judge makes it, who is not asked again"
    }
    assert recompute.installed_version()


def test_every_fault_of_every_run_is_told_at_once(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = write_logs(tmp_path / "broken", {"gqa": graded_rows([1, 1])})
    (tmp_path / "broken" / "20260101_000000_samples_gqa.jsonl").unlink()
    (tmp_path / "taken.zip").write_text("mine")
    with pytest.raises(BundleError) as raised:
        make_bundle([*runs, tmp_path / "empty", broken, tmp_path / "none"], tmp_path / "taken.zip")
    assert len(raised.value.problems) == 4 and (tmp_path / "taken.zip").read_text() == "mine"
    for name in ("x.tar.gz", "no/folder/x.zip"):
        with pytest.raises(BundleError):
            make_bundle(runs, tmp_path / name)


def test_of_a_folder_above_runs_the_newest_of_each_model_comes_along(tmp_path: Path) -> None:
    for model in ("one", "other"):
        write_logs(tmp_path / "runs" / model, {"gqa": graded_rows([1, 1])})
    write_logs(tmp_path / "runs" / "one", {"gqa": graded_rows([1, 0])}, "20250101_000000")
    made = make_bundle([tmp_path / "runs"], tmp_path / "b.zip")
    assert [run.label for run in made.manifest.runs] == ["run", "run (2)"]
    assert made.manifest.notes == ["Beside run lies an older run, which is not in this bundle."]
    for log in (tmp_path / "runs").rglob("20260101*_samples_*"):
        log.unlink()
    with pytest.raises(BundleError) as raised:
        make_bundle([tmp_path / "runs"], tmp_path / "b.zip")
    assert len(raised.value.problems) == 2, "a damaged run of either model is told"


def test_sweeps_bring_their_settings_and_every_finished_cell(tmp_path: Path) -> None:
    plain = run_folders.documents(["pope", "mmstar"], 6)
    names = ["layers-6-8_qkvo_0.9+0.3", "layers-0-8_qkvo_0.9+0.3"]
    run_folders.write_sweep(tmp_path / "sweep", {"plain": plain, names[0]: plain, names[1]: "RuntimeError: no memory"})
    made = make_bundle([tmp_path / "sweep"], tmp_path / "b.zip")
    assert [run.label for run in made.manifest.runs] == ["plain", names[0]]
    assert {"sweeps/01/sweep.json", f"sweeps/01/{names[1]}.json"} <= set(made.manifest.records)
    assert any("failed" in note and names[1] in note for note in made.manifest.notes)
    text = b"\n".join(members_of(made.path).values()).decode()
    assert "/no/such/folder" not in text and "/models/pair" not in text
    (tmp_path / "sweep" / "cells" / "plain" / "cell.json").write_text("{")
    with pytest.raises(BundleError, match="cell plain"):
        make_bundle([tmp_path / "sweep"], tmp_path / "b.zip")


def test_a_record_larger_than_any_is_refused_and_not_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folders.write_scan(tmp_path / "scan")
    made = make_bundle([tmp_path / "scan"], tmp_path / "b.zip")
    assert members_of(made.path)["scans/01/curve.csv"]
    monkeypatch.setattr(write, "_LARGEST_TEXT", 20)
    with pytest.raises(BundleError, match=r"plateau\.yaml: is larger than 20 bytes"):
        make_bundle([tmp_path / "scan"], tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_a_task_that_nobody_knows_is_recomputed_where_it_declares_a_mean(tmp_path: Path) -> None:
    results = {"some_task": {"exact_match,none": 0.75, "other,none": 3.0}}
    file = write_logs(tmp_path / "run", {"some_task": graded_rows([1, 1, 0, 1])}, results=results)
    done = verify_bundle(make_bundle([file], tmp_path / "b.zip").path)
    assert [(each.metric, each.equal) for each in done.metrics] == [("exact_match,none", True), ("other,none", None)]
    assert done.holds and not done.complete and len(done.unverified) == 2


def test_an_answer_that_takes_hours_to_score_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval copies an answer once for each thought that it takes out of it."""
    row = {"doc_id": 0, "target": "yes", "input": "?", "exact_match": 1.0, "filtered_resps": "yes"}
    row["resps"] = "".join(f"<think>{number}</think>" for number in range(300_000)) + "yes"
    config = {"task": "realworldqa", "process_results": "<function realworldqa_process_results at 0x1>"}
    results: dict[str, Any] = {
        "results": {"realworldqa": {"exact_match,none": 1.0}},
        "configs": {"realworldqa": {**config, "reasoning_tags": [["<think>", "</think>"]]}},
    }
    run = write_logs(tmp_path / "run", {"realworldqa": [row, {**row, "doc_id": 1}]}, **results)
    monkeypatch.setattr(verify, "_SECONDS", 1)
    verification = verify_bundle(make_bundle([run], tmp_path / "b.zip").path)
    assert not verification.complete and not verification.answers[0].checked
    assert any("takes more than 1 seconds" in each for each in verification.unverified)
    assert any("1 documents (scoring takes too long)" in each for each in verification.unverified)
