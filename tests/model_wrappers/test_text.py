"""`plam_text`: base LLMs, asked as an MLLM is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plam_eval.demo.scene_text import write_scene_text
from plam_eval.errors import ArgumentError, InputError
from plam_eval.harness.evaluate import check_model, evaluate
from tests.helpers.paths import PAIR


def make(simple: bool = False, **given: Any) -> Any:
    from lmms_eval.models import get_model

    settings = {"pretrained": str(PAIR / "base"), "device": "cpu", "dtype": "float32", **given}
    return get_model("plam_text", force_simple=simple)(**settings)


@pytest.fixture
def in_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scene_text(tmp_path, scenes=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_base_of_the_pair_answers_in_both_modes(in_scenes):
    runs = [evaluate(make(simple), "plam_scene_text") for simple in (False, True)]
    texts = [[row["filtered_resps"] for row in run.samples["plam_scene_text"]] for run in runs]
    assert texts[0] == texts[1] and len(texts[0]) == 12
    assert runs[0].results["results"]["plam_scene_text"]["exact_match,none"] > 0.7
    assert runs[1].results["plam_eval"]["mode"] == "simple" and runs[0].results["plam_eval"]["own_template"]
    assert {row["group"] for row in runs[0].samples["plam_scene_text"]} == {"0", "1", "2"}


def test_templates_are_the_tokenizers_a_files_or_none(in_scenes, tmp_path):
    file = tmp_path / "around.jinja"
    file.write_text("{{ 'Q: ' }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' A:' }}")
    message = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    asked = {
        template: make(chat_template=template).processor.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
        for template in ("own", "none", str(file))
    }
    assert asked == {"own": "USER: one ASSISTANT:", "none": "one", str(file): "Q: one A:"}
    with pytest.raises(InputError, match="shows an image"):
        make().processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"pretrained": str(PAIR / "mllm")}, InputError, "vision_config; plam_text loads LLMs of text alone"),
        ({"chat_template": "nowhere.jinja"}, InputError, "no such file; expected one, own, or none"),
        ({"max_new_tokens": 0}, ArgumentError, "expected a whole number"),
        ({"until": "yes"}, ArgumentError, "expected true or false"),
        ({"untill": True}, ArgumentError, "takes no argument untill"),
    ],
)
def test_arguments_that_cannot_be_are_told_beforehand(given, error, message):
    with pytest.raises(error, match=message):
        check_model("plam_text", {"pretrained": str(PAIR / "base"), **given})


def test_answers_end_at_stop_strings_where_that_is_asked(in_scenes):
    """As the simple mode of the Qwen wrappers cuts them."""
    whole = evaluate(make(), "plam_scene_text", limit=4)
    word = whole.samples["plam_scene_text"][0]["filtered_resps"][0]
    cut = evaluate(make(until=True), "plam_scene_text", limit=4, gen_kwargs=f"max_new_tokens=16,until={word[1:]}")
    assert cut.samples["plam_scene_text"][0]["filtered_resps"][0] == word[0]
