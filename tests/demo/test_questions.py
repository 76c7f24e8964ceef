from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from plam_eval.demo import questions, scenes
from plam_eval.demo.questions import FORMS, KINDS, LETTERS, ask_about, describe_scene
from plam_eval.demo.scenes import COLORS, POSITIONS, Scene, Thing, scene_of, split_of

SCENE = Scene((Thing("red", "circle"), Thing("blue", "3"), None, Thing("red", "1")))


def _asked(scene: Scene, kind: str) -> dict[str, str]:
    """Every question of a kind that a scene can be asked, and its answer."""
    found = (ask_about(scene, kind, random.Random(seed)) for seed in range(200))
    return {question.text: question.answer for question in found if question}


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("color_at", "What color is the object at the top right?", "blue"),
        ("shape_at", "What is the object at the bottom right?", "1"),
        ("color_of", "What color is the circle?", "red"),
        ("shape_of", "What is the blue object?", "3"),
        ("where", "Where is the 1?", "bottom right"),
        ("neighbour", "What color is the object below the 3?", "red"),
        ("same_color_as", "Which object has the same color as the circle?", "1"),
        ("most_color", "Which color appears most often?", "red"),
        ("count_all", "How many objects are there?", "3"),
        ("count_color", "How many red objects are there?", "2"),
        ("count_shape", "How many circles are there?", "1"),
        ("sum", "What is the sum of the two numbers?", "4"),
        ("largest", "What is the largest number?", "3"),
        ("exists_color", "Is there a green object?", "no"),
        ("exists_shape", "Is there a circle in the image?", "yes"),
        ("exists_thing", "Is there a blue circle?", "no"),
        ("is_color_at", "Is the object at the top left red?", "yes"),
        ("is_shape_at", "Is the object at the top left a square?", "no"),
        ("count_is", "Are there exactly 3 objects?", "yes"),
        ("same_color", "Do the circle and the 1 have the same color?", "yes"),
        ("more", "Are there more red objects than blue objects?", "yes"),
        ("sum_is", "Is the sum of the two numbers 4?", "yes"),
    ],
)
def test_answers_are_true(kind: str, text: str, answer: str) -> None:
    assert _asked(SCENE, kind)[text] == answer


@pytest.mark.parametrize(
    ("kind", "text", "about"),
    [
        ("color_at", "What color is the object at the top right?", {1}),
        ("shape_at", "What is the object at the bottom right?", {3}),
        ("color_of", "What color is the circle?", {0}),
        ("shape_of", "What is the blue object?", {1}),
        ("where", "Where is the 1?", {3}),
        ("neighbour", "What color is the object below the 3?", {1, 3}),
        ("same_color_as", "Which object has the same color as the circle?", {0, 3}),
        ("most_color", "Which color appears most often?", set()),
        ("count_all", "How many objects are there?", set()),
        ("count_color", "How many red objects are there?", {0, 3}),
        ("count_color", "How many green objects are there?", set()),
        ("count_shape", "How many circles are there?", {0}),
        ("sum", "What is the sum of the two numbers?", {1, 3}),
        ("largest", "What is the largest number?", {1, 3}),
        ("exists_color", "Is there a green object?", set()),
        ("exists_color", "Is there a red object?", {0, 3}),
        ("exists_shape", "Is there a circle in the image?", {0}),
        ("exists_thing", "Is there a blue circle?", set()),
        ("exists_thing", "Is there a red circle?", {0}),
        ("is_color_at", "Is the object at the top left red?", {0}),
        ("is_shape_at", "Is the object at the top left a square?", {0}),
        ("count_is", "Are there exactly 3 objects?", set()),
        ("same_color", "Do the circle and the 1 have the same color?", {0, 3}),
        ("more", "Are there more red objects than blue objects?", {0, 1, 3}),
        ("more", "Are there more green objects than blue objects?", {1}),
        ("sum_is", "Is the sum of the two numbers 4?", {1, 3}),
    ],
)
def test_questions_know_what_they_are_about(kind: str, text: str, about: set[int]) -> None:
    found = (ask_about(SCENE, kind, random.Random(seed)) for seed in range(200))
    assert {question.about for question in found if question and question.text == text} == {tuple(sorted(about))}


