"""Documents without an image, in every wrapper and mode: answers, likelihoods, shots, what is noted of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plam_eval.harness.errors import GenerationError
from plam_eval.harness.evaluate import evaluate
from plam_eval.model_wrappers.likelihoods import continuation
from tests.helpers.offline_text import write_text_tasks
from tests.helpers.wrappers import CASES, answers

FIRST = [("llava", "chat"), ("llava", "simple"), ("qwen2_5_vl", "simple"), ("internvl", "chat")]
ORDERED = [pytest.param(*case, marks=() if case in FIRST else pytest.mark.long) for case in CASES]
SHORT = "max_new_tokens=3"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_text_tasks(folder, 2)
    return folder


@pytest.fixture
def in_texts(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(texts)
    yield texts


def by_hand(model: Any, prompt: list[int], text: list[int]) -> float:
    """Minus the log-likelihood of `text`, one token after the other."""
    total = 0.0
    for number, token in enumerate(text):
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([[*prompt, *text[:number]]])).logits[0, -1].double()
        total -= float(logits.log_softmax(-1)[token])
    return total


@pytest.mark.parametrize(("family", "mode"), ORDERED)
def test_text_tasks_run(family, mode, load, in_texts, monkeypatch):
    model = load(family, mode)
    model.notes_prompts = True
    prompts: dict[tuple[str, int], Any] = {}
    real = model.prompt_of

    def noted(request: Any) -> Any:
        prompts[request.task_name, request.doc_id] = prompt = real(request)
        return prompt

    monkeypatch.setattr(model, "prompt_of", noted)
    run = evaluate(model, "gsm8k,arc_easy", gen_kwargs=SHORT)
    record = run.results["plam_eval"]
    assert record["generation"]["calls"] == 2 + 2 * 4 and record["generation"]["failed"] == 0
    assert len(record["prompts"]["documents"]) == 4
    for task, rows in run.samples.items():
        for row in rows:  # the shots of its log are those that it was asked with
            assert row["arguments"][0] in prompts[task, row["doc_id"]].text
    assert run.samples["gsm8k"][0]["arguments"][0].count("Question:") == 1 + 5

    document = run.samples["arc_easy"][0]
    prompt = list(prompts["arc_easy", 0].ids)
    for number, choice in ((0, "heat"), (3, "wind")):
        likelihood, greedy = document["filtered_resps"][number]
        ids = continuation(model.tokenizer, prompt, f" {choice}")
        assert likelihood == pytest.approx(by_hand(model, prompt, ids), rel=1e-4)
        assert not greedy
    lowest = min(range(4), key=lambda number: document["filtered_resps"][number][0])
    assert document["acc"] == float(lowest == 0)


def test_the_greedy_text_is_told_apart(load, in_texts):
    from plam_eval.model_wrappers.likelihoods import score_rows

    model = load("llava")
    prompt = {"input_ids": torch.tensor([[1, 300 % 250, 77, 12]])}
    with torch.inference_mode():
        said = model.own_generate(**prompt, attention_mask=torch.ones(1, 4), do_sample=False, max_new_tokens=2)[0, 4:]
    other = [(int(said[0]) + 1) % 250, int(said[1])]
    (_, greedy), (_, not_greedy) = score_rows(model.model, prompt, [said.tolist(), other])
    assert greedy and not not_greedy


def test_a_text_behind_a_line_end_has_no_space_before_it(load):
    tokenizer = load("qwen2_5_vl").tokenizer
    asked = tokenizer.encode("<|im_start|>assistant\n")
    assert tokenizer.decode(continuation(tokenizer, asked, " A")) == "A"
    assert tokenizer.decode(continuation(tokenizer, tokenizer.encode("ASSISTANT:"), " A")) == " A"


def test_simple_mode_does_not_answer_from_the_document_before(load, in_texts, suite, monkeypatch, tmp_path):
    """Text and images in one evaluation: the answers are those that each task gets alone, and chat mode gives."""
    for source in (in_texts, suite):
        for entry in source.iterdir():
            if entry.is_dir() and not (tmp_path / entry.name).exists():
                (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    simple, chat = load("llava", "simple"), load("llava", "chat")
    both = answers(evaluate(simple, "mmstar,mmlu_anatomy_generative", limit=2, gen_kwargs=SHORT))
    alone = answers(evaluate(simple, "mmlu_anatomy_generative", limit=2, gen_kwargs=SHORT))
    assert both.items() >= alone.items() and len(both) == 4
    assert alone == answers(evaluate(chat, "mmlu_anatomy_generative", limit=2, gen_kwargs=SHORT))


def test_a_document_that_the_model_is_never_asked_is_a_failure(load, in_texts, monkeypatch):
    """Stock loops catch what happens on the way to the model, and go on with an empty answer."""
    from lmms_eval.models.chat.llava_hf import LlavaHf

    model = load("llava")
    monkeypatch.setattr(LlavaHf, "generate_until", lambda self, requests: [""] * len(requests))
    with pytest.raises(GenerationError, match=r"2 of 2 generations raised.*the model was not asked"):
        evaluate(model, "mmlu_anatomy_generative", gen_kwargs=SHORT)
