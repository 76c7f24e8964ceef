"""`make gpu` on a CPU, at pico shape: it works where the library does, and a check fails where it has to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.nn.attention import SDPBackend

from plam_eval.merging import arithmetic, merge
from plam_eval.probing import row_capture
from tests.helpers.paths import ROOT
from tools.gpu_check import __main__ as gpu_check
from tools.gpu_check import harness, merges, needed, probes
from tools.gpu_check.__main__ import main
from tools.gpu_check.board import Board, Fault, Skipped
from tools.gpu_check.pairs import FAMILIES, write_pair
from tools.gpu_check.session import Session, decoder_parameters, same_bits


def _beside_what_is_needed() -> list[str]:
    """Modules that are installed here and not on a machine that has what `needed.NEEDED` names and its dependencies."""
    kept, left = set[str](), [canonicalize_name(name) for name in needed.NEEDED]
    while left:
        name = left.pop()
        if name not in kept:
            kept.add(name)
            with suppress(metadata.PackageNotFoundError):
                asked = [Requirement(text) for text in metadata.requires(name) or []]
                given = {"extra": ""}
                left += [
                    canonicalize_name(each.name) for each in asked if not each.marker or each.marker.evaluate(given)
                ]
    own = {"plam-eval", *kept}
    found = metadata.packages_distributions().items()
    absent = [module for module, names in found if not own & {canonicalize_name(name) for name in names}]
    return sorted(
        module for module in absent if module.isidentifier() and module not in ("plam_eval", "tests", "tools")
    )


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    record = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return {(row["group"], row["name"]): row for row in record["rows"]}


def test_every_check_of_a_pair_without_lmms_eval(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "out"), "--families", "llava", "--scratch", str(tmp_path)]
    absent = _beside_what_is_needed()
    assert {"lmms_eval", "datasets", "scipy", "pandas", "matplotlib", "PIL"} <= set(absent)
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r}));"
    code += f"from tools.gpu_check.__main__ import main; sys.exit(main({words!r}))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = rows_of(tmp_path / "out")
    known = gpu_check.known_names()
    assert {name for _, name in rows} == {name for name in known if "on the device as on the CPU" not in name}
    skipped = {name: row["says"] for (_, name), row in rows.items() if row["verdict"] == "skipped"}
    assert {row["verdict"] for row in rows.values()} == {"ok", "skipped"}
    assert (
        skipped["plam_llava on the device, merged, float32: the CPU's answers"]
        == "lmms_eval and datasets not installed"
    )
    assert skipped["attention rows under flash_attention_2, bfloat16"] == "flash_attn is not installed"
    assert all(skipped.values()) and len(skipped) < len(rows) / 3
    table = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == len(rows) + 1 and table in done.stdout
    merged = rows["llava", "merge of the upper half, all modules: the CPU's bits"]["figures"]
    assert merged["differing"] == 0 and merged["GB read"] > 0
    cuts = rows["llava", "all cuts, image closed to text, float32"]["figures"]
    assert cuts["cuts"] == 5 and cuts["answers"] == 10 and cuts["differing answers"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the pairs are gone


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llava"])
def test_every_check_of_the_other_families(tmp_path: Path, family: str) -> None:
    words = ["--output", str(tmp_path), "--families", family, "--groups", "merges", "probes", "--device", "cpu"]
    assert main([*words, "--scratch", str(tmp_path)]) == 0
    assert sum(row["verdict"] == "ok" for row in rows_of(tmp_path).values()) > 30


@pytest.mark.slow
def test_a_wrapper_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path), "--groups", "harness", "--device", "cpu", "--scratch", str(tmp_path)]
    assert main(words) == 0
    row = rows_of(tmp_path)["lmms-eval", "plam_llava on the device, merged, float32: the CPU's answers"]
    assert row["verdict"] == "ok" and row["figures"]["answers"] == 32
    assert row["figures"]["other without the merge"] >= 8


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.needs("vllm")
def test_vllm_merged_while_it_runs(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path), "--groups", "vllm", "--device", "cpu", "--scratch", str(tmp_path)]) == 0
    loaded = rows_of(tmp_path)["vLLM", "plam_vllm merged as it loads, on all cards"]["figures"]
    assert loaded["answers"] == 32 and loaded["differing"] == 0
    again = rows_of(tmp_path)["vLLM", "re-merged while it runs, and back to plain: as after a start"]["figures"]
    assert again["answers that differ between merges"] > 0 and again["merges that vLLM's own checksums tell apart"] == 1


def _vllm_told() -> dict[str, Any]:
    """What the child of a sound engine writes, in little."""

    def told(digest: str, answer: str) -> dict[str, Any]:
        return {
            "answers": {"pope": {"0": answer}}, "digests": [digest], "checksums": [{"layer 0": digest, "rest": "r"}],
            "checksums s": 0.1, "own checksums": [{}], "merge s": 0.1, "load s": 1.0, "digest": digest,
        }  # fmt: skip

    steps = [told("plain", "no"), told("b", "no"), told("a", "yes")]
    return {**told("a", "yes"), "merges": steps}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda told: None, None),
        (lambda told: told["merges"][0].update(digests=["a", "plain"]), "answers say that they are of"),
        (lambda told: told["merges"][0].update(checksums=[{"layer 0": "x", "rest": "r"}]), "back to plain: weights"),
        (
            lambda told: told["merges"][2].update(checksums=[{"layer 0": "x", "rest": "r"}]),
            "as at first: weights",
        ),
        (lambda told: told["merges"][2].update(answers={"pope": {"0": "no"}}), "merged as at first, against a start"),
        (lambda told: told["merges"][0].update(answers={"pope": {"0": "yes"}}), "back to plain, against a start"),
        (lambda told: told["merges"][1].update(checksums=told["checksums"]), "two merges have the same checksums"),
        (lambda told: told["checksums"][0].update(unread="x.weight"), "no checksum can be had of: x.weight"),
    ],
)
def test_an_engine_that_does_not_come_back_is_a_fault(tmp_path, monkeypatch, spoil, says) -> None:
    fresh, told = _vllm_told()["merges"][0], _vllm_told()
    spoil(told)
    monkeypatch.setattr(harness, "_vllm_suite", lambda board, folder: (folder, 1))
    monkeypatch.setattr(harness, "_answers", lambda *given, **named: fresh)
    board = Board(tmp_path, "cpu", "pico")
    board.check("vLLM", "again", harness._remerged, board, tmp_path, {"vllm": told})
    assert board.rows[0].verdict == ("ok" if says is None else "FAULT")
    assert says is None or says in board.rows[0].says


# ---- answers on a GPU, without one -----------------------------------------------------------------------------------


def _answered(*wrong: int, **other: Any) -> dict[str, Any]:
    """What a child writes: 32 answers, those in `wrong` other ones; without the merge half of them are."""

    def answers(*wrong: int) -> dict[str, dict[str, str]]:
        words = ["no" if number in wrong else "yes" for number in range(32)]
        tasks = zip(("pope", "mmstar"), (words[:16], words[16:]), strict=True)
        return {task: {str(number): word for number, word in enumerate(of_task)} for task, of_task in tasks}

    told = {"device": "cuda:0", "dtype": "torch.float32", "processes": 1, "peak": 0, "digests": ["a"], "load s": 1.0}
    return {**told, "answers": answers(*wrong), "merges": [{"answers": answers(*range(0, 32, 2))}], **other}


_BF16 = {"dtype": "torch.bfloat16"}


@pytest.mark.parametrize(
    ("check", "own", "other", "says"),
    [
        (harness._wrapper, _answered(), _answered(), None),
        (harness._wrapper, _answered(3), _answered(), "1 of 32 answers differ"),
        (harness._wrapper, _answered(device="cpu"), _answered(), "the model ran on cpu"),
        (harness._wrapper, _answered(**_BF16), _answered(), r"ran in torch\.bfloat16, not in float32"),
        (harness._wrapper, _answered(*range(0, 32, 2)), _answered(), "0 of 32 answers are others without the merge"),
        (harness._wrapper, _answered(*range(0, 20, 2)), _answered(), "6 of 32 .* expected 25% or more"),
        (harness._wrapper_bf16, _answered(1, 4, 17, 31, **_BF16), _answered(), None),
        (harness._wrapper_bf16, _answered(1, 4, 5, 17, 31, **_BF16), _answered(), "5 of 32 .* explains 12.5% at most"),
        (harness._wrapper_bf16, _answered(*range(32), **_BF16), _answered(), "32 of 32 answers differ"),
        (harness._wrapper_bf16, _answered(*range(0, 32, 2), **_BF16), _answered(), "16 of 32 answers differ"),
        (harness._wrapper_bf16, _answered(), _answered(), r"ran in torch\.float32, not in bfloat16"),
        (harness._auto, _answered(), _answered(), None),
        (harness._auto, _answered(9), _answered(), "1 of 32 answers differ"),
        (harness._auto, _answered(device="cpu"), _answered(), "the model ran on cpu"),
        (harness._launched, _answered(), _answered(), None),
        (harness._launched, _answered(9), _answered(), "1 of 32 answers differ"),
        (harness._launched, _answered(processes=2), _answered(), "2 processes answered on 1 cards"),
        (harness._vllm, _answered(1, 4, 17, 31), _answered(), None),
        (harness._vllm, _answered(1, 4, 5, 17, 31), _answered(), "5 of 32 answers differ"),
        (harness._vllm, _answered(digests=["b"]), _answered(), "answers say that they are of"),
    ],
)
def test_other_answers_on_a_gpu_are_a_fault(tmp_path, monkeypatch, check, own, other, says) -> None:
    """`own` is what the check asks for first, `other` what it is held against."""
    board, asked = Board(tmp_path, "cpu", "pico"), [own, other]
    board.device, board.is_cuda = "cuda:0", True
    monkeypatch.setattr(Board, "synchronize", lambda self: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(harness, "_suite", lambda folder: folder)
    monkeypatch.setattr(harness, "_vllm_suite", lambda board, folder: (folder, 1))
    monkeypatch.setattr(harness, "_answers", lambda *given, **named: asked.pop(0))
    with nullcontext() if says is None else pytest.raises(Fault, match=says):
        check(board, tmp_path, {"float32": other})


def test_answers_in_bf16_without_any_in_float32_are_skipped(tmp_path, monkeypatch) -> None:
    board = Board(tmp_path, "cpu", "pico")
    board.device, board.is_cuda = "cuda:0", True
    monkeypatch.setattr(harness, "_suite", lambda folder: folder)
    monkeypatch.setattr(harness, "_answers", lambda *given, **named: _answered(**_BF16))
    with pytest.raises(Skipped, match="no answers in float32 to compare with"):
        harness._wrapper_bf16(board, tmp_path, {})


def test_answers_that_are_not_there_are_a_fault(tmp_path, monkeypatch) -> None:
    told = _answered()
    del told["merges"][0]["answers"]["pope"]["7"]

    def run(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        (tmp_path / "few.json").write_text(json.dumps(told))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(harness.subprocess, "run", run)
    with pytest.raises(Fault, match=r"few: answers by task are {'pope': 15, 'mmstar': 16}, expected 16 of each"):
        harness._answers(tmp_path, "few", "plam_llava")


# ---- what it needs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["tools.gpu_check.needed", "tools.gpu_check"])
def test_what_is_missing_is_said(module: str) -> None:
    code = "import runpy, sys; sys.modules.update(accelerate=None, pydantic=None);"
    code += f"runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"{sys.executable} lacks accelerate, pydantic; it needs {', '.join(needed.NEEDED)}." in done.stderr
    assert "Traceback" not in done.stderr


def test_page_script_and_makefile_agree_on_what_is_needed() -> None:
    words = f"{', '.join(needed.NEEDED[:-1])} and {needed.NEEDED[-1]}"
    for text in (gpu_check.__doc__, (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")):
        assert words in " ".join(text.split())
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ngpu:\n")[2].partition("\n\n")[0]
    assert "tools.gpu_check.needed" in recipe and "import " not in recipe


# ---- its options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "--device 'cuda': expected one of cpu (torch finds no GPU that it can use)"),
        (["--device", "gpu"], "--device 'gpu': expected one of cpu"),
        (["--device", ""], "--device '': expected one of cpu"),
        (["--without", ""], "--without '': in no check's name; expected a part of one: rates; a random pair; plam_ll"),
        (["--without", "depth", "nobody"], "--without 'nobody': in no check's name"),
        (["--output", "file"], "--output file: File exists; expected a folder"),
        (["--scratch", "file/below"], "--scratch file/below: Not a directory; expected a folder"),
    ],
)
def test_an_option_that_cannot_be_followed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_a_device_is_one_of_those_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [gpu_check._device(word) for word in (None, "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda", "cuda:1", "cpu"]
    with pytest.raises(ValueError, match=r"'cuda:2': expected one of cpu, cuda, cuda:0, cuda:1$"):
        gpu_check._device("cuda:2")


def test_no_check_is_no_success_and_the_scratch_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "out"), "--device", "cpu", "--families", "llava", "--scratch"]
    assert main([*words, str(tmp_path / "not" / "yet"), "--without", "rates", "a random pair", "plam_", "a"]) == 1
    assert "gpu_check: nothing was checked" in capsys.readouterr().err
    assert {row["verdict"] for row in rows_of(tmp_path / "out").values()} == {"skipped"}
    assert (tmp_path / "not" / "yet").is_dir()


# ---- the board -------------------------------------------------------------------------------------------------------


def test_the_board_goes_on_behind_a_fault(tmp_path: Path) -> None:
    board = Board(tmp_path, "cpu", "pico", without=["neither"])

    def absent() -> None:
        raise Skipped("no card | of this kind")

    def faulty() -> None:
        raise Fault("two bits\ndiffer")

    assert board.check("a", "first", lambda: {"s": 0.00001, "bytes": 12345678.0, "of": {"nan": float("nan")}})
    assert not board.check("a", "second", faulty)
    assert not board.check("a", "third", lambda: [][0])
    assert not board.check("b", "fourth", absent)
    assert not board.check("b", "neither this", faulty)
    assert [row.name for row in board.faults] == ["second", "third"]
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "1 checks ended well, 2 found a fault, 2 were skipped" in table
    assert "| a | first | ok | s 1.0e-05, bytes 1.2e+07, of (nan nan) |" in table
    assert "| a | second | FAULT | two bits differ |" in table
    assert "| a | third | FAULT | IndexError: list index out of range |" in table
    assert "| b | fourth | skipped | no card \\| of this kind |" in table


def test_no_check_begins_when_the_time_is_over(tmp_path: Path) -> None:
    board = Board(tmp_path, "cpu", "pico", time_limit=-1)
    assert not board.check("a", "late", lambda: {})
    assert board.rows[0].verdict == "skipped" and not board.faults


# ---- checks that have to fail ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    return write_pair("llava", FAMILIES["llava"].shape("pico"), tmp_path_factory.mktemp("pair"), "cpu")


@pytest.fixture
def session(pair, tmp_path: Path) -> Session:
    return Session(pair, Board(tmp_path / "out", "cpu", "pico"), tmp_path)


def test_one_bit_is_found(session: Session) -> None:
    parameters = decoder_parameters(session.model(torch.bfloat16))
    assert same_bits(parameters, session.values_on_cpu(None, torch.bfloat16))["differing"] == 0
    key = (2, "self_attn.q_proj.weight")
    with torch.no_grad():
        parameters[key].view(torch.int16)[3, 4] ^= 1
    with pytest.raises(Fault, match=r"1 of 36 tensors differ: layer 2, self_attn.q_proj.weight: 1 of 4096 elements"):
        same_bits(parameters, session.values_on_cpu(None, torch.bfloat16))
    with pytest.raises(Fault, match="on one side only"):
        same_bits(
            decoder_parameters(session.model(torch.float32)), session.values_on_cpu(None, torch.float32, range(3))
        )


@contextmanager
def _no_mask(*given: Any) -> Iterator[None]:
    yield


def _larger(stock: Callable[..., Any]) -> Callable[..., Any]:
    def products(rows: Any, shared: Any) -> Any:
        return stock(rows * 1.5, shared)

    return products


def _mask_of_the_default_kernel(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Only the first call masks: that of the default kernel, before another is asked for."""
    calls = [0]

    def mask(*given: Any) -> Any:
        calls[0] += 1
        return stock(*given) if calls[0] == 1 else _no_mask()

    return mask


