"""What a command says when it fails: one message with cause, place and remedy, in the words in which it was raised."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plam_eval import cli, doctor
from plam_eval.demo.hub import SuiteError
from plam_eval.demo.run import DemoError
from plam_eval.errors import ArgumentError, DamagedFileError, InputError, MergeError, OutsideError, PlamError
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.harness import lookup
from plam_eval.harness.errors import EvaluationError, RecordError
from plam_eval.harness.evaluate import evaluate
from plam_eval.probing.curve import CurveError
from plam_eval.probing.decoder import ProbeError
from plam_eval.report.sources import ReportError
from plam_eval.spec import SpecError
from tests.helpers.nasty import NASTY, SHOWN

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`plam(words...)` runs a command through its entry point: exit status, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plam", *words])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        else:
            code = 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], list[str]]:
    """`failing(error)` makes a command raise it; returns the words of the call."""

    def prepare(error: BaseException) -> list[str]:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(doctor, "check_installation", fail)
        return ["doctor"]

    return prepare


def test_errors_are_printed_as_they_were_written(plam: Call, failing: Any) -> None:
    for message in (NASTY, "pip install '.[ray]'", "expected [start, end] in /a/[parts]/b", "[/INST] [USER]"):
        code, out, err = plam(*failing(EvaluationError(message)))
        assert (code, out, err) == (1, "", f"error: {message if message != NASTY else SHOWN}\n")


@pytest.mark.parametrize(
    "error",
    [
        SpecError(NASTY, origin="spec"),
        CurveError(NASTY, origin="curve"),
        IncomparableError(NASTY, origin="a and b"),
        *(
            kind(NASTY)
            for kind in (
                *(MergeError, EvaluationError, RecordError, SweepError, ScanError, ReportError),
                *(DemoError, SuiteError, ProbeError, DamagedFileError, OutsideError, InputError, ArgumentError),
            )
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_ours_is_one_message(plam: Call, failing: Any, error: PlamError) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1 and isinstance(error, PlamError)
    assert err.startswith("error: ") and SHOWN in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/[x]/cell.json"),
            "/out/[x]/cell.json: No space left on device; free some space, and the same command goes on where it was",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/out"), "name a folder that can be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/a"), "/out/a: Permission denied; give yourself"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "a file lies where a folder is expected"),
        (FileExistsError(errno.EEXIST, "File exists", "/a"), "/a: File exists; something of this name is in the way"),
        (OSError("[x/y] is not the id of a model"), "OSError: [x/y] is not the id of a model"),
        (MemoryError(), "out of memory (MemoryError)"),
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), "pip install '.[vllm]' in a checkout"),
    ],
)
def test_errors_of_the_system_are_one_line(plam: Call, failing: Any, error: Exception, says: str) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1 and says in err
    assert len(err.splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError(NASTY), KeyError("index"), TypeError("x"), RuntimeError("y")])
def test_what_we_did_not_expect_shows_where_it_came_from(plam: Call, failing: Any, error: Exception) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1
    first, *_, last = err.splitlines()
    assert first.startswith("plam-eval did not expect this error") and "Traceback" in err
    assert last.startswith(type(error).__name__) and "\x1b" not in err and "\x07" not in err


def test_tracebacks_are_shown_on_demand(plam: Call, failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = failing(InputError("no"))
    assert "Traceback" not in plam(*words)[2]
    for given in (["--traceback", *words], [*words, "--traceback"]):
        code, _, err = plam(*given)
        assert code == 1 and "Traceback" in err and err.splitlines()[-1] == "error: no"
    monkeypatch.setenv("PLAM_TRACEBACK", "1")
    assert "Traceback" in plam(*words)[2]


def test_stopped_is_130_and_says_so(plam: Call, failing: Any) -> None:
    code, _, err = plam(*failing(KeyboardInterrupt()))
    assert code == 130 and err.splitlines()[-1] == "stopped; the same command goes on where it was"


def test_a_call_that_is_none_is_2_and_keeps_its_brackets(plam: Call) -> None:
    code, _, err = plam("doctor", "--no[x][/x]")
    assert code == 2 and "--no[x][/x]" in err
    code, out, _ = plam("sweep", "--help")
    assert code == 0 and "starts[:STEP]" in out.replace("\n", "").replace(" ", "")


def test_an_output_that_is_a_file(plam: Call, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError) as error:
        (tmp_path / "a" / "b").mkdir(parents=True)
    assert cli.explained(error.value) is not None
    assert str(tmp_path / "a" / "b") in str(cli.explained(error.value))


# Before a model is loaded


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("plam_eval.harness.evaluate.make_model", fail)


def scan_words(pretrained: object = "m", **changed: str) -> list[str]:
    words = {"model": "plam_llava", "model_args": f"pretrained={pretrained}", "tasks": "pope", **changed}
    return ["scan", *(part for key, value in words.items() for part in (f"--{key}", value))]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tasks": "pop"}, "no task or group of this name: 'pop' (did you mean"),
        ({"tasks": "pope", "offset": "100000"}, "offset is 100000, which leaves no document of pope"),
        ({"tasks": "mme", "limit": "3"}, "MME scores documents in pairs"),
        ({"model_args": "pretrained=m,foo"}, "model_args: 1 problem(s)\n  - found 'foo', expected key=value"),
        ({"model_args": "a=1,a=2"}, "a is given twice, as '1' and as '2'; give it once"),
        ({"model_args": "pretrained=m,layers=24,36"}, "write layers=24:36"),
        ({"model_args": "pretrained=m,modules=q_proj,k_proj"}, "write modules=q_proj+k_proj"),
        ({"model_args": "pretrained=m,base_weight=0,3"}, "a decimal fraction has a point: write base_weight=0.3"),
        ({"model_args": f"pretrained=m,seed={'9' * 5000}"}, "seed: found '999"),
        ({"gen_kwargs": "max_new_tokens"}, "gen_kwargs: 1 problem(s)"),
        ({"margin": "2"}, "margin: found 2.0, expected a share of accuracy"),
        ({"model": "[x][/x]"}, "model is '[x][/x]'; a scan needs one of our HF wrappers"),
        ({"model_args": "pretrained=,device=cpu"}, "found 'pretrained=', expected a value behind =; leave pretrained"),
        ({"tasks": ","}, "tasks: found no name"),
        ({"tasks": "pope mme"}, "names are separated by commas"),
        ({"tasks": "pope,coco2017_cap_val", "include_path": "nowhere"}, "include_path nowhere: no such folder"),
        ({"tasks": "coco2017_cap_val,mmmu_pro_composite"}, "captions are scored over all documents together"),
        ({"cuts": "4"}, "cuts: found only 4, the unmasked model; expected at least one below it"),
    ],
)
def test_a_scan_is_checked_before_its_model_is_loaded(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path, given: dict[str, str], says: str
) -> None:
    output = tmp_path / "scan"
    code, _, err = plam(*scan_words(pico("llava").mllm, **given), "--output", str(output))
    assert code == 1 and says in err and "Traceback" not in err
    assert not output.exists()


def test_a_scan_that_will_write_no_spec_says_so_first(plam: Call, pico: Any, in_suite: Path, unloaded: None) -> None:
    mllm = pico("llava").mllm
    for more, said in ((["--base", "b"], False), ([], True)):
        _, _, err = plam(*scan_words(mllm), *more)
        before, loaded, _ = err.partition("a model was loaded")
        note = f"No plateau spec will be written: the base LLM of {mllm} is not known. Give it with --base"
        assert loaded and (note in before) == said
        assert ("plam plateau scan --base BASE" in before) == said


def test_cuts_are_checked_before_the_model_is_loaded(plam: Call, pico: Any, in_suite: Path, unloaded: None) -> None:
    words = scan_words(model_args=f"pretrained={pico('llava').mllm}")
    code, _, err = plam(*words, "--cuts", "0:100000000000")
    assert code == 1 and "cuts '0:100000000000'" in err and "expected layers from 0 to 4" in err


def test_a_scan_that_the_model_has_no_answer_for_is_refused_before_it_is_loaded(
    plam: Call, pico: Any, in_suite: Path, unloaded: None, tmp_path: Path
) -> None:
    words = scan_words(model="plam_hf", model_args=f"pretrained={pico('gemma3').mllm}")
    code, _, err = plam(*words, "--output", str(tmp_path / "scan"))
    assert code == 1 and "keeps its keys in DynamicSlidingWindowLayer" in err and "Traceback" not in err
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--plateau", "demo", "--base-weight", "0,3"],
            "(override base_weight=): found '0,3'; a decimal fraction has a",
        ),
        (["--plateau", "demo", "--base-weight", "30%"], "found '30%', expected a number such as 0.9"),
        (["--plateau", ""], "found no name, expected a packaged spec, a YAML file or none"),
    ],
)
def test_the_doctor_says_what_to_write(
    plam: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)
    code, out, err = plam("doctor", *words)
    assert code == 1 and says in err and not out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model_args": "pretrained=nowhere/at/all"}, "pretrained=nowhere/at/all: no such folder"),
        ({"model_args": "pretrained={mllm},plateu=demo"}, "takes no argument plateu (did you mean plateau?)"),
        ({"model_args": "pretrained = {mllm} , dtype = f16"}, "dtype is 'f16'; expected auto, float32"),
        ({"model_args": "pretrained={mllm},plateau=dmo"}, "did you mean 'demo'?"),
        ({"model_args": "pretrained={mllm},attn_implementation=flash"}, "attn_implementation is 'flash'; known: eager"),
        ({"model_args": "pretrained={base}"}, "no multimodal model in Hugging Face format; plam_llava loads llava"),
        ({"model_args": "pretrained={mllm}", "model": "plam_qwen2_vl"}, "give --model plam_llava"),
    ],
)
def test_a_model_is_checked_before_tasks_and_datasets(
    plam: Call, pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    pair = pico("llava")
    monkeypatch.setattr(lookup, "_task_index", lambda include_path: pytest.fail("tasks were looked up"))
    model_args = given["model_args"].format(mllm=pair.mllm, base=pair.base)
    words = {"model": "plam_llava", **given, "model_args": model_args}
    code, _, err = plam(*scan_words(**words))
    assert code == 1 and says in err and "Traceback" not in err
    if "plateau=" not in model_args:  # what a sweep makes its cells of
        more = ["--tasks", "pope", "--base", str(pair.base), "--layers", "2:4", "--output", str(tmp_path / "sweep")]
        code, _, err = plam("sweep", "--model", words["model"], "--model_args", model_args, *more)
        assert code == 1 and says in err and "Traceback" not in err and not (tmp_path / "sweep").exists()


def test_a_dry_run_of_an_unknown_task_fails(plam: Call, pico: Any, tmp_path: Path) -> None:
    pair = pico("llava")
    words = ["--model_args", f"pretrained={pair.mllm},base={pair.base},layers=2:4", "--dry-run", "--layers", "all"]
    code, out, err = plam("sweep", "--model", "plam_llava", "--tasks", "pop", *words, "--output", str(tmp_path / "s"))
    assert code == 1 and "no task or group of this name: 'pop'" in err and not out


@pytest.mark.parametrize("status", [0, None, "the video is not there"])
def test_a_task_that_ends_the_process_has_failed(
    in_suite: Path, monkeypatch: pytest.MonkeyPatch, status: int | str | None
) -> None:
    from lmms_eval import evaluator

    monkeypatch.setattr(evaluator, "simple_evaluate", lambda **kwargs: sys.exit(status))
    with pytest.raises(EvaluationError, match="ended the process"):
        evaluate("plam_llava", "pope", limit=2)


def test_a_device_that_is_none_says_what_to_write() -> None:
    from plam_eval.model_wrappers import hf, mixin

    with pytest.raises(InputError, match="device is 'gpu'; expected cpu, cuda"):
        hf._device("gpu")
    with pytest.raises(InputError, match="max_error_share is 2; expected a share"):
        mixin.check_share(2)


def test_a_dataset_that_is_not_here_is_one_line(
    plam: Call, pico: Any, tmp_path: Path, unloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = plam(*scan_words(pico("llava").mllm))
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 1 and "task pope, dataset lmms-lab-encoder/POPE: it is not on this machine" in line
    assert "hf download --repo-type dataset lmms-lab-encoder/POPE" in line and "Traceback" not in err


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_a_mistake_in_a_plan_is_told_without_torch_or_scipy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom plam_eval.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'scipy', 'lmms_eval'} & set(sys.modules)"
    )
    words = [command, "--model", "plam_lava", "--model_args", "pretrained=x", "--tasks", "pope", "--output", "out"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "did you mean 'plam_llava'" in done.stderr, done.stderr
    assert "AssertionError" not in done.stderr


def test_help_is_said_without_the_libraries_that_a_command_needs() -> None:
    code = "import sys, plam_eval.cli; print({'pydantic', 'yaml', 'numpy', 'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ([], None),
        (["--together"], 2),
        (["--together", "1"], 1),
        (["--together=3"], 3),
        (["--together", "--limit", "4"], 2),
        (["--together", "runs/a", "runs/b"], 2),
        (["runs/a", "runs/b", "--together", "2"], 2),
    ],
)
def test_a_comparison_takes_together_with_and_without_a_number(
    plam: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], number: int | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("plam_eval.api.compare", lambda runs, **options: given.update(options, runs=runs))
    assert plam("compare", *words)[0] == 0
    assert given["together"] == number
    assert [str(run) for run in given["runs"] or []] == [word for word in words if word.startswith("runs/")]


def test_together_is_a_number_from_1_on(plam: Call) -> None:
    for command in ("compare", "sweep"):
        for number in ("0", "-1"):
            code, _, err = plam(command, "--together", number)
            assert code == 2 and "--together" in err
