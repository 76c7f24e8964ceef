"""Does README.md quote what `plam demo` prints? `plam demo --fresh > FILE; python -m tools.readme_rows FILE`.

The README may break lines elsewhere, leave out lines between paragraphs, and write `...` for anything. Rows of tables
have to be the same to the letter. Seconds may differ.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_TABLE = tuple("┏┃┡│└┌├")


def quoted(readme: str) -> list[str]:
    """What the README quotes: rows of tables and commands, each by itself, and paragraphs on one line.

    Args:
        readme: its text.
    """
    section = readme.split("## What the demo prints\n", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert block is not None, "README.md: no block below 'What the demo prints'"
    pieces: list[str] = [""]
    for line in block[1].splitlines():
        if not line.strip():
            pieces.append("")
        elif line.startswith((*_TABLE, "$")):
            pieces += [line.rstrip(), ""]
        else:
            pieces[-1] = f"{pieces[-1]} {line.strip()}".strip()
    return [piece for piece in pieces if piece]


def missing(readme: str, output: str) -> list[str]:
    """What the README quotes and the demo has not printed.

    Args:
        readme: its text.
        output: of `plam demo`.
    """
    rows = {line.rstrip() for line in output.splitlines()}
    prose = " ".join(output.split())
    absent = []
    for piece in quoted(readme):
        pattern = re.escape(" ".join(piece.split())).replace(r"\.\.\.", ".*?")
        pattern = re.sub(r"in\\ \d+\\\.\d+\\ s", r"in\\ \\d+\\.\\d+\\ s", pattern)
        whole = piece.startswith(_TABLE) and " s " not in piece
        if not (piece in rows if whole else re.search(pattern, prose)):
            absent.append(piece)
    return absent


def main() -> int:
    """Say what is missing; returns the exit status."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.readme_rows FILE (what `plam demo --fresh` has printed)")
    absent = missing(README.read_text(encoding="utf-8"), Path(sys.argv[1]).read_text(encoding="utf-8"))
    for piece in absent:
        print(f"not printed by the demo: {piece}")
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
