"""What `plam scan` refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plam_eval.harness import lookup
from tests.helpers.commands import Call


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("plam_eval.harness.evaluate.make_model", fail)


def scan_words(pretrained: object = "m", **changed: str) -> list[str]:
    words = {"model": "plam_llava", "model_args": f"pretrained={pretrained}", "tasks": "pope", **changed}
    return ["scan", *(part for key, value in words.items() for part in (f"--{key}", value))]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": "pop"}, "no task or group of this name: 'pop' (did you mean"),
        ({"tasks": "pope", "offset": "100000"}, "offset is 100000, which leaves no document of pope"),
        ({"tasks": "mme", "limit": "3"}, "MME scores documents in pairs"),
        ({"model_args": "pretrained=m,foo"}, "model_args: 1 problem(s)\n  - found 'foo', expected key=value"),
        ({"model_args": "a=1,a=2"}, "a is given twice, as '1' and as '2'; give it once"),
        ({"model_args": "pretrained=m,layers=24,36"}, "write layers=24:36"),
        ({"model_args": "pretrained=m,modules=q_proj,k_proj"}, "write modules=q_proj+k_proj"),
        ({"model_args": "pretrained=m,base_weight=0,3"}, "a decimal fraction has a point: write base_weight=0.3"),
        ({"model_args": f"pretrained=m,seed={'9' * 5000}"}, "seed: found '999"),
        ({"gen_kwargs": "max_new_tokens"}, "gen_kwargs: 1 problem(s)"),
        ({"margin": "2"}, "margin: found 2.0, expected a share of accuracy"),
        ({"model": "[x][/x]"}, "model is '[x][/x]'; a scan needs one of our HF wrappers"),
        ({"model_args": "pretrained=,device=cpu"}, "found 'pretrained=', expected a value behind =; leave pretrained"),
        ({"tasks": ","}, "tasks: found no name"),
        ({"tasks": "pope mme"}, "names are separated by commas"),
        ({"tasks": "pope,coco2017_cap_val", "include_path": "nowhere"}, "include_path nowhere: no such folder"),
        ({"tasks": "coco2017_cap_val,mmmu_pro_composite"}, "captions are scored over all documents together"),
        ({"closed-to": "questoin"}, "'questoin'; expected text, question or last (did you mean question?)"),
        ({"cuts": "4"}, "cuts: found only 4, the unmasked model; expected at least one below it"),
    ],
)
def test_a_scan_is_checked_before_its_model_is_loaded(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path, given: dict[str, str], says: str
) -> None:
    output = tmp_path / "scan"
    code, _, err = plam(*scan_words(pico("llava").mllm, **given), "--output", str(output))
    assert code == 1 and says in err and "Traceback" not in err
    assert not output.exists()


def test_a_scan_that_will_write_no_spec_says_so_first(plam: Call, pico: Any, in_suite: Path, unloaded: None) -> None:
    mllm = pico("llava").mllm
    for more, said in ((["--base", "b"], False), ([], True)):
        _, _, err = plam(*scan_words(mllm), *more)
        before, loaded, _ = err.partition("a model was loaded")
        note = f"No plateau spec will be written: the base LLM of {mllm} is not known. Give it with --base"
        assert loaded and (note in before) == said
        assert ("plam plateau scan --base BASE" in before) == said


@pytest.mark.parametrize(("word", "reader"), [("question", "the question"), ("last", "the last token")])
def test_a_scan_closed_to_some_of_the_text_says_first_that_no_spec_follows(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, word: str, reader: str
) -> None:
    _, _, err = plam(*scan_words(pico("llava").mllm), "--base", "b", "--closed-to", word)
    before, loaded, _ = err.partition("a model was loaded")
    assert loaded and f"No plateau spec will be written: the image is closed to {reader} alone" in before
    assert "scan without --closed-to, into another --output" in before


def test_cuts_are_checked_before_the_model_is_loaded(plam: Call, pico: Any, in_suite: Path, unloaded: None) -> None:
    words = scan_words(model_args=f"pretrained={pico('llava').mllm}")
    code, _, err = plam(*words, "--cuts", "0:100000000000")
    assert code == 1 and "cuts '0:100000000000'" in err and "expected layers from 0 to 4" in err


def test_a_scan_that_the_model_has_no_answer_for_is_refused_before_it_is_loaded(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path
) -> None:
    words = scan_words(model="plam_hf", model_args=f"pretrained={pico('gemma3').mllm}")
    code, _, err = plam(*words, "--output", str(tmp_path / "scan"))
    assert code == 1 and "keeps its keys in DynamicSlidingWindowLayer" in err and "Traceback" not in err
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model_args": "pretrained=nowhere/at/all"}, "pretrained=nowhere/at/all: no such folder"),
        ({"model_args": "pretrained={mllm},plateu=demo"}, "takes no argument plateu (did you mean plateau?)"),
        ({"model_args": "pretrained = {mllm} , dtype = f16"}, "dtype is 'f16'; expected auto, float32"),
        ({"model_args": "pretrained={mllm},plateau=dmo"}, "did you mean 'demo'?"),
        ({"model_args": "pretrained={mllm},attn_implementation=flash"}, "attn_implementation is 'flash'; known: eager"),
        ({"model_args": "pretrained={base}"}, "no multimodal model in Hugging Face format; plam_llava loads llava"),
        ({"model_args": "pretrained={mllm}", "model": "plam_qwen2_vl"}, "give --model plam_llava"),
    ],
)
def test_a_model_is_checked_before_tasks_and_datasets(
    plam: Call, pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    pair = pico("llava")
    monkeypatch.setattr(lookup, "_task_index", lambda include_path: pytest.fail("tasks were looked up"))
    model_args = given["model_args"].format(mllm=pair.mllm, base=pair.base)
    words = {"model": "plam_llava", **given, "model_args": model_args}
    code, _, err = plam(*scan_words(**words))
    assert code == 1 and says in err and "Traceback" not in err
    if "plateau=" not in model_args:  # what a sweep makes its cells of
        more = ["--tasks", "pope", "--base", str(pair.base), "--layers", "2:4", "--output", str(tmp_path / "sweep")]
        code, _, err = plam("sweep", "--model", words["model"], "--model_args", model_args, *more)
        assert code == 1 and says in err and "Traceback" not in err and not (tmp_path / "sweep").exists()


def test_a_dataset_that_is_not_here_is_one_line(
    plam: Call, pico: Any, tmp_path: Path, unloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = plam(*scan_words(pico("llava").mllm))
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 1 and "task pope, dataset lmms-lab-encoder/POPE: it is not on this machine" in line
    assert "hf download --repo-type dataset lmms-lab-encoder/POPE" in line and "Traceback" not in err
