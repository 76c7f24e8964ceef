"""Cut layers as text."""

from __future__ import annotations

import tracemalloc

import pytest

from plam_eval.probing.cuts import parse_cuts
from plam_eval.probing.decoder import ProbeError


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("all", tuple(range(9))),
        (None, tuple(range(9))),
        ("8", (8,)),
        ("0, 4,6:8", (0, 4, 6, 7, 8)),
        ("0:9:4,2", (0, 2, 4, 8)),
    ],
)
def test_cuts_as_text(text, cuts):
    assert parse_cuts(text, 8) == cuts


def test_wrong_cuts_are_all_named():
    with pytest.raises(ProbeError, match=r"'9', '4:10', 'x', '-1', '3:3', '1:4:0'; expected layers from 0 to 8"):
        parse_cuts("9,4:10,x,-1,3:3,1:4:0,2", 8)


@pytest.mark.parametrize("text", ["0:1000000000000", "0:999999999", f"0:{'9' * 5000}", "7:999999999:2", "x," * 10**4])
def test_cuts_are_checked_before_they_are_counted(text):
    tracemalloc.start()
    try:
        with pytest.raises(ProbeError, match="expected layers from 0 to 8") as error:
            parse_cuts(text, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 700 and peak < 50 * 2**20
