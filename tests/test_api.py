"""plam-eval from Python: what is imported when, and that functions and commands give the same."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import plam_eval
from plam_eval import api, cli
from plam_eval.arguments import write_words
from plam_eval.cli.options import complete_spec, complete_wrapper
from plam_eval.cli.speaking import plain
from plam_eval.errors import ArgumentError, InputError, PlamError
from plam_eval.evaluation.records import RecordError
from plam_eval.merging.checkpoint import CheckpointError, MergeError
from plam_eval.merging.merge import merge_in_place
from plam_eval.spec import SpecError, load_spec
from tests.helpers.run_folders import changed, documents, write_run, write_sweep

package: Any = plam_eval  # for calls that a type checker would refuse
HEAVY = ("torch", "transformers", "lmms_eval", "pandas", "vllm", "matplotlib")


def test_names_are_there_before_anything_heavy_is() -> None:
    code = (
        "import sys, plam_eval\n"
        "found = [getattr(plam_eval, name) for name in plam_eval.__all__]\n"
        "assert all(map(callable, found)) and set(plam_eval.__all__) <= set(dir(plam_eval))\n"
        "assert plam_eval.load_spec('demo').layer_range == (4, 8)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "from plam_eval import report, scan\n"
        "import plam_eval.report.tables as tables\n"
        "from plam_eval import report as again\n"
        "assert callable(report) and report is again is plam_eval.report and plam_eval.report.tables is tables\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = package.swep


def test_names_are_those_of_the_command_line() -> None:
    """Every option of a command is an argument of its function; only the words around a result are the command's."""
    import typer

    group: Any = typer.main.get_command(cli.app)
    own = {"as_json", "quiet", "help", "dry_run", "kl_threshold"}
    for name in ("scan", "plateau", "compare", "sweep", "report"):
        options = {parameter.name for parameter in group.commands[name].params}
        arguments = set(inspect.signature(getattr(api, name)).parameters)
        assert {"ray" if option == "use_ray" else option for option in options} - own <= arguments, name
        assert arguments <= {"ray" if option == "use_ray" else option for option in options}, name
        documented = inspect.getdoc(getattr(api, name)) or ""
        missing = [argument for argument in arguments if argument not in documented.partition("Returns:")[0]]
        assert not missing, f"{name}: {missing} are not in its docstring"


# Merging


@pytest.fixture
def loaded(pico: Callable[[str], Any]) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(pico("llava").mllm, dtype=torch.float32)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_merge_is_the_merge_of_the_wrappers_and_goes_back(pico: Callable[[str], Any], loaded: Any) -> None:
    pair, plain = pico("llava"), bits(loaded)
    report = plam_eval.merge(loaded, None, base=pair.base, layers=(2, 4), modules="qk", model_weight=0.8)
    assert report.tensors == 4 and set(report.relative_change) == {2, 3} and report.model == str(pair.mllm)
    merged = bits(loaded)
    assert not same(plain, merged)
    plam_eval.merge(loaded, "none")
    assert same(plain, bits(loaded))
    spec = load_spec(None, {"base": str(pair.base), "layers": "2:4", "modules": "qk", "model_weight": 0.8})
    merge_in_place(loaded, spec, checkpoint=pair.mllm)
    assert same(merged, bits(loaded))


def test_a_model_that_no_checkpoint_holds(pico: Callable[[str], Any], loaded: Any) -> None:
    pair = pico("llava")
    weight = loaded.model.language_model.layers[2].self_attn.q_proj.weight
    with torch.no_grad():
        weight += 1
    before = weight.detach().clone()
    overrides: dict[str, Any] = {"base": pair.base, "layers": "2:3", "modules": "q_proj"}
    with pytest.raises(MergeError, match="expected a plain load of the checkpoint"):
        plam_eval.merge(loaded, None, **overrides)
    assert torch.equal(weight, before)
    plam_eval.merge(loaded, None, **overrides, base_weight=0, model_weight=2, from_parameters=True)
    assert torch.equal(weight, 2 * before)
    with pytest.raises(MergeError, match="already merged, from its parameters"):
        plam_eval.merge(loaded, "none")  # the checkpoint that it names would put other weights there
    assert torch.equal(weight, 2 * before)


