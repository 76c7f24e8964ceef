"""`plam demo`: the embedded pair on nine offline benchmarks: a scan, then plain and merged through lmms-eval.

The plateau is found on some documents, and the merge judged on others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from plam_eval.demo import hub
from plam_eval.evaluation import records, stats
from plam_eval.evaluation.scan import SPEC
from plam_eval.provenance import git_commit, versions

LABELS = ("plain", "merged", "control")  # the control is the merge's scale without its base
PACKAGED = "demo"  # the spec that is merged where the scan finds no plateau
_PROGRESS = re.compile(r"(?:Model Responding|answering under every cut):\s+(\d+)%")


class DemoError(RuntimeError):
    """An evaluation of the demo failed; the message names the log."""


@dataclass(frozen=True)
class Demo:
    """Folder of the suite (with the pair in it), the scan's folder, what was merged, and the run of each of LABELS."""

    suite: Path
    scan: Path
    plateau: str
    runs: dict[str, records.Run]


def prepare(folder: Path, documents: int = 120) -> Path:
    """Write the offline suite into `folder` and copy the pair beside the datasets, as `pair/mllm` and `pair/base`."""
    suite = hub.write_hub(folder, documents_per_task=documents)
    packaged = Path(str(resources.files("plam_eval.demo") / "pair"))
    if not (packaged / "mllm" / "model.safetensors").is_file():
        raise DemoError(f"no embedded pair in {packaged}: train it with `python -m plam_eval.demo.train`")
    for source in packaged.rglob("*"):
        target = suite / "pair" / source.relative_to(packaged)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.is_file() or _digest(target) != _digest(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return suite


def command(plateau: str, output: str, limit: int, offset: int) -> list[str]:
    """The lmms-eval call for one plateau, to be run in the suite's folder."""
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9", "--batch_size", "1"]
    return [*words, "--log_samples", "--output_path", output, "--limit", str(limit), "--offset", str(offset)]


def scan_command(limit: int) -> list[str]:
    """The `plam scan` call, to be run in the suite's folder."""
    words = ["plam", "scan", "--model", "plam_llava", "--model_args", "pretrained=pair/mllm,device_map=cpu"]
    return [*words, "--tasks", "plam9", "--limit", str(limit), "--base", "pair/base", "--output", "../scan"]


def run(
    folder: Path, *, documents: int = 120, scanned: int = 120, limit: int | None = None, fresh: bool = False
) -> Demo:
    """Scan the first `scanned` documents of each task, then evaluate each of LABELS on the `documents` after them.

    What is finished for the same suite, pair and versions is not repeated. `limit`: evaluate fewer documents.

    Raises DemoError when a command fails or writes no results: lmms-eval's exits 0 all the same.
    """
    console = Console()
    suite = prepare(folder / "suite", scanned + documents)
    limit = limit or documents
    console.print(
        f"Offline suite: nine benchmarks, {scanned} documents each to scan and {limit} others to evaluate, in "
        f"{_near(suite)}"
    )
    scan = folder / "scan"
    _step("scan", scan_command(scanned), suite, scan, fresh, console)
    plateau = "../scan/plateau.yaml" if (scan / SPEC).is_file() else PACKAGED
    runs: dict[str, records.Run] = {}
    for label, wanted in zip(LABELS, ("none", plateau, f"{plateau},rule=self_scale"), strict=True):
        _step(label, command(wanted, f"../{label}", limit, scanned), suite, folder / label, fresh, console)
        runs[label] = records.read_run(folder / label)
    return Demo(suite, scan, plateau, runs)


def _step(label: str, words: list[str], suite: Path, output: Path, fresh: bool, console: Console) -> None:
    """Run a command unless it has finished before, on the same files and versions."""
    done, identity = output / "finished.json", _identity(suite, words)
    if not fresh and done.is_file() and json.loads(done.read_text()) == identity:
        console.print(f"{label}: already done ({_near(output)})")
        return
    console.print(f"\n$ HF_HUB_OFFLINE=1 {shlex.join(words)}", style="bold", highlight=False)
    before = done.is_file()
    if label == "scan" and (fresh or before):  # of another suite or version, which a scan does not mix
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    _run(words, suite, output / "log.txt", label, console)
    partial = done.with_suffix(".partial")
    partial.write_text(json.dumps(identity, indent=2))
    partial.replace(done)


def _run(words: list[str], suite: Path, log: Path, label: str, console: Console) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", {"lmms-eval": "lmms_eval", "plam": "plam_eval.cli"}[words[0]], *words[1:]],
        cwd=suite,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    before = len(records.result_files(log.parent))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with process, log.open("wb") as file, Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{label}: starting", total=100)
        while chunk := os.read(process.stdout.fileno(), 65536):
            file.write(chunk)
            if found := _PROGRESS.findall(chunk.decode(errors="replace")):
                progress.update(bar, description=f"{label}: answering", completed=int(found[-1]))
        progress.update(bar, description=f"{label}: done")
    code = process.returncode
    if code or len(records.result_files(log.parent)) <= before:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise DemoError(f"the command for {label} failed (exit status {code}); the end of {log}:\n{tail}")


def _identity(suite: Path, words: list[str]) -> dict[str, Any]:
    pair = [suite / "pair" / side / "model.safetensors" for side in ("mllm", "base")]
    manifest = suite / hub.MANIFEST
    return {
        "command": words,
        "files": {str(file.relative_to(suite)): _digest(file) for file in (manifest, *pair)},
        "versions": versions(),
        "commit": git_commit(),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _near(path: Path) -> Path:
    """Relative to the working directory where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(demo: Demo) -> Table:
    """Accuracy by task, plain beside merged and the control, and the paired comparison of plain and merged."""
    prior = hub.text_prior(demo.suite)
    plain, merged, control = (demo.runs[label].samples for label in LABELS)
    result = Table(title="Accuracy on the offline suite", title_justify="left", caption_justify="left")
    for name in ("task", "n", "prior", "plain", "95 %", "merged", "gained", "lost", "p", "control"):
        result.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    tasks = [task for task in hub.TASKS if (plain["task"] == task).any()]
    for task in tasks:
        one, other = plain[plain["task"] == task], merged[merged["task"] == task]
        pair = stats.paired(one, other)
        low, high = stats.proportion_interval(round(one["score"].sum()), len(one))
        result.add_row(
            task,
            str(len(one)),
            f"{prior[task]:.2f}",
            f"{one['score'].mean():.3f}",
            f"{low:.2f} to {high:.2f}",
            f"{other['score'].mean():.3f}",
            str(pair.gained),
            str(pair.lost),
            _p(pair),
            f"{control[control['task'] == task]['score'].mean():.3f}",
        )
    pair = stats.paired(plain, merged)
    means = [demo.runs[label].accuracy().mean() for label in LABELS]
    result.add_section()
    result.add_row(
        *("mean", str(len(plain)), f"{sum(prior[task] for task in tasks) / len(tasks):.2f}", f"{means[0]:.3f}", ""),
        *(f"{means[1]:.3f}", str(pair.gained), str(pair.lost), _p(pair), f"{means[2]:.3f}"),
        style="bold",
    )
    result.caption = (
        "prior: what a reader of the question alone can reach; 95 %: interval of plain\n"
        "gained, lost: documents that only the merged, or only the plain model answers right\n"
        "p: exact McNemar test; control: rule=self_scale, the merge's weights on the MLLM alone, without the base\n"
        "MME counts single questions here; results files have the stock scores"
    )
    return result


def _p(pair: stats.Paired) -> str:
    return f"{pair.p:.2f}" if pair.p >= 0.01 else f"{pair.p:.1g}"


def verdict(demo: Demo) -> str:
    """In words, what the merge did beside its control."""
    plain, merged, control = (demo.runs[label].samples for label in LABELS)
    effect, rest = stats.paired(plain, merged), stats.paired(control, merged)
    answers = merged.merge(control, on=["task", "doc_id"])
    differ = int((answers["answer_x"] != answers["answer_y"]).sum())
    shown = "differs" if effect.p < 0.05 else "is not shown to differ"
    against = "and also from" if rest.p < 0.05 else "but is not shown to differ from" if effect.p < 0.05 else "nor from"
    return (
        f"Merged {shown} from plain ({effect.gained} gained, {effect.lost} lost, p = {_p(effect)}), {against} the "
        f"control ({rest.gained} gained, {rest.lost} lost, p = {_p(rest)}; {differ} of {len(answers)} answers differ)."
    )


def report(demo: Demo) -> None:
    """Print the scan, the merge, the comparison and what to try next."""
    from plam_eval.evaluation import scan as scans
    from plam_eval.merging.merge import MergeReport

    console = Console(width=max(Console().width, 110))
    console.print()
    scans.show(scans.load(demo.scan), console)
    if demo.plateau == PACKAGED:
        console.print(f"No plateau was found: the packaged spec `{PACKAGED}` was merged instead.")
    merge = demo.runs["merged"].results["plam_eval"]["provenance"]["merge"]
    console.print()
    console.print(MergeReport.from_dict(merge).table())
    console.print(table(demo))
    console.print(verdict(demo), highlight=False)
    for label, evaluated in demo.runs.items():
        console.print(f"{label}: {_near(evaluated.file)}", highlight=False)
    config = demo.runs["merged"].results["config"]
    documents = int(config["limit"]), int(config["offset"])
    console.print(
        f"""
What to try next, with the environment active (source .venv/bin/activate) and in the suite's folder
(cd {_near(demo.suite)}; export HF_HUB_OFFLINE=1):
  other layers      {shlex.join(command("demo,layers=2:8", "../layers-2-8", *documents))}
  another control   {shlex.join(command(f"{demo.plateau},rule=normalized", "../normalized", *documents))}
  another margin    plam plateau ../scan --margin 0.03
  before you merge  plam doctor --model pair/mllm --plateau {demo.plateau}
Your own model: --model plam_qwen3_vl --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b""",
        highlight=False,
        soft_wrap=True,
    )
