"""What MMBench, MMMU and VQA make of a logged answer, by lmms-eval's own functions, without importing all of lmms-eval.

`import lmms_eval.tasks` takes longer than a report of a small sweep. A few functions are wanted of it, in files that
need nothing of the rest: these are loaded by their place. Where another version of lmms-eval has them elsewhere, or
where they need more, they are imported in the usual way.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import itertools
import symtable
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex


def mmbench(row: Mapping[str, Any]) -> float:
    """What MMBench's static evaluation gives one answer: 1 for right, 0 for wrong.

    Its evaluator takes a data frame, which costs a hundred times as much as reading the answer; these are the steps of
    `MMBench_Evaluator.eval_sub_data` for a frame of this one row.

    Args:
        row: what the task logs: the question's choices, the right letter `answer` and the model's `prediction`.
    """
    evaluator, answer = _mmbench_evaluator(), row["answer"]
    letter = evaluator.prefetch_answer(row)
    if not letter:
        choices = sorted(evaluator.build_choices(row))
        extract = _function("lmms_eval.tasks._task_utils.mcq_extract", "extract_mcq_answer")
        letter = extract(row["prediction"], choices=choices)
    return float(bool(letter) and letter == answer)


def mmmu(entry: Mapping[str, Any]) -> float:
    """What MMMU gives one answer, which its log holds parsed: 1 for right, 0 for wrong.

    Args:
        entry: what the task logs.
    """
    return float(_function("lmms_eval.tasks.mmmu.utils", "evaluate_mmmu")([entry])[1]["acc"])


@functools.lru_cache(maxsize=1)
def mmmu_domains() -> dict[str, str]:
    """Subject -> domain, as MMMU's aggregation reports them."""
    table: Any = _function("lmms_eval.tasks.mmmu.utils", "DOMAIN_CAT2SUB_CAT")
    return {subject: domain for domain, subjects in table.items() for subject in subjects}


def mmmu_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that MMMU's rules read from an answer; None where they find none, and stock code would draw one.

    Args:
        answer: the model's text.
        choices: letter -> what it stands for, as the question has them.
    """
    parse = _function("lmms_eval.tasks._task_utils.mmmu_mcq_utils", "parse_mmmu_multi_choice_response")
    try:
        return str(parse(answer, _Letters(choices), dict(choices)))
    except _DrawnError:
        return None


class _DrawnError(Exception):
    """A letter was drawn."""


class _Letters(list[str]):
    """Letters to be looked through. Who asks how many there are, or takes one by its index, is about to draw one."""

    def __len__(self) -> int:
        raise _DrawnError

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        raise _DrawnError


@functools.lru_cache(maxsize=1 << 18)  # test sets have hundreds of thousands of answers, and "yes" is most of them
def vqa_words(answer: str, *, split: bool) -> str:
    """An answer as VQA's evaluation compares it: lower case, numbers as digits, no articles, no punctuation.

    Args:
        answer: the model's, of one line, without white space around it.
        split: first drop commas and question marks and part "'s" from its word, as the validation tasks of TextVQA and
            VizWiz do; that of VQAv2 does not.
    """
    processor = _vqa_processor()
    if split:
        return str(processor(answer))
    return str(processor.process_digit_article(processor.process_punctuation(answer)))


@functools.lru_cache(maxsize=1)
def _vqa_processor() -> Any:
    return _function("lmms_eval.tasks._task_utils.vqa_eval_metric", "EvalAIAnswerProcessor")()


@functools.lru_cache(maxsize=1)
def _mmbench_evaluator() -> Any:
    return _function("lmms_eval.tasks.mmbench.mmbench_evals", "MMBench_Evaluator")()


@functools.lru_cache(maxsize=8)
def _function(module: str, name: str) -> Callable[..., Any]:
    """A function or class of a module, alone if its file allows it, else from the module."""
    if module not in sys.modules and (file := _file_of(module)) is not None:
        alone: Callable[..., Any] | None = _alone(file, name)
        if alone is not None:
            return alone
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported


def _file_of(module: str) -> Path | None:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)  # of a top-level package, which is not imported for it
    folders = spec.submodule_search_locations if spec is not None else None
    file = Path(next(iter(folders or [""])), *inner).with_suffix(".py")
    return file if file.is_file() else None


def _alone(file: Path, name: str) -> Any:
    """`name` of a file with what it needs of that file: definitions, imports of other packages, and values.

    None where there is no such definition, or where it needs something of lmms-eval's.
    """
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    by_name: dict[str, ast.stmt] = {}
    for statement in tree.body:
        for bound in _bound(statement):
            by_name[bound] = statement
    needs = {table.get_name(): _globals(table) for table in symtable.symtable(source, str(file), "exec").get_children()}
    wanted, todo = [name], [name]
    while todo:
        statement_name = todo.pop()
        if statement_name not in by_name:
            return None
        statement = by_name[statement_name]
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            modules = [statement.module] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
            if any(module is None or module.partition(".")[0] == "lmms_eval" for module in modules):
                return None
            used: set[str] = set()
        elif statement_name in needs:
            used = needs[statement_name] | _names(_around(statement))
        else:
            used = _names([statement])
        more = {each for each in used if not hasattr(builtins, each)} - set(wanted)
        wanted += sorted(more)
        todo += sorted(more)
    kept = [statement for statement in tree.body if set(_bound(statement)) & set(wanted)]
    # What else a file does to these names, as by `table["a"] = 1`, `if` or `from elsewhere import *`, is not known.
    if any(_names([other], ast.Load, ast.Store, ast.Del) & {*wanted, "*"} for other in tree.body if not _bound(other)):
        return None
    space: dict[str, Any] = {"__name__": f"{__name__}.{file.stem}", "__file__": str(file)}
    exec(compile(ast.Module(kept, []), str(file), "exec"), space)
    return space[name]


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement at the top of a file gives a value."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names if alias.name != "*"]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _around(statement: ast.stmt) -> list[ast.AST]:
    """What a definition takes from outside of it when it is made: decorators, bases, defaults, annotations."""
    if isinstance(statement, ast.ClassDef):
        return [*statement.decorator_list, *statement.bases, *statement.keywords]
    if isinstance(statement, ast.FunctionDef):
        return [*statement.decorator_list, statement.args, *([statement.returns] if statement.returns else [])]
    return []


def _names(nodes: Sequence[ast.AST], *contexts: type[ast.expr_context]) -> set[str]:
    """Names that are read in these nodes, or used in one of `contexts`; "*" where they are not told."""
    names = set()
    for inner in itertools.chain.from_iterable(map(ast.walk, nodes)):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, contexts or ast.Load):
            names.add(inner.id)
        elif isinstance(inner, ast.alias) and inner.name == "*":
            names.add("*")
    return names


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Names that a definition, with all inside it, takes from around it."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*(_globals(inner) for inner in table.get_children()))
