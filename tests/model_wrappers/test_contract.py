"""The wrapper's contract: every wrapper keeps it, and nobody reaches past it."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.harness.registry import WRAPPERS
from plam_eval.harness.wrapper import (
    GenerationRecord,
    HFWrapper,
    PlateauWrapper,
    answer_from_dict,
    answer_to_dict,
    text_of,
    writable,
)
from tests.helpers.pico import PicoPair

LIBRARY = Path(plam_eval.__file__).parent
CLASSES = [path for row in WRAPPERS.values() for path in (row.chat, row.simple) if path is not None]


def members(contract: type) -> dict[str, Any]:
    """Public names of a contract, those of the contracts below it included."""
    return {name: value for base in contract.__mro__ for name, value in vars(base).items() if not name.startswith("_")}


def annotated(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.needs("vllm") if ".vllm." in path else ()) for path in CLASSES]
)
def test_every_registered_class_keeps_the_contract(path: str) -> None:
    module, name = path.rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    for member, promised in members(HFWrapper if WRAPPERS[cls.model_id].hf else PlateauWrapper).items():
        if isinstance(promised, property):
            assert hasattr(cls, member) or member in annotated(cls), member
            continue
        given = inspect.signature(getattr(cls, member)).parameters
        for parameter in inspect.signature(promised).parameters.values():
            assert parameter.name in given, f"{member}({parameter.name})"
            kept = given[parameter.name]
            assert (kept.kind, kept.default) == (parameter.kind, parameter.default), f"{member}({parameter.name})"
        more = [p for name, p in given.items() if name not in inspect.signature(promised).parameters]
        assert all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in more), member


@pytest.mark.parametrize(("family", "mode"), [("llava", "simple"), ("qwen2_5_vl", "chat")])
def test_a_loaded_wrapper_keeps_the_contract(family: str, mode: str, load: Callable[..., Any]) -> None:
    model = load(family, mode)
    assert isinstance(model, HFWrapper)
    assert model.generation == GenerationRecord() and model.rank == 0 and model.world_size == 1


def test_a_row_has_all_that_a_family_needs() -> None:
    """Beside its wrapper file: which checkpoints it takes, and whether a scan may give it batches."""
    assert {row.model_id for row in WRAPPERS.values() if not row.model_types} == {"plam_vllm", "plam_hf", "plam_text"}
    families = {row.model_id for row in WRAPPERS.values() if row.model_types}
    for file in library_files():
        constants = {node.value for node in ast.walk(tree_of(file)) if isinstance(node, ast.Constant)}
        assert file.name == "registry.py" or "demo" in file.parts or not constants & families, file


def test_a_second_wrapper_may_load_what_another_loads(pico: Callable[[str], PicoPair], monkeypatch: Any) -> None:
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.model_wrappers import hf

    second = replace(WRAPPERS["plam_llava"], model_id="plam_another")
    monkeypatch.setitem(WRAPPERS, "plam_another", second)
    checkpoint = Checkpoint.open(pico("llava").mllm)
    for model_id in ("plam_llava", "plam_another"):
        hf._check_kind(model_id, checkpoint)
    with pytest.raises(InputError, match="give --model plam_llava"):
        hf._check_kind("plam_qwen2_vl", checkpoint)


class Fixed:
    """A strategy that says the same to everything."""

    def __init__(self, text: str) -> None:
        self.text, self.ended = text, 0

    def answer(self, requests: list[Any]) -> list[str]:
        return [self.text] * len(requests)

    def end_run(self, tasks: dict[str, Any]) -> None:
        self.ended += 1


def test_a_strategy_answers_while_it_is_in_place(load: Callable[..., Any]) -> None:
    model = load("llava")
    outer, inner = Fixed("outer"), Fixed("inner")
    with model.answering(outer):
        with pytest.raises(KeyboardInterrupt), model.answering(inner, max_error_share=0.5):
            assert model.generate_until(["?", "?"]) == ["inner"] * 2 and model.max_error_share == 0.5
            model.end_run({})
            raise KeyboardInterrupt
        assert model.generate_until(["?"]) == ["outer"] and model.max_error_share == 0
        model.end_run({})
    model.end_run({})
    assert (outer.ended, inner.ended) == (1, 1) and model.generate_until([]) == []


def test_generations_can_be_recorded_apart(load: Callable[..., Any]) -> None:
    model = load("llava")
    own = model.generation
    with pytest.raises(KeyboardInterrupt), model.recorded_apart() as apart:
        assert model.generation is apart is not own
        raise KeyboardInterrupt
    assert model.generation is own


def test_an_answer_can_be_written_down_and_read_again() -> None:
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    for answer in ("A", GenerationResult("B", TokenCounts(output_tokens=3)), GenerationResult("C", None)):
        stored = answer_from_dict(answer_to_dict(answer))
        assert stored == answer and text_of(stored) in "ABC"
    assert writable("a\x0bb\x00c") == "a b\ufffdc"


# ---- nobody reaches past it ------------------------------------------------------------------------------------------


def library_files() -> Iterator[Path]:
    """Modules of the library that are no wrapper's."""
    return (file for file in sorted(LIBRARY.rglob("*.py")) if "model_wrappers" not in file.parts)


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def reached_into(tree: ast.Module, private: set[str], public: set[str]) -> list[str]:
    """Attributes of other objects that are a wrapper's underscore names, or its public ones and are changed."""
    nodes = list(ast.walk(tree))
    reached = [
        ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.Attribute) and not is_own(node)
        if node.attr in private or (node.attr in public and not isinstance(node.ctx, ast.Load))
    ]
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr") and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            reached += [ast.unparse(node)] if name in private | public else []
    return reached


def private_names() -> set[str]:
    """What wrappers keep in underscore attributes of their own."""
    return {
        node.attr
        for file in sorted(Path(importlib.import_module("plam_eval.model_wrappers").__path__[0]).glob("*.py"))
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Attribute) and is_own(node)
        if node.attr.startswith("_") and not node.attr.endswith("__")
    }


def test_nobody_reaches_into_a_wrapper() -> None:
    private = private_names()
    assert {"_rank", "_planned", "_strategy", "_exchanged"} <= private
    for file in library_files():
        # A name such as `spec` is one of many other things as well; evaluations are who has wrappers in hand.
        public = set(members(HFWrapper)) - {"model"} if "evaluation" in file.parts else set()
        assert not reached_into(tree_of(file), private, public), file


@pytest.mark.parametrize(
    "source",
    [
        "model._rank = -1",
        "rank, lm._rank = lm._rank, -1",
        "if self.model._planned: pass",
        "del model.generate_until",
        "self.model.end_run = self.end_run",
        "setattr(model, '_planned', None)",
        "model.generation.errors, model.generation = [], None",
    ],
)
def test_reaching_into_a_wrapper_is_noticed(source: str) -> None:
    assert reached_into(ast.parse(source), {"_rank", "_planned"}, {"generate_until", "end_run", "generation"})
