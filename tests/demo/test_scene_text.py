"""The embedded world's task of text alone."""

from __future__ import annotations

from plam_eval.demo.scene_text import rows


def test_documents_are_the_same_each_time_and_no_scene_is_told_twice():
    documents = list(rows(30))
    assert documents == list(rows(30)) and documents != list(rows(30, seed=1))
    assert len(documents) == 120 and len({row["id"] for row in documents}) == 120
    told = {row["scene_id"]: row["scene"] for row in documents}
    assert len(told) == len(set(told.values())) == 30


def test_answers_are_true_of_what_is_told():
    """Of the kinds whose answer can be read off the words."""
    checked = 0
    for row in rows(60):
        things = [phrase for phrase in row["scene"].removesuffix(".").split(". ") if not phrase.endswith("empty")]
        if row["kind"] == "count_all":
            assert row["answer"] == str(len(things))
            checked += 1
        if row["kind"] == "color_at":
            place = row["question"].split("at the ")[1].split("?")[0]
            (thing,) = [phrase for phrase in things if phrase.startswith(place)]
            assert row["answer"] == thing.removeprefix(place).split()[0]
            checked += 1
    assert checked > 10
