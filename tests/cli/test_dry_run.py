"""`--dry-run` with and without a number, as it is handed on, and what it prints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from plam_eval.errors import InputError
from plam_eval.evaluation.costs import SAMPLED, Estimate
from plam_eval.report.estimate import duration, estimate_table, gigabytes
from tests.helpers.commands import Call
from tests.helpers.tables import printed


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["--dry-run"], SAMPLED),
        (["--dry-run", "0"], 0),
        (["--dry-run=60"], 60),
        (["--dry-run", "--limit", "4"], SAMPLED),
        (["--dry-run", "sweep.yaml"], SAMPLED),
        (["sweep.yaml", "--dry-run", "5"], 5),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "search"])
def test_a_number_may_follow(
    plam: Call, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], number: int
) -> None:
    given: dict[str, Any] = {}

    def plan(config: Any, **options: Any) -> Any:
        given.update(options, config=config)
        raise InputError("enough")

    monkeypatch.setattr(f"plam_eval.api.plan_{command}", plan)
    assert plam(command, *words)[0] == 1
    assert given["measure"] == number and str(given["config"] or "") == ("sweep.yaml" if "sweep.yaml" in words else "")


def test_a_number_below_0_is_refused(plam: Call) -> None:
    code, _, err = plam("sweep", "--dry-run", "-1")
    assert code == 2 and "--dry-run" in err


def test_a_scan_prints_what_it_would_take(plam: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = Estimate("scan", 20, "a CPU", 1, {"pope": 90}, 90, 9000, 90, 7200, 6000, 9000, 60, 10**10, "GPU", 10**6)
    planned = SimpleNamespace(
        estimate=estimate, documents={"pope": 90}, warnings=("no spec",), to_dict=lambda: {"folder": "x"}
    )
    monkeypatch.setattr("plam_eval.api.plan_scan", lambda *given, **options: planned)
    code, out, err = plam(
        "scan", "--model", "plam_llava", "--model_args", "pretrained=x", "--tasks", "pope", "--dry-run"
    )
    assert code == 0 and "2.0 hours (1.7 to 2.5)" in out and "10.0 GB at most" in out and "no spec" in out + err


def test_the_table_says_what_is_counted() -> None:
    estimate = Estimate(
        "sweep",
        20,
        "[x] GPU",
        19,
        {"pope": 90, "mme": 10},
        1900,
        1,
        2,
        90.0,
        80.0,
        100.0,
        1.0,
        None,
        "host",
        1500,
        ("n",),
    )
    out = printed(estimate_table(estimate))
    for said in ("100 of 2 tasks x 19 cells: 1,900 generations", "90.0 seconds (80.0 to 100.0; 0.025 hours)", "1.5 kB"):
        assert said in out
    assert "not known here" in out and "[x] GPU" in out


def test_units() -> None:
    assert duration(600, 540, 660).startswith("10.0 minutes (9.0 to 11.0; 0.167 hours")
    assert [gigabytes(size) for size in (2.5e9, 2.5e6, 2.5e3)] == ["2.5 GB", "2.5 MB", "2.5 kB"]