def _swapped(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Answers of one document are given for the other."""

    def answers(*given: Any, **named: Any) -> Any:
        found = stock(*given, **named)
        return replace(found, tokens=found.tokens.flip(1))

    return answers


@pytest.mark.parametrize(
    ("breaks", "check", "said"),
    [
        ((merges, "merge_in_place", lambda stock: lambda model, spec, **given: stock(model, None, **given)),
         lambda session: merges._bits(session, session.spec(1, 3), torch.float32), "tensors differ"),
        ((merges, "checksum_of", lambda stock: lambda value: object()),
         lambda session: merges._undo(session, session.spec(1, 3)), "not what they were"),
        ((probes, "mask_vision", lambda stock: _no_mask),
         lambda session: probes._mask(session, torch.float32, "sdpa"), "move logits by"),
        ((probes, "mask_vision", lambda stock: _no_mask),
         lambda session: probes._masked_rows(session, torch.float32), "behind the cut"),
        ((probes, "mask_vision", _mask_of_the_default_kernel),
         lambda session: probes._kernel(session, torch.bfloat16, SDPBackend.MATH), "those without a mask|rounding"),
        ((probes, "mask_vision", lambda stock: _no_mask),
         lambda session: probes._refused(session), "refused|flash|kernels"),
        ((probes, "mask_vision", lambda stock: lambda model, cut, closed_to: stock(model, min(cut, 2), closed_to)),
         lambda session: probes._all_cuts(session, torch.float32, "text"), "an answer differs|KL differs"),
        ((probes, "merge_in_place", lambda stock: lambda *given, **named: None),
         lambda session: probes._all_merges(session, torch.float32), "gives other bits than merged in place"),
        ((row_capture, "_products", _larger), lambda session: probes._rows(session, torch.float32, "sdpa"), "rows"),
        ((row_capture, "_products", _larger), lambda session: probes._rows(session, torch.bfloat16, "sdpa"), "rows"),
        ((probes, "generate_all_cuts", _swapped),
         lambda session: probes._all_cuts(session, torch.bfloat16, "text"), "an answer differs|KL differs"),
        ((probes, "generate_all_merges", _swapped),
         lambda session: probes._all_merges(session, torch.bfloat16), "an answer differs"),
        ((probes, "_first", lambda stock: lambda model, inputs: stock(model, inputs) | {
            "pixel_values": stock(model, inputs)["pixel_values"] + 1}),
         lambda session: probes._mask(session, torch.bfloat16, "sdpa"), "another batch size or kernel moves a logit"),
        ((probes, "merge_in_place", lambda stock: lambda *given, **named: None),
         lambda session: probes._depth(session, torch.float32), "merged model is like the plain one"),
    ],
)  # fmt: skip
def test_a_broken_path_is_a_fault(
    session: Session, monkeypatch: pytest.MonkeyPatch, breaks: Any, check: Callable[[Session], Any], said: str
) -> None:
    module, name, broken = breaks
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    with pytest.raises(Exception, match=said):
        check(session)


@pytest.mark.parametrize(("leads", "bad"), [(0.39, False), (0.41, True), (float("nan"), True), (float("inf"), True)])
def test_an_answer_that_was_no_tie_is_a_fault(leads: float, bad: bool) -> None:
    """In the second setting the second answer is another from its second token on."""
    theirs, logits = torch.zeros(2, 2, 3, dtype=torch.long), torch.zeros(2, 2, 3, 5)
    ours = theirs.clone()
    ours[1, 1, 1:] = 4
    logits[1, 1, 1, 0], logits[1, 1, 2, 0] = leads, 100.0
    with pytest.raises(Fault, match="an answer differs") if bad else nullcontext():
        assert probes._flips(ours, theirs, logits, 0.1)["differing answers"] == 1


def test_each_operand_goes_to_the_device_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a merge compares and computes with is what `Operand.on` gives, as it is stored."""
    moved: dict[str, torch.Tensor] = {}
    stock = merge.holds_tensor

    def on(operand: arithmetic.Operand, device: torch.device) -> arithmetic.Operand:
        if any(operand.tensor is value for value in moved.values()):
            return operand
        assert operand.tensor.dtype == torch.bfloat16 and device == torch.device("cpu") and operand.where not in moved
        moved[operand.where] = operand.tensor.clone()
        return arithmetic.Operand(moved[operand.where], operand.where)

    def holds_tensor(parameter: torch.Tensor, stored: torch.Tensor) -> bool:
        assert any(stored is value for value in moved.values())
        return stock(parameter, stored)

    monkeypatch.setattr(arithmetic.Operand, "on", on)
    monkeypatch.setattr(merge, "holds_tensor", holds_tensor)
    spec = session.spec(1, 3)
    merge.merge_in_place(session.model(torch.float32), spec, checkpoint=session.pair.mllm)
    assert len(moved) == 2 * len(dict(session.values_named(spec)))
