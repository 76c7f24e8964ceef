"""The setting whose answers differ least from its neighbours', worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from plam_eval.errors import InputError
from plam_eval.evaluation.label_free import Coordinates, compare_neighbours, least_differing

PLAIN = "aaaaaaaa"


def documents(answers: str) -> dict[int, str]:
    """One letter to each document."""
    return dict(enumerate(answers))


def settings(**given: tuple[str, float, str]) -> Mapping[str, tuple[Coordinates, dict[int, str]]]:
    """Line, place and answers by name."""
    return {name: ((line, (place,)), documents(answers)) for name, (line, place, answers) in given.items()}


def test_a_document_counts_once_that_differs_from_either_neighbour() -> None:
    compared = compare_neighbours(
        settings(
            far=("w", 3, "bbbcaaaa"),  # an end
            near=("w", 1, "baaaaaaa"),  # from plain in document 0, from `middle` in 1 and 3
            middle=("w", 2, "bbacaaaa"),  # from `near` in 1 and 3, from `far` in 2
        ),
        documents(PLAIN),
    )
    assert {name: (one.before, one.after, one.differ) for name, one in compared.items()} == {
        "near": (None, "middle", 3),
        "middle": ("near", "far", 3),
    }
    assert {one.documents for one in compared.values()} == {8}
    assert least_differing(compared) == "near"  # the first of equals is the one nearer to plain


def test_the_one_that_differs_least_and_not_the_one_that_differs_least_from_plain() -> None:
    compared = compare_neighbours(
        settings(
            one=("w", 1, "bbaaaaaa"),
            two=("w", 2, "bbbbbbaa"),
            three=("w", 3, "bbbbbbba"),
            four=("w", 4, "bbbbbbbb"),
        ),
        documents(PLAIN),
    )
    assert {name: one.differ for name, one in compared.items()} == {"one": 6, "two": 5, "three": 2}
    assert least_differing(compared) == "three"


def test_ends_and_short_lines_have_no_two_neighbours() -> None:
    two = settings(one=("w", 1, PLAIN), two=("w", 2, PLAIN))
    assert compare_neighbours(two) == {} and least_differing({}) is None
    assert list(compare_neighbours(two, documents(PLAIN))) == ["one"]
    assert compare_neighbours(settings(one=("w", 1, PLAIN)), documents(PLAIN)) == {}
    assert compare_neighbours({}) == {}


def test_plain_is_at_zero_and_may_be_between_two() -> None:
    given = settings(less=("w", -1, "baaaaaaa"), more=("w", 1, "aaaaaaab"), most=("w", 2, "aaaaaabb"))
    compared = compare_neighbours(given, documents(PLAIN))
    assert {name: (one.before, one.after, one.differ) for name, one in compared.items()} == {"more": (None, "most", 2)}


def test_lines_are_apart_and_the_choice_is_over_all_of_them() -> None:
    given = settings(a=("x", 1, "baaaaaaa"), b=("x", 2, "bbbaaaaa"), c=("y", 1, "aaaaaaaa"), d=("y", 2, "aaaaaaab"))
    compared = compare_neighbours(given, documents(PLAIN))
    assert {name: (one.line, one.differ) for name, one in compared.items()} == {"a": ("x", 3), "c": ("y", 1)}
    assert least_differing(compared) == "c"


def test_letter_case_and_spaces_around_do_not_count() -> None:
    given = settings(one=("w", 1, "AAAAAAAA"), two=("w", 2, PLAIN))
    compared = compare_neighbours(given, {n: f" {letter}\n" for n, letter in enumerate(PLAIN)})
    assert compared["one"].differ == 0


def test_documents_are_matched_by_name_whatever_their_order() -> None:
    given = dict(settings(one=("w", 1, "abcdefgh"), two=("w", 2, "abcdefgh")))
    backwards = dict(reversed(list(documents("abcdefgh").items())))
    assert compare_neighbours(given, backwards)["one"].differ == 0


def test_other_documents_and_two_at_one_place_are_refused() -> None:
    with pytest.raises(InputError, match="two: its documents are others than those of one"):
        compare_neighbours(settings(one=("w", 1, PLAIN), two=("w", 2, "aaa")))
    with pytest.raises(InputError, match="plain: its documents are others"):
        compare_neighbours(settings(one=("w", 1, PLAIN)), {n + 1: "a" for n in range(8)})
    with pytest.raises(InputError, match="found settings at one place"):
        compare_neighbours(settings(one=("w", 1, PLAIN), two=("w", 1, PLAIN)))
