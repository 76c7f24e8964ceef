"""Sets of decoder layers: read, written, told."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plam_eval.layer_sets import (
    MOST_LAYERS,
    as_range,
    label_layers,
    layers_of,
    name_layers,
    random_layer_sets,
    range_hint,
    read_layers,
    runs_of,
    tell_layers,
    write_layers,
)

sets = st.sets(st.integers(0, 60), min_size=2).map(lambda layers: tuple(sorted(layers)))


@given(sets)
def test_what_is_written_is_read_back(layers: tuple[int, ...]) -> None:
    assert read_layers(write_layers(layers)) == layers
    assert [layer for start, end in runs_of(layers) for layer in range(start, end)] == list(layers)
    assert as_range(layers) == ((layers[0], layers[-1] + 1) if layers[-1] - layers[0] == len(layers) - 1 else None)


@given(sets, sets)
def test_sets_have_names_of_their_own_that_any_file_system_takes(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert (name_layers(one) == name_layers(other)) == (one == other)
    assert len(name_layers(one)) <= 64 and not set(name_layers(one)) - set("0123456789+-abcdefo")


@pytest.mark.parametrize(
    ("layers", "written", "name", "told"),
    [
        ((24, 25, 26), "24:27", "24-27", "[24, 27)"),
        ((7,), "7:8", "7-8", "[7, 8)"),
        ((3, 9, 20), "3+9+20", "3+9+20", "3, 9, 20"),
        ((4, 5, 6, 7, 20, 21), "4:8+20:22", "4-8+20-22", "4 to 7, 20, 21"),
    ],
)
def test_forms(layers: tuple[int, ...], written: str, name: str, told: str) -> None:
    assert (write_layers(layers), name_layers(layers), tell_layers(layers)) == (written, name, told)


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ([20, 3, 9], (3, 9, 20)),
        ("20+3+9", (3, 9, 20)),
        (" 3 + 9:11 ", (3, 9, 10)),
        ([5], (5,)),
        ("5", (5,)),
        ("4:8", (4, 5, 6, 7)),
    ],
)
def test_values(value: Any, layers: tuple[int, ...]) -> None:
    assert read_layers(value) == layers


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "expected a list of layers"),
        (None, "expected a list of layers"),
        (7, "expected a list of layers"),
        ({"a": 1}, "expected a list of layers"),
        ([1, True], "expected a list of layers"),
        ([1, 2.0], "expected a list of layers"),
        ("", "expected a list of layers"),
        ("3+", "expected a list of layers"),
        ("3,9", "write 3:9"),
        ("3+a", "expected a list of layers"),
        ("3+-1", "expected a list of layers"),
        ("5:2+1", "runs backwards"),
        ("5:5+1", "is empty"),
        ([-1, 3], "expected layers from 0 to"),
        ([3, MOST_LAYERS], "expected layers from 0 to"),
        ("1+0:9999999999", "no decoder has as many"),
        ("0:9999+0:9999", "each once"),
        ([3, 9, 3], "names layer 3 more than once"),
        ("4:8+7", "names layer 7 more than once"),
        ("\u0663+1", "expected a list of layers"),
    ],
)
def test_what_names_no_layers_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("+", r"\+")):
        read_layers(value)


def test_a_set_is_not_taken_for_a_range_that_was_written_wrong() -> None:
    assert range_hint("3-9") == "; write 3:9" and range_hint("3+9") == ""


def test_layers_of_stored_specs() -> None:
    assert layers_of({"layer_range": [2, 4]}) == (2, 3) and layers_of({"layers": [9, 2]}) == (2, 9)
    damaged: list[dict[str, Any]] = [{}, {"layer_range": [1]}, {"layers": []}, {"layer_range": "x"}]
    for stored in damaged:
        with pytest.raises(ValueError, match="expected"):
            layers_of(stored)


def test_random_sets_are_as_likely_as_one_another() -> None:
    counts = collections.Counter(layer for layers in random_layer_sets(3, 32, 3000) for layer in layers)
    expected = 3000 * 3 / 32
    assert set(counts) == set(range(32))
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_random_sets_are_few_where_there_are_few() -> None:
    assert sorted(random_layer_sets(1, 3, 10, (2,))) == [(0,), (1,)]
    assert random_layer_sets(3, 3, 10, (0, 1, 2)) == []
    assert random_layer_sets(4, 3, 10) == []


def test_random_sets_do_not_depend_on_how_many_are_drawn() -> None:
    some, more = random_layer_sets(4, 28, 3, (0, 1, 2, 3)), random_layer_sets(4, 28, 12, (24, 25, 26, 27))
    assert more[:3] == some


def test_a_label_of_many_layers_is_short() -> None:
    assert label_layers((2, 3, 4)) == "2:5" and label_layers((1, 4, 6, 7)) == "1+4+6:8"
    assert label_layers(range(1, 80, 2)) == "40 from 1 to 79"