def test_merge_says_what_is_wrong(pico: Callable[[str], Any], loaded: Any) -> None:
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        plam_eval.merge(loaded, "dmo")
    with pytest.raises(MergeError, match="base=/nowhere/at/all: no such folder"):
        plam_eval.merge(loaded, None, base="/nowhere/at/all", layers="2:4")
    with pytest.raises(CheckpointError, match="pretrained=/nowhere"):
        plam_eval.merge(loaded, "demo", pretrained="/nowhere")
    with pytest.raises(ArgumentError, match="model is a str; expected what from_pretrained gives"):
        plam_eval.merge("llava", "none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give one of them"):
        plam_eval.merge(loaded, "none", pretrained="a/b", from_parameters=True)


def test_arguments_may_be_a_mapping() -> None:
    given = {
        "pretrained": Path("a/b"),
        "dtype": torch.float32,
        "revision": None,
        "device": "cpu",
        "x": {"a": 1, "b": 2},
    }
    assert write_words(given, "model_args") == 'pretrained=a/b,dtype=float32,device=cpu,x={"a": 1, "b": 2}'
    with pytest.raises(InputError, match="model_args: layers: found '1,2'; a value cannot hold a comma"):
        write_words({"layers": "1,2"}, "model_args")


# What is finished


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    write_run(folder / "plain", plain)
    write_run(folder / "merged", better)
    return [folder / "plain", folder / "merged"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    names = ["layers-6-8_qkvo_0.9+0.3", "layers-6-8_qkvo_0.9+0.3_self_scale", "layers-0-8_qkvo_0.9+0.3"]
    write_sweep(folder, {"plain": plain, names[0]: better, names[1]: plain, names[2]: "RuntimeError: out of memory"})
    return folder


def test_compare_gives_a_table(two: list[Path]) -> None:
    found = plam_eval.compare(two)
    assert found is not None
    assert list(found.table["task"]) == ["pope", "mmstar", "overall"]
    row = found.table.set_index("task").loc["pope"]
    assert (row["first"], row["second"], row["gained"], row["lost"]) == (0.5, 0.75, 10, 0)
    assert found.runs[0].samples["answer"].nunique() > 1 and "+0.125" in repr(found)
    assert list(plam_eval.compare(two, tasks="mmstar").table["task"]) == ["mmstar", "overall"]
    with pytest.raises(InputError, match="two run folders"):
        plam_eval.compare([two[0]])
    with pytest.raises(InputError, match="--limit, --together, --output with two run folders, which are compared as"):
        plam_eval.compare(two, limit=5, together=True, output="there")
    with pytest.raises(InputError, match="--together with two run folders"):
        plam_eval.compare(two, together=2)
    assert plam_eval.compare(two, together=False) is not None
    with pytest.raises(RecordError, match="nowhere: no such folder"):
        plam_eval.compare([two[0], "/nowhere"])
    run = plam_eval.read_run(str(two[0]))
    assert repr(run) == f"Run({run.file}, 80 documents of pope, mmstar)"
    assert len(run.samples) == 80 and run.accuracy().to_dict() == {"pope": 0.5, "mmstar": 0.5}


def test_a_sweep_is_read_again(swept: Path) -> None:
    found = plam_eval.read_sweep(swept)
    assert "layers 6:8" in found.verdict() and str(swept) in repr(found)
    (failure,) = found.failures()
    assert failure.startswith("failed: layers-0-8_qkvo_0.9+0.3: RuntimeError: out of memory") and "log.txt" in failure


def test_a_report_from_python(two: list[Path], tmp_path: Path) -> None:
    page = plam_eval.report(two[0], tmp_path / "page")
    assert page == tmp_path / "page" / "index.html" and page.is_file()


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


def test_a_plan_from_python(pico: Callable[[str], Any], tmp_path: Path, in_suite: Path) -> None:
    pair = pico("llava")
    arguments = {"pretrained": pair.mllm, "base": pair.base, "layers": "2:4"}
    planned = plam_eval.plan_sweep(
        model="plam_llava", model_args=arguments, tasks=["pope"], weights=[(0.9, 0.3)], limit=4, output=tmp_path / "s"
    )
    assert repr(planned) == f"SweepPlan({tmp_path / 's'}, 5 of 5 cells to run, 4 documents each)"
    with pytest.raises(
        PlamError, match="choosing on 4 documents leaves none of pope to report on, which has 4; choose"
    ):
        plam_eval.plan_sweep(
            model="plam_llava", model_args=arguments, tasks="pope", limit=4, select=4, output=tmp_path / "s"
        )
    assert planned.documents == {"pope": 4} and not (tmp_path / "s").exists()
    assert planned.cells["kind"].value_counts().to_dict() == {"control": 3, "plain": 1, "merged": 1}
    assert (planned.cells["bytes_to_read"] > 0).sum() == 4 and not planned.cells["finished"].any()


# Words around a result


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plam", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        else:
            code = 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_results_as_json(plam: Call, two: list[Path], swept: Path, tmp_path: Path) -> None:
    code, out, _ = plam("compare", *two, "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"][0]["gained"] == 10 and found["rows"][-1]["task"] == "overall"
    code, out, err = plam("report", swept, two[0], "--output", tmp_path / "page", "--json")
    assert code == 0 and json.loads(out)["page"] == str(tmp_path / "page" / "index.html") and "Report:" in err
    assert any(name.endswith(".parquet") for name in json.loads(out)["tables"])
    code, out, err = plam("compare", two[0], "--json")
    assert code == 1 and out == "" and err.startswith("error: ")


def test_quiet_is_quiet_and_errors_are_said(plam: Call, two: list[Path], tmp_path: Path) -> None:
    assert plam("compare", *two, "--quiet") == (0, "", "")
    code, out, err = plam("compare", *two, "-q", "--json")
    assert code == 0 and json.loads(out)["names"] == list(map(str, two)) and err == ""
    code, out, err = plam("report", tmp_path / "nowhere", "-q", "--output", tmp_path / "page")
    assert code == 1 and out == "" and "no such folder" in err


def test_json_is_alone_on_standard_output(two: list[Path]) -> None:
    """Also where another process of the command's, or a library in C, writes to it."""
    code = (
        "import os, subprocess, sys\n"
        "from plam_eval.cli.speaking import speaking\n"
        "with speaking(True, False) as console:\n"
        "    console.say('words'); print('more words')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"of a child\")'])\n"
        "    os.write(1, b'of a library\\n')\n"
        "    console.data = {'number': float('nan'), 'text': '\\x1b[31m\\udc80'}\n"
        "print('behind')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result, _, rest = done.stdout.partition("}\n")
    assert json.loads(result + "}") == {"number": None, "text": "\x1b[31m\udc80"} and rest == "behind\n"
    assert [word in done.stderr for word in ("words", "more words", "of a child", "of a library")] == [True] * 4


def test_whatever_a_result_holds_is_json() -> None:
    values = {
        "array": np.array([[1.5, np.nan]]), "series": pd.Series([1, 2]), "none": [pd.NaT, pd.NA, np.float32("inf")],
        "number": np.int64(3), "truth": np.bool_(True),
    }  # fmt: skip
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == {
        "array": [[1.5, None]], "series": [1, 2], "none": [None] * 3, "number": 3, "truth": True,
    }  # fmt: skip


def test_version_and_help(plam: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    monkeypatch.setenv("COLUMNS", "80")
    assert plam("--version") == (0, f"plam-eval {metadata.version('plam-eval')}\n", "")
    code, out, _ = plam("-h")
    assert code == 0 and "--install-completion" in out and "..." not in out.partition("Commands:")[2]
    for command in ("demo", "doctor", "scan", "plateau", "compare", "sweep", "report"):
        code, out, _ = plam(command, "-h")
        assert code == 0 and f"Example:\n    plam {command} " in out, out
    assert "[default: 0.02]" in plam("plateau", "-h")[1] and "[default: sweep]" in plam("sweep", "-h")[1]


def test_completion_knows_wrappers_and_specs() -> None:
    assert complete_wrapper("plam_q") == ["plam_qwen2_vl", "plam_qwen2_5_vl", "plam_qwen3_vl"]
    assert "qwen3-vl-8b" in complete_spec("qwen3") and "demo" not in complete_spec("qwen3")


def test_lmms_eval_lists_our_models(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from lmms_eval.cli.models_cmd import run_models

    run_models(argparse.Namespace(aliases=False))
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("plam_"))
    assert rows["plam_llava"] == "chat+simple" and rows["plam_internvl"] == "chat" and rows["plam_qwen2_vl"] == "simple"


# Values of the wrong kind


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


def test_values_of_other_libraries_are_taken(two: list[Path], swept: Path) -> None:
    import numpy as np

    assert plam_eval.read_sweep(swept, select=np.int64(0)).selection is not None
    assert plam_eval.compare(iter(two)) is not None
    assert list(inspect.signature(plam_eval.scan).parameters)[:3] == ["model", "model_args", "tasks"]
