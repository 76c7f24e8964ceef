"""`plam premise` on the embedded pair: base, plain and merged on scenes that are told in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.demo.scene_text import write_scene_text
from plam_eval.errors import InputError, MergeError, PlamError
from plam_eval.evaluation.premise.job import PremiseError
from plam_eval.harness.errors import EvaluationError
from tests.helpers.commands import command_line
from tests.helpers.offline_text import write_text_tasks
from tests.helpers.paths import PAIR

ARGUMENTS = {"pretrained": str(PAIR / "mllm"), "plateau": "demo", "device": "cpu", "dtype": "float32"}
TASKS = "plam_scene_text,arc_easy"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_scene_text(folder, scenes=10)
    write_text_tasks(folder, 3)
    return folder


@pytest.fixture
def in_texts(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(texts)
    yield texts


def check(output: Path, **given: Any) -> Any:
    settings = {"model": "plam_llava", "model_args": ARGUMENTS, "tasks": TASKS, "base": str(PAIR / "base"), **given}
    return plam_eval.premise(output=output, **settings)


@pytest.fixture(scope="module")
def checked(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished check. Do not modify."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(texts)
        folder = tmp_path_factory.mktemp("checked") / "premise"
        check(folder)
    return folder


@pytest.mark.slow
def test_what_was_lost_and_what_comes_back(checked):
    findings = plam_eval.read_premise(checked)
    table = findings.table.set_index("task")
    assert set(table.index[:-1]) == {"plam_scene_text", "arc_easy"} and table.index[-1] == "overall"
    scenes = table.loc["plam_scene_text"]
    assert (scenes["documents"], scenes["groups"]) == (40, 10)
    assert scenes["lost_difference"] == pytest.approx(scenes["plain"] - scenes["base"])
    assert scenes["back_difference"] == pytest.approx(scenes["merged"] - scenes["plain"])
    assert scenes["base"] > 0.8 and scenes["lost_difference"] < 0
    assert findings.prompts.same_text == findings.prompts.same_ids == findings.prompts.documents == 43
    assert findings.prompts.mllm == findings.prompts.base and findings.prompts.mllm.endswith(" ASSISTANT:")
    assert "in all 43 documents" in findings.prompts.sentence()
    assert json.loads(json.dumps(findings.to_dict()["prompts"]))["template"] == "mllm"
    assert findings.runs["base"].block["wrapper"] == "plam_text" and findings.runs["base"].block["dtype"] == "float32"


@pytest.mark.slow
def test_a_check_goes_on_and_is_done_once(checked, in_texts, tmp_path, monkeypatch):
    from plam_eval.evaluation.sweep import runner

    loaded, real = list[str](), runner.load_model

    def load(config: Any) -> Any:
        loaded.append(config.model)
        return real(config)

    monkeypatch.setattr(runner, "load_model", load)
    folder = tmp_path / "again"
    shutil.copytree(checked, folder)
    file = folder / "base" / "sweep.json"  # the path of the template is another one in the copy
    file.write_text(file.read_text().replace(str(checked), str(folder)))
    before = check(folder).table
    assert not loaded
    shutil.rmtree(folder / "base" / "cells")
    assert check(folder).table.equals(before) and loaded == ["plam_text"]
    with pytest.raises(PremiseError, match=r"holds a check against .* in the template mllm, and this one is"):
        check(folder, template="own")


@pytest.mark.slow
def test_the_command_and_the_page_say_it(checked, in_texts, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "shown"
    shutil.copytree(checked, folder)
    file = folder / "base" / "sweep.json"
    file.write_text(file.read_text().replace(str(checked), str(folder)))
    call = command_line(monkeypatch, capsys)
    words = ["premise", "--model", "plam_llava", "--tasks", TASKS, "--base", PAIR / "base", "--output", folder]
    words += ["--model_args", ",".join(f"{key}={value}" for key, value in ARGUMENTS.items())]
    code, out, _ = call(*words)
    assert code == 0 and "text ability" in out and "plam_scene_text" in out and "in the same words" in out
    code, out, _ = call(*words, "--json", "--quiet")
    assert code == 0 and json.loads(out)["tasks"][-1]["task"] == "overall"
    page = plam_eval.report([folder], tmp_path / "page").read_text(encoding="utf-8")
    section = page[page.index("Was anything lost?") :]
    assert "asked in the same words" in section and "Base LLM" in section
    assert "sweep base" not in page


@pytest.mark.slow
def test_other_templates_are_said_and_a_merge_can_be_left_out(in_texts, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(PAIR / "base", base)
    (base / "chat_template.jinja").unlink()
    plain = {key: value for key, value in ARGUMENTS.items() if key != "plateau"}
    given = {"model_args": plain, "base": str(base), "tasks": "plam_scene_text", "limit": 4}
    own = check(tmp_path / "own", template="own", **given)
    assert own.prompts.same_text == 0 and own.prompts.own_template is False
    assert "their chat templates differ" in own.prompts.sentence()
    assert "no chat template of its own: it was given the text as it is" in own.prompts.sentence()
    assert own.prompts.mllm == f"USER: {own.prompts.base} ASSISTANT:"
    assert not own.back and own.table["no_share"].iloc[0] == "no merge was given" and "merge" not in own.verdict()
    same = check(tmp_path / "mllm", **given)
    assert same.prompts.same_ids == 4 and "the MLLM's was used" in same.prompts.sentence()


def test_what_cannot_be_asked_is_told_before_anything_is_loaded(in_texts, suite, tmp_path, monkeypatch):
    from plam_eval.evaluation.sweep import runner

    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    with pytest.raises(EvaluationError, match=r"gsm9k.*gsm8k"):
        check(tmp_path / "one", tasks="gsm9k")
    with pytest.raises(PremiseError, match="no base LLM to hold the MLLM against"):
        check(tmp_path / "two", base=None, model_args={"pretrained": str(PAIR / "mllm")})
    with pytest.raises(InputError, match="template is 'both'"):
        check(tmp_path / "three", template="both")
    with pytest.raises(MergeError, match="no such folder"):
        check(tmp_path / "four", base=str(tmp_path / "nowhere"))
    other = tmp_path / "other"
    shutil.copytree(PAIR / "base", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    with pytest.raises(MergeError, match="heads"):
        check(tmp_path / "five", base=str(other))
    for file in other.glob("tokenizer*"):
        file.unlink()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no tokenizer"):
        check(tmp_path / "six", base=str(other))
    monkeypatch.chdir(suite)
    with pytest.raises(EvaluationError, match=r"pope: its documents show images.*plam compare"):
        check(tmp_path / "seven", tasks="pope")
    assert not any((tmp_path / name).exists() for name in ("one", "two", "three", "four", "five", "six", "seven"))


@pytest.mark.slow
def test_a_sample_has_whole_scenes_and_all_three_are_asked_the_same(in_texts, tmp_path):
    findings = check(tmp_path / "premise", tasks="plam_scene_text", sample=12, seed=1)
    scenes = findings.table.set_index("task").loc["plam_scene_text"]
    assert (scenes["documents"], scenes["groups"]) == (12, 3)
    asked = [set(run.samples["doc_id"]) for run in findings.runs.values()]
    assert len(asked) == 3 and asked[0] == asked[1] == asked[2] != set(range(12))
    with pytest.raises(PlamError, match="limit 12 beside sample"):
        check(tmp_path / "other", sample=12, limit=12)