def test_every_kind_is_tested_above() -> None:
    marks = test_answers_are_true.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(KINDS)


def test_questions_without_a_single_answer_are_not_asked() -> None:
    twins = Scene((Thing("red", "circle"), Thing("blue", "circle"), Thing("green", "circle"), None))
    for kind in ("color_of", "where", "same_color_as", "most_color", "sum", "largest"):
        assert _asked(twins, kind) == {}, kind


def test_choices_hold_the_answer_once_and_letters_are_uniform() -> None:
    rng = random.Random(0)
    letters: Counter[str] = Counter()
    for _ in range(2000):
        question = ask_about(scene_of("train", rng), "color_at", rng)
        assert question is not None and sorted(question.choices).count(question.answer) == 1
        assert len(set(question.choices)) == len(question.choices_zh) == 4
        letters[question.letter] += 1
    assert set(letters) == set(LETTERS)
    assert min(letters.values()) > 420  # 500 expected, standard deviation 19


@pytest.mark.parametrize("form", list(questions.LETTER_FORMS))
def test_letter_forms_list_all_options_and_expect_the_letter(form: str) -> None:
    question = ask_about(SCENE, "most_color", random.Random(0))
    assert question is not None
    text, answer = FORMS[form](question)
    choices = question.choices_zh if form == "mmbench_cn" else question.choices
    mark = ": " if form == "mmstar" else ". "
    assert all(f"{letter}{mark}{choice}" in text for letter, choice in zip(LETTERS, choices, strict=True))
    assert choices[LETTERS.index(answer)] == (questions.CHINESE["red"] if form == "mmbench_cn" else "red")


def test_word_forms_expect_the_word() -> None:
    word, yes_no, number = (
        ask_about(SCENE, kind, random.Random(0)) for kind in ("color_at", "is_color_at", "count_all")
    )
    assert word and yes_no and number
    assert FORMS["gqa"](word)[1] == FORMS["mmmu_open"](word)[1] == word.answer
    assert FORMS["mme"](yes_no)[1] == FORMS["pope"](yes_no)[1] == FORMS["realworldqa"](yes_no)[1] == yes_no.answer
    assert FORMS["realworldqa"](word)[1] == word.letter
    assert FORMS["realworldqa"](number)[1] == "3"


def test_describe_tells_every_cell_in_both_languages() -> None:
    said = describe_scene(SCENE, random.Random(0))
    assert sorted(said.rstrip(".").split(". ")) == [
        "bottom left empty",
        "bottom right red 1",
        "top left red circle",
        "top right blue 3",
    ]
    assert describe_scene(SCENE, random.Random(0), "zh").count("。") == 4
    assert "左上角红色圆形。" in describe_scene(SCENE, random.Random(0), "zh")


def test_splits_are_disjoint_and_of_the_stated_sizes() -> None:
    rng = random.Random(0)
    counts = Counter(split_of(scenes.random_scene(rng)) for _ in range(5000))
    assert counts["train"] / 5000 == pytest.approx(0.90, abs=0.02)
    assert counts["eval"] / 5000 == pytest.approx(0.05, abs=0.02)
    assert split_of(scene_of("heldout", rng)) == "heldout"


def test_drawings_are_reproducible_and_boxes_hold_the_colour() -> None:
    rng = random.Random(1)
    for _ in range(40):
        scene = scene_of("train", rng)
        drawing = scenes.draw(scene, seed=7)
        assert drawing.image.tobytes() == scenes.draw(scene, seed=7).image.tobytes()
        assert drawing.image.tobytes() != scenes.draw(scene, seed=8).image.tobytes()
        for index, (thing, box) in enumerate(zip(scene.cells, drawing.boxes, strict=True)):
            assert (thing is None) == (box is None)
            if thing is None or box is None:
                continue
            inside = np.asarray(drawing.image.crop(box)).astype(int)
            near = np.abs(inside - COLORS[thing.color]).sum(-1) < 60
            assert near.mean() > 0.1, (scene.key, POSITIONS[index])


def test_a_shape_nobody_can_draw_is_named() -> None:
    with pytest.raises(ValueError, match="cannot draw a 'blob'"):
        scenes.draw(Scene((Thing("red", "blob"), None, None, None)))
