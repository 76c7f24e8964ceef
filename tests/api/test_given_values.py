"""What a function is given: values of the wrong kind are named, and every error is a `PlamError`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plam_eval
from plam_eval import api
from plam_eval.errors import InputError, PlamError

package: Any = plam_eval  # for calls that a type checker would refuse


def test_errors_are_ours_and_nothing_exits(tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: plam_eval.scan("plam_vllm", "pretrained=a/b", "pope"),
        lambda: plam_eval.scan("plam_llava", "pretrained=a/b,foo", "pope"),
        lambda: plam_eval.plateau(tmp_path),
        lambda: plam_eval.read_scan(tmp_path),
        lambda: plam_eval.read_sweep(tmp_path),
        lambda: plam_eval.read_run(tmp_path),
        lambda: plam_eval.compare(model="plam_llava"),
        lambda: plam_eval.sweep(model="plam_lava", tasks="pope", output=tmp_path / "s"),
        lambda: plam_eval.plan_sweep({"model": "plam_llava", "tasks": ["pope"], "layer": "2:4"}, output=tmp_path / "s"),
        lambda: plam_eval.report(tmp_path / "nowhere", tmp_path / "page"),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except PlamError:
            continue
        pytest.fail(f"call {number} raised nothing")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: package.scan(3), "a scan needs one of our HF wrappers"),
        (lambda: package.scan("plam_llava", ["pretrained=x"], "pope"), r"model_args: found \['pretrained=x'\]"),
        (lambda: package.scan("plam_llava", "pretrained=x", ["pope", 5]), "tasks: found .*, expected words"),
        (lambda: package.scan("plam_llava", "", "pope", limit="5"), "limit: found '5', expected a whole number, 1"),
        (lambda: package.scan("plam_llava", "", "pope", limit=0), "limit: found 0"),
        (lambda: package.scan("plam_llava", "", "pope", offset=-3), "offset: found -3, expected .* 0 or more"),
        (lambda: package.scan("plam_llava", "", "pope", cuts=[0, 4]), r"cuts: found \[0, 4\], expected text"),
        (lambda: package.scan("plam_llava", "", "pope", base=5), "base: found 5, expected a hub id or a folder"),
        (lambda: package.scan("plam_llava", "", "pope", output=""), "output: found '', expected a path"),
        (lambda: package.scan("plam_llava", "", "pope", limt=2), "limt: unknown argument, did you mean 'limit'"),
        (lambda: package.scan("plam_llava", "", "pope", gen_kwargs={"a": 1}), "gen_kwargs: found .*, expected text"),
        (
            lambda: package.scan("plam_llava", "pretrained=nowhere", "pope", gen_kwargs="custom_generate=x"),
            "custom_generate: found 'x'; it names code, which is never run",
        ),
        (
            lambda: package.scan("plam_llava", "pretrained=nowhere", "pope", gen_kwargs="num_beams=3"),
            "num_beams: found 3; variants are answered together",
        ),
        (
            lambda: package.attend("plam_llava", "pretrained=nowhere", "pope", gen_kwargs="num_return_sequences=2"),
            "num_return_sequences: found 2; a document has one answer",
        ),
        (lambda: package.plan_scan("plam_llava", "", "pope", limt=2), "limt: unknown argument, did you mean 'limit'"),
        (lambda: package.plan_scan("plam_llava", "", "pope", cuts=[0, 4]), r"cuts: found \[0, 4\], expected text"),
        (lambda: package.plan_scan("plam_llava", "", "pope", margin="x"), "margin: found 'x', expected a number"),
        (lambda: package.plateau("scan", margin="0.03", tasks=5), "2 problem(s)"),
        (lambda: package.plateau("scan", margin=None), "margin: found None, expected a number"),
        (lambda: package.read_run(None), "folder: found None, expected a path"),
        (lambda: package.read_scan(5), "folder: found 5"),
        (lambda: package.read_sweep("sweep", select="x"), "select: found 'x'"),
        (
            lambda: package.compare(together=0),
            "together: found 0, expected True, False, or a whole number",
        ),
        (lambda: package.compare(together="all"), "together: found 'all', expected True, False, or a whole number"),
        (lambda: package.compare(5), "runs: found 5, expected a path, or a list of paths"),
        (lambda: package.sweep(["a"]), "config: found .*, expected a path or a mapping"),
        (lambda: package.plan_sweep(5), "config: found 5"),
        (lambda: package.report(5), "folders: found 5"),
        (lambda: package.report("a", examples=-1, title=5), "(?s)title: found 5.*examples: found -1"),
        (lambda: package.report(), "missing a required argument: 'folders'"),
        (lambda: package.merge(None), "missing a required argument: 'plateau'"),
        (lambda: package.load_spec("demo", layers="2:4"), "layers: unknown argument, known: plateau, overrides"),
        (lambda: package.load_spec("demo", 5), "overrides.*\n.*found 5, expected a mapping"),
    ],
)
def test_values_of_the_wrong_kind_are_named(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(PlamError, match=said.replace("problem(s)", r"problem\(s\)")):
        call()


def test_values_of_other_libraries_are_taken(two_runs: list[Path], small_sweep: Path) -> None:

    assert plam_eval.read_sweep(small_sweep, select=np.int64(0)).selection is not None
    assert plam_eval.compare(iter(two_runs)) is not None
    assert list(inspect.signature(plam_eval.scan).parameters)[:3] == ["model", "model_args", "tasks"]


@pytest.mark.parametrize("box", [5, [None], [[1, 2, 3, None]]])
def test_boxes_of_attend_that_are_none_are_told(box: Any) -> None:
    with pytest.raises(InputError, match="expected left,top,right,bottom in pixels"):
        api.attend("plam_llava", "pretrained=x", image="x.png", question="What?", box=box)
