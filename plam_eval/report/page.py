"""`plam report`: runs, scans and sweeps on one HTML page that needs nothing beside it, and their tables as files.

What stands on the page is decided here and put into blocks; `page.html.j2` gives each kind of block its form.
"""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from plam_eval.errors import FolderError
from plam_eval.evaluation import findings, harness, records, scan, stats, sweep
from plam_eval.evaluation.findings import SIGNIFICANT, Findings, Selection, describe
from plam_eval.evaluation.records import IncomparableError, RecordError, Run
from plam_eval.evaluation.scan import Scan
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.evaluation.sweep import DAMAGED, FAILED, FINISHED, PLAIN
from plam_eval.files import check_free, check_writable, inside, write_in_one_step
from plam_eval.model_wrappers.manifest import WRAPPERS
from plam_eval.report import plots
from plam_eval.report.blocks import (
    NONE,
    SPACE,
    Example,
    Examples,
    Grid,
    Listing,
    Paragraph,
    Picture,
    Row,
    Section,
    breakable,
    clip,
    count_of,
    cut_short,
    data_uri,
    equal_p,
    grid,
    identity_of,
    interval,
    is_known,
    listed,
    minus_signs,
    number,
    p_value,
    pairs_of,
    percent,
    picture,
    printable,
    records_of,
    sentence,
    signed,
    tasks_named,
    text_of,
)
from plam_eval.report.plots import Estimate
from plam_eval.report.sources import Sources, read_sources
from plam_eval.spec import RULES

if TYPE_CHECKING:
    from PIL.Image import Image

PAGE, TABLES = "index.html", "tables"

_QUESTION, _ANSWER = 700, 240  # letters of a prompt, and of an answer, that are shown unasked
_SIDE = 320  # pixels of an image's longer side
_TINY = 160  # pixels up to which an image is shown enlarged
_IMAGES = 4  # of one document
_PREFIX = 60  # letters of a folder's name in those of its tables
_DETAILED = 6  # comparisons of plain run folders that get a section of their own
_CONTROLS = {
    "self_scale": "the model's own weights times the same sum",
    "normalized": "the merge with weights that sum to one",
    "noise": "a random change of the same size",
}


