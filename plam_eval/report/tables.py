"""Tables for the terminal.

Two are not here. `plam doctor` writes its own: it has to work where pandas, which these need, does not. So does a
`MergeReport` (`merging/report.py`): every merge prints it into the log of an evaluation, floors below this one.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box

from plam_eval.evaluation.attend.compared import COMPARED
from plam_eval.evaluation.second_parser import BRIEFLY, IN_NEITHER, Second, reading_again
from plam_eval.evaluation.stats import OVERALL, Paired, format_p
from plam_eval.evaluation.sweep.grid import describe_cell, describe_rule, describe_weights
from plam_eval.evaluation.sweep.job import chunks
from plam_eval.probing.closed import READERS
from plam_eval.report import noise as noise_columns
from plam_eval.rules import RANDOM_LAYERS, SELF_SCALE
from plam_eval.terminal import PlainTable, text

if TYPE_CHECKING:
    from plam_eval.evaluation.attend.summary import AttendFindings
    from plam_eval.evaluation.noise.floor import Noise
    from plam_eval.evaluation.scan_folder import Scan
    from plam_eval.evaluation.search.findings import SearchFindings
    from plam_eval.evaluation.search.job import SearchJob
    from plam_eval.evaluation.sweep.findings import Findings
    from plam_eval.evaluation.sweep.job import Job
    from plam_eval.evaluation.sweep.selection import Selection
    from plam_eval.probing.curve import Curve
    from plam_eval.probing.plateau import Stages
    from plam_eval.terminal import Terminal


def _narrow(first: str, least: int, others: Sequence[str]) -> PlainTable:
    """A table without rules between columns, of rows with two lines; `first` may be folded, down to `least` columns."""
    table = PlainTable(caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, min_width=least, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def comparison(
    rows: Sequence[Paired],
    first: str = "plain",
    second: str = "merged",
    directions: Mapping[str, int] | None = None,
    *,
    noise: Noise | None = None,
    second_parser: Mapping[str, Second] | None = None,
    narrow: bool = False,
) -> PlainTable:
    """One line per task and the mean over tasks last, as `stats.compare` gives them.

    Args:
        rows: of the tasks, and of the mean over them.
        first: name of the first run.
        second: name of the second.
        directions: as `stats.compare` takes them.
        noise: the noise floor, beside each difference; None where it was not measured.
        second_parser: by task, what is left of the difference under the second parser; a column more where it is.
        narrow: for 80 columns, in two lines per task.
    """
    falling = {task for task, direction in (directions or {}).items() if direction < 0}
    if narrow:
        pairs = (f"{first}\n{second}", "difference\n95 %", "gained\nlost", "p", "parsable")
        table = _narrow("task", 21, pairs)
    else:
        table = PlainTable(caption_justify="left")
        table.add_column("task", no_wrap=True)
        headers = noise_columns.COLUMNS if noise else ()
        for name in ("n", first, second, "difference", "95 %", *headers, "gained", "lost", "p", "parsable"):
            table.add_column(name, justify="right", no_wrap=True)
        if second_parser:
            table.add_column("second parser", no_wrap=True)
    for row in rows:
        overall = row.task == OVERALL
        if overall:
            table.add_section()
        name = "mean over tasks" if overall else row.task + (" (lower is better)" if row.task in falling else "")
        shares = [] if pd.isna(row.parsable_first) else [f"{row.parsable_first:.0%}", f"{row.parsable_second:.0%}"]
        scores, difference = [f"{row.first:.3f}", f"{row.second:.3f}"], f"{row.difference:+.3f}"
        between, counts = _interval(row.low, row.high), [str(row.gained), str(row.lost)]
        if narrow:
            floor = f"\n{noise_columns.below(noise, row)}" if noise else ""
            cells = ["\n".join(scores), f"{difference}\n{between}{floor}", "\n".join(counts), format_p(row.p)]
            cells = [f"{name}\n  n = {row.documents}", *cells, "\n".join(shares)]
        else:
            floors = noise_columns.beside(noise, row) if noise else []
            cells = [name, str(row.documents), *scores, difference, between, *floors, *counts, format_p(row.p)]
            cells.append(" ".join(shares))
        look = (second_parser or {}).get(row.task)
        if second_parser and not narrow:
            cells.append("" if look is None else look.words())
        table.add_row(*cells, style="bold" if overall else None)
        if look is not None and narrow:
            table.add_row(*_second_line(look.difference, look.p, look.verdict))
    lines = [
        f"gained, lost: documents that {second} scores better on, or {first} does",
        "parsable: answers in the form asked for, of both; p: exact McNemar test, or sign flips of groups of documents",
    ]
    lines += [noise_columns.CAPTION] if noise else []
    if second_parser:
        lines.append(reading_again())
    if rows[-1].needed is not None:
        lines.append(f"a difference of one point would take about {rows[-1].needed} documents like these to find")
    table.caption = "\n".join(lines)
    return table


def _second_line(difference: float, p: float, verdict: str) -> tuple[str, ...]:
    """The line of the second parser below one in a narrow table."""
    return ("  second parser", "", f"{difference:+.3f}", "", format_p(p), BRIEFLY[verdict])


def sweep(findings: Findings, *, narrow: bool = False) -> PlainTable:
    """One line per cell: against plain, and merges against their scale control.

    Args:
        findings: the sweep's findings.
        narrow: for 80 columns, in two lines per cell.

    Draws of random layers are one column, "better than 5 of 5", and have no lines of their own.
    """
    drawn = findings.random_layers.set_index("merged")
    folded = _draws_alone(findings)
    chosen = findings.selection.cell if findings.selection else None
    again = "survives" in findings.cells and findings.cells["survives"].notna().any()
    if narrow:
        pairs = ("score\nparsable", "difference\n95 %", "gained\nlost", "p\np Holm", f"minus\n{SELF_SCALE}")
        table = _narrow("setting", 16, pairs)
    else:
        table = PlainTable(caption_justify="left")
        table.add_column("setting", no_wrap=True)
        for name in ("score", "difference", "95 %", "gained", "lost", "p", "p Holm", "parsable", f"minus {SELF_SCALE}"):
            table.add_column(name, justify="right", no_wrap=True)
        if again:
            table.add_column("second parser", no_wrap=True)
        if findings.label_free:
            table.add_column("neighbours\ndiffer", justify="right", no_wrap=True)
        if len(drawn):
            table.add_column("minus draws, better than", justify="right", no_wrap=True)
    beside = findings.controls[findings.controls["rule"] == SELF_SCALE].drop_duplicates("merged").set_index("merged")
    for _, row in findings.cells[~findings.cells["cell"].isin(folded)].iterrows():
        name = _setting_name(row, narrow=narrow) + (" *" if row["cell"] == chosen else "")
        if row["status"] != "finished" or pd.isna(row["second"]):
            table.add_row(name, text(row["status"], "red" if row["status"] == "failed" else ""))
            continue
        own = _own_words(row, beside)
        among = _among_draws(row, drawn)
        style = "bold" if row["cell"] == chosen else "dim" if row["kind"] == "control" else None
        if narrow:
            pairs = ("score parsable", "difference between", "gained lost", "p p_holm", "minus minus_p")
            cells = ["\n".join(own[column] for column in pair.split()) for pair in pairs]
            name += f"\ndraws: {among}" if among else ""
        else:
            single = ("score", "difference", "between", "gained", "lost", "p", "p_holm", "parsable")
            cells = [*(own[column] for column in single), f"{own['minus']} {own['minus_p']}".strip()]
            cells += [own["again"]] if again else []
            cells += [own["differ"]] if findings.label_free else []
            cells += [among] if len(drawn) else []
        table.add_row(name, *cells, style=style)
        if narrow and own["again"] and row["survives"] != IN_NEITHER:
            table.add_row(*_second_line(row["rescored_difference"], row["rescored_p"], row["survives"]), style=style)
    if findings.selection is not None:
        table.caption = _how_to_read(findings, findings.selection, draws=bool(folded), narrow=narrow)
    return table


def _setting_name(row: pd.Series, *, narrow: bool) -> str:
    if not narrow or row["kind"] == "plain":
        return describe_cell(row)
    weights = describe_weights(row).replace(" + ", "+")
    return f"layers {row['layers']}, {row['modules']}\n{' '.join([weights, *describe_rule(row)])}"


def _own_words(row: pd.Series, beside: pd.DataFrame) -> dict[str, str]:
    """What the table of a sweep says of a finished cell, by column; `beside` has the scale controls by merge."""
    own = dict.fromkeys(("difference", "between", "gained", "lost", "p", "p_holm", "minus", "minus_p"), "")
    own["score"] = f"{row['second']:.3f}"
    own["parsable"] = "" if pd.isna(row["parsable_second"]) else f"{row['parsable_second']:.0%}"
    differ = row.get("differ_from_neighbours")
    own["differ"] = "" if pd.isna(differ) else str(differ)
    own["again"] = ""
    if isinstance(row.get("survives"), str):
        own["again"] = f"{row['rescored_difference']:+.3f} {BRIEFLY[row['survives']]}"
    if row["kind"] != "plain":
        own |= {"difference": f"{row['difference']:+.3f}", "between": _interval(row["low"], row["high"])}
        own |= {"gained": str(row["gained"]), "lost": str(row["lost"])}
        own |= {"p": format_p(row["p"]), "p_holm": format_p(row["p_holm"])}
    if row["cell"] in beside.index:
        against = beside.loc[row["cell"]]
        own |= {"minus": f"{against['difference']:+.3f}", "minus_p": f"(p {format_p(against['p'])})"}
    return own


def _among_draws(row: pd.Series, drawn: pd.DataFrame) -> str:
    """A merge minus the mean of its draws of random layers, and how many it is better than; "" without any."""
    if row["cell"] not in drawn.index:
        return ""
    draws = drawn.loc[row["cell"]]
    return f"{draws['difference']:+.3f} (p {format_p(draws['p'])}), {draws['better']} of {draws['draws']}"


def _how_to_read(findings: Findings, chosen: Selection, *, draws: bool, narrow: bool) -> str:
    """What stands below the table of a sweep; `draws`: whether some have no lines of their own."""
    first, reported = max(chosen.chosen_on.values()), sum(chosen.reported_on.values())
    which = f"{first} drawn" if findings.plan.get("drawn") else f"the first {first}"
    on = f"{which} documents of each task" if chosen.held_out else "these documents"
    warning = "which are not among those reported" if chosen.held_out else "so its own figures look too good"
    lines = [
        f"mean over tasks of {reported} documents, against plain",
        f"p Holm: adjusted for all of these settings{' and the draws' if draws else ''}",
        f"* scored best on {on}, {warning}",
    ]
    if "survives" in findings.cells and findings.cells["survives"].notna().any():
        said = "where no line of it stands, none is shown by either" if narrow else "neither: none is shown by either"
        lines += textwrap.wrap(f"{reading_again(with_p=narrow)}; {said} (p Holm)", 78)
    if findings.label_free is not None:
        lines += textwrap.wrap(findings.label_free.text(), 78)
    return "\n".join(lines)


def _draws_alone(findings: Findings) -> set[str]:
    """Cells that are draws of random layers and nothing else: they have no lines of their own."""
    others, draws = set[str](), set[str]()
    for by_rule in findings.plan["grid"]["controls"].values():
        for rule, names in by_rule.items():
            (draws if rule == RANDOM_LAYERS else others).update(names)
    merged = findings.cells.loc[findings.cells["kind"] != "control", "cell"]
    return draws - others - {*merged}


def plan(job: Job, documents: dict[str, int] | None, *, measured: bool = False) -> PlainTable:
    """What a sweep would do: its cells, what each reads, what is finished, and an estimate of its time.

    Args:
        job: the sweep.
        documents: by task; None where they are not known.
        measured: a time that was measured for it is shown beside this table, which then gives none.
    """
    left = {cell.name for cell in job.left()}
    table = PlainTable(caption_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("kind")
    for name in ("to read", "state"):
        table.add_column(name, justify="right")
    for cell in job.grid.cells:
        size = job.bytes_to_read.get(cell.name, 0)
        table.add_row(
            cell.name, cell.kind, f"{size / 1e6:.1f} MB" if size else "", "" if cell.name in left else "finished"
        )
    total = sum(job.bytes_to_read.get(name, 0) for name in left)
    seconds = job.seconds_per_cell()
    estimate = (
        f"about {seconds * len(left) / 60:.1f} minutes at {seconds:.1f} s a cell, as those that are finished"
        if seconds is not None
        else "no time yet: it follows from the first finished cell, or from some documents (--dry-run 20)"
    )
    estimate = "" if measured else f"; {estimate}"
    generations = (
        f"{sum(documents.values())} documents each, {sum(documents.values()) * len(left)} generations in all"
        if documents
        else "the number of documents is not known here"
    )
    if (together := job.config.together) > 1:
        sizes = [sum(job.bytes_merged.get(c.name, 0) for c in chunk) for chunk in chunks(job.left(), together)]
        estimate += (
            f"\n{together} cells are answered together, with up to {max(sizes, default=0) / 1e6:.1f} MB of merged "
            "tensors (as stored) beside the model"
        )
    table.caption = f"{len(left)} cells to run, {generations}\n{total / 1e6:.1f} MB to read for merging{estimate}"
    return table


def search(findings: SearchFindings, *, most: int = 12) -> PlainTable:
    """The best settings of a search, on the documents that they were chosen on.

    Args:
        findings: of the search.
        most: so many settings.
    """
    table = PlainTable(title=f"{findings.tried} settings tried on {findings.documents} documents", title_justify="left")
    table.add_column("setting", overflow="fold")
    for name in ("proposal", "answered", "gain over plain"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = findings.trials.sort_values(["whole", "gain"], ascending=False, kind="stable")
    for row in rows.head(most).to_dict("records"):
        table.add_row(
            text(describe_cell({**row, "kind": "merged"}), "bold" if row["chosen"] else ""),
            str(row["number"]) if row["number"] >= 0 else "given",
            "all" if row["whole"] else str(row["documents"]),
            f"{row['gain']:+.3f}",
        )
    given_up = int((~findings.trials["whole"].astype(bool)).sum())
    table.caption = (
        f"{given_up} given up before all documents were answered; gains are those of the documents to choose on, and "
        "look better than they are"
    )
    table.caption_justify = "left"
    return table


def search_plan(job: SearchJob, tried: int, documents: Mapping[str, int] | None) -> PlainTable:
    """What a search would do: its space, budget and documents.

    Args:
        job: the search.
        tried: settings that have answers already.
        documents: by task; None where they are not known.
    """
    options, size = job.config.options, job.space.size()
    table = PlainTable(caption_justify="left")
    table.add_column("of the space", no_wrap=True)
    table.add_column("values", overflow="fold")
    for name, value in job.space.to_dict().items():
        if name not in ("start", "ancestor") and value is not None:
            words = value if isinstance(value, list) else [value]
            table.add_row(
                name, text(", ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words))
            )
    settings = "settings without end" if size is None else f"{size} settings"
    counted = (
        f"{job.config.select} documents of each of {len(documents)} tasks, drawn in whole clusters, "
        f"of {sum(documents.values())}"
        if documents
        else f"{job.config.select} documents of each task; how many there are is not known here"
    )
    table.caption = (
        f"{settings}, of which {options.trials} are tried ({options.sampler}); {tried} have answers already\n"
        f"chosen on {counted}\nthen one report on the others, as a sweep"
    )
    return table


def scan(curve: Curve, stages: Stages, *, narrow: bool = False) -> PlainTable:
    """One line per cut: accuracy, parsable answers and KL divergence (nats), mean over tasks.

    Args:
        curve: what was measured.
        stages: what was found on it.
        narrow: for 80 columns.
    """
    title = f"{sum(curve.documents.values())} documents of {', '.join(curve.tasks)}"
    form: dict[str, Any] = (
        {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True} if narrow else {}
    )
    table = PlainTable(title=title, title_justify="left", **form)
    first, against = ("image seen\nin layers", "against\nunmasked") if narrow else ("image seen in", "against unmasked")
    if stages.closed_to != "text":
        title += f"; the image closed to {READERS[stages.closed_to]} alone"
        first = "image open\nin layers" if narrow else "image open in"
    staged = ["stage"] if stages.closed_to == "text" else []
    for name in (first, "accuracy", "95 %", against, "parsable", "KL", *staged):
        table.add_column(name, justify="left" if name in (first, "stage") else "right", no_wrap=True)
    names = ("all", "below", "none") if narrow else ("all layers", "layers below", "no layer")
    rows = curve.table()
    for row in rows[rows["task"] == OVERALL].itertuples():
        table.add_row(
            names[0] if row.cut == stages.num_layers else f"{names[1]} {row.cut}" if row.cut else names[2],
            f"{row.accuracy:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            "" if row.cut == stages.num_layers else f"{row.difference:+.3f}",
            "" if math.isnan(row.parsable) else f"{row.parsable:.0%}",
            f"{row.kl:.4f}",
            *(stages.stage_from(int(row.cut)) for _ in staged),
        )
    return table


def show_scan(finished: Scan, console: Terminal) -> None:
    """Print the curve of the mean over tasks, the stages, and what was written.

    Args:
        finished: the scan.
        console: where to.
    """
    from plam_eval.evaluation.scan_folder import SPEC, read_settings

    curve, stages = finished.curve, finished.stages
    console.show(*(scan(curve, stages, narrow=narrow) for narrow in (False, True)))
    console.say(stages.reason[:1].upper() + stages.reason[1:])
    console.say(f"Second opinion, KL at or under {stages.kl_threshold:g}: {stages.kl_in_words}")
    console.warn(stages.warnings)
    console.say(f"Curve, plot and answers: {finished.folder}")
    if finished.spec is not None:
        console.say(f"Spec: {finished.folder / SPEC}, to be used as plateau={finished.folder / SPEC}")
    elif stages.closed_to != "text":
        console.say(f"No spec was written: the image was closed to {READERS[stages.closed_to]} alone (--closed-to)")
    elif stages.plateau is not None:
        why = (
            "a merged model was scanned"
            if read_settings(finished.folder)["spec"]
            else "the base LLM is not known (--base)"
        )
        console.say(f"No spec was written: {why}")


def attention(findings: AttendFindings) -> PlainTable:
    """One line for each measure and place that is quoted: every setting's mean, and below it merged's p against it.

    Args:
        findings: of a `plam attend`.
    """
    rows = findings.table()
    others = list(dict.fromkeys(rows["first"]))
    table = PlainTable(caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("measure", min_width=13)
    for name in ("layers", "merged", *others):
        table.add_column(name, justify="right", overflow="fold")
    for (measure, layers), pairs in rows.groupby(["measure", "layers"], sort=False):
        by_first = {row.first: row for row in pairs.itertuples()}
        cells = ["" if name not in by_first else _against(by_first[name]) for name in others]
        table.add_row(
            textwrap.fill(COMPARED[str(measure)], 20), str(layers), f"{pairs['second_mean'].iloc[0]:.3f}", *cells
        )
    table.caption = (
        "means over tasks; p: of merged against this setting, by sign flips of groups of documents\n"
        "over chance: ln(attention in boxes / their share of the image), 0 where all of it has as much"
    )
    return table


def _against(row: Any) -> str:
    return f"{row.first_mean:.3f}" if math.isnan(row.p) else f"{row.first_mean:.3f}\np {format_p(row.p)}"


def show_attention(findings: AttendFindings, console: Terminal) -> None:
    """Print what is quoted, the sentence, warnings, and where everything is.

    Args:
        findings: of a `plam attend`.
        console: where to.
    """
    if len(findings.table()):
        console.show(attention(findings))
    console.say(findings.sentence)
    console.warn(findings.warnings)
    console.say(f"Tables by layer, figures and pictures: {findings.folder}")


def _interval(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}"
