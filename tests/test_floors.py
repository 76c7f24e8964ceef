"""What may be imported where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import ROOT


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules that are imported anywhere in a source: at its top, in a function, for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def test_tests_import_helpers_and_no_other_test() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        tree = parsed(file)
        ours = {name for name in imported(tree) if name.startswith("tests.")}
        assert all(name.startswith("tests.helpers") for name in ours), f"{file}: move what is shared to tests/helpers"
        climbs = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {"parents"}
        assert not climbs or file.parent.name == "helpers", f"{file}: tests/helpers/paths.py has the folders"
