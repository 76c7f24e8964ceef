"""`plam demo`: the embedded pair, plain and merged, on nine offline benchmarks, through lmms-eval's command line."""

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
from plam_eval.provenance import git_commit, versions

PLATEAU = "demo"
LABELS = {"plain": "none", "merged": PLATEAU}
_PROGRESS = re.compile(r"Model Responding:\s+(\d+)%")


class DemoError(RuntimeError):
    """An evaluation of the demo failed; the message names the log."""


@dataclass(frozen=True)
class Demo:
    """Folder of the suite (with the pair in it) and the run of each label of LABELS."""

    suite: Path
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


def command(plateau: str, output: str, limit: int | None = None) -> list[str]:
    """The lmms-eval call for one plateau, to be run in the suite's folder."""
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9", "--batch_size", "1"]
    return [*words, "--log_samples", "--output_path", output, *(["--limit", str(limit)] if limit else [])]


def run(folder: Path, *, documents: int = 120, limit: int | None = None, fresh: bool = False) -> Demo:
    """Evaluate plain and merged; a finished evaluation of the same suite, pair and versions is not repeated.

    Raises DemoError when lmms-eval fails or writes no results: its command line exits 0 all the same.
    """
    console = Console()
    suite = prepare(folder / "suite", documents)
    console.print(f"Offline suite: nine benchmarks, {limit or documents} documents each, in {_near(suite)}")
    runs: dict[str, records.Run] = {}
    for label, plateau in LABELS.items():
        words = command(plateau, f"../{label}", limit)
        output, done = folder / label, folder / label / "finished.json"
        identity = _identity(suite, words)
        if not fresh and done.is_file() and json.loads(done.read_text()) == identity:
            console.print(f"{label}: already evaluated ({_near(output)})")
        else:
            console.print(f"\n$ HF_HUB_OFFLINE=1 {shlex.join(words)}", style="bold", highlight=False)
            output.mkdir(parents=True, exist_ok=True)
            done.unlink(missing_ok=True)
            _evaluate(words, suite, output / "lmms-eval.log", label, console)
            partial = done.with_suffix(".partial")
            partial.write_text(json.dumps(identity, indent=2))
            partial.replace(done)
        runs[label] = records.read_run(output)
    return Demo(suite, runs)


def _evaluate(words: list[str], suite: Path, log: Path, label: str, console: Console) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lmms_eval", *words[1:]],
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
        bar = progress.add_task(f"{label}: starting lmms-eval", total=100)
        while chunk := os.read(process.stdout.fileno(), 65536):
            file.write(chunk)
            if found := _PROGRESS.findall(chunk.decode(errors="replace")):
                progress.update(bar, description=f"{label}: answering", completed=int(found[-1]))
        progress.update(bar, description=f"{label}: done")
    code = process.returncode
    if code or len(records.result_files(log.parent)) <= before:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise DemoError(f"the {label} evaluation failed (exit status {code}); the end of {log}:\n{tail}")


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
    """Accuracy by task, plain beside merged, and the paired comparison."""
    prior = hub.text_prior(demo.suite)
    plain, merged = demo.runs["plain"].samples, demo.runs["merged"].samples
    result = Table(title="Accuracy on the offline suite", title_justify="left", caption_justify="left")
    for name in ("task", "n", "prior", "plain", "95 %", "merged", "gained", "lost", "p"):
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
            f"{pair.p:.2f}",
        )
    pair = stats.paired(plain, merged)
    means = [demo.runs[label].accuracy().mean() for label in LABELS]
    result.add_section()
    result.add_row(
        *("mean", str(len(plain)), f"{sum(prior[task] for task in tasks) / len(tasks):.2f}", f"{means[0]:.3f}", ""),
        *(f"{means[1]:.3f}", str(pair.gained), str(pair.lost), f"{pair.p:.2f}"),
        style="bold",
    )
    result.caption = (
        "prior: what a reader of the question alone can reach; 95 %: interval of plain\n"
        "gained, lost: documents that only the merged, or only the plain model answers right\n"
        "p: exact McNemar test. MME counts single questions here; results files have the stock scores"
    )
    return result


def report(demo: Demo) -> None:
    """Print the merge, the table and what to try next."""
    from plam_eval.merging.merge import MergeReport

    console = Console(width=max(Console().width, 110))
    merge = demo.runs["merged"].results["plam_eval"]["provenance"]["merge"]
    console.print()
    console.print(MergeReport.from_dict(merge).table())
    console.print(table(demo))
    for label, evaluated in demo.runs.items():
        console.print(f"{label}: {_near(evaluated.file)}", highlight=False)
    console.print(
        f"""
What to try next, with the environment active (source .venv/bin/activate) and in the suite's folder
(cd {_near(demo.suite)}; export HF_HUB_OFFLINE=1):
  other layers      {shlex.join(command("demo,layers=2:8", "../layers-2-8"))}
  a control         {shlex.join(command("demo,rule=self_scale", "../self-scale"))}
  before you merge  plam doctor --model pair/mllm --plateau demo
Your own model: --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b with --model plam_qwen3_vl""",
        highlight=False,
        soft_wrap=True,
    )
