"""Wrappers in lmms-eval, alone and under accelerate, and vLLM, on the embedded pair and the offline suite."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plam_eval import threads
from tools.gpu_check.board import Board, Fault, Figures, Skipped

TASKS, LIMIT = "pope,mmstar", 16
MERGE: dict[str, Any] = {"layers": "0:8", "modules": "all", "model_weight": -0.5, "base_weight": 1.0}
"""What the pair is merged by, beside what `demo` says: under it answers are others than the plain model's (the demo's
own merge changes none of these), so that a merge that was lost is seen."""
MOST_FLIPS = 1 / 8
"""Largest share of answers that may differ where two sides round otherwise: bfloat16 against float32, or vLLM's kernels
on a GPU against transformers'. lmms-eval hands on no log-probabilities, so a tie cannot be told from a fault, answer by
answer. On a CPU bfloat16 changes 1 of 32 under `MERGE`, and a lost merge 31; `_wrapper` holds the bound against the
latter, which has to be twice as much at least."""
_NEEDED = ("lmms_eval", "datasets")
_ROOT = Path(__file__).resolve().parents[2]


def check_harness(board: Board, folder: Path) -> None:
    """All of them.

    Args:
        board: with the device.
        folder: for the suite, new.
    """
    answers: dict[str, Any] = {}
    group = "lmms-eval"
    board.check(group, "plam_llava on the device, merged, float32: the CPU's answers", _wrapper, board, folder, answers)
    title = f"plam_llava on the device, merged, bf16: float32's answers but for {MOST_FLIPS:.1%} at most"
    board.check(group, title, _wrapper_bf16, board, folder, answers)
    board.check(group, 'plam_llava with device_map="auto": the same answers', _auto, board, folder, answers)
    board.check(
        group, "accelerate launch, a process for each card: the same answers", _launched, board, folder, answers
    )


def check_vllm(board: Board, folder: Path) -> None:
    """All of vLLM.

    Args:
        board: with the device.
        folder: for the suite; the one of `check_harness` will do.
    """
    answers: dict[str, Any] = {}
    group = "vLLM"
    board.check(group, "plam_vllm merged as it loads, on all cards", _vllm, board, folder, answers)
    board.check(
        group, "re-merged while it runs, and back to plain: as after a start", _remerged, board, folder, answers
    )


def _suite(folder: Path) -> Path:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"{' and '.join(missing)} not installed")
    from plam_eval.demo.run import prepare

    return folder if (folder / "pair").is_dir() else prepare(folder, documents=30)


def _answers(
    suite: Path,
    name: str,
    model_id: str,
    launcher: list[str] | None = None,
    merges: Sequence[tuple[str, dict[str, Any]]] = (),
    **arguments: Any,
) -> Any:
    """What a process of its own answered; raises Fault with the end of its output."""
    merge = {} if arguments.get("plateau") == "none" else MERGE
    given = {"pretrained": str(suite / "pair/mllm"), "plateau": "demo", **merge, **arguments}
    output = suite / f"{name}.json"
    module = ["tools.gpu_check.child", model_id, json.dumps(given), TASKS, str(LIMIT), str(output), json.dumps(merges)]
    command = [*(launcher or [sys.executable]), "-m", *module]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **threads.environment(), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(suite / "cache")
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # which its CPU build takes the GB of that it is allowed
    done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, timeout=400)
    if done.returncode or not output.is_file():
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-6000:])
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise Fault(f"{name} ended with {done.returncode}: {lines[-1][:300]}")
    told = json.loads(output.read_text(encoding="utf-8"))
    for step in (told, *told["merges"]):
        counts = {task: len(of_task) for task, of_task in step["answers"].items()}
        if counts != dict.fromkeys(TASKS.split(","), LIMIT):
            raise Fault(f"{name}: answers by task are {counts}, expected {LIMIT} of each of {TASKS}")
    return told


def _differing(own: Any, expected: Any) -> int:
    """How many answers are others, or are not there."""
    return sum(
        own["answers"].get(task, {}).get(document) != answer
        for task, of_task in expected["answers"].items()
        for document, answer in of_task.items()
    )


def _nearly(name: str, own: Any, expected: Any) -> Figures:
    """How many answers differ between two that round otherwise; raises Fault above `MOST_FLIPS` of them."""
    total, differing = sum(map(len, expected["answers"].values())), _differing(own, expected)
    if own["answers"].keys() != expected["answers"].keys() or differing > MOST_FLIPS * total:
        raise Fault(f"{name}: {differing} of {total} answers differ; rounding explains {MOST_FLIPS:.1%} at most")
    return {"answers": total, "differing": differing, "at most": int(MOST_FLIPS * total)}


def _on(board: Board, own: Any, dtype: str = "float32") -> None:
    """Raises Fault where the model was not on the board's device, or in another dtype."""
    if not own["device"].startswith(board.device.partition(":")[0]):
        raise Fault(f"the model ran on {own['device']}")
    if own["dtype"] != f"torch.{dtype}":
        raise Fault(f"the model ran in {own['dtype']}, not in {dtype}")


def _same(name: str, own: Any, expected: Any) -> Figures:
    total = sum(map(len, expected["answers"].values()))
    differing = _differing(own, expected)
    if own["answers"].keys() != expected["answers"].keys() or differing:
        raise Fault(f"{name}: {differing} of {total} answers differ")
    return {"answers": total, "differing": differing}


