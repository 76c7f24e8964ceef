"""`plam demo`: the embedded pair on nine offline benchmarks: scan, look inside, merge, sweep, export, report.

The plateau is found on some documents, and merges are judged on others.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plam_eval import threads
from plam_eval.demo import hub
from plam_eval.errors import InputError, PlamError
from plam_eval.evaluation import records
from plam_eval.evaluation.scan_folder import SPEC
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from plam_eval.evaluation.sweep.folder import CELLS, read_run
from plam_eval.files import (
    MARKER,
    check_writable,
    inside,
    make_own,
    read_json,
    remove_own,
    sha256_of_file,
    write_in_one_step,
    write_json,
)
from plam_eval.harness import run_files
from plam_eval.layer_sets import layers_of, write_layers
from plam_eval.provenance import git_commit, versions
from plam_eval.terminal import Terminal, text
from plam_eval.weight_ramps import read_weights

PACKAGED = "demo"  # the spec that is merged where the scan finds no plateau
# The plateau and two other ranges to hold against it; weights that sum to one merge without scaling.
RANGES, WEIGHTS = "plateau,early,middle", "0.9+0.3,0.7+0.3"
# What is looked into: open answers and letters, of so many documents each.
LOOKED_AT, DOCUMENTS_LOOKED_AT = "gqa,realworldqa", 20
DONE, LOG = "finished.json", "log.txt"
BOARD, QUESTIONS = "seedbench_2_plus", "questions.txt"  # the one of the nine that a board takes a file of
CHECKPOINT = "checkpoint"
_PROGRESS = re.compile(
    r"(?:Model Responding|answering under every cut|looking under \d+ settings|answering for \d+ cells|sweep):\s+(\d+)%"
)


class DemoError(PlamError, RuntimeError):
    """An evaluation of the demo failed; the message names the log."""


@dataclass(frozen=True)
class Demo:
    """Folders of the suite (with the pair in it), the scan, the look inside, the sweep, the export, and the page.

    `merged` is the merge through lmms-eval; `submission` what says of the submission that it was checked.
    """

    suite: Path
    scan: Path
    plateau: str
    attend: Path
    merged: records.Run
    sweep: Path
    export: Path
    submission: Path
    page: Path


def prepare(folder: Path, documents: int = 120, models: str = "pair") -> Path:
    """Write the offline suite into `folder` and copy the models beside the datasets, as `pair/mllm` and `pair/base`.

    Args:
        folder: as in `write_hub`.
        documents: of each task, those to scan among them.
        models: "pair", or "trio": then there is also `trio/ancestor`, and GQA asks for reasoning only.
    """
    suite = hub.write_hub(folder, documents_per_task=documents, gqa="reasoning" if models == "trio" else "all")
    packaged = Path(str(resources.files("plam_eval.demo") / models))
    if not (packaged / "mllm" / "model.safetensors").is_file():
        script = "train_trio" if models == "trio" else "train"
        raise DemoError(f"no embedded {models} in {packaged}: train it with `python -m plam_eval.demo.{script}`")
    for source in packaged.rglob("*"):
        target = suite / models / source.relative_to(packaged)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.is_file() or sha256_of_file(target) != sha256_of_file(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    ids = _question_ids(suite)
    write_in_one_step(suite / QUESTIONS, lambda partial: partial.write_text("\n".join(ids) + "\n", encoding="utf-8"))
    return suite


def _question_ids(suite: Path) -> list[str]:
    """Those of the copy of the benchmark `BOARD`: the questions that a submission has to answer, all of them."""
    import pandas as pd

    table = hub.TABLES[BOARD]
    (file,) = (suite / table.repo / table.config).glob("*.parquet")
    return list(map(str, pd.read_parquet(file, columns=["question_id"])["question_id"]))


def command(plateau: str, output: str, limit: int, offset: int) -> list[str]:
    """The lmms-eval call for one plateau, to be run in the suite's folder.

    Args:
        plateau: name or path of the spec.
        output: folder for results and sample logs.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9", "--batch_size", "1"]
    return [*words, "--log_samples", "--output_path", output, "--limit", str(limit), "--offset", str(offset)]


def scan_command(limit: int) -> list[str]:
    """The `plam scan` call for the first `limit` documents of each task, to be run in the suite's folder."""
    words = ["plam", "scan", "--model", "plam_llava", "--model_args", "pretrained=pair/mllm,device_map=cpu"]
    return [*words, "--tasks", "plam9", "--limit", str(limit), "--base", "pair/base", "--output", "../scan"]


