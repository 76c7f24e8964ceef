"""What README.md quotes of `plam demo`, held against an output."""

from __future__ import annotations

import pytest

from tests.helpers.paths import ROOT
from tools.readme_rows import missing, quoted

README = """# plam
## What the demo prints
Words.
```
$ plam scan --tasks plam9 ...
$ plam report ...

Of 12 documents
no more.
┏━━━┓
┃ a ┃
└───┘
│ read  │ 1.0 MB in 0.02 s │

The pair: +0.006. Written to out/.../file
```
## Next
"""
OUTPUT = """$ plam scan --tasks plam9 --limit 3
scan: done
$ plam report ../scan
Of 12 documents no more.
┏━━━┓
┃ a ┃
└───┘
│ read  │ 1.0 MB in 0.31 s │
Not in the README.
The pair: +0.006.
Written to out/2026/file
"""


def test_what_is_printed_is_found_however_lines_break():
    assert missing(README, OUTPUT) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("+0.006", "+0.007", "The pair: +0.006. Written to out/.../file"),
        ("┃ a ┃", "┃ b ┃", "┃ a ┃"),
        ("┃ a ┃", "┃  a ┃", "┃ a ┃"),
        ("1.0 MB", "2.0 MB", "│ read  │ 1.0 MB in 0.02 s │"),
        ("plam report", "plam sweep", "$ plam report ..."),
    ],
)
def test_what_is_not_is_named(before, after, said):
    assert missing(README, OUTPUT.replace(before, after)) == [said]


def test_the_readme_quotes_tables_commands_and_sentences():
    pieces = quoted((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum(piece.startswith("$ HF_HUB_OFFLINE=1") for piece in pieces) >= 8
    assert any("The trio" in piece for piece in pieces)
    assert sum(piece.startswith("│") for piece in pieces) > 30