@dataclass(frozen=True)
class _Comparisons:
    """Plain run folders against one of them."""

    reference: str
    rows: dict[str, list[Paired]]
    p_holm: dict[str, float]
    problems: dict[str, list[str]]
    warnings: dict[str, list[str]]


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
    compared = _compare(sources.runs)
    tables = _tables(sources, compared)
    page = _page(sources, compared, title, _Looking(data, include_path, examples), sorted(tables))
    folder = inside(output, TABLES, str(output))
    check_free(output, (f"{TABLES}/{name}{suffix}" for name in tables for suffix in (".csv", ".parquet")), PAGE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        findings.write_table(table, folder / name)
    write_in_one_step(path, lambda partial: partial.write_text(page, encoding="utf-8", errors="replace"))
    return path


@dataclass(frozen=True)
class _Looking:
    """Where example images are looked for, and how many documents are shown: what the reader said, and no folder."""

    data: Path | None
    include_path: Path | None
    examples: int


def _check_ours(page: Path) -> None:
    """Raises FolderError where another page, or anything else of its name, would be overwritten."""
    if page.is_dir() or (page.is_file() and _OURS not in page.read_text(encoding="utf-8", errors="replace")[:4000]):
        raise FolderError(f"{page}: is no page of `plam report`, so it is not overwritten; name another --output")


_OURS = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'


def _compare(runs: Mapping[str, Run]) -> _Comparisons | None:
    """Every run against the plain one, or else the first; None where there are not two."""
    if len(runs) < 2:
        return None
    plain = [name for name, run in runs.items() if run.block.get("plain")]
    reference = plain[0] if len(plain) == 1 else next(iter(runs))
    first, others = runs[reference], {name: run for name, run in runs.items() if name != reference}
    problems: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for name, run in others.items():
        try:
            warnings[name] = records.check_comparable(first, run, (reference, name))
        except IncomparableError as error:
            problems[name] = error.problems
            continue
    comparable = {reference: first}
    for name in warnings:
        try:
            records.scored({reference: first, name: others[name]})
            comparable[name] = others[name]
        except RecordError as error:
            problems[name] = str(error).splitlines()[1:]
    while True:  # each has something in common with the reference, but maybe not all of them the same
        try:
            comparable, left_out = records.scored(comparable) if len(comparable) > 1 else ({}, [])
        except RecordError:
            name = [*comparable][-1]
            before = ", ".join([*comparable][:-1])
            problems[name] = [f"no document has a score in {name} and in all of {before}; report on fewer of them"]
            del comparable[name]
        else:
            break
    # Of single runs the page says this anyway.
    left_out = [note for note in left_out if records.LEFT_OUT not in note]
    left_out += records.mixed_directions(comparable[reference].directions) if comparable else []
    for notes in warnings.values():
        notes += left_out
    frames = {name: run.samples for name, run in comparable.items() if name != reference}
    rows = {}
    if frames:
        scored = comparable[reference]
        rows = stats.compare_many(scored.samples, frames, directions=scored.directions)
    adjusted = stats.holm([found[-1].p for found in rows.values()])
    return _Comparisons(reference, rows, dict(zip(rows, adjusted, strict=True)), problems, warnings)


# --- tables as files --------------------------------------------------------------------------------------------------


def _tables(sources: Sources, compared: _Comparisons | None) -> dict[str, pd.DataFrame]:
    parts: list[tuple[str, dict[str, pd.DataFrame]]] = []
    for name, found in sources.sweeps.items():
        tables = {"cells": found.cells, "tasks": found.tasks, "controls": found.controls}
        parts.append((name, tables | (_run_tables(found.runs) if found.runs else {})))
    for name, scanned in sources.scans.items():
        parts.append((name, {"curve": scanned.curve.table()}))
    if sources.runs:
        tables = _run_tables(sources.runs)
        if compared is not None and compared.rows:
            tables["tasks"] = pd.concat(
                [stats.frame(rows).assign(run=name, against=compared.reference) for name, rows in compared.rows.items()]
            )
        parts.append(("runs", tables))
    counts = Counter(table for _, tables in parts for table in tables)
    named: dict[str, pd.DataFrame] = {}
    prefixes: set[str] = set()
    for part, tables in parts:
        shared = any(counts[table] > 1 for table in tables)
        prefix = plain = re.sub(r"[^\w.+-]", "-", part)[:_PREFIX].lstrip(".")
        while prefix in prefixes:  # names that differ only in what a file's may not hold
            prefix = f"{plain}-{len(prefixes) + 1}"
        prefixes.add(prefix)
        for table, frame in tables.items():
            named[f"{prefix}-{table}" if shared else table] = frame
    return named


def _run_tables(runs: Mapping[str, Run]) -> dict[str, pd.DataFrame]:
    tables = records.tables(dict(runs))
    samples = tables.samples.assign(parsable=tables.samples["parsable"].astype("boolean"))
    found = {"runs": tables.runs, "accuracy": tables.tasks, "metrics": tables.metrics, "samples": samples}
    return {name: _storable(frame) for name, frame in found.items()}


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold values of several types, or dictionaries, as text: parquet wants one type."""
    frame = frame.copy()
    for name, column in frame.items():
        types = {type(value) for value in column if value is not None}
        if column.dtype == object and (len(types) > 1 or types & {dict, list}):
            texts = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in column]
            frame[name] = pd.Series(texts, index=frame.index)
    return frame


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(
    sources: Sources,
    compared: _Comparisons | None,
    title: str | None,
    looking: _Looking,
    tables: Sequence[str],
) -> str:
    import jinja2

    question: list[str] = []
    answers: list[tuple[str, str]] = []
    sections: list[Section] = []
    several = len(sources.sweeps) + len(sources.scans) + bool(sources.runs) > 1
    said: list[Sequence[str]] = []
    for name, scanned in sources.scans.items():
        question.append(_scan_question(scanned, said))
        answers.append((name if several else "", _scan_answer(scanned)))
        sections.append(_scan_section(scanned, f": {name}" if len(sources.scans) > 1 else ""))
    for name, found in sources.sweeps.items():
        question.append(_sweep_question(found, said))
        answers.append((name if several else "", found.verdict()))
        suffix = f": {name}" if len(sources.sweeps) > 1 else ""
        sections += _sweep_sections(found, suffix, looking)
    if sources.runs:
        question.append(_runs_question(sources.runs, compared, said))
        answers += [("", text) for text in _runs_answers(sources.runs, compared)]
        sections += _runs_sections(sources.runs, compared, looking)
    question += _missing(sources, compared)
    sections += _warnings_section(sources, compared)
    sections.append(_provenance_section(sources))
    sections.append(Section("How to read this page", _reading(sources)))
    template = resources.files("plam_eval.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"printable": printable, "breakable": breakable}
    return environment.from_string(template).render(
        title=title or _title(sources),
        question=question,
        answers=[(name, minus_signs(text)) for name, text in answers],
        sections=sections,
        tables=tables,
        folder=TABLES,
    )


def _title(sources: Sources) -> str:
    models = _models(sources)
    what = models[0] if len(models) == 1 else f"{len(models)} models" if models else "plam-eval"
    bases = sorted({base for found in sources.sweeps.values() for base in _bases(found)})
    if bases:
        return f"{what} merged with {bases[0]}" if len(bases) == 1 else f"{what} merged with {len(bases)} base LLMs"
    return f"Where {what} uses its image" if sources.scans and not sources.runs else f"Runs of {what}"


def _models(sources: Sources) -> list[str]:
    names = [_model(found) for found in sources.sweeps.values()]
    names += [str(scan.read_settings(found.folder)["pretrained"]) for found in sources.scans.values()]
    names += [str(run.summary()["pretrained"] or run.summary()["model"]) for run in sources.runs.values()]
    return list(dict.fromkeys(names))


def _model(found: Findings) -> str:
    return str(found.plan["settings"]["model_args"].get("pretrained", found.plan["settings"]["model"]))


def _bases(found: Findings) -> list[str]:
    return list(found.plan["settings"].get("bases") or {})


def _scan_answer(found: Scan) -> str:
    stages = found.stages
    if stages.plateau is None:
        return sentence(stages.reason)
    start, end = stages.plateau
    layers = f"layers {start} to {end - 1}" if end - start > 1 else f"layer {start}"
    return sentence(f"the plateau is {layers} of {stages.num_layers}: {stages.reason}")


def _scan_question(found: Scan, said: list[Sequence[str]]) -> str:
    settings = scan.read_settings(found.folder)
    curve = found.curve
    return (
        f"From which decoder layer on does {settings['pretrained']} no longer need to see its image? "
        f"{count_of(sum(curve.documents.values()), 'document')} of {tasks_named(curve.tasks, said)} were answered with "
        f"the image hidden from later layers, under {len(curve.cuts)} cuts of its {curve.num_layers} layers."
    )


def _sweep_question(found: Findings, said: list[Sequence[str]]) -> str:
    cells = found.cells
    merged, beside = (int((cells["kind"] == kind).sum()) for kind in ("merged", "control"))
    config, bases, chosen = found.plan["config"], _bases(found), found.selection
    run = next(iter(found.runs.values()), None)
    asked = tasks_named(run.tasks if run else config["tasks"], said)
    if run is not None:
        documents = len(run.samples) + (sum(chosen.chosen_on.values()) if chosen and chosen.held_out else 0)
        asked = f"{count_of(documents, 'document')} of {asked}"
    limit = f" (at most {config['limit']} of each task)" if config.get("limit") else ""
    what = f"What do parameters of {' or '.join(bases) or 'the base LLM'} change in {_model(found)}"
    if not beside:
        return f"{what}? {count_of(merged, 'merge')} beside the plain model, on {asked}{limit}."
    return (
        f"{what}, and is it the base that changes it? {count_of(merged, 'merge')} and {count_of(beside, 'control')} "
        f"beside the plain model, on {asked}{limit}."
    )


def _runs_question(runs: Mapping[str, Run], compared: _Comparisons | None, said: list[Sequence[str]]) -> str:
    tasks = list(dict.fromkeys(task for run in runs.values() for task in run.tasks))
    documents = max(len(run.samples) for run in runs.values())
    models = list(dict.fromkeys(str(run.summary()["pretrained"] or run.summary()["model"]) for run in runs.values()))
    if compared is None:
        (name,) = runs
        return f"How does {models[0]} ({name}) answer {count_of(documents, 'document')} of {tasks_named(tasks, said)}?"
    others = [name for name in runs if name != compared.reference]
    which = "Does " + others[0] if len(others) == 1 else "Do " + listed(others)
    return (
        f"{which} answer otherwise than {compared.reference}? Runs of {listed(models)}, each on up to "
        f"{count_of(documents, 'document')} of {tasks_named(tasks, said)}."
    )


def _missing(sources: Sources, compared: _Comparisons | None) -> list[str]:
    """What a reader might look for and does not find."""
    lines = []
    for name, found in sources.sweeps.items():
        where = f" in {name}" if len(sources.sweeps) > 1 else ""
        status = Counter(found.cells["status"])
        if left := len(found.cells) - status[FINISHED]:
            why = ((FAILED, "failed"), (DAMAGED, "are damaged and left out"))
            failed = "".join(f"; {status[key]} of these {text}" for key, text in why if status[key])
            lines.append(f"Of {count_of(len(found.cells), 'cell')}{where}, {left} not finished{failed}.")
        if not (found.cells["kind"] == "control").any():
            lines.append(
                f"No controls were run{where}: what the base does and what the scale of the weights does alone cannot "
                "be told apart."
            )
    if sources.sweeps and not sources.scans:
        lines.append("No scan is among the folders, so which layers are the plateau is not shown.")
    if sources.scans and not sources.sweeps and compared is None:
        lines.append("No sweep or comparison is among the folders, so what merging does is not shown.")
    if len(sources.runs) == 1:
        lines.append("There is no other run to compare it with.")
    if compared is not None and compared.problems:
        lines.append(
            f"Not comparable with {compared.reference}, for the reasons below: {', '.join(compared.problems)}."
        )
    return [" ".join(lines)] if lines else []


# --- a scan -----------------------------------------------------------------------------------------------------------


def _scan_section(found: Scan, suffix: str) -> Section:
    curve, stages = found.curve, found.stages
    kl = f"layer {stages.kl_cut}" if stages.kl_cut < stages.num_layers else "no plateau"
    table = curve.table()
    last = stages.num_layers
    blocks: list[Any] = [
        picture(
            plots.curve_figure(curve, stages),
            f"Accuracy, parsable answers and KL divergence by cut layer. {sentence(stages.reason)}",
            "At the left the image is hidden in every layer, at the right in none. Above: accuracy, and the 95% "
            "interval of its mean over tasks. Below: the share of answers in the form asked for, and how far the first "
            "answer token's distribution is from that of the unmasked model.",
        ),
        Paragraph(minus_signs(sentence(stages.reason))),
        Paragraph(f"Second opinion, by KL at or under {stages.kl_threshold:g} nats: {kl}.", "note"),
        grid(
            f"Mean over {count_of(len(curve.tasks), 'task')} of {count_of(sum(curve.documents.values()), 'document')}",
            records_of(table[table["task"] == OVERALL]),
            {
                "image seen in": lambda row: (
                    "all layers" if row["cut"] == last else f"layers below {row['cut']}" if row["cut"] else "no layer"
                ),
                "accuracy": lambda row: number(row["accuracy"]),
                "95%": lambda row: interval(row["low"], row["high"], plus=False),
                "against unmasked": lambda row: NONE if row["cut"] == last else signed(row["difference"]),
                "95% of that": lambda row: (
                    NONE if row["cut"] == last else interval(row["difference_low"], row["difference_high"])
                ),
                "parsable": lambda row: percent(row["parsable"]),
                "KL (nats)": lambda row: number(row["kl"], 4),
                "layers from here": lambda row: stages.stage_from(int(row["cut"])),
            },
            words={"layers from here"},
            look=lambda row: "total" if row["cut"] == last else "",
        ),
    ]
    spec = found.folder / scan.SPEC
    if spec.is_file():
        blocks.append(Listing("The spec that follows from it", tuple(spec.read_text(encoding="utf-8").splitlines())))
    return Section(f"Where the image is used{suffix}", tuple(blocks))


# --- a sweep ----------------------------------------------------------------------------------------------------------


def _sweep_sections(found: Findings, suffix: str, looking: _Looking) -> list[Section]:
    cells = {str(row["cell"]): row for row in records_of(found.cells)}
    chosen = found.selection.cell if found.selection else None
    note = [Paragraph(_selection_note(found.selection, cells), "note")] if found.selection else []
    parts: list[tuple[str, list[Any]]] = []
    if heat_map := _heat_map(found, cells):
        parts.append(("Layer ranges and weights", [heat_map, *note]))
    if beside := _controls(found, cells):
        parts.append(("Beside the controls", [*beside, *note]))
    if chosen is not None:
        rows = _comparison(found.compared[chosen], PLAIN, "merged", found.runs[PLAIN].directions)
        parts.append(("Task by task", [*note, *rows]))
    if found.compared:
        parts.append(("Answers in the form asked for", _parsable(found, cells)))
    parts.append(("All cells", [*_all_cells(found, cells), *note]))
    if chosen is not None and looking.examples:
        changed = _examples(found.runs[PLAIN], found.runs[chosen], ("plain", "merged"), looking, found.plan)
        parts.append(("What was gained and lost", [*note, *changed]))
    return [Section(f"{title}{suffix}", tuple(blocks)) for title, blocks in parts]


def _selection_note(selection: Selection, cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Which cell is the chosen one, and on what it was chosen."""
    cell = describe(cells[selection.cell])
    reported = count_of(sum(selection.reported_on.values()), "document")
    if selection.tried == 1:
        return f"Merged: {cell}. It is the only merge there is, so nothing was chosen; figures are of {reported}."
    best = f"Chosen: {cell}. It scored best of {selection.tried} merges"
    if selection.held_out:
        others = count_of(sum(selection.chosen_on.values()), "other document")
        return (
            f"{best} on {others} ({signed(selection.difference_chosen)} there); figures here are of the {reported} "
            "held out."
        )
    return f"{best}, chosen on the same {reported} that these figures are of: they are optimistic."


def _heat_map(found: Findings, cells: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    merged = [row for row in cells.values() if row["kind"] == "merged"]
    if len(merged) < 2 or not any(is_known(row["difference"]) for row in merged):
        return None
    several = len({row["modules"] for row in merged}) > 1
    ranges = sorted({_place(row) for row in merged})
    pairs = list(dict.fromkeys((row["modules"], row["model_weight"], row["base_weight"]) for row in merged))
    values: list[list[float | None]] = [[None] * len(ranges) for _ in pairs]
    marked = [[False] * len(ranges) for _ in pairs]
    words: dict[tuple[int, int], str] = {}
    framed = None
    for row in merged:
        at = pairs.index((row["modules"], row["model_weight"], row["base_weight"]))
        across = ranges.index(_place(row))
        if is_known(row["difference"]):
            values[at][across] = float(row["difference"])
            marked[at][across] = bool(row["p_holm"] < SIGNIFICANT)
        else:
            words[at, across] = row["status"] if row["status"] in (FAILED, DAMAGED) else "not run"
        if found.selection is not None and row["cell"] == found.selection.cell:
            framed = (at, across)
    figure = plots.heat_map(
        values,
        [f"{modules}, {one:g} + {two:g}" if several else f"{one:g} + {two:g}" for modules, one, two in pairs],
        [f"{start}:{end}" for start, end in ranges],
        marked=marked,
        words=words,
        chosen=framed,
        scale=float(pd.Series([(row["high"] - row["low"]) / 2 for row in merged]).median()),
        label="difference against plain, mean over tasks",
    )
    count = sum(map(sum, marked))
    rows = "Rows: modules, weight of the model + weight of the base." if several else "Rows: weights, model + base."
    caption = (
        f"{rows} * Holm p below 0.05{'' if count else ', which no cell reaches'}. Framed: the chosen cell. Colours are "
        "pale where differences are small beside their intervals."
    )
    alt = (
        f"Heat map of the difference against plain by layer range and weights; {count} of {len(merged)} cells are "
        "marked. Its numbers are in the table of all cells."
    )
    return picture(figure, alt, caption)


def _controls(found: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    chosen = found.selection.cell if found.selection else None
    several = len({row["modules"] for row in cells.values() if row["kind"] != "plain"}) > 1
    groups: dict[str, list[Estimate]] = {}
    bold = None
    for name, by_rule in sorted(found.plan["grid"]["controls"].items(), key=lambda item: _place(cells[item[0]])):
        row = cells[name]
        label = f"{row['layers']}\n{row['model_weight']:g} + {row['base_weight']:g}"
        label += f"\n{row['modules']}" if several else ""
        roles = [("weighted_sum", name), *((rule, control) for rule, beside in by_rule.items() for control in beside)]
        estimates = [
            Estimate(role, *(float(cells[cell][key]) for key in ("difference", "low", "high")))
            for role, cell in roles
            if cell != PLAIN and is_known(cells[cell]["difference"])
        ]
        if len(estimates) > 1:
            groups[label] = estimates
            bold = label if name == chosen else bold
    if not groups:
        return []
    shown = {estimate.name for estimates in groups.values() for estimate in estimates}
    meanings = [f"{rule}, {meaning}" for rule, meaning in _CONTROLS.items() if rule in shown]
    blocks: list[Any] = [
        picture(
            plots.controls(groups, chosen=bold),
            "Differences against plain of each merge and of its controls, with 95% intervals. Their numbers are in "
            "the table of all cells.",
            f"Lines are 95% intervals. Beside each merge stand {'; '.join(meanings)}. What only the base can do would "
            "set the merge apart from them.",
        )
    ]
    if len(found.controls):
        table = grid(
            "Merges against their own controls, mean over tasks; p is of one comparison each, not adjusted",
            records_of(found.controls),
            {
                "merge": lambda row: describe(cells[row["merged"]]),
                "control": lambda row: (
                    f"{row['rule']} {cells[row['control']]['seed']}" if RULES[row["rule"]] else row["rule"]
                ),
                "merge scores": lambda row: number(row["second"]),
                "control scores": lambda row: number(row["first"]),
                "merge minus control": lambda row: signed(row["difference"]),
                **_PAIRED,
                "answers that differ": lambda row: f"{row['answers_differ']} of {row['documents']}",
            },
            words={"control"},
            look=lambda row: "chosen" if row["merged"] == chosen else "",
        )
        blocks.append(table)
    return blocks


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["start"]), int(row["end"])


def _parsable(found: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    first = next(iter(found.compared.values()))
    shares = {PLAIN: {row.task: row.parsable_first for row in first}}
    shares |= {name: {row.task: row.parsable_second for row in rows} for name, rows in found.compared.items()}
    known = [share for by_task in shares.values() for share in by_task.values() if not math.isnan(share)]
    if not known:
        return [Paragraph("These tasks ask for free words; there is no form that an answer could miss.")]
    if min(known) == 1:
        return [Paragraph(f"Every answer of all {count_of(len(shares), 'cell')} has the form its task asks for.")]

    many = len(first) > 2

    def column(task: str) -> Callable[[Any], str]:
        return lambda name: percent(shares[name][task])

    table = grid(
        "Share of answers in the form asked for (a letter, yes or no), by cell and task",
        [name for name in cells if name in shares],
        {
            "cell": lambda name: describe(cells[name]),
            **{
                "mean" if row.task == OVERALL else row.task: column(row.task) for row in (first if many else first[:-1])
            },
        },
        look=lambda name: "chosen" if found.selection is not None and name == found.selection.cell else "",
    )
    return [Paragraph("A difference in this share is one of format, and may be all there is to one in score."), table]


def _all_cells(found: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    chosen = found.selection.cell if found.selection else None

    def look(row: Any) -> str:
        if row["status"] in (FAILED, DAMAGED):
            return "failed"
        return "chosen" if row["cell"] == chosen else "quiet" if row["kind"] == "control" else ""

    reported = len(found.runs[PLAIN].samples) if found.compared else 0
    done = all(row["status"] == FINISHED for row in cells.values())
    against_plain: dict[str, Callable[[Any], str]] = {
        "score": lambda row: number(row["second"]),
        "difference": lambda row: signed(row["difference"]),
        **_PAIRED,
        f"Holm{SPACE}p": lambda row: p_value(row["p_holm"]),
        "parsable": lambda row: percent(row["parsable_second"]),
    }
    table = grid(
        f"Every cell against plain, mean over tasks of {count_of(reported, 'document')}" if reported else "Every cell",
        list(cells.values()),
        {
            "cell": describe,
            **({} if done else {"status": lambda row: "not run" if row["status"] == "missing" else str(row["status"])}),
            **(against_plain if reported else {}),
            "change of weights": lambda row: percent(row["relative_change"]),
            "seconds": lambda row: number(row["merge_seconds"] + row["evaluate_seconds"], 1),
        },
        words=() if done else {"status"},
        look=look,
    )
    listings = []
    for status, title in ((FAILED, "What failed"), (DAMAGED, "What is damaged, and was left out")):
        rows = [row for row in cells.values() if row["status"] == status]
        lines = tuple(f"{describe(row)}: {cut_short(text_of(row['error']))}" for row in rows)
        listings += [Listing(f"{title} ({len(lines)})", lines, code=False, open=True)] if lines else []
    return [table, *listings]


# --- two runs ---------------------------------------------------------------------------------------------------------


def _comparison(rows: Sequence[Paired], first: str, second: str, directions: Mapping[str, int]) -> list[Any]:
    """Task by task: figure and table."""
    tasks, overall = rows[:-1], rows[-1]
    many = len(tasks) > 1
    figure = plots.forest(
        [Estimate(row.task, row.difference, row.low, row.high) for row in tasks],
        overall=Estimate("mean over tasks", overall.difference, overall.low, overall.high) if many else None,
        label=f"{second} minus {first}",
    )
    alt = (
        f"Difference {second} minus {first} with 95% intervals by task; mean over tasks "
        f"{signed(overall.difference)}, {interval(overall.low, overall.high)}."
    )
    caption = "Lines are 95% intervals, one task at a time. Where one crosses 0, no difference is shown."

    def name(row: Any) -> str:
        falling = directions.get(row["task"]) == -1
        return "mean over tasks" if row["task"] == OVERALL else row["task"] + (" (lower is better)" if falling else "")

    table = grid(
        f"{second} against {first}, by task; p of single tasks is not adjusted",
        records_of(stats.frame(rows if many else tasks)),
        {
            "task": name,
            "n": lambda row: f"{row['documents']:,}",
            first: lambda row: number(row["first"]),
            second: lambda row: number(row["second"]),
            "difference": lambda row: signed(row["difference"]),
            **_PAIRED,
            "test": lambda row: {"mcnemar": "McNemar", "sign-flip": "sign flips"}[row["test"]],
            f"parsable, {first}": lambda row: percent(row["parsable_first"]),
            f"parsable, {second}": lambda row: percent(row["parsable_second"]),
        },
        words={"test"},
        look=lambda row: "total" if row["task"] == OVERALL else "",
    )
    blocks: list[Any] = [picture(figure, alt, caption), table]
    if overall.needed is not None:
        text = (
            f"To find a true difference of 0.01 in the mean four times in five would take about {overall.needed:,} "
            f"documents like these; here are {overall.documents:,}."
        )
        blocks.append(Paragraph(text, "note"))
    return blocks


def _runs_answers(runs: Mapping[str, Run], compared: _Comparisons | None) -> list[str]:
    if compared is None:
        scores = next(iter(runs.values())).accuracy()
        if scores.isna().all():
            return ["No score per document is known; the table metrics has what its tasks report."]
        scores = scores.dropna()
        mean = f", the mean over {len(scores)} tasks" if len(scores) > 1 else ""
        return [f"It scores {scores.mean():.3f}{mean}."]
    answers = []
    signs = set(runs[compared.reference].directions.values())
    for name, rows in compared.rows.items():
        row, p = rows[-1], compared.p_holm[name]
        if p >= SIGNIFICANT:
            verdict = "no difference is shown."
        elif len(signs) > 1:
            verdict = "it differs; lower is better in some tasks, higher in others."
        else:
            verdict = f"{'better' if row.difference * next(iter(signs)) > 0 else 'worse'} than {compared.reference}."
        adjusted = f", adjusted for {len(compared.rows)} comparisons {p_value(p)}" if len(compared.rows) > 1 else ""
        answers.append(
            f"{name} scores {row.difference:+.3f} against {compared.reference} ({row.gained} gained, {row.lost} lost, "
            f"p {equal_p(row.p)}{adjusted}): {verdict}"
        )
    return [*answers, *(f"{name} cannot be compared with {compared.reference}." for name in compared.problems)]


def _runs_sections(runs: Mapping[str, Run], compared: _Comparisons | None, looking: _Looking) -> list[Section]:
    tables = records.tables(dict(runs))
    if compared is None:
        rows = records_of(tables.tasks)
        figure = plots.forest(
            [Estimate(row["task"], row["accuracy"], row["low"], row["high"]) for row in rows], label="score", zero=False
        )
        table = grid(
            "Mean score of the documents, by task",
            rows,
            {
                "task": lambda row: row["task"],
                "n": lambda row: f"{row['documents']:,}",
                "score": lambda row: number(row["accuracy"]),
                "95%": lambda row: interval(row["low"], row["high"], plus=False),
                "parsable": lambda row: percent(row["parsable"]),
            },
        )
        shown = picture(figure, "Score of every task.", "Lines are 95% intervals, where answers are right or wrong.")
        return [Section("Task by task", (shown, table))]
    reference = compared.reference
    blocks: list[Any] = []
    if len(compared.rows) > 1:
        estimates = [Estimate(n, r[-1].difference, r[-1].low, r[-1].high) for n, r in compared.rows.items()]
        figure = plots.forest(estimates, label=f"difference against {reference}")
        alt = f"Differences of {len(estimates)} runs against {reference}, with 95% intervals."
        blocks.append(picture(figure, alt, "Lines are 95% intervals."))
    if compared.rows:
        table = grid(
            f"Runs against {reference}, mean over tasks",
            [{"run": name, "p_holm": compared.p_holm[name], **vars(rows[-1])} for name, rows in compared.rows.items()],
            {
                "run": lambda row: row["run"],
                "n": lambda row: f"{row['documents']:,}",
                "score": lambda row: number(row["second"]),
                "difference": lambda row: signed(row["difference"]),
                **_PAIRED,
                f"Holm{SPACE}p": lambda row: p_value(row["p_holm"]),
            },
        )
        blocks.append(table)
    for name, problems in compared.problems.items():
        why = "they were not asked alike" if name not in compared.warnings else "no document has a score in all"
        blocks.append(Paragraph(f"{name} is not compared with {reference}: {why}.", "warning"))
        blocks.append(Listing("What differs", tuple(map(cut_short, problems)), code=False, open=True))
    if len(compared.rows) > _DETAILED:
        text = f"Task by task, only the first {_DETAILED} follow; the table of tasks beside this page has all."
        blocks.append(Paragraph(text, "note"))
    sections = [Section(f"Runs against {reference}", tuple(blocks))]
    for name, found in list(compared.rows.items())[:_DETAILED]:
        blocks = _comparison(found, reference, name, runs[reference].directions)
        if looking.examples:
            blocks += _examples(runs[reference], runs[name], (reference, name), looking)
        sections.append(Section(f"{name} against {reference}", tuple(blocks)))
    shares = tables.tasks.groupby("run")["parsable"].mean()
    table = grid(
        "Scores are means over tasks of the documents' scores",
        records_of(tables.runs),
        {
            "run": lambda row: row["run"],
            "model": lambda row: text_of(row["pretrained"]) or text_of(row["model"]),
            "merge": _merge,
            "documents": lambda row: f"{row['documents']:,}",
            "score": lambda row: number(row["accuracy"]),
            "parsable": lambda row: percent(shares[row["run"]]),
            "mode": lambda row: text_of(row["mode"]) or NONE,
            "dtype": lambda row: text_of(row["dtype"]) or NONE,
            "date": lambda row: text_of(row["date"]) or NONE,
        },
        words={"model", "merge", "mode", "dtype", "date"},
    )
    return [*sections, Section("All runs", (table,))]


def _merge(row: Mapping[str, Any]) -> str:
    if not is_known(row["layers"]):
        return "plain" if row["plain"] is True else NONE
    modules = sweep.module_group(row["modules"].split("+"))
    return describe({**row, "kind": "merged", "modules": modules, "seed": None})


# --- documents that changed -------------------------------------------------------------------------------------------


def _examples(
    first: Run,
    second: Run,
    names: tuple[str, str],
    looking: _Looking,
    plan: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Gained and lost documents with their images, from each task in turn, in the order of their numbers."""
    both = first.samples.merge(second.samples, on=["task", "doc_id"], suffixes=("_first", "_second"))
    sign = both["task"].map(lambda task: first.directions.get(task, 1))
    change = (both["score_second"] - both["score_first"]) * sign
    picked = {
        title: (int(where.sum()), _spread(both[where], looking.examples))
        for title, where in (("Gained", change > 0), ("Lost", change < 0))
    }
    wanted: dict[str, dict[int, str]] = {}
    for _, rows in picked.values():
        for row in rows:
            wanted.setdefault(row["task"], {})[row["doc_id"]] = row["prompt_first"]
    if not wanted:
        return [Paragraph("No document is scored otherwise.")]
    line = plan["config"] if plan else (first.results.get("config") or {}).get("resolved_cli_args") or {}
    wrapper = first.block.get("wrapper")
    images, missing = harness.document_images(
        wanted,
        looking.data,
        model=wrapper if isinstance(wrapper, str) and wrapper in WRAPPERS else None,
        include_path=looking.include_path,
    )
    blocks: list[Any] = []
    if missing:
        reasons: dict[str, list[str]] = {}
        for task, reason in missing.items():
            reasons.setdefault(cut_short(reason, 300), []).append(task)
        text = "; ".join(f"{', '.join(tasks)}: {reason.rstrip('.')}" for reason, tasks in reasons.items())
        hint = "Sample logs hold no images; --data names the folder in which the evaluation found its datasets"
        started = plan.get("working_directory") if plan else None
        hint += f" (it was started in {started})." if started else "."
        if (include := line.get("include_path")) and looking.include_path is None:
            hint += (
                f" It had further tasks from {include}: images of those are not looked up, since it takes running the "
                "code in that folder. --include_path names a folder whose code you trust."
            )
        blocks.append(Paragraph(f"Images are missing. {text}. {hint}", "note"))
    for title, (total, rows) in picked.items():
        if not rows:
            blocks.append(Paragraph(f"{title}: none."))
            continue
        shown = f"{len(rows)} of {total}" if total > len(rows) else f"{total}"
        blocks.append(
            Examples(f"{title}: {shown}", tuple(_example(row, names, images, first.directions) for row in rows))
        )
    return blocks


def _spread(rows: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    turn = rows.sort_values("doc_id", kind="stable").groupby("task", sort=False).cumcount()
    order = {task: index for index, task in enumerate(rows["task"].unique())}
    place = rows.assign(turn=turn, order=rows["task"].map(order)).sort_values(["turn", "order"], kind="stable")
    picked: list[dict[str, Any]] = place.head(count).sort_values(["order", "turn"], kind="stable").to_dict("records")
    return picked


def _example(
    row: Mapping[str, Any],
    names: tuple[str, str],
    images: Mapping[tuple[str, int], list[Image]],
    directions: Mapping[str, int],
) -> Example:
    found = images.get((row["task"], row["doc_id"]), [])
    answers = []
    for name, side in zip(names, ("first", "second"), strict=True):
        score = row[f"score_{side}"]
        words = {0.0: "wrong", 1.0: "right"} if directions.get(row["task"], 1) > 0 else {}  # no errors are not wrong
        verdict = words.get(score, f"score {score:.3g}")
        answers.append((name, verdict, clip(str(row[f"answer_{side}"]), _ANSWER)))
    return Example(
        title=f"{row['task']}, document {row['doc_id']}",
        images=tuple(_embedded(image) for image in found[:_IMAGES]),
        more_images=max(0, len(found) - _IMAGES),
        question=clip(str(row["prompt_first"]), _QUESTION),
        target=clip(str(row["target_first"]), _ANSWER),
        answers=tuple(answers),
    )


def _embedded(image: Image) -> tuple[str, int, bool]:
    """A small copy as a data URI, in whichever of two formats is smaller."""
    from PIL import Image as pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        small = pillow.new("RGB", layer.size, "white")
        small.paste(layer, mask=layer.getchannel("A"))
    else:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    encoded = []
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 82, "optimize": True})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **settings)
        encoded.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(encoded)
    side = max(small.size)
    times = max(1, 192 // side) if side <= _TINY else 1
    return data_uri(f"image/{kind}", content), small.size[0] * times, times > 1


# --- warnings, provenance, how to read --------------------------------------------------------------------------------


def _warnings_section(sources: Sources, compared: _Comparisons | None) -> list[Section]:
    found: dict[str, list[str]] = {}  # by warning: where
    for note in sources.notes:
        found.setdefault(note, [])
    for name, scanned in sources.scans.items():
        for warning in scanned.stages.warnings:
            found.setdefault(f"scan: {warning}", []).append(name)
    groups = [(name, result.runs) for name, result in sources.sweeps.items()] + [("", sources.runs)]
    for result in sources.sweeps.values():
        notes = [note for run in result.runs.values() for note in run.notes]
        for warning in result.warnings:
            if warning.endswith((records.UNKNOWN_CLUSTERS, *notes)):  # below, with the cells it is of
                continue
            cell, _, text = warning.partition(": ")
            inside = cell in result.runs and text
            found.setdefault(text if inside else warning, []).extend([cell] if inside else [])
    for _, runs in groups:
        for name, run in runs.items():
            for warning in _run_warnings(run):
                found.setdefault(warning, []).append(name)
    if compared is not None:
        for name, warnings in compared.warnings.items():
            for warning in warnings:
                found.setdefault(warning, []).append(name)
    lines = []
    for warning, where in records.joined(found).items():
        places = ", ".join(where) if len(where) <= 4 else f"{', '.join(where[:3])} and {len(where) - 3} others"
        lines.append(minus_signs(f"{cut_short(warning)} ({places})" if where else cut_short(warning)))
    if not lines:
        return []
    return [Section("Warnings", (Listing(f"{count_of(len(lines), 'warning')}", tuple(lines), code=False, open=True),))]


def _run_warnings(run: Run) -> list[str]:
    merge = (run.block.get("provenance") or {}).get("merge") or {}
    found = [str(warning) for warning in merge.get("warnings") or []]
    found += [*run.notes, *(f"{task}: {records.LEFT_OUT}: {why}" for task, why in run.unscored.items())]
    generation = run.block.get("generation") or {}
    if generation.get("failed"):
        found.append(f"{generation['failed']} of {generation['calls']} generations failed and count as wrong answers")
    if altered := run.block.get("altered_answers"):
        found.append(f"{count_of(len(altered), 'answer')} could not be written as given and were altered")
    return found


def _content(found: Findings, what: str, name: str | None = None) -> dict[str, str]:
    """The content hash of a sweep's model or base, which its runs have in their records and its settings have not."""
    for run in found.runs.values():
        stored = (run.block.get("provenance") or {}).get(what) or {}
        if "files" in stored and "sha256" in stored and name in (None, stored.get("name")):
            return {"sha256": stored["sha256"]}
    return {}


def _provenance_section(sources: Sources) -> Section:
    rows: list[tuple[str, str]] = []
    blocks: list[Any] = []
    alone = len(sources.sweeps) + len(sources.scans) + len(sources.runs) == 1

    def of(name: str, what: str) -> str:
        return what if alone else f"{name}: {what}"

    for name, found in sources.sweeps.items():
        settings = found.plan["settings"]
        model = {**(settings.get("checkpoint") or {}), **_content(found, "checkpoint")}
        rows.append((of(name, "model"), f"{_model(found)} ({identity_of(model)})"))
        for base, identity in (settings.get("bases") or {}).items():
            rows.append(
                (of(name, "base LLM"), f"{base} ({identity_of({**identity, **_content(found, 'base', base)})})")
            )
        rows.append((of(name, "versions"), pairs_of(settings.get("versions"))))
        if commits := sorted({str(c) for run in found.runs.values() if (c := run.summary()["commit"])}):
            rows.append((of(name, "plam-eval commit"), ", ".join(commits)))
        command = found.plan.get("command") or []
        folder = found.plan.get("working_directory")
        lines = (*((f"cd {shlex.quote(folder)}",) if folder else ()), shlex.join(map(str, command)))
        blocks.append(Listing(f"The command of {name}", lines, open=True))
        if found.runs:
            config = {key: found.plan["config"].get(key) for key in ("tasks", "include_path", "force_simple")}
            commands = tuple(_command(run, config) for run in found.runs.values())
            blocks.append(Listing(f"Each cell of {name} as an lmms-eval command ({len(commands)})", commands))
        digests = [f"{row['digest']}  {describe(row)}" for row in records_of(found.cells) if text_of(row["digest"])]
        blocks.append(Listing(f"Digests of the specs of {name} ({len(digests)})", tuple(digests)))
    for name, scanned in sources.scans.items():
        settings = scan.read_settings(scanned.folder)
        rows.append(
            (
                of(name, "model"),
                f"{settings['pretrained']}, {settings['wrapper']}, {settings['mode']}, {settings['dtype']}",
            )
        )
        rows.append((of(name, "weights and arguments"), str(settings["weights and arguments"])))
        rows.append((of(name, "versions"), pairs_of(settings["versions"])))
        rows.append((of(name, "curve digest"), scanned.stages.curve_digest))
    for name, run in sources.runs.items():
        provenance = run.block.get("provenance") or {}
        for what in ("checkpoint", "base"):
            if identity := provenance.get(what):
                rest = {key: value for key, value in identity.items() if key != "name"}
                rows.append(
                    (
                        of(name, "model" if what == "checkpoint" else "base LLM"),
                        f"{identity.get('name')} ({identity_of(rest)})",
                    )
                )
        if provenance.get("digest"):
            rows.append((of(name, "spec digest"), str(provenance["digest"])))
        summary = run.summary()
        rows.append((of(name, "versions"), pairs_of(provenance.get("versions") or {"lmms-eval": summary["lmms_eval"]})))
        rows.append((of(name, "file"), summary["file"]))
    if sources.runs:
        commands = tuple(_command(run, {}) for run in sources.runs.values())
        blocks.append(Listing(f"The runs as lmms-eval commands ({len(commands)})", commands, open=len(commands) < 5))
    table = Grid("Who made these figures, from what", ("of", "what"), tuple(Row(row) for row in rows), frozenset({1}))
    return Section("Where it comes from", (table, *blocks))


def _command(run: Run, known: Mapping[str, Any]) -> str:
    """The command line of a run. `known` goes over what the results say: they log defaults for runs in process."""
    config = run.results.get("config") or {}
    line = config.get("resolved_cli_args") or {}
    settings = run.results.get("gen_kwargs") or config.get("gen_kwargs") or line.get("gen_kwargs")
    if isinstance(settings, Mapping):
        settings = ",".join(f"{key}={value}" for key, value in settings.items())
    tasks = known.get("tasks") or line.get("tasks") or run.tasks
    limit = config.get("limit")
    words = {
        "--model": run.block.get("wrapper") or line.get("model") or config.get("model"),
        "--model_args": config.get("model_args"),
        "--tasks": tasks if isinstance(tasks, str) else ",".join(tasks),
        "--batch_size": config.get("batch_size"),
        "--limit": int(limit) if isinstance(limit, float) and limit == int(limit) else limit,
        "--offset": config.get("offset") or None,
        "--gen_kwargs": settings or None,
        "--include_path": known.get("include_path") or line.get("include_path"),
    }
    parts = [str(part) for key, value in words.items() if value is not None and value != "" for part in (key, value)]
    simple = ["--force_simple"] if known.get("force_simple") or line.get("force_simple") else []
    return shlex.join(["lmms-eval", *parts, *simple, "--log_samples", "--output_path", "OUTPUT"])


def _reading(sources: Sources) -> tuple[Any, ...]:
    lines = ["Scores are means of the documents' own scores, from 0 to 1. The mean over tasks weighs every task alike."]
    if sources.sweeps or sources.runs:
        lines[0] += " A task's stock metric, on its own scale, is in the table metrics."
        lines.append(
            "In the tables as CSV an apostrophe stands before texts that a spreadsheet would run as a formula (those "
            "that begin with =, +, - or @); parquet holds them as they are."
        )
    lines += [
        "An interval of 95% says how far a figure might move if other documents of the same kind had been asked. p "
        "says how often chance alone would give so large a difference; Holm p, how often it would in any of the "
        "settings compared. Documents that share an image or a question count together.",
        "That no difference is shown does not say that there is none: look at how wide the interval is.",
        "This page does not say what another model, task, prompt or way of decoding would show, or whether the model "
        "saw these documents in training.",
    ]
    return tuple(Paragraph(line) for line in lines)


_PAIRED: dict[str, Callable[[Any], str]] = {  # columns that every comparison has
    "95%": lambda row: interval(row["low"], row["high"]),
    "gained": lambda row: text_of(row["gained"]) or NONE,
    "lost": lambda row: text_of(row["lost"]) or NONE,
    "p": lambda row: p_value(row["p"]),
}