def _wrapper(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    suite = _suite(folder)
    given: dict[str, Any] = {"device": board.device, "dtype": "float32", "merges": [("none", {})]}
    seconds, own = board.timed(_answers, suite, "float32", "plam_llava", **given)
    answers["float32"] = own
    _on(board, own)
    total, lost = sum(map(len, own["answers"].values())), _differing(own["merges"][0], own)
    if lost < 2 * MOST_FLIPS * total:
        raise Fault(f"{lost} of {total} answers are others without the merge; expected {2 * MOST_FLIPS:.0%} or more")
    figures = {"answers": total, "other without the merge": lost, "s": seconds}
    if not board.is_cuda:
        return figures
    expected = _answers(suite, "cpu", "plam_llava", device="cpu", dtype="float32")
    return {**figures, **_same("on the device", own, expected), "MiB": own["peak"] / 2**20}


def _wrapper_bf16(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    _needs_cuda(board)
    own = _answers(_suite(folder), "bf16", "plam_llava", device=board.device, dtype="bfloat16")
    _on(board, own, "bfloat16")
    return _nearly("bf16 against float32", own, _float32(answers))


def _float32(answers: dict[str, Any]) -> Any:
    if "float32" not in answers:
        raise Skipped("there are no answers in float32 to compare with, see above")
    return answers["float32"]


def _auto(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    _needs_cuda(board)
    own = _answers(_suite(folder), "auto", "plam_llava", device_map="auto", dtype="float32")
    _on(board, own)
    return _same("device_map=auto", own, _float32(answers))


def _launched(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    _needs_cuda(board)
    suite, cards = _suite(folder), torch.cuda.device_count()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(cards)]
    launcher += ["--multi_gpu"] if cards > 1 else []
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
    own = _answers(suite, "launched", "plam_llava", launcher, dtype="float32")
    _on(board, own)
    if own["processes"] != cards:
        raise Fault(f"{own['processes']} processes answered on {cards} cards")
    return {"processes": cards, **_same("accelerate launch", own, _float32(answers))}


def _vllm(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    suite, cards = _vllm_suite(board, folder)
    much = {"layers": "0:8", "modules": "all", "model_weight": 0.3, "base_weight": 1.2}
    again = [("none", {}), ("demo", much), ("demo", MERGE)]
    seconds, own = board.timed(_answers, suite, "vllm", "plam_vllm", merges=again, **_engine(board, cards))
    answers["vllm"] = own
    expected = _answers(suite, "transformers", "plam_llava", dtype="float32", device=board.device)
    alike = _nearly if board.is_cuda else _same  # on a GPU the two may round otherwise, in float32 as well
    figures = alike("vLLM against transformers", own, expected)
    if own["digests"] != expected["digests"]:
        raise Fault(f"answers say that they are of {own['digests']}, those of transformers of {expected['digests']}")
    return {"cards": cards, "s": seconds, "load s": own["load s"], **figures}


def _remerged(board: Board, folder: Path, answers: dict[str, Any]) -> Figures:
    suite, cards = _vllm_suite(board, folder)
    if "vllm" not in answers:
        raise Skipped("the engine did not start, see above")
    start, (plain, other, back) = answers["vllm"], answers["vllm"]["merges"]
    fresh = _answers(suite, "vllm-plain", "plam_vllm", **{**_engine(board, cards), "plateau": "none"})
    for name, told in (("merged at start", start), ("plain", plain), ("merged otherwise", other), ("back", back)):
        if told["digests"] != [told.get("digest", start["digests"][0])]:
            raise Fault(f"{name}: answers say that they are of {told['digests']}, the weights are of {told['digest']}")
        if any("unread" in sums for sums in told["checksums"]):
            raise Fault(f"{name}: parameters that no checksum can be had of: {told['checksums'][0]['unread'][:200]}")
    for name, one, like in (("back to plain", plain, fresh), ("merged as at first", back, start)):
        if one["checksums"] != like["checksums"]:
            raise Fault(f"{name}: weights have other checksums than after a start with them")
        _same(f"{name}, against a start with it", one, like)
    states = (start, plain, other)
    if len({json.dumps(told["checksums"]) for told in states}) < len(states):
        raise Fault("two merges have the same checksums")
    return {
        "workers": len(start["checksums"]),
        "merge s": max(told["merge s"] for told in start["merges"]),
        "start s": fresh["load s"],
        "checksums s": max(told["checksums s"] for told in states),
        "merges that vLLM's own checksums tell apart": len({json.dumps(told["own checksums"]) for told in states}),
        "answers that differ between merges": sum(
            len({told["answers"][task][document] for told in states}) > 1
            for task, of_task in plain["answers"].items()
            for document in of_task
        ),
    }


def _vllm_suite(board: Board, folder: Path) -> tuple[Path, int]:
    """The suite, and on how many cards the engine runs. Raises Skipped where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise Skipped("vllm is not installed")
    return _suite(folder), torch.cuda.device_count() if board.is_cuda else 1


def _engine(board: Board, cards: int) -> dict[str, Any]:
    engine = {"tensor_parallel_size": cards, "dtype": "float32", "max_model_len": 1024, "batch_size": LIMIT}
    return engine if board.is_cuda else {**engine, "enforce_eager": True, "skip_mm_profiling": True}


def _needs_cuda(board: Board) -> None:
    if not board.is_cuda:
        raise Skipped("the device is the CPU, whose own tests have this")
