"""The options of `plam compare`, as they are handed on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.commands import Call


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ([], None),
        (["--together"], 2),
        (["--together", "1"], 1),
        (["--together=3"], 3),
        (["--together", "--limit", "4"], 2),
        (["--together", "runs/a", "runs/b"], 2),
        (["runs/a", "runs/b", "--together", "2"], 2),
    ],
)
def test_a_comparison_takes_together_with_and_without_a_number(
    plam: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], number: int | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("plam_eval.api.compare", lambda runs, **options: given.update(options, runs=runs))
    assert plam("compare", *words)[0] == 0
    assert given["together"] == number
    assert [str(run) for run in given["runs"] or []] == [word for word in words if word.startswith("runs/")]


def test_together_is_a_number_from_1_on(plam: Call) -> None:
    for command in ("compare", "sweep"):
        for number in ("0", "-1"):
            code, _, err = plam(command, "--together", number)
            assert code == 2 and "--together" in err
