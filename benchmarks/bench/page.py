"""benchmarks/RESULTS.md, of what the sections' JSON holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.sections import SECTIONS, Section
from benchmarks.measured import spread

PICTURE = "growth.png"
BUSY = 0.2
"""Cores of others from which on a section is marked."""

HEAD = """# Results

Written by `make bench`; do not edit. A and B took turns in one run, and the ratio is A / B of each round: the median,
with the smallest and the largest in brackets; how many rounds there were stands with each section. The **ideal** is
that ratio if nothing took time but the bytes and operations that there have to be, at rates measured in the same run;
what it counts stands in the last column. All rounds are in `{results}/`, a JSON for each section, which says when,
where and from which code it was measured.
"""


def page(records: dict[str, dict[str, Any]], results: str) -> str:
    """The page as Markdown.

    Args:
        records: of the sections that have been measured, by name.
        results: folder of their JSON, as the page names it.
    """
    parts = [HEAD.format(results=results)]
    known = [section for section in SECTIONS if section.name in records]
    if any(records[section.name]["quick"] for section in known):
        parts.append("**A quick run: so small that its figures say nothing but that the scripts work.**\n")
    parts.append(
        _table(["section", "when (UTC)", "took", "budget", "commit", "cores of others"], _runs(known, records))
    )
    if missing := [section.title.lower() for section in SECTIONS if section.name not in records]:
        parts.append(f"Not measured: {'; '.join(missing)}.\n")
    parts.append(_machines([records[section.name] for section in known]))
    for section in known:
        parts += _section(section, records[section.name])
    return "\n".join(parts).rstrip("\n") + "\n"


def _runs(known: Sequence[Section], records: dict[str, dict[str, Any]]) -> Iterable[list[str]]:
    for section in known:
        record = records[section.name]
        others = record["others"]
        said = "not known" if others is None else f"{others:.1f}" + (" **busy**" if others > BUSY else "")
        link = f"[{section.title}](#{_anchor(section.title)})"
        when = record["at"].replace("T", " ")[:16]
        yield [link, when, _duration(record["took"]), _duration(section.budget), record["commit"] or "unknown", said]


def _machines(records: Sequence[dict[str, Any]]) -> str:
    """Each machine and set of versions, once, with the sections that were measured there."""
    groups: dict[str, list[str]] = {}
    for record in records:
        hardware = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
        software = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
        groups.setdefault(f"{hardware}; {software}", []).append(record["section"])
    lines = [f"{text}." if len(groups) == 1 else f"{text}: {', '.join(names)}." for text, names in groups.items()]
    return "Measured on: " + "\n\n".join(lines) + "\n"


def _section(section: Section, record: dict[str, Any]) -> Iterable[str]:
    yield f"## {section.title}\n"
    if section.about:
        yield f"{section.about}\n"
    yield f"{record['setting'][:1].upper()}{record['setting'][1:]}; {_rounds(record)}. `{record['command']}`\n"
    if record["rows"]:
        yield _table(*_columns(record["rows"]))
    if series := record["raw"].get("series"):
        yield _growth(series)


def rounds_of(record: dict[str, Any]) -> set[int]:
    """How many rounds the figures of a section come from.

    Args:
        record: of the section.
    """
    counts = {len(row["A"]["rounds"]) for row in record["rows"]}
    for series in record["raw"].get("series", []):
        counts |= {len(rounds) for kind in ("seconds", "memory") for rounds in series[kind].values()}
    return counts


def _rounds(record: dict[str, Any]) -> str:
    counts = rounds_of(record)
    least, most = min(counts, default=0), max(counts, default=0)
    return f"{least} round{'s' * (least != 1)}" if least == most else f"{least} to {most} rounds"


def _columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    more = list(dict.fromkeys(name for row in rows for name in row["more"]))
    columns = [name.replace("memory of B", "memory, times that of B") for name in more]
    head = ["", "A", "B", "A / B", "ideal", *columns, "the ideal counts"]
    body = []
    for row in rows:
        ways = [f"{row[way]['is']}: {_figure(row[way]['median'])} {row[way]['unit']}" for way in "AB"]
        ratio = _spread(row["ratio"], bold="**")
        ideal = "none" if row["ideal"] is None else _figure(row["ideal"])
        others = [_cell(row["more"].get(name, "")) for name in more]
        body.append([row["what"], *ways, ratio, ideal, *others, row["ideal is"]])
    return head, body


def _growth(series: Sequence[dict[str, Any]]) -> str:
    head = ["grows", "by size: seconds", "slope of time", "by size: MB", "slope of memory", ""]
    body = []
    for each in series:
        cells = []
        for kind, name, unit in (("seconds", "time", 1), ("memory", "memory", 1e6)):
            by_size = {size: [value / unit for value in rounds] for size, rounds in each[kind].items()}
            slope = each[f"slope of {name}"]
            cells += [
                "; ".join(f"{size}: {_spread(spread(values))}" for size, values in by_size.items()),
                f"**{slope['median']:.2f}** ({slope['least']:.2f} to {slope['most']:.2f})",
            ]
        body.append([each["axis"], *cells, each["said"]])
    said = (
        "Medians, with the smallest and the largest of the rounds in brackets. The slope is that of the medians, in "
        "brackets those of single rounds; 1 is linear."
    )
    return f"{_table(head, body)}\n{said}\n\n![Growth of time and memory]({PICTURE})\n"


def draw(series: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw growth on logarithmic axes: time and memory, over those of the smallest size.

    Args:
        series: as growth.py gives them.
        file: the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from plam_eval.figures import save_figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("time", "memory"), strict=True):
        widest = 1.0
        for each, mark in zip(series, "osv^Dx*P", strict=False):
            values = each["seconds" if kind == "time" else "memory"]
            sizes = [int(size) for size in values]
            figures = [spread(rounds)["median"] for rounds in values.values()]
            over = [size / sizes[0] for size in sizes]
            widest = max(widest, *over)
            label = f"{each['name']}: {each[f'slope of {kind}']['median']:.2f}"
            axes.loglog(over, [value / figures[0] for value in figures], marker=mark, label=label)
        axes.loglog([1, widest], [1, widest], color="0.6", linestyle=":", label="linear: 1")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(2))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("size, in sizes of the smallest")
        axes.set_ylabel(f"{kind}, over that of the smallest")
        axes.legend(title="slope", fontsize=8, title_fontsize=8)
    save_figure(figure, file)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return _figure(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _spread(values: Mapping[str, float], bold: str = "") -> str:
    return f"{bold}{_figure(values['median'])}{bold} ({_figure(values['least'])} to {_figure(values['most'])})"


def _figure(value: float) -> str:
    """Three digits, without an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}"


def _duration(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower() if c.isalnum() or c in " -").replace(" ", "-")
