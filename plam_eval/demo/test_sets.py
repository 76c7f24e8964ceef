"""Invented copies of the released test sets, so that their tasks run offline: the questions of an offline suite.

`write_test_sets(suite)` takes the drawn questions that the suite asks as MMMU's validation and MMBench's dev split and
writes them into `SUITE/released` as test splits, with files of answers of the published form:

    python -m plam_eval.demo.hub suite && python -m plam_eval.demo.test_sets suite
    cd suite/released && . ./answers.env && HF_HUB_OFFLINE=1 lmms-eval --tasks plam_mmmu_test ...

`answers.env` names the files and vouches for their MD5, since they are not the released ones; reports say so. MMBench's
questions are asked under every rotation of their choices here, every fifth one has three choices, and rows that are
rotated refer to the first one's image. Every fourth open question of MMMU has two right answers.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval.demo.hub import TABLES, SuiteError, read_manifest
from plam_eval.demo.questions import LETTERS
from plam_eval.errors import PlamError, system_error
from plam_eval.files import make_own, remove_own, write_json
from plam_eval.terminal import Terminal, labelled
from plam_eval.test_sets import TEST_SETS
from plam_eval.test_sets.mmbench import STEP

FOLDER = "released"
ENVIRONMENT = "answers.env"

_FIRST = 3000  # index of a question: those of version 1.1 reach beyond
_TWO_TRUTHS, _THREE_CHOICES = 4, 5
_COLUMNS = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "image")

Row = dict[str, Any]


def write_test_sets(suite: str | Path) -> Path:
    """Write the copies into the folder `released` of a suite, in place of those of before, and return it.

    Args:
        suite: folder that `write_hub` wrote.

    Raises:
        SuiteError: there is no suite. FolderError: the folder holds what plam-eval has not made.
    """
    suite = Path(suite).absolute()
    manifest = read_manifest(suite)
    folder = suite / FOLDER
    remove_own(folder)
    building = suite / f".{FOLDER}"
    remove_own(building)
    make_own(building)
    try:
        _write_mmmu(building, _rows(suite, manifest, "mmmu"))
        for language in ("en", "cn"):
            _write_mmbench(building, language, _rows(suite, manifest, f"mmbench_{language}"))
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment(folder).items()]
    (folder / ENVIRONMENT).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


def environment(folder: str | Path) -> dict[str, str]:
    """The variables of `answers.env`: each task's file, and its MD5.

    Args:
        folder: that `write_test_sets` returned.
    """
    variables = {}
    for test_set in TEST_SETS.values():
        path = Path(folder).absolute() / test_set.file.name
        variables[test_set.file.variable] = str(path)
        variables[test_set.file.md5_variable] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return variables


def _rows(suite: Path, manifest: Mapping[str, Any], name: str) -> list[Row]:
    """The rows of a dataset of the suite, images as they are stored."""
    import pyarrow.parquet as pq

    prefix = f"{TABLES[name].repo}/{TABLES[name].config}/{TABLES[name].split}-"
    paths = [path for path in manifest["files"] if path.startswith(prefix)]
    if not paths:
        raise SuiteError(f"{suite} has no {prefix}*: write the suite again with plam_eval.demo.hub")
    rows: list[Row] = pq.read_table(suite / paths[0]).to_pylist()
    return rows


def _write_mmmu(folder: Path, rows: Sequence[Row]) -> None:
    import datasets

    answers, opened = dict[str, Row](), 0
    for row in rows:
        row["id"] = row["id"].replace("validation_", "test_", 1)
        truth, row["answer"] = row["answer"], "?"
        if row["question_type"] == "multiple-choice":
            answers[row["id"]] = {"question_type": "multiple-choice", "ground_truth": truth}
            continue
        opened += 1
        texts = [truth, f"exactly {truth}"] if opened % _TWO_TRUTHS == 0 else truth
        answers[row["id"]] = {"question_type": "short-answer", "ground_truth": texts}
    write_json(folder / TEST_SETS["plam_mmmu_test"].file.name, answers)
    columns = TABLES["mmmu"].columns
    features = datasets.Features(
        {name: datasets.Image() if kind == "image" else datasets.Value(kind) for name, kind in columns.items()}
    )
    repository = folder / TABLES["mmmu"].repo
    (repository / "default").mkdir(parents=True)
    partial = repository / "partial"
    table = datasets.Dataset.from_list(list(rows), features=features)
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table.to_parquet(partial)
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    # Named by its content, by which `datasets` tells local datasets apart in its cache.
    name = f"default/test-{hashlib.sha256(partial.read_bytes()).hexdigest()[:16]}.parquet"
    partial.rename(repository / name)
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: test",
        f"    path: {name}",
        "---",
    ]
    (repository / "README.md").write_text("\n".join([*lines, "Drawn scenes. Not the real benchmark.", ""]))


def _write_mmbench(folder: Path, language: str, rows: Sequence[Row]) -> None:
    path = folder / TEST_SETS[f"plam_mmbench_{language}_test_v11"].file.name
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        turned = [_rotations(row, _FIRST + number) for number, row in enumerate(rows)]
        for turn in range(len(LETTERS)):  # first every question once, then again with its choices rotated
            writer.writerows(question[turn] for question in turned if turn < len(question))


def _rotations(row: Row, index: int) -> list[Row]:
    """A question under every rotation of its choices."""
    right = row[row["answer"]]
    choices = [row[letter] for letter in LETTERS]
    if index % _THREE_CHOICES == 0:
        choices.remove(next(choice for choice in reversed(choices) if choice != right))
    same = {"question": row["question"], "hint": "", "category": row["category"], "l2-category": row["L2-category"]}
    rotations = []
    for turn in range(len(choices)):
        turned = choices[turn:] + choices[:turn]
        letters = dict(zip(LETTERS, [*turned, *[""] * (len(LETTERS) - len(turned))], strict=True))
        image = str(index) if turn else base64.b64encode(row["image"]["bytes"]).decode()
        answer = LETTERS[turned.index(right)]
        rotations.append({**same, **letters, "index": index + turn * STEP, "answer": answer, "image": image})
    return rotations


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copies as the command line says; returns the exit status.

    Args:
        arguments: words of the command line; None for those of this process.
    """
    description = "Write invented copies of the released test sets into an offline suite."
    parser = argparse.ArgumentParser(prog="python -m plam_eval.demo.test_sets", description=description)
    parser.add_argument("suite", help="folder that python -m plam_eval.demo.hub wrote")
    options = parser.parse_args(arguments)
    try:
        folder = write_test_sets(options.suite)
    except (PlamError, OSError) as error:
        said = system_error(error) if isinstance(error, OSError) else error
        Terminal(stderr=True).say(labelled("error", "bold red", said))
        return 1
    Terminal().say(
        f"invented test sets in {folder}: cd there, read {ENVIRONMENT} (. ./{ENVIRONMENT}), and run HF_HUB_OFFLINE=1 "
        f"lmms-eval --tasks {','.join(TEST_SETS)} ..."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
