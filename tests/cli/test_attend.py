"""What `plam attend` refuses before it loads a model, and what it says before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import Call
from tests.helpers.mllm import picture
from tests.helpers.run_folders import write_scan


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("plam_eval.harness.evaluate.make_model", fail)


def words(pair: Any, *, more: str = "", **changed: Any) -> list[str]:
    """A call; None leaves an option out."""
    model_args = f"pretrained={pair.mllm},base={pair.base},layers=2:4{more}"
    given: dict[str, Any] = {"model": "plam_llava", "model_args": model_args, "tasks": "pope", **changed}
    return ["attend", *(str(part) for key, value in given.items() if value is not None for part in (f"--{key}", value))]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": "pop"}, "no task or group of this name: 'pop' (did you mean"),
        ({"tasks": "pope", "offset": "100000"}, "offset is 100000, which leaves no document of pope"),
        ({"tasks": None}, "neither tasks nor image is given; expected tasks, or an image and a question about it"),
        ({"model": "plam_vllm"}, "model is 'plam_vllm'; attention is read off one of our HF wrappers"),
        ({"more": ",attn_implementation=flex_attention"}, "runs with flex_attention attention, of which it is not"),
        ({"more": ",plateu=demo"}, "takes no argument plateu (did you mean plateau?)"),
        ({"settings": "merged,self_scal"}, "self_scal: no setting, packaged spec or file of that name; did you mean"),
        ({"queries": "first"}, "queries is 'first'; expected last, question or answer"),
        ({"queries": "answers"}, "did you mean answer?"),
        ({"scan": "nowhere"}, "nowhere: no finished scan"),
        ({"question": "Is it red?"}, "question without image; give both, or tasks"),
        ({"image": "cat.png"}, "tasks with image; one image is looked at in place of tasks"),
        ({"image": "cat.png", "tasks": None}, "image without question; give both"),
        ({"image": "no.png", "tasks": None, "question": "Red?"}, "there is no file no.png"),
        ({"image": "cat.png", "tasks": None, "question": "Red?", "box": "1,2,3"}, "expected left,top,right,bottom in"),
        ({"image": "cat.png", "tasks": None, "question": "Red?", "box": "50,2,70,9"}, "within 60 x 44 pixels"),
        ({"image": "cat.png", "tasks": None, "question": "Red?", "box": "0,0,60,40"}, "says nothing of where a model"),
        ({"boxes": "no.jsonl"}, "no.jsonl"),
        (
            {"gen_kwargs": "temperature=0.7,num_beams=4"},
            "gen_kwargs: 2 problem(s)\n  - temperature: found 0.7; variants are answered together, which is",
        ),
        (
            {"gen_kwargs": "temperature=0.7,num_beams=4"},
            "  - num_beams: found 4; variants are answered together, which is done greedily: leave it out, or give",
        ),
        ({"gen_kwargs": "max_new_tokens"}, "gen_kwargs: 1 problem(s)"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    plam: Call,
    pico: Any,
    in_suite: Path,
    unloaded: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    says: str,
) -> None:
    if "image" in given:
        monkeypatch.chdir(tmp_path)
        picture(0, (60, 44)).save(tmp_path / "cat.png")
    output = tmp_path / "attend"
    code, _, err = plam(*words(pico("llava"), **given), "--output", str(output))
    assert code == 1 and says in err and "Traceback" not in err
    assert not output.exists()


def test_a_model_whose_attention_or_tokens_cannot_be_told_is_refused_by_name(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path
) -> None:
    output = ("--output", str(tmp_path / "attend"))
    code, _, err = plam(*words(pico("idefics3"), model="plam_hf"), *output)
    assert code == 1 and "family idefics3, whose layout of image tokens is not known; expected one of llava" in err
    code, _, err = plam(*words(pico("gemma3"), model="plam_hf"), *output)
    assert code == 1 and "keeps its keys in DynamicSlidingWindowLayer" in err
    assert not (tmp_path / "attend").exists()


def test_settings_that_cannot_be_merged_are_told_from_headers(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path
) -> None:
    pair = pico("llava")
    file = tmp_path / "deep.yaml"
    file.write_text(
        f"{{base_model: {pair.base}, layer_range: [2, 9], modules: [q_proj], weights: {{model: 1, base_model: 1}}}}"
    )
    code, _, err = plam(*words(pair, settings=f"merged,{file}"), "--output", str(tmp_path / "attend"))
    assert code == 1 and "deep: " in err and "4 decoder layers" in err and "Traceback" not in err
    plain = f"pretrained={pair.mllm}"
    code, _, err = plam(*words(pair, model_args=plain), "--output", str(tmp_path / "attend"))
    assert code == 1 and "nothing to hold the plain model against: give plateau=SPEC in model_args" in err


def test_a_scan_of_another_model_is_refused(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path
) -> None:
    write_scan(tmp_path / "scan")  # of 8 layers
    code, _, err = plam(*words(pico("llava"), scan=tmp_path / "scan"), "--output", str(tmp_path / "attend"))
    assert code == 1 and "a scan of 8 decoder layers; expected one of 4, of this model" in err


def test_what_will_be_left_out_is_said_first(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plam_eval.evaluation.attend.checks.may_have_boxes", lambda task, *others: task != "pope")
    given = words(pico("llava"), more=",model_weight=0.6,base_weight=0.4", tasks="pope,gqa")
    _, _, err = plam(*given, "--output", str(tmp_path / "attend"))
    before, loaded, _ = err.partition("a model was loaded")
    assert loaded and "self_scale: left out, because its weights are those of plain to the bit" in before
    assert "normalized: left out, because its weights are those of merged to the bit" in before
    assert "pope: no boxes are known of its images, so measures of boxes are left out" in before
    assert "gqa: no boxes" not in before
