"""The noise floor beside differences: in the terminal, and on the page of a folder written by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from plam_eval.evaluation.comparison import comparison_of
from plam_eval.evaluation.noise.floor import Noise, read_noise
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.report import tables
from plam_eval.report.noise import flips_table, show_noise
from plam_eval.report.page import write_report
from plam_eval.terminal import Terminal
from tests.helpers.noise_folders import again, write_pair
from tests.helpers.run_folders import changed, documents
from tests.helpers.tables import printed

PLAIN = documents(["pope", "mmstar"], 100, right=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On pope the difference is 0.02 and 0.06 flip, on mmstar it is 0.3 and nothing flips. Do not modify."""
    made = tmp_path_factory.mktemp("noise") / "compare"
    better = {("pope", number): ("yes", 1.0) for number in (98, 99)}
    star = {("mmstar", number): ("yes", 1.0) for number in range(60, 90)}
    write_pair(made, PLAIN, changed(PLAIN, {**better, **star}))
    flipped = {("pope", number): ("perhaps", 0.0) for number in range(4)} | better
    again(made, "dtype=bfloat16", changed(PLAIN, flipped))
    again(made, "model=plam_vllm", "LayoutError: [x] the engine did not start")
    return made


def noise_of(folder: Path) -> Noise:
    found = read_noise(folder, read_findings(folder).runs)
    assert found is not None
    return found


def test_a_difference_has_its_floor_beside_it(folder: Path) -> None:
    compared = comparison_of(read_findings(folder))
    assert compared.noise is not None
    out = printed(tables.comparison(compared.rows, noise=compared.noise))
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "0.060 (" in lines["pope"] and "below" in lines["pope"]
    assert "0.000 (0.000 to 0.0" in lines["mmstar"] and "above" in lines["mmstar"]
    assert "flip rate" not in printed(tables.comparison(compared.rows))


def test_it_fits_80_columns(folder: Path) -> None:
    compared = comparison_of(read_findings(folder))
    console = Terminal(file=io.StringIO(), width=80)
    console.show(*(tables.comparison(compared.rows, noise=compared.noise, narrow=n) for n in (False, True)))
    console.show(flips_table(noise_of(folder)))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, out.splitlines())) <= 80 and "flips 0.060, below" in out and "0.060" in out
    assert "…" not in out


def test_what_is_below_and_what_failed_is_said(folder: Path) -> None:
    compared, console = comparison_of(read_findings(folder)), Terminal(file=io.StringIO(), width=120)
    assert compared.noise is not None
    show_noise(compared.noise, compared.rows, console)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pope: the difference of +0.020 is below the noise floor" in out and "dtype=bfloat16" in out
    assert any("[x] the engine did not start" in failure for failure in compared.noise.failures)


def test_the_page_has_a_section_and_two_columns(folder: Path, tmp_path: Path) -> None:
    page = write_report([folder], tmp_path / "page").read_text(encoding="utf-8")
    assert "Is it noise?" in page and ">flip rate<" in page and "below" in page
    assert "[x] the engine did not start" in page
    assert page.count("Task by task") >= 1 and "noise/" not in page.partition("<h1")[2].partition("</header")[0]
    assert not (tmp_path / "page" / "tables" / "dtype-bfloat16-cells.csv").exists()  # the noise is no sweep of its own
    by_itself = write_report([folder / "noise" / "dtype=bfloat16"], tmp_path / "alone")
    assert by_itself.is_file()
