"""Runs of a model without weights on the offline suite, and bundles of them that somebody has changed."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plam_eval.harness.evaluate import evaluate
from plam_eval.publishing.bundle.archive import write_archive
from plam_eval.publishing.bundle.manifest import NAME
from plam_eval.spec import load_spec
from tests.helpers.answering import Answering

NINE = [
    "mmstar",
    *("mmbench_en_dev_static", "mmbench_cn_dev_static"),
    *("mme", "mmmu_val", "gqa", "pope", "realworldqa", "seedbench_2_plus"),
]
SAID = [
    "A",
    "B. It is blue.",
    "yes",
    "Yes.",
    "The answer is C",
    "",
    "no",
    "<think>A or D?</think> D",
    "3",
    "no idea, red",
]
"""Answers right and wrong, in the form that is asked for and in others, by turns."""
SPEC = load_spec(
    {"model": "org/mllm", "base_model": "org/base", "layer_range": [2, 6], "modules": ["q_proj", "v_proj"],
     "weights": {"model": 0.9, "base_model": 0.3}, "source": "Jane Doe, personal communication"}
)  # fmt: skip

Members = dict[str, bytes]


def stock_run(output: Path, tasks: str) -> Path:
    """A run that lmms-eval writes for a model that is none of ours; to be called in the suite. Gives its results."""
    done = evaluate(Answering(lambda task, number: SAID[(number * 7 + len(task)) % len(SAID)]), tasks, output=output)
    return done.results_file


def merged_run(output: Path, tasks: str) -> Path:
    """The same with what our wrappers record of a merge."""
    file = stock_run(output, tasks)
    results = json.loads(file.read_text(encoding="utf-8"))
    provenance = {
        "versions": {"python": "3.11.0", "plam-eval": "0.1.0", "lmms-eval": "0.7.3", "torch": "2.6.0"},
        "commit": "c0ffee" * 6,
        "spec": SPEC.to_dict(),
        "digest": SPEC.digest(),
        "checkpoint": {"name": "org/mllm", "folder": "/home/jane.doe/models/mllm", "sha256": "ab" * 32},
        "base": {"name": "org/base", "folder": "/home/jane.doe/models/base", "sha256": "cd" * 32},
    }
    results["plam_eval"] = {"wrapper": "plam_llava", "plain": False, "mode": "chat", "provenance": provenance}
    results["config"]["model_args"] = "pretrained=/home/jane.doe/models/mllm,plateau=/scratch/jd12/plateau.yaml"
    results["config"]["resolved_cli_args"]["wandb_args"] = "entity=doe-lab,project=secret"
    file.write_text(json.dumps(results), encoding="utf-8")
    return file


def members_of(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forged(bundle: Path, target: Path, change: Callable[[Members], object], *, hashes: bool = True) -> Path:
    """A bundle that somebody has changed; with `hashes`, its list of hashes was made again."""
    members = members_of(bundle)
    change(members)
    if hashes:
        manifest = json.loads(members[NAME])
        for name, entry in manifest["files"].items():
            if name in members:
                entry |= {"sha256": hashlib.sha256(members[name]).hexdigest(), "bytes": len(members[name])}
        members[NAME] = json.dumps(manifest).encode()
    write_archive(target, lambda writer: [writer.add(name, [content]) for name, content in members.items()])
    return target


def edited_results(change: Callable[[dict[str, Any]], None], run: str = "runs/001") -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        results = json.loads(members[f"{run}/results.json"])
        change(results)
        members[f"{run}/results.json"] = json.dumps(results).encode()

    return edit


def edited_sample(
    task: str, change: Callable[[dict[str, Any]], None], number: int = 0, run: str = "runs/001"
) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        name = f"{run}/samples_{task}.jsonl"
        samples = [json.loads(line) for line in members[name].splitlines()]
        change(samples[number])
        members[name] = b"".join(json.dumps(sample).encode() + b"\n" for sample in samples)

    return edit


def edited_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Members], None]:
    def edit(members: Members) -> None:
        manifest = json.loads(members[NAME])
        change(manifest)
        members[NAME] = json.dumps(manifest).encode()

    return edit