def attend_command(plateau: str, limit: int, offset: int, output: str = "../attend") -> list[str]:
    """The `plam attend` call, to be run in the suite's folder: where the pair looks, plain, merged and scaled.

    Args:
        plateau: name or path of the spec.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
        output: folder of what is found.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["plam", "attend", "--model", "plam_llava", "--model_args", model_args, "--tasks", LOOKED_AT]
    words += ["--limit", str(limit), "--offset", str(offset), "--depth", "--scan", "../scan"]
    return [*words, "--output", output]


def sweep_command(plateau: str, limit: int, offset: int) -> list[str]:
    """The `plam sweep` call, to be run in the suite's folder; a third of the documents choose the best merge.

    Args:
        plateau: name or path of the spec.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["plam", "sweep", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9"]
    words += ["--layers", RANGES, "--weights", WEIGHTS, "--select", str(limit // 6 * 2)]  # whole pairs of MME's
    return [*words, "--limit", str(limit), "--offset", str(offset), "--together", "20", "--output", "../sweep"]


def export_command(plateau: str, sweep: Path) -> list[str]:
    """The `plam export` call for the merge that a sweep chose, to be run in the suite's folder.

    Args:
        plateau: name or path of the spec that the sweep began with.
        sweep: its folder; where it chose nothing, the spec itself is exported.
    """
    words = ["plam", "export", "--model", "pair/mllm", "--plateau", plateau]
    findings = read_findings(sweep)
    if findings.selection is not None:
        cells = {cell["name"]: cell["spec"] for cell in findings.plan["grid"]["cells"]}
        spec = cells[findings.selection.cell]
        model_weight, base_weight = read_weights(spec["weights"]).written
        words += ["--layers", write_layers(layers_of(spec)), "--modules", "+".join(spec["modules"])]
        words += ["--model-weight", model_weight, "--base-weight", base_weight]
    return [*words, "--results", "../sweep", "--output", f"../export/{CHECKPOINT}"]


def plain_command() -> list[str]:
    """The lmms-eval call for the plain model on all documents of one benchmark, to be run in the suite's folder."""
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", "pretrained=pair/mllm,plateau=none,device_map=cpu"]
    return [*words, "--tasks", BOARD, "--batch_size", "1", "--log_samples", "--output_path", "../plain"]


def submit_command() -> list[str]:
    """The `plam submit` call for the plain model's run, to be run in the suite's folder."""
    return ["plam", "submit", "../plain", "--board", BOARD, "--questions", QUESTIONS]


def run(
    folder: Path,
    *,
    documents: int = 120,
    scanned: int = 120,
    limit: int | None = None,
    fresh: bool = False,
    console: Terminal | None = None,
) -> Demo:
    """Scan the first `scanned` documents of each task; look inside, merge and sweep on those after them; publish.

    Published are an export of the merge that the sweep chose, a submission of the plain model's, and the page.

    What is finished for the same suite, pair and versions is not repeated.

    Args:
        folder: for the suite, the results and the page.
        documents: of each task, to merge and sweep on.
        scanned: of each task, to find the plateau on.
        limit: evaluate fewer documents than there are; None for all.
        fresh: whether to repeat what is finished, too.
        console: where to say what happens; by default standard output.

    Raises:
        DemoError: a command fails or writes no results (lmms-eval's exits 0 all the same). InputError: an odd number of
            documents. FolderError: the folder cannot be written, or holds something else where the demo's folders are
            to be.
    """
    for name, count in (("documents", documents), ("scanned", scanned), ("limit", limit or 2)):
        if count % 2:  # known before the scan is paid for
            raise InputError(f"{name} is {count}, but MME asks two questions of an image; give an even number")
    check_writable(folder)
    console = console or Terminal()
    suite = prepare(folder / "suite", scanned + documents)
    limit = limit or documents
    console.say(
        f"Offline suite: nine benchmarks, {scanned} documents each to scan and {limit} others to evaluate, in "
        f"{_near(suite)}"
    )
    scan, page = folder / "scan", folder / "report" / "index.html"
    _step("scan", scan_command(scanned), suite, scan, fresh, console)
    plateau = "../scan/plateau.yaml" if (scan / SPEC).is_file() else PACKAGED
    attend, looked_at = folder / "attend", min(limit, DOCUMENTS_LOOKED_AT)
    _step("attend", attend_command(plateau, looked_at, scanned), suite, attend, fresh, console)
    _step("merged", command(plateau, "../merged", limit, scanned), suite, folder / "merged", fresh, console)
    _step("sweep", sweep_command(plateau, limit, scanned), suite, folder / "sweep", fresh, console)
    export, plain, submission = (folder / name for name in ("export", "plain", "submission"))
    _step("export", export_command(plateau, folder / "sweep"), suite, export, fresh, console)
    _step("plain", plain_command(), suite, plain, fresh, console)
    _step("submission", submit_command(), suite, submission, fresh, console)
    words = ["plam", "report", "../scan", "../attend", "../sweep", "../export", "--output", "../report"]
    _step("report", words, suite, page.parent, fresh, console)
    merged = records.read_run(_results(folder / "merged"))
    (about,) = _results(plain).parent.glob(f"{run_files.date_of(_results(plain))}_submission_{BOARD}.about.json")
    return Demo(suite, scan, plateau, attend, merged, folder / "sweep", export / CHECKPOINT, about, page)


def _step(label: str, words: list[str], suite: Path, output: Path, fresh: bool, console: Terminal) -> None:
    """Run a command unless it has finished before, on the same files and versions."""
    done, identity = output / DONE, _identity(suite, words)
    if not fresh and _finished(done) == identity:
        console.say(f"{label}: already done ({_near(output)})")
        return
    console.say(text(f"\n$ HF_HUB_OFFLINE=1 {shlex.join(words)}", "bold"))
    if label == "export" or (label in ("scan", "attend", "sweep") and (fresh or done.is_file())):
        remove_own(output, DONE, LOG)  # of another suite or version: neither mixes them
    if not output.is_dir():
        make_own(output)
    elif not any((output / mark).is_file() for mark in (MARKER, DONE, LOG)) and any(output.iterdir()):
        raise DemoError(f"{output}: holds something that the demo has not made; name another --output")
    done.unlink(missing_ok=True)
    before = set(run_files.result_files(output))
    _run(words, suite, output / LOG, label, console)
    new = sorted(set(run_files.result_files(output)) - before)
    if words[0] == "lmms-eval" and len(new) != 1:
        raise DemoError(_failed(label, output / LOG, f"{len(new)} results files, expected 1"))
    # By name: the newest by date is another one where the clock was set back.
    write_json(done, identity | ({"results": str(new[0].relative_to(output))} if words[0] == "lmms-eval" else {}))


def _finished(done: Path) -> dict[str, Any] | None:
    """What was evaluated to the end in a folder of the demo; None where nothing was, or the record is damaged."""
    try:
        record = read_json(done, "delete it")
    except (OSError, ValueError):
        return None
    record.pop("results", None)
    return record


def _results(output: Path) -> Path:
    """The results file of the last call, or the folder, where an earlier version has not recorded which it is."""
    name = read_json(output / DONE, "run the demo with --fresh").get("results")
    return inside(output, name, str(output / DONE)) if name is not None else output


def _run(words: list[str], suite: Path, log: Path, label: str, console: Terminal) -> None:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    module = {"lmms-eval": "lmms_eval", "plam": "plam_eval.cli"}[words[0]]
    with _tethered(module, words[1:], suite) as process, log.open("wb") as file:
        assert process.stdout is not None
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(f"{label}: starting", total=100)
            while chunk := os.read(process.stdout.fileno(), 65536):
                file.write(chunk)
                if percents := _PROGRESS.findall(chunk.decode(errors="replace")):
                    progress.update(bar, description=f"{label}: answering", completed=int(percents[-1]))
            progress.update(bar, description=f"{label}: done", completed=100)
        code = process.wait()
    if code:
        raise DemoError(_failed(label, log, f"exit status {code}"))


@contextmanager
def _tethered(module: str, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module arguments` in a folder, in a group of processes that ends when this process or block does."""
    environment = (
        os.environ
        | threads.environment()
        | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plam_eval.demo.tethered", module, *arguments],
        cwd=folder,
        # Python files in that folder are not imported (from Python 3.11 on).
        env=environment | {"PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,  # never written to: its end is how the process learns of the end of this one
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()


def _failed(label: str, log: Path, why: str) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"the command for {label} failed ({why}); the end of {log}:\n{tail}"


def _identity(suite: Path, words: list[str]) -> dict[str, Any]:
    pair = [suite / "pair" / side / "model.safetensors" for side in ("mllm", "base")]
    manifest = suite / hub.MANIFEST
    return {
        "command": words,
        "files": {str(file.relative_to(suite)): sha256_of_file(file) for file in (manifest, *pair)},
        "versions": versions(),
        "commit": git_commit(),
    }


def _near(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _environment() -> str:
    """How to come by the commands, where `plam` on this terminal is none or another than the one that runs."""
    here, on_path = Path(sys.executable).parent, shutil.which("plam")
    if on_path is not None and Path(on_path).parent == here:
        return ""
    return f"with the environment active (source {_near(here / 'activate')}) and "


def same_answers(demo: Demo, findings: Findings) -> tuple[int, int]:
    """Answers of the merge through lmms-eval's command line that differ from the sweep's, and how many there are.

    Args:
        demo: finished.
        findings: of its sweep, in which the same merge is a cell.
    """
    digest = demo.merged.block["provenance"]["digest"]
    cell = findings.cells.loc[findings.cells["digest"] == digest, "cell"].iloc[0]
    resident = read_run(demo.sweep / CELLS / cell).samples
    both = demo.merged.samples.merge(resident, on=["task", "doc_id"], suffixes=("", "_resident"))
    return int((both["answer"] != both["answer_resident"]).sum()), len(both)


def report(demo: Demo, console: Terminal | None = None) -> None:
    """Print the scan, where the pair looks, the merge, the sweep, what was published and what to try next.

    Args:
        demo: finished.
        console: where to; by default standard output.
    """
    from plam_eval.evaluation import scan_folder
    from plam_eval.evaluation.attend import folder as attend_folder
    from plam_eval.evaluation.attend.findings import find, selected
    from plam_eval.merging.export_record import read_export_record
    from plam_eval.merging.report import MergeReport
    from plam_eval.report import tables

    console = console or Terminal(least_width=150)
    console.print()
    scanned = scan_folder.load(demo.scan)
    tables.show_scan(scanned, console)
    if demo.plateau == PACKAGED:
        console.say(f"No plateau was found: the packaged spec `{PACKAGED}` was merged instead.")
    seen = find(attend_folder.load(demo.attend), select=selected(demo.attend))
    console.say(f"\nWhere it looks, on {seen.answers['documents'].max()} documents after those: {seen.sentence}")
    provenance = demo.merged.block["provenance"]
    console.print()
    console.print(MergeReport.from_dict(provenance["merge"]).table())
    swept = read_findings(demo.sweep)
    differ, documents = same_answers(demo, swept)
    console.say(
        f"Through lmms-eval's command line and on the sweep's resident model: {differ} of {documents} answers differ."
    )
    console.show(tables.sweep(swept), tables.sweep(swept, narrow=True))
    console.say(swept.verdict())
    exported, submitted = read_export_record(demo.export), read_json(demo.submission, "run the demo with --fresh")
    hows = Counter(file.how for file in exported.files.values())
    console.say(
        f"Export of the chosen merge: {_near(demo.export)} (digest {exported.digest[:16]}; "
        f"files: {', '.join(f'{count} {how}' for how, count in sorted(hows.items()))})"
    )
    console.say(
        f"Submission of the plain model, checked: {_near(demo.submission.parent / submitted['file'])} "
        f"({submitted['answers']} answers for {submitted['title']})"
    )
    console.data = {
        "suite": str(demo.suite),
        "scan": scanned.to_dict(),
        "attend": seen.to_dict(),
        "merge": provenance["merge"],
        "sweep": swept.to_dict(),
        "answers": documents,
        "answers_differ": differ,
        "export": str(demo.export),
        "export_digest": exported.digest,
        "submission": str(demo.submission.parent / submitted["file"]),
        "page": str(demo.page),
    }
    console.say(f"Scan: {_near(demo.scan)}; look inside: {_near(demo.attend)}; sweep: {_near(demo.sweep)}")
    console.say(text(f"Report: {_near(demo.page)}", "bold"))
    config = demo.merged.results["config"]
    limit, offset = int(config["limit"]), int(config["offset"])
    looked_at, answer = min(limit, DOCUMENTS_LOOKED_AT), ["--queries", "answer"]
    console.say(
        f"""
What to try next, {_environment()}in the suite's folder
(cd {_near(demo.suite)}; export HF_HUB_OFFLINE=1):
  other layers      {shlex.join(command("demo,layers=2:8", "../layers-2-8", limit, offset))}
  another margin    plam plateau ../scan --margin 0.03
  more of the grid  {shlex.join([*sweep_command(demo.plateau, limit, offset), "--modules", "qk,vo"])}
  who looks         {shlex.join([*attend_command(demo.plateau, looked_at, offset, "../attend-answer"), *answer])}
  before you merge  plam doctor --model pair/mllm --plateau {demo.plateau}
  for an appendix   plam submit ../merged --bundle ../merged.zip && plam submit --verify ../merged.zip
Your own model: --model plam_qwen3_vl --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b"""
    )
