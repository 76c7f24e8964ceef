"""Every public function has a docstring, which names all its parameters."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
Bases = dict[str, ast.ClassDef]

OPEN: tuple[str, ...] = (
    "plam_eval/api/shared.py",
    "plam_eval/api/sweeps.py",
    "plam_eval/cli/app.py",
    "plam_eval/cli/options.py",
    "plam_eval/cli/speaking.py",
    "plam_eval/demo/hub.py",
    "plam_eval/demo/questions.py",
    "plam_eval/demo/run.py",
    "plam_eval/demo/scenes.py",
    "plam_eval/demo/train.py",
    "plam_eval/evaluation/sweep/config.py",
    "plam_eval/evaluation/sweep/grid.py",
    "plam_eval/report/blocks.py",
    "plam_eval/report/files.py",
    "plam_eval/report/plots.py",
    "plam_eval/report/sections/cells.py",
    "plam_eval/report/sections/controls.py",
    "plam_eval/report/sections/form.py",
    "plam_eval/report/sections/head.py",
    "plam_eval/report/sections/parts.py",
    "plam_eval/report/sections/provenance.py",
    "plam_eval/report/sections/ranges.py",
    "plam_eval/report/sections/reading.py",
    "plam_eval/report/sections/runs.py",
    "plam_eval/report/sections/scan.py",
    "plam_eval/report/sections/tasks.py",
    "plam_eval/report/sections/warnings.py",
    "plam_eval/report/sources.py",
    "plam_eval/report/svg.py",
    "plam_eval/report/text.py",
    "model_wrappers/generic.py",
    "model_wrappers/mixin.py",
    "tasks/mmbench_cn.py",
    "tasks/mmmu.py",
)
"""Files that this does not hold of yet. It becomes shorter, never longer."""

FILES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"), str(file))
    for top in ("plam_eval", "model_wrappers", "tasks")
    for file in sorted((ROOT / top).rglob("*.py"))
}


def classes_of(trees: dict[str, ast.Module]) -> Bases:
    """The classes of the library by name, whose methods others implement."""
    return {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}


BASES = classes_of(FILES)


def parameters(function: Function) -> Iterator[str]:
    """Names of its parameters; not of those that are handed on as they come."""
    arguments = function.args
    for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if each and each.arg not in {"self", "cls", "args", "kwargs"} and not each.arg.startswith("_"):
            yield each.arg


def is_exempt(function: Function) -> bool:
    """Private, called by an operator or by pydantic alone, or a command: its docstring is the help that a user reads.

    A command's parameters are explained by the help of its options.
    """
    decorators = {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in function.decorator_list}
    called_by_others = {"field_validator", "model_validator", "command", "callback"}
    return (function.name.startswith("_") and function.name != "__init__") or bool(decorators & called_by_others)


def names(text: str, parameter: str) -> bool:
    """Whether a docstring says what a parameter is: in a list of arguments or attributes, or by name in backticks."""
    listed = rf"^ *(\w+, )*\*{{0,2}}{parameter}(, \w+)*:"
    return bool(re.search(listed, text, re.MULTILINE) or re.search(rf"`[^`]*\b{parameter}\b[^`]*`", text))


def texts_about(function: Function, owner: ast.ClassDef | None, bases: Bases) -> list[str]:
    """Docstrings that may name its parameters: its own, that of its class, and those of the method it implements."""
    texts = [ast.get_docstring(function) or ""]
    if owner:
        texts.append(ast.get_docstring(owner) or "")
        for name in (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in owner.bases):
            base = bases.get(name)
            for method in base.body if base and base is not owner else ():
                if isinstance(method, Function) and method.name == function.name:
                    texts += texts_about(method, base, bases)
    return texts


def undocumented(tree: ast.Module, bases: Bases) -> Iterator[str]:
    """What a module's docstrings leave out: `function` without any, `function(parameter)` for one that is not named."""
    for node in tree.body:
        owner = node if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else None
        for function in owner.body if owner else [node]:
            if not isinstance(function, Function) or is_exempt(function):
                continue
            name = f"{owner.name}.{function.name}" if owner else function.name
            if not owner and not ast.get_docstring(function):
                yield name
            text = "\n".join(texts_about(function, owner, bases))
            for parameter in parameters(function):
                if not names(text, parameter):
                    yield f"{name}({parameter})"


@pytest.mark.parametrize("file", [file for file in FILES if file not in OPEN])
def test_docstrings_name_every_parameter(file):
    assert not [*undocumented(FILES[file], BASES)]


def test_no_file_is_open_that_need_not_be():
    assert not [file for file in OPEN if not [*undocumented(FILES[file], BASES)]]


SOURCE = '''
def bare(): ...
def half(first, second):
    """Of the `first` one, not of the second."""
def whole(first, *, second=None):
    """Both.

    Args:
        first: One.
        second: Another.
    """
def handed_on(*args, **kwargs):
    """As they come."""
def gathered(*paths, **options):
    """Of `paths`."""
def _private(first): ...
@app.command()
def shown(first):
    """What a user reads."""
class Base:
    """Something.

    Args:
        size, weight: Of it.
    """
    def __init__(self, size, weight, colour): ...
    def __eq__(self, other): ...
    def grow(self, by):
        """Larger `by` so much."""
    @field_validator("size")
    def check(cls, value): ...
class Derived(Base):
    """One of them."""
    def grow(self, by): ...
    def shrink(self, by): ...
class _Hidden:
    def shrink(self, by): ...
'''


def test_what_is_left_out_is_told():
    tree = ast.parse(textwrap.dedent(SOURCE))
    assert [*undocumented(tree, classes_of({"made_up.py": tree}))] == [
        "bare",
        "half(second)",
        "gathered(options)",
        "Base.__init__(colour)",
        "Derived.shrink(by)",
    ]
