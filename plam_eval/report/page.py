"""`plam report`: runs, scans and sweeps on one HTML page that needs nothing beside it, and their tables as files.

What stands on the page is decided here and put into blocks; `page.html.j2` gives each kind of block its form.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from plam_eval.errors import FolderError
from plam_eval.evaluation import findings
from plam_eval.evaluation.findings import Findings
from plam_eval.evaluation.sweep import PLAIN
from plam_eval.files import check_free, check_writable, inside, write_in_one_step
from plam_eval.report.blocks import (
    Paragraph,
    Section,
    breakable,
    minus_signs,
    printable,
    records_of,
)
from plam_eval.report.comparisons import Comparisons, compare
from plam_eval.report.files import tables_of
from plam_eval.report.sections.cells import all_cells
from plam_eval.report.sections.changed import Looking, changed_documents
from plam_eval.report.sections.controls import beside_controls
from plam_eval.report.sections.form import in_form
from plam_eval.report.sections.head import (
    missing,
    runs_answers,
    runs_question,
    scan_answer,
    scan_question,
    sweep_question,
    title_of,
)
from plam_eval.report.sections.parts import selection_note
from plam_eval.report.sections.provenance import provenance_section
from plam_eval.report.sections.ranges import heat_map
from plam_eval.report.sections.reading import reading_section
from plam_eval.report.sections.runs import runs_sections
from plam_eval.report.sections.scan import scan_section
from plam_eval.report.sections.tasks import task_by_task
from plam_eval.report.sections.warnings import warnings_section
from plam_eval.report.sources import Sources, read_sources

PAGE, TABLES = "index.html", "tables"


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str | None = None,
    select: int | None = None,
    data: Path | None = None,
    include_path: Path | None = None,
    examples: int = 6,
) -> Path:
    """Write `output`/index.html and `output`/tables/*.csv and *.parquet.

    Args:
        folders: of sweeps, comparisons, scans and lmms-eval runs, or folders above such.
        title: of the page; by default it names the models.
        select: as in `findings.read_findings`, for every sweep.
        data: the folder in which the evaluation was started, where its datasets have relative paths; by default the
            working directory. What a sweep's folder says of it is shown, and not gone to.
        include_path: folder of further tasks, whose Python code is run to find example images. The one that a folder
            was evaluated with is shown, and nothing is loaded from it.
        examples: gained documents to show, and lost ones.

    Returns:
        The page's path.

    Raises:
        ReportError: nothing could be read. FolderError: `output` cannot be written, or holds another page.
    """
    output = Path(output)
    path = inside(output, PAGE, str(output))
    check_writable(output)
    _check_ours(path)
    sources = read_sources([Path(folder) for folder in folders], select)
    compared = compare(sources.runs)
    tables = tables_of(sources, compared)
    page = _page(sources, compared, title, Looking(data, include_path, examples), sorted(tables))
    folder = inside(output, TABLES, str(output))
    check_free(output, (f"{TABLES}/{name}{suffix}" for name in tables for suffix in (".csv", ".parquet")), PAGE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        findings.write_table(table, folder / name)
    write_in_one_step(path, lambda partial: partial.write_text(page, encoding="utf-8", errors="replace"))
    return path


def _check_ours(page: Path) -> None:
    """Raises FolderError where another page, or anything else of its name, would be overwritten."""
    if page.is_dir() or (page.is_file() and _OURS not in page.read_text(encoding="utf-8", errors="replace")[:4000]):
        raise FolderError(f"{page}: is no page of `plam report`, so it is not overwritten; name another --output")


_OURS = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(
    sources: Sources,
    compared: Comparisons | None,
    title: str | None,
    looking: Looking,
    tables: Sequence[str],
) -> str:
    import jinja2

    question: list[str] = []
    answers: list[tuple[str, str]] = []
    sections: list[Section] = []
    several = len(sources.sweeps) + len(sources.scans) + bool(sources.runs) > 1
    said: list[Sequence[str]] = []
    for name, scanned in sources.scans.items():
        question.append(scan_question(scanned, said))
        answers.append((name if several else "", scan_answer(scanned)))
        sections.append(scan_section(scanned, f": {name}" if len(sources.scans) > 1 else ""))
    for name, found in sources.sweeps.items():
        question.append(sweep_question(found, said))
        answers.append((name if several else "", found.verdict()))
        suffix = f": {name}" if len(sources.sweeps) > 1 else ""
        sections += _sweep_sections(found, suffix, looking)
    if sources.runs:
        question.append(runs_question(sources.runs, compared, said))
        answers += [("", text) for text in runs_answers(sources.runs, compared)]
        sections += runs_sections(sources.runs, compared, looking)
    question += missing(sources, compared)
    sections += warnings_section(sources, compared)
    sections.append(provenance_section(sources))
    sections.append(Section("How to read this page", reading_section(sources)))
    template = resources.files("plam_eval.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"printable": printable, "breakable": breakable}
    return environment.from_string(template).render(
        title=title or title_of(sources),
        question=question,
        answers=[(name, minus_signs(text)) for name, text in answers],
        sections=sections,
        tables=tables,
        folder=TABLES,
    )


# --- a sweep ----------------------------------------------------------------------------------------------------------


def _sweep_sections(found: Findings, suffix: str, looking: Looking) -> list[Section]:
    cells = {str(row["cell"]): row for row in records_of(found.cells)}
    chosen = found.selection.cell if found.selection else None
    note = [Paragraph(selection_note(found.selection, cells), "note")] if found.selection else []
    parts: list[tuple[str, list[Any]]] = []
    if drawn := heat_map(found, cells):
        parts.append(("Layer ranges and weights", [drawn, *note]))
    if beside := beside_controls(found, cells):
        parts.append(("Beside the controls", [*beside, *note]))
    if chosen is not None:
        rows = task_by_task(found.compared[chosen], PLAIN, "merged", found.runs[PLAIN].directions)
        parts.append(("Task by task", [*note, *rows]))
    if found.compared:
        parts.append(("Answers in the form asked for", in_form(found, cells)))
    parts.append(("All cells", [*all_cells(found, cells), *note]))
    if chosen is not None and looking.examples:
        changed = changed_documents(found.runs[PLAIN], found.runs[chosen], ("plain", "merged"), looking, found.plan)
        parts.append(("What was gained and lost", [*note, *changed]))
    return [Section(f"{title}{suffix}", tuple(blocks)) for title, blocks in parts]


# --- warnings, provenance, how to read --------------------------------------------------------------------------------
