"""Write the tables of docs/install.md from plam_eval/versions.py; with --check, fail where they differ."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from plam_eval.versions import EXTRAS, PARTS, PLATFORMS, PYTHON, PYTHONS, condition, extra_refusal

PAGE = Path(__file__).resolve().parent.parent / "docs" / "install.md"


def _table(rows: Iterable[Iterable[str]]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|" + "---|" * head.count(" | ") + "---|", *body])


def versions_table() -> str:
    """Markdown: which versions of each part are tested, allowed and refused."""
    rows = [("part", "extra", "tested", "allowed", "refused, and why")]
    for part in (PYTHON, *PARTS):
        extra = f"`{part.extra}`" if part.extra else ""
        allowed = f"`{part.allowed}`" if part.allowed else "any"
        rows.append((part.name, extra, ", ".join(part.tested) or "none", allowed, part.why))
    return _table(rows)


def combinations_table() -> str:
    """Markdown: with which Python each extra can be installed, by platform."""
    rows = [("install", *(where.name for where in PLATFORMS))]
    for extra in EXTRAS:
        cells = []
        for where in PLATFORMS:
            kept = [python for python in PYTHONS if extra_refusal(python, where, extra) is None]
            reasons = {extra_refusal(python, where, extra) for python in PYTHONS} - {None}
            words = [f"{kept[0]} to {kept[-1]}"] if kept else ["not installed"]
            if kept and (needs := condition(extra)):
                words.append(needs)
            cells.append("; ".join([*words, *sorted(reason for reason in reasons if reason)]))
        rows.append((f"`'.[{extra}]'`" if extra else "`.`", *cells))
    return _table(rows)


def filled(page: str) -> str:
    """The text of `page` with its tables written anew, each between its two marks."""
    for name, table in (("versions", versions_table()), ("combinations", combinations_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = page.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            sys.exit(f"{PAGE}: the marks {begin.strip()} and {end} are missing")
        page = f"{before}{begin}\n{table}\n\n{end}{after}"
    return page


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if sys.argv[1:] == ["--check"]:
        if filled(page) != page:
            sys.exit(f"{PAGE.name} differs from plam_eval/versions.py; run python tools/install_tables.py")
    else:
        PAGE.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
