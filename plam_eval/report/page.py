"""`plam report`: runs, scans, sweeps and looks inside on one HTML page, and their tables as files.

The page needs nothing beside it. What stands on it is decided by `sections`, in blocks; `page.html.j2` gives each kind
of block its form, `page.css` its look. `page.js` sorts and filters tables; without it nothing is missing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval import table_files
from plam_eval.errors import FolderError
from plam_eval.evaluation.comparison import Comparisons, compare_with_one
from plam_eval.evaluation.noise.floor import Noise, read_noise
from plam_eval.evaluation.second_parser import second_look
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.files import check_free, check_writable, inside, moved_when_whole, write_in_one_step
from plam_eval.report.blocks import Answer, Section, records_of
from plam_eval.report.files import TableFiles, tables_of
from plam_eval.report.noise import noise_blocks
from plam_eval.report.sections import warnings
from plam_eval.report.sections.attention import attention_section
from plam_eval.report.sections.cells import all_cells
from plam_eval.report.sections.changed import Looking, changed_documents
from plam_eval.report.sections.controls import beside_controls
from plam_eval.report.sections.exports import export_links, exports_section
from plam_eval.report.sections.form import in_form
from plam_eval.report.sections.head import answers, facts, links, questions, title_of
from plam_eval.report.sections.layers import layers_sections
from plam_eval.report.sections.premise import premise_sections
from plam_eval.report.sections.provenance import provenance_section
from plam_eval.report.sections.random_layers import beside_random_layers
from plam_eval.report.sections.ranges import ranges_section
from plam_eval.report.sections.reading import reading_section
from plam_eval.report.sections.runs import runs_sections
from plam_eval.report.sections.scan import scan_section
from plam_eval.report.sections.shared import chosen_beside, chosen_note
from plam_eval.report.sections.tasks import folded_metrics, stock_metrics, task_by_task
from plam_eval.report.sources import Sources, read_sources
from plam_eval.report.stock_table import stock_blocks
from plam_eval.report.text import breakable, printable

if TYPE_CHECKING:
    from markupsafe import Markup

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
    left_out: list[str] | None = None,
) -> Path:
    """Write `output`/index.html and `output`/tables/*.csv and *.parquet.

    Args:
        folders: of sweeps, comparisons, scans, `plam attend`, lmms-eval runs and exports, or folders above such.
        output: folder for the page and tables/.
        title: of the page; by default it names the models.
        select: as in `findings.read_findings`, for every sweep.
        data: the folder in which the evaluation was started, where its datasets have relative paths; by default the
            working directory. What a sweep's folder says of it is shown, and not gone to.
        include_path: folder of further tasks, whose Python code is run to find example images. The one that a folder
            was evaluated with is shown, and nothing is loaded from it.
        examples: gained documents that are seen at once, and lost ones; more are behind them. None with 0.
        left_out: where given, what could not be read in the folders, and why, is put in here; the page says it, too.

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
    if left_out is not None:
        left_out += sources.left_out()
    compared = compare_with_one(sources.runs)
    tables = tables_of(sources, compared)
    page = _page(sources, compared, title, Looking(data, include_path, examples), tables)
    folder = inside(output, TABLES, str(output))
    check_free(output, (f"{TABLES}/{name}{suffix}" for name in tables.frames for suffix in (".csv", ".parquet")), PAGE)
    with moved_when_whole(output, TABLES) as hidden:
        for name, table in tables.frames.items():
            table_files.write_table(table, hidden / name)
        # Before its tables: by the page a folder is known to be ours, after a kill as well.
        write_in_one_step(path, lambda partial: partial.write_text(page, encoding="utf-8", errors="replace"))
        folder.mkdir(exist_ok=True)
        for name in tables.frames:
            for suffix in (".csv", ".parquet"):
                (hidden / f"{name}{suffix}").replace(folder / f"{name}{suffix}")
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
    tables: TableFiles,
) -> str:
    import jinja2
    from markupsafe import Markup

    noted = warnings.of_notes(sources)
    warned = {f"scan {name}": warnings.of_one_answer(scan.stages.warnings) for name, scan in sources.scans.items()}
    noise = {name: read_noise(findings.folder, findings.runs) for name, findings in sources.sweeps.items()}
    for name, findings in sources.sweeps.items():
        warned[f"sweep {name}"] = warnings.of_sweep(findings, noise[name])
    warned |= {f"look {name}": warnings.of_one_answer(look.findings.warnings) for name, look in sources.looks.items()}
    if sources.runs:
        warned["runs"] = warnings.of_runs(sources.runs, compared)
    sections: list[Section] = premise_sections(sources.premises)
    whole = {name: scan for name, scan in sources.scans.items() if scan.stages.closed_to == "text"}
    for name, scanned in whole.items():
        sections.append(scan_section(scanned, f": {name}" if len(whole) > 1 else ""))
    for name, findings in sources.sweeps.items():
        suffix = f": {name}" if len(sources.sweeps) > 1 else ""
        sections += _sweep_sections(findings, suffix, looking, tables.names.get((name, "changed"), ""), noise[name])
    for name, look in sources.looks.items():
        suffix = f": {name}" if len(sources.looks) > 1 else ""
        sections.append(attention_section(look, suffix, said=not sections and len(sources.looks) == 1))
    sections += layers_sections(sources)
    if sources.runs:
        sections += runs_sections(sources.runs, compared, looking, tables.names.get(("runs", "changed"), ""))
    sections += warnings.further_section([noted, *warned.values()])
    sections += exports_section(sources)
    sections.append(provenance_section(sources))
    sections.append(Section("How to read this page", reading_section(sources)))
    style, script, template = map(_packaged, ("page.css", "page.js", "page.html.j2"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"printable": printable, "breakable": breakable, "hash": _hash}
    return environment.from_string(template).render(
        title=title or title_of(sources),
        style=Markup(style),
        script=Markup(script),
        facts=facts(sources),
        links=[*export_links(sources), *links()],
        question=questions(sources, compared),
        answers=answers(sources, compared, warned),
        noted=Answer("", "", (), noted.beside, len(noted.further)),
        sections=sections,
        tables=sorted(tables.frames),
        folder=TABLES,
    )


def _packaged(name: str) -> str:
    return resources.files("plam_eval.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> Markup:
    """By which a content security policy allows a style or a script, and no other."""
    from markupsafe import Markup

    return Markup("sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _sweep_sections(
    findings: Findings, suffix: str, looking: Looking, changed: str, noise: Noise | None
) -> list[Section]:
    cells = {str(row["cell"]): row for row in records_of(findings.cells)}
    titled: list[tuple[str, list[Any]]] = []
    if ranges := ranges_section(findings, cells):
        titled.append(ranges)
    if beside := beside_controls(findings, cells):
        titled.append(("Beside the controls", beside))
    if drawn := beside_random_layers(findings, cells):
        titled.append(("Before as many random layers", drawn))
    if findings.selection is not None:
        note = chosen_note(findings, cells)
        runs = chosen_beside(findings)
        rows = findings.compared[findings.selection.cell]
        directions = runs[PLAIN].directions
        again = second_look(runs[PLAIN].samples, runs["merged"].samples, rows)
        by_task = task_by_task(rows, PLAIN, "merged", directions, noise, again)
        titled.append(("Task by task", [*note, *by_task]))
        if noise is not None:
            titled.append(noise_blocks(noise, rows))
        held = ", and over all documents that were evaluated, those chosen on among them"
        metrics = stock_metrics(runs, held if findings.selection.held_out else "")
        beside = [block for name, rows in findings.stock.items() for block in stock_blocks(rows, name, "merged")]
        if beside or metrics:
            titled.append(("Stock metrics", [*beside, *folded_metrics(metrics)]))
    if findings.compared:
        titled.append(("Answers in the form asked for", in_form(findings, cells)))
    titled.append(("All cells", all_cells(findings, cells)))
    if findings.selection is not None and looking.examples:
        shown = dict([*runs.items()][:3])  # plain, merged, and the scale control or else the first there is
        titled.append(("What was gained and lost", [*note, *changed_documents(shown, looking, changed, findings.plan)]))
    return [Section(f"{title}{suffix}", tuple(blocks)) for title, blocks in titled]
