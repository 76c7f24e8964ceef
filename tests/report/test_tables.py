"""Names, reasons and warnings in tables are text, whatever is in them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from plam_eval.evaluation import scan_folder
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.merging.report import MergeReport
from plam_eval.probing.plateau import find_plateau
from plam_eval.report import tables
from plam_eval.terminal import Terminal
from tests.helpers.curves import curve_of
from tests.helpers.nasty import NASTY, SHOWN
from tests.helpers.tables import printed


def row(task: str) -> Paired:
    return Paired(task, 10, 10, 0.5, 0.6, 0.1, 0.0, 0.2, 2, 1, 0.5, "mcnemar", 1.0, 1.0, 100)


def test_comparison() -> None:
    out = printed(tables.comparison([row(NASTY), row(OVERALL)], NASTY, NASTY))
    assert out.count(SHOWN) == 5  # task, two headers, and both in the caption
    assert "\x1b" not in out


def test_where_lower_is_better_it_is_said() -> None:
    out = printed(tables.comparison([row("wer"), row("gqa"), row(OVERALL)], directions={"wer": -1, "gqa": 1}))
    assert out.count("(lower is better)") == 1 and "wer (lower is better)" in out


def test_plan() -> None:
    cell = SimpleNamespace(name=NASTY, kind="[x]")
    job: Any = SimpleNamespace(
        left=lambda: [cell],
        grid=SimpleNamespace(cells=[cell]),
        bytes_to_read={},
        seconds_per_cell=lambda: None,
        config=SimpleNamespace(together=1),
    )
    out = printed(tables.plan(job, None))
    assert SHOWN in out and "[x]" in out and "no time yet" in out
    assert "no time" not in printed(tables.plan(job, None, measured=True)), "it stands in the table below"


def test_merge_report() -> None:
    report = MergeReport(None, None, NASTY, NASTY, 0, 0, 0, 1.0, {}, (NASTY,))
    assert printed(report.table()).count(SHOWN) == 2
    assert r"[x] [/x] [bold] :smile: \x1b[31m" in str(report)


def test_a_scan(tmp_path: Path) -> None:
    curve = curve_of(8, [NASTY.replace("\udc80", "")])
    stages = find_plateau(curve)
    stages = stages.model_copy(update={"reason": NASTY, "warnings": (NASTY,)})
    spec: Any = object()
    stream = io.StringIO()
    tables.show_scan(scan_folder.Scan(tmp_path / "[parts]", curve, stages, spec), Terminal(file=stream, width=300))
    out = stream.getvalue()
    assert out.count(SHOWN) == 2 and f"warning: {SHOWN}" in out and "documents of [x] [/x] [bold]" in out
    assert f"{tmp_path}/[parts]/plateau.yaml, to be used as plateau={tmp_path}/[parts]/plateau.yaml" in out
    assert "\x1b" not in out
