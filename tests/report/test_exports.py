"""Exported checkpoints on the report page: whose figures they have, and by which hashes they are known."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.merging.export_record import FILE, ExportedFile
from plam_eval.report.page import write_report
from plam_eval.report.sources import ReportError
from tests.helpers.exports import record_of
from tests.helpers.run_folders import documents, write_run, write_sweep

MERGED = "layers-6-8_qkvo_0.9+0.3"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    answers = documents(["pope", "mmstar"], 8)
    write_sweep(tmp_path / "sweep", {"plain": answers, MERGED: answers})
    return tmp_path / "sweep"


def write_export(folder: Path, digest: str, **fields: Any) -> None:
    folder.mkdir()
    files = {
        "model.safetensors": ExportedFile(sha256="11" * 32, bytes=2_000_000_000, how="merged"),
        "config.json": ExportedFile(sha256="22" * 32, bytes=10, how="copied"),
    }
    record_of(**{"digest": digest, "files": files, "notes": ("<b>rounded</b> again",)} | fields).write(folder)


def page_of(folders: list[Path], output: Path) -> tuple[str, str]:
    """The page as it is written, and its text."""
    page = write_report(folders, output, examples=0).read_text(encoding="utf-8")
    return page, html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_an_export_is_linked_with_the_cell_that_it_is_of(sweep: Path, tmp_path: Path) -> None:
    digest = read_findings(sweep).cells.set_index("cell").loc[MERGED, "digest"]
    write_export(tmp_path / "merged", digest)
    page, text = page_of([sweep, tmp_path / "merged"], tmp_path / "out")
    assert f'<a href="#exports" rel="noreferrer">exported as {digest[:16]}</a>' in page and 'id="exports"' in page
    assert "layers 6:8, qkvo, 0.9 + 0.3" in text.split("Exported checkpoints")[-1].split("SHA-256")[0]
    assert "1 copied, 1 merged, 2.0 GB" in text and f"{'11' * 32}  model.safetensors" in text
    assert "no figure here is of it" not in text and "&lt;b&gt;rounded" in page


@pytest.mark.parametrize("other", [{"digest": "00" * 32}, {"model": {"name": "pair/mllm", "sha256": "ee" * 32}}])
def test_an_export_of_something_else_is_said_to_have_no_figures(
    sweep: Path, tmp_path: Path, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = read_findings(sweep)
    digest = findings.cells.set_index("cell").loc[MERGED, "digest"]
    for run in findings.runs.values():  # as wrappers of ours record it where weights were hashed
        run.block["provenance"]["checkpoint"]["files"] = {}
    monkeypatch.setattr("plam_eval.report.sources.findings.read_findings", lambda *_: findings)
    write_export(tmp_path / "merged", **{"digest": digest, **other})
    text = page_of([sweep, tmp_path / "merged"], tmp_path / "out")[1]
    assert "No run or cell on this page is of merged, or was merged as it was: no figure here is of it." in text


def test_a_run_of_the_exported_files_has_their_figures(tmp_path: Path) -> None:
    checkpoint = {"name": "merged", "folder": "/x/merged", "files": {"model.safetensors": "11" * 32}}
    write_run(tmp_path / "run", documents(["pope"], 8), provenance={"checkpoint": checkpoint, "digest": None})
    write_export(tmp_path / "merged", "00" * 32)
    text = page_of([tmp_path / "run", tmp_path / "merged"], tmp_path / "out")[1]
    assert "no figure here is of it" not in text and "figures on this page run" in " ".join(text.split())


def test_a_damaged_export_is_noted_and_one_alone_has_no_figures(sweep: Path, tmp_path: Path) -> None:
    write_export(tmp_path / "merged", "00" * 32)
    with pytest.raises(ReportError, match="merged: an export, which has no figures of its own"):
        write_report([tmp_path / "merged"], tmp_path / "out")
    (tmp_path / "merged" / FILE).write_text("{")
    text = page_of([sweep, tmp_path / "merged"], tmp_path / "out")[1]
    assert "An export was left out" in text
