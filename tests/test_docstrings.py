"""Every public function, method and property has a docstring, which names all its parameters."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

from tests.helpers.paths import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
Bases = dict[str, ast.ClassDef]

SCRIPTS = ("benchmarks", "tools")
FILES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"), str(file))
    for top in (*SCRIPTS, "plam_eval", "model_wrappers", "tasks")  # of two classes of one name the library's counts
    for file in sorted((ROOT / top).rglob("*.py"))
}


def classes_of(trees: dict[str, ast.Module]) -> Bases:
    """The classes at the top of modules by name, whose methods others implement."""
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


def implemented(function: Function, owner: ast.ClassDef | None, bases: Bases) -> Iterator[ast.ClassDef | Function]:
    """Whose docstrings may speak of it: itself and its class, then the methods that it implements and theirs."""
    yield function
    if owner:
        yield owner
        for name in (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in owner.bases):
            base = bases.get(name)
            for method in base.body if base and base is not owner else ():
                if isinstance(method, Function) and method.name == function.name:
                    yield from implemented(method, base, bases)


def undocumented(tree: ast.Module, bases: Bases) -> Iterator[str]:
    """What a module's docstrings leave out: `function` without any, `function(parameter)` for one that is not named."""
    for node in tree.body:
        owner = node if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else None
        for function in owner.body if owner else [node]:
            if not isinstance(function, Function) or is_exempt(function):
                continue
            name = f"{owner.name}.{function.name}" if owner else function.name
            told = [*implemented(function, owner, bases)]
            methods = [node for node in told if isinstance(node, Function)]
            if function.name != "__init__" and not any(ast.get_docstring(method) for method in methods):
                yield name
            text = "\n".join(ast.get_docstring(node) or "" for node in told)
            for parameter in parameters(function):
                if not names(text, parameter):
                    yield f"{name}({parameter})"


def test_docstrings_name_every_parameter() -> None:
    left_out = {file: [*undocumented(tree, BASES)] for file, tree in FILES.items()}
    for file, missing in left_out.items():
        if file.startswith(SCRIPTS):  # what `main` does is what its module says
            left_out[file] = [name for name in missing if name.partition("(")[0] != "main"]
    assert {file: missing for file, missing in left_out.items() if missing} == {}


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
    @property
    def area(self): ...
class Derived(Base):
    """One of them."""
    def grow(self, by): ...
    def shrink(self, by): ...
    def rest(self): ...
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
        "Base.area",
        "Derived.shrink",
        "Derived.shrink(by)",
        "Derived.rest",
    ]
