"""Choices are read back from prompts as the stock tasks write them."""

from __future__ import annotations

import pytest

from plam_eval.harness.choices import choices_of
from tests.helpers.board_logs import PRO, QUESTIONS, mmmu_row

MMMU = [question for question in QUESTIONS if question.options]


@pytest.mark.parametrize("question", MMMU, ids=lambda question: question.id)
@pytest.mark.parametrize("interleaved", [False, True])
def test_mmmu_prompts_hold_the_choices(question, interleaved):
    from lmms_eval.tasks.mmmu import utils, utils_group_img

    row = mmmu_row(question)
    plain = utils.mmmu_doc_to_text(row)
    asked = utils.mmmu_doc_to_text(
        row, {"multiple_choice_prompt": "Answer with the letter.", "open_ended_prompt": "", "prompt_type": "format"}
    )
    qwen = utils.mmmu_doc_to_text(row, {"format": "qwen3_vl", "pre_prompt": "Question: ", "post_prompt": "The letter."})
    for prompt in (plain, asked, qwen, utils_group_img.mmmu_doc_to_text(row)):
        prompt = utils.replace_images_tokens(prompt) if interleaved else prompt
        options = [utils.replace_images_tokens(each) if interleaved else each for each in question.options]
        assert choices_of(prompt) == dict(zip("ABCDEFGHIJ", options, strict=False))


@pytest.mark.parametrize("question", PRO, ids=lambda question: question.id)
def test_mmmu_pro_prompts_hold_the_choices(question):
    from lmms_eval.tasks.mmmu_pro.utils import mmmu_pro_doc_to_text

    prompt = mmmu_pro_doc_to_text(mmmu_row(question), {"post_prompt": "Answer with the option letter."})
    assert list(choices_of(prompt).values()) == list(question.options)


def test_a_list_in_the_question_is_not_the_choices():
    assert choices_of("Of\nA. mice\nB. men\nwho ran?\nA. both\nB. none\n\n") == {"A": "both", "B": "none"}


@pytest.mark.parametrize(
    "prompt", ["", "What is this?", "A. lone statement", "Take\nB. two\nC. three", "x\n\nAnswer A or B."]
)
def test_a_prompt_without_choices_has_none(prompt):
    assert choices_of(prompt) == {}
