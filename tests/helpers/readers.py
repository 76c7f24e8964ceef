"""Every reader of what others may have written: one row for each, with a valid example and the call that reads it.

A new reader is a new row of `READERS`. What is drawn of the example: tests/helpers/damage.py.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from plam_eval.errors import PlamError
from plam_eval.merging.bin_header import BinHeaderError
from tests.helpers import damage
from tests.helpers.paths import PAIR, ROOT
from tests.helpers.watching import Fault

Refusals = tuple[type[BaseException], ...]
OURS: Refusals = (PlamError, OSError)
"""What a command prints as one message: `plam_eval.cli.app.explained`."""
IN_WORDS: Refusals = (ValueError,)
"""What a reader of one value raises, for whoever collects problems: it says what was found. `of_ours` tells it from
what json, numpy or `int` raise of the same kind, which says nothing of what was read."""
_LIBRARY = tuple(f"{ROOT / top}{os.sep}" for top in ("plam_eval", "model_wrappers", "tasks"))
_RAISE = dis.opmap["RAISE_VARARGS"]


def of_ours(error: BaseException) -> bool:
    """Whether an error is a message of the library: one of `OURS`, or a plain ValueError of a `raise` in its code.

    Where `int` or `float` raise, the innermost frame is the caller's, ours maybe; it then stands at a call.

    Args:
        error: as it was caught.
    """
    if isinstance(error, (*OURS, BinHeaderError)):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if type(error) is not ValueError or trace is None:
        return False
    code = trace.tb_frame.f_code
    return code.co_filename.startswith(_LIBRARY) and code.co_code[trace.tb_lasti] == _RAISE


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the row.
        modules: of the library, that read something here: `tests/fuzzing/test_readers.py` knows those that have to be.
        read: takes what was drawn: a folder, a text or a tree of JSON.
        make: writes a valid example into an empty folder; None where texts or trees are read.
        only: which of its files change.
        words: valid texts.
        marks: letters that texts are put together with.
        tree: a valid tree of JSON.
        refusals: errors that it may end with.
        may_lead_out: the path that is read is the user's own, so that it may lead anywhere.
        share: of the number of inputs that others get, where it takes longer.
        needs: an optional module.
        long: run by `make fuzz` and `make test-long` alone.
    """

    name: str
    modules: tuple[str, ...]
    read: Callable[[Any], object]
    make: Callable[[Path], object] | None = None
    only: Callable[[str], bool] = bool
    words: Sequence[str] = ()
    marks: str = ",=:+"
    tree: Any = None
    refusals: Refusals = OURS
    may_lead_out: bool = False
    share: float = 1.0
    needs: str | None = None
    long: bool = False

    @property
    def of_a_folder(self) -> bool:
        """Whether it reads a folder, whose files change; else it may lie where words are read."""
        return self.make is not None and not self.words

    def inputs(self, files: Mapping[str, bytes]) -> st.SearchStrategy[Any]:
        """What may be drawn.

        Args:
            files: of the example.
        """
        if self.of_a_folder:
            return damage.folders(files, self.only)
        return damage.words(self.words, marks=self.marks) if self.words else damage.changed(self.tree)


# ---- examples --------------------------------------------------------------------------------------------------------

SPEC = {
    "model": "org/mllm",
    "base_model": "org/base",
    "layer_range": [2, 6],
    "modules": ["q_proj", "v_proj"],
    "weights": {"model": [0.9, 0.5], "base_model": 0.3},
    "rule": "dare",
    "parameters": {"drop_rate": 0.5},
    "seed": 3,
    "source": "somebody",
    "evidence": {"documents": {"pope": 2}, "doc_ids": {"pope": "0:2"}, "scan": "a scan"},
}
SWEEP = {
    "model": "plam_llava",
    "model_args": f"pretrained={PAIR}/mllm,device=cpu,dtype=float32",
    "base_model": "org/base",
    "tasks": ["pope", "mmstar"],
    "layers": ["4:8", "3+5", "all"],
    "modules": ["qkvo", "q_proj+k_proj"],
    "weights": ["0.9+0.3", "0.9:0.5+0.1"],
    "rules": ["weighted_sum", "dare:drop_rate:0.5"],
    "controls": ["self_scale", "random_layers"],
    "seeds": [0, 1],
    "draws": 3,
    "select": 10,
    "limit": 100,
    "gen_kwargs": "max_new_tokens=8",
    "batch_size": 2,
}
SEARCH = {
    "model": "plam_llava",
    "model_args": f"pretrained={PAIR}/mllm",
    "base_model": "org/base",
    "tasks": "pope,mmstar",
    "layers": "sets",
    "within": "1:7",
    "min_layers": 2,
    "max_layers": 4,
    "model_weight": "0.7:0.9:0.1",
    "base_weight": "0.1:0.3",
    "modules": "qkvo,q_proj",
    "rules": "weighted_sum,ties",
    "trials": 9,
    "rungs": "0.5",
    "sampler": "tpe",
    "seed": 1,
    "select": 24,
}
MODEL_ARGS = (
    "pretrained=org/mllm,plateau=demo,layers=4:8,base=org/base",
    "pretrained=a/b@main,base=a/c@v1,layers=3+9+20:24,modules=q_proj+k_proj,model_weight=0.9:0.5,base_weight=0.1,rule=dare,seed=3",
    'pretrained=x,device=cpu,dtype=float32,max_pixels=100,attn_implementation=eager,until={"a": [1, 2]}',
)


def _yaml(name: str, content: Mapping[str, Any]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        import yaml

        (folder / name).write_text(yaml.safe_dump(dict(content), sort_keys=False))

    return write


def _checkpoint(*, sharded: bool = False, bin: bool = False) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        from tests.helpers.llamas import shard, write_llama

        inner = write_llama(folder / "mllm", 0)
        if sharded:
            shard(inner, bin=bin)
        (inner / "README.md").write_text(
            "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n# Llama\n"
        )

    return write


def _run(folder: Path) -> None:
    from tests.helpers.run_folders import documents, write_run

    write_run(
        folder / "run", documents(["pope", "gqa"], 4, right=2), generation={"calls": 7, "failed": 0, "settings": []}
    )


def _two_runs(folder: Path) -> None:
    from tests.helpers.exports import run_of, spec_of
    from tests.helpers.run_folders import documents

    run_of(folder / "a", documents(["pope", "gqa"], 4, right=2))
    run_of(folder / "b", documents(["pope", "gqa"], 4, right=3), spec_of())


def _scan(folder: Path) -> None:
    from plam_eval import files
    from plam_eval.evaluation import scan_folder
    from plam_eval.probing.curve import Curve
    from plam_eval.probing.plateau import find_plateau
    from tests.helpers.curves import rows

    settings = {"pretrained": "pair/mllm", "wrapper": "plam_llava", "mode": "chat", "dtype": "float32", "spec": None}
    (folder / scan_folder.SETTINGS).write_text(json.dumps(settings | {"versions": {"torch": "2"}, "closed_to": "text"}))
    curve = Curve(
        rows(lambda cut: 0.3 if cut < 2 else 0.8, layers=4, documents=10, tasks=("pope", "gqa")), 4, resamples=50
    )
    curve.write(folder / scan_folder.SAMPLES)
    stages = find_plateau(curve)
    files.write_json(folder / scan_folder.STAGES, {"base_model": "pair/base", "stages": stages.to_dict()})
    _yaml(scan_folder.SPEC, SPEC)(folder)


def _curve(folder: Path) -> None:
    from plam_eval.probing.curve import Curve
    from tests.helpers.curves import rows

    curve = Curve(
        rows(lambda cut: 0.3 if cut < 2 else 0.8, layers=3, documents=3, tasks=("pope", "gqa")), 3, resamples=20
    )
    curve.write(folder / "curve.csv")


def _sweep(folder: Path) -> None:
    from tests.helpers.run_folders import changed, documents, write_sweep

    plain = documents(["pope", "mmstar"], 8, right=4)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(5, 8)})
    cells: dict[str, Any] = {
        "plain": plain,
        "layers-6-8_qkvo_0.9+0.3": better,
        "layers-0-8_qkvo_0.9+0.3": "out of memory",
    }
    write_sweep(folder, {**cells, "layers-6-8_qkvo_0.9+0.3_self_scale": plain})


def _no_log(name: str) -> bool:
    """Logs of runs have rows of their own."""
    return not name.endswith(".jsonl")


def _noise(folder: Path) -> None:
    from tests.helpers.noise_folders import again, write_pair
    from tests.helpers.run_folders import changed, documents

    plain = documents(["pope", "mmstar"], 6, right=3)
    other = changed(plain, {("pope", 5): ("yes", 1.0)})
    write_pair(folder, plain, other)
    again(folder, "dtype=bfloat16", other, plain)


def _premise(folder: Path) -> None:
    from plam_eval.evaluation.premise.job import BASE, PREMISE
    from plam_eval.evaluation.sweep.folder import PLAN
    from tests.helpers.noise_folders import write_pair
    from tests.helpers.run_folders import changed, documents

    plain = documents(["pope", "mmstar"], 6, right=3)
    write_pair(folder, plain, changed(plain, {("pope", 5): ("yes", 1.0)}))
    write_pair(folder / BASE, plain, None)
    plan = json.loads((folder / BASE / PLAN).read_text())
    plan["grid"]["cells"] = plan["grid"]["cells"][:1]
    plan["grid"]["controls"] = {}
    (folder / BASE / PLAN).write_text(json.dumps(plan))
    (folder / PREMISE).write_text(json.dumps({"base": "pair/base", "template": "mllm"}))


def _search(folder: Path) -> None:
    from plam_eval.evaluation.search.runner import try_settings
    from tests.helpers.searching import Fake, job

    try_settings(job(folder, trials=3, select=4), Fake(documents=10))
    for file in [*folder.rglob("*.lock")]:
        file.unlink()


def _attend(folder: Path) -> None:
    from tests.helpers.attend_folders import write_attend_folder

    write_attend_folder(folder, tasks={"gqa": 4, "pope": 4}, layers=4, depth=True, shown=1, merged=(2, 3))
    (folder / "findings.json").write_text(json.dumps({"select": 1}))
    (folder / "drawn.json").write_text(
        json.dumps({"drawn": {"seed": 0, "order": {"gqa": "0+1 2+3", "pope": "2+3 0:2"}}})
    )


def _export(folder: Path) -> None:
    from tests.helpers.exports import record_of

    record_of().write(folder)


def _bundle(folder: Path) -> None:
    from plam_eval.publishing.bundle.write import make_bundle
    from tests.helpers.logged_runs import graded_rows, write_logs

    results = {"some_task": {"exact_match,none": 0.5}}
    run = write_logs(folder / "run", {"some_task": graded_rows([1, 0])}, results=results)
    make_bundle([run], folder / "b.zip")
    shutil.rmtree(folder / "run")


def _members(folder: Path) -> None:
    """A bundle, unpacked."""
    from tests.helpers.bundles import members_of

    _bundle(folder)
    for name, content in members_of(folder / "b.zip").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "b.zip").unlink()


def _read_members(folder: Path) -> None:
    """Packed again, with the hashes of what is there now: whoever forges a bundle makes them, too."""
    from plam_eval.publishing.bundle.archive import write_archive
    from plam_eval.publishing.bundle.manifest import NAME
    from plam_eval.publishing.bundle.verify import verify_bundle

    files = {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # it is damaged itself
        manifest = json.loads(files[NAME])
        for name, entry in manifest["files"].items():
            if name in files:
                entry |= {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])}
        files[NAME] = json.dumps(manifest).encode()
    write_archive(folder / "b.zip", lambda writer: [writer.add(name, [content]) for name, content in files.items()])
    verify_bundle(folder / "b.zip").to_dict()


def _known_members(folder: Path) -> None:
    """The same of tasks that lmms-eval has, whose metrics are made by their own code."""
    from plam_eval.publishing.bundle.write import make_bundle
    from tests.helpers.bundles import members_of
    from tests.helpers.run_folders import documents, write_run

    run = write_run(folder / "run", documents(["gqa", "mmstar", "pope"], 3, right=2))
    make_bundle([run], folder / "b.zip")
    for name, content in members_of(folder / "b.zip").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "b.zip").unlink()
    shutil.rmtree(folder / "run")


def _read_and_bundle(folder: Path) -> None:
    from plam_eval.publishing.bundle.write import make_bundle

    make_bundle([folder / "a", folder / "b"], folder / "b.zip")


def _board_files(folder: Path) -> None:
    from plam_eval.publishing.boards.files import write_rows

    for board in _boards():
        values = {int: 3, str: "yes", float: 0.5}
        rows = [{column.name: values.get(column.kind, "yes") for column in board.columns} for _ in range(3)]
        for number, row in enumerate(rows):
            row[board.id.name] = number + 1 if board.id.kind is int else f"{number}"
        write_rows(board, rows, folder / f"{board.name}{board.suffix}")


def _boards() -> list[Any]:
    """One board of each form of file."""
    from plam_eval.publishing.boards.table import BOARDS

    return list({(board.form, board.table is not None): board for board in BOARDS.values()}.values())


def _read_boards(folder: Path) -> None:
    from plam_eval.publishing.boards.files import check_file

    for board in _boards():
        file = folder / f"{board.name}{board.suffix}"
        if file.is_file() and file.read_bytes() != _valid(folder, file.name):
            check_file(board, file)


_EXAMPLES: dict[Path, dict[str, bytes]] = {}
"""By folder that is read, its files as they were made: readers that look at many files take those that changed."""


def _valid(folder: Path, name: str) -> bytes | None:
    return _EXAMPLES.get(folder, {}).get(name)


def remember(folder: Path, files: dict[str, bytes]) -> None:
    """Have readers know what a folder's files were.

    Args:
        folder: that is read.
        files: its valid content.
    """
    _EXAMPLES[folder] = files


def _questions(folder: Path) -> None:
    from plam_eval.publishing.boards.table import BOARDS
    from tests.helpers.board_parsers import QUESTION_FILES
    from tests.helpers.submission_runs import question

    for board in ("vqav2", "gqa", "docvqa"):
        (folder / f"{board}.json").write_text(QUESTION_FILES[board]([question(board, n) for n in range(3)]))
    (folder / "ids.jsonl").write_text('{"question_id": 1}\n{"question_id": 2}\n')
    (folder / "ids.csv").write_text("question_id,x\n1,a\n2,b\n")
    table = next(board for board in BOARDS.values() if board.table is not None)
    assert table is not None
    names = "index\tquestion\thint\tA\tB\tanswer\tcategory\tl2-category\tid\timage\n"
    (folder / "table.tsv").write_text(
        names + "1\tIs it?\t\ta\tb\tA\tc\td\ttest_1\tAAAA\n2\tWhy?\t\ta\tb\tB\tc\td\ttest_2\t1\n"
    )


def _read_questions(folder: Path) -> None:
    from plam_eval.publishing.boards.questions import read_board_questions
    from plam_eval.publishing.boards.table import BOARDS

    of = {"ids.jsonl": ("vqav2",), "ids.csv": ("vqav2",)}
    tables = tuple(name for name, board in BOARDS.items() if board.table is not None)
    problems = []
    for file in sorted(folder.iterdir()):
        if file.read_bytes() == _valid(folder, file.name):
            continue
        for name in tables if file.name == "table.tsv" else of.get(file.name, (file.stem,)):
            try:
                read_board_questions(BOARDS[name], file)
            except OURS as error:
                problems.append(error)
    if problems:
        raise problems[0]


def _submission(folder: Path) -> None:
    from tests.helpers.submission_runs import submission_run

    for board in ("docvqa", "gqa"):
        submission_run(folder / board, board, ["cat", "2 dogs", ""])


def _read_submission(folder: Path) -> None:
    from plam_eval.publishing.boards.run_answers import open_run, read_answers
    from plam_eval.publishing.boards.table import BOARDS
    from tests.helpers.submission_runs import TASKS

    for board in ("docvqa", "gqa"):
        run = open_run(folder / board)
        read_answers(run, BOARDS[board], TASKS[board], blank_invalid=True)


def _submitted(folder: Path) -> None:
    from plam_eval.publishing.boards.submission import submit

    _submission(folder)
    submit([folder / "docvqa"], boards=_as_long_as(3))


def _as_long_as(questions: int) -> Sequence[Any]:
    from plam_eval.publishing.boards.table import BOARDS

    return (replace(BOARDS["docvqa"], questions=questions),)


def _submit_again(folder: Path) -> None:
    from plam_eval.publishing.boards.submission import submit

    submit([folder / "docvqa"], boards=_as_long_as(3))


def _fetched(folder: Path) -> None:
    """What is kept of a file that was fetched before."""
    from tests.helpers.released import md5

    place = folder / "plam-eval" / "test-sets" / "answers" / hashlib.sha256(_URL.encode()).hexdigest()[:32]
    place.mkdir(parents=True)
    (place / "content").write_text("{}")
    (place / "source.json").write_text(json.dumps({"url": _URL, "md5": md5(place / "content"), "size": 2}))


_URL = "https://example.org/answers.json"


def _read_fetched(folder: Path) -> None:
    from plam_eval.test_sets.answer_file import AnswerFile

    file = AnswerFile("some_task", "answers.json", "a page", None, 1 << 20)
    environment = {file.variable: _URL, "XDG_CACHE_HOME": str(folder)}
    with mock.patch.dict("os.environ", environment):
        file.locate(fetch=False)


def _hashed(folder: Path) -> None:
    """A file, and what is remembered of it."""
    from plam_eval.merging import content_hash

    (folder / "weights").write_bytes(b"weights")
    with mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(folder)}):
        memory = content_hash._memory(folder / "weights")
        memory.parent.mkdir(parents=True)
        memory.write_text(json.dumps({**content_hash._state(folder / "weights"), "sha256": "ab" * 32}))


def _read_hashed(folder: Path) -> None:
    from plam_eval.merging import content_hash

    with (
        mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(folder)}),
        mock.patch.object(content_hash, "_REMEMBERED", 0),
    ):
        content_hash.sha256_of([folder / "weights"])


CARD = """---
license: mit
model-index:
- name: model
  results:
  - task: {type: visual-question-answering}
    dataset: {name: GQA, type: org/gqa, config: all, split: test}
    metrics: [{type: exact_match, value: 0.5, name: exact match}]
---
# A model
"""


def _remote(folder: Path) -> Any:
    from plam_eval.publishing.hub_results.repository import ModelRepository

    names = frozenset({"results.yaml", "README.md"})
    return ModelRepository("org/model", exists=True, commit="1" * 40, files=names)


def _on_the_hub(folder: Path) -> None:
    entries = [
        {
            "dataset": {"id": "org/gqa", "task_id": "gqa"},
            "value": 0.5,
            "date": "2026-01-01",
            "source": {"url": "https://x.org"},
        },
        {
            "dataset": {"id": "org/pope", "task_id": "pope", "revision": "main"},
            "value": 81,
            "verifyToken": "abc",
            "notes": "n",
        },
    ]
    (folder / "results.yaml").write_text(json.dumps(entries))
    (folder / "README.md").write_text(CARD)


def _read_on_the_hub(folder: Path) -> None:
    from huggingface_hub import EvalResult, EvalResultEntry

    from plam_eval import hub
    from plam_eval.publishing.hub_results.results import HubResults, _merged_card, _merged_entries

    remote = _remote(folder)
    own = EvalResultEntry(dataset_id="org/gqa", task_id="gqa", value=0.6)
    row = EvalResult(
        task_type="visual-question-answering",
        dataset_type="org/gqa",
        dataset_name="GQA",
        metric_type="exact_match",
        metric_value=0.6,
    )
    with mock.patch.object(hub, "small_file", lambda name, file, *args: (folder / file, None)):
        try:
            _merged_entries("results.yaml", [own], remote, [])
        finally:
            _merged_card([row], remote, HubResults("org/model"))


def _mmbench(folder: Path) -> None:
    from tests.helpers.released import tsv_rows, write_tsv

    write_tsv(folder / "mmbench.tsv", tsv_rows())


def _located(file: Path) -> Any:
    from plam_eval.test_sets.answer_file import Located
    from tests.helpers.released import md5

    return Located(file, md5(file), vouched=True)


def _read_mmbench(folder: Path) -> None:
    from plam_eval.test_sets.mmbench import read_rows

    read_rows(_located(folder / "mmbench.tsv"), chinese=False)


def _mmmu(folder: Path) -> None:
    answers = {
        "test_Art_1": {"question_type": "multiple-choice", "ground_truth": "A"},
        "test_Math_2": {"question_type": "short-answer", "ground_truth": ["1", "one"]},
    }
    (folder / "answers.json").write_text(json.dumps(answers))


def _read_mmmu(folder: Path) -> None:
    from plam_eval.test_sets.mmmu import read_answers, with_answers

    file = _located(folder / "answers.json")
    answers, _ = read_answers(file, 1 << 20)
    with_answers(file, answers, ["test_Art_1", "test_Math_2"], ["multiple-choice", "open"], ["['a', 'b']", "[]"])


def _image(folder: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (9, 7), (10, 90, 160))
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tiff"):
        image.save(folder / f"image.{suffix}")


def _read_images(folder: Path) -> None:
    from plam_eval.harness.single_image import read_image

    for file in sorted(folder.iterdir()):
        if file.read_bytes() != _valid(folder, file.name):
            read_image(file)


def _boxes(folder: Path) -> None:
    from plam_eval.harness.boxes import boxes_line

    lines = [boxes_line(("gqa", n), [[[0, 0, 10, 20.5]], [[1, 2, 3, 4], [5, 5, 6, 6]]]) for n in range(3)]
    (folder / "boxes.jsonl").write_text("".join(lines))


def _store(folder: Path) -> None:
    scan = {
        "task": "pope",
        "doc_id": 3,
        "prompt": "ab" * 32,
        "answers": ["yes", "no"],
        "by_cut": [1, 0, 0],
        "kl": [0.5, 0.1, 0],
    }
    (folder / "answers.rank0.jsonl").write_text(json.dumps(scan) + "\n" + json.dumps({**scan, "doc_id": 4}) + "\n")


def _read_store(folder: Path) -> None:
    from plam_eval.evaluation.answer_store import AnswerStore
    from plam_eval.evaluation.scan_recorder import CutRecorder

    recorder = SimpleNamespace(cuts=(0, 1, 2))
    store = AnswerStore(folder, 0)
    store.load(lambda record: CutRecorder._is_whole(recorder, record))  # type: ignore[arg-type]
    for doc_id in (3, 4):
        for record in store.of(("pope", doc_id)):
            assert [record["answers"][index] for index in record["by_cut"]]


def _bin(folder: Path) -> None:
    import torch

    from tests.helpers.llamas import LAYERS  # noqa: F401  torch, imported before anything is watched

    torch.save({"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(4, dtype=torch.bfloat16)}, folder / "w.bin")


def _read_bin(folder: Path) -> None:
    from plam_eval.merging.bin_header import read_header
    from plam_eval.merging.tensor_files import BinFile

    file = folder / "w.bin"
    try:
        with file.open("rb") as stream:
            read_header(stream)
    finally:
        opened = BinFile(file)
        for name in opened.names():
            opened.shape(name), opened.dtype(name)


def _read_checkpoint(folder: Path) -> None:
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import plan_merge
    from plam_eval.publishing.card.licences import read_licence
    from plam_eval.publishing.checkpoint.source_files import code_elsewhere, locate
    from plam_eval.spec import load_spec

    checkpoint = Checkpoint.open(folder / "mllm")
    str(read_licence(checkpoint))
    problems: list[str] = []
    code_elsewhere(checkpoint, locate(checkpoint, sorted(checkpoint.listing()), problems))
    spec = load_spec(None, {"base": str(folder / "mllm"), "layers": "1:3"})
    assert spec is not None
    plan_merge(spec, model=checkpoint, base=checkpoint)
    for name in sorted(checkpoint.names())[:5]:
        checkpoint.tensor(name)


def _read_places(folder: Path) -> None:
    from plam_eval.merging.tensor_files import SafetensorsFile, fingerprint_of
    from plam_eval.publishing.checkpoint.weight_writer import read_places

    file = folder / "mllm" / "model.safetensors"
    fingerprint_of(file)
    try:
        read_places(file)
    finally:
        SafetensorsFile(file)


def _read_run(folder: Path) -> None:
    from plam_eval.evaluation.records import read_run, tables

    run = read_run(folder, {})
    tables({"run": run})
    assert (run.directions is not None and repr(run) and run.mode is not None) or True
    for task in run.tasks:
        run.only([task])


def _read_rescored(folder: Path) -> None:
    from plam_eval.evaluation.rescore import rescore_folders

    rescore_folders([folder / "a", folder / "b"]).to_dict()


def _read_card(folder: Path) -> None:
    from plam_eval.evaluation.exported_merge import ExportedMerge
    from plam_eval.publishing.card.results import read_results
    from tests.helpers.exports import record_of

    read_results([folder], ExportedMerge.of_record(record_of()))


def _read_scan(folder: Path) -> None:
    from plam_eval.evaluation import scan_folder

    scan_folder.load(folder).stages.to_dict()
    from plam_eval.evaluation.excluded import read_excluded

    read_excluded([str(folder), str(folder / scan_folder.SPEC)], folder / scan_folder.SPEC)


def _read_sweep(folder: Path) -> None:
    from plam_eval.evaluation.excluded import read_excluded
    from plam_eval.evaluation.sweep.findings import read_findings

    read_findings(folder)
    read_excluded([str(folder)])


def _read_noise(folder: Path) -> None:
    from plam_eval.evaluation.noise.floor import read_noise
    from plam_eval.evaluation.sweep.findings import read_findings

    read_noise(folder, dict(read_findings(folder).runs))


def _read_search(folder: Path) -> None:
    from plam_eval.evaluation.search.findings import read_search
    from plam_eval.evaluation.search.job import read_plan
    from plam_eval.evaluation.search.study import Study
    from tests.helpers.searching import config

    found = read_search(folder)
    found.to_dict()
    found.verdict()
    Study(folder, _search_space(), config(trials=3, select=4).options, read_plan(folder)["settings"])


def _search_space() -> Any:
    from plam_eval.evaluation.search.space import Space
    from tests.helpers.searching import config

    return Space.of(config(trials=3, select=4), 8)


def _read_attend(folder: Path) -> None:
    from plam_eval.evaluation.attend import folder as layout
    from plam_eval.evaluation.attend.findings import find, selected
    from plam_eval.evaluation.attend.shown import ShownDocument

    attended = layout.load(folder)
    for file in attended.shown:
        ShownDocument.read(file)
    find(attended, select=selected(folder)).to_dict()


def _read_export(folder: Path) -> None:
    from plam_eval.evaluation.exported_merge import ExportedMerge
    from plam_eval.merging.export_record import read_export_record
    from plam_eval.spec import SpecError

    record = read_export_record(folder)
    with contextlib.suppress(SpecError):
        ExportedMerge.of_record(record)


def _read_report(folder: Path) -> None:
    """The whole page, with its tables, beside what it reports on."""
    from plam_eval.report import report

    shutil.rmtree(folder / "page", ignore_errors=True)
    report([folder], output=folder / "page")


def _run_and_scan(folder: Path) -> None:
    _run(folder)
    (folder / "scan").mkdir()
    _scan(folder / "scan")


def _read_body(folder: Path) -> None:
    from plam_eval.serving.gate import Gate, parse_request

    body = parse_request((folder / "body.json").read_bytes())
    if "plateau" in body:
        Gate(specs=folder / "specs", ids=frozenset({"org/base"})).spec(body.pop("plateau"), body)


def _bodies(folder: Path) -> None:
    (folder / "specs").mkdir()
    _yaml("spec.yaml", SPEC)(folder / "specs")
    (folder / "body.json").write_text(json.dumps({"plateau": SPEC, "layers": "3:5", "weights": None, "seed": 4}))


def _named_bodies(folder: Path) -> None:
    _bodies(folder)
    (folder / "body.json").write_text(json.dumps({"plateau": "spec.yaml", "rule": "normalized"}))


def _read_extra(extra: Any) -> None:
    from plam_eval.serving.options import split_options
    from plam_eval.spec import load_spec

    options, _ = split_options(extra)
    load_spec(options.pop("plateau", None), {k: v for k, v in options.items() if k != "plateau_files"})


class _Engine:
    """vLLM's engine client, as far as a re-merge asks it; it takes every spec."""

    errored = False

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(model=f"{PAIR}/mllm", revision=None),
            parallel_config=SimpleNamespace(data_parallel_size=1),
            load_config=SimpleNamespace(model_loader_extra_config={"plateau": None}),
            lora_config=None,
        )

    async def _done(self, *args: Any, **given: Any) -> bool:
        return True

    pause_generation = reset_prefix_cache = reset_encoder_cache = resume_generation = update_weight_version = _done

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        return [{"digest": None, "broken": None} if method == "plam_state" else {"report": None}]


def _pair_bodies(folder: Path) -> None:
    (folder / "specs").mkdir()
    _yaml("spec.yaml", {**SPEC, "base_model": f"{PAIR}/base"})(folder / "specs")
    (folder / "body.json").write_text(json.dumps({"plateau": "spec.yaml", "layers": "3:5", "seed": 4}))


def _ask_endpoint(folder: Path) -> None:
    """A body, sent to the server's route: the answer is JSON, and nothing failed that should not."""
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from plam_eval.serving.endpoint import MergeEndpoint
    from plam_eval.serving.gate import Gate

    route, app = MergeEndpoint(), Starlette()
    route._engine, route._gate = _Engine(), Gate(specs=folder / "specs", below=(PAIR.resolve(),))
    route.attach_router(app)
    content = (folder / "body.json").read_bytes() if (folder / "body.json").is_file() else b""
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 5000)) as client:
        answer = client.post("/plam/merge", content=content, headers={"content-type": "application/json"})
    if answer.status_code in (400, 413):
        raise PlamError(answer.json()["error"])
    assert answer.status_code == 200 and set(answer.json()) == {"digest", "report"}, answer.text


# ---- words -----------------------------------------------------------------------------------------------------------


def _read_args(text: str) -> None:
    from plam_eval.evaluation.sweep.config import split_arguments
    from plam_eval.spec import load_spec

    _, ours = split_arguments(text)

    load_spec(None if "plateau" not in ours else str(ours.pop("plateau")), ours)


def _read_wandb(text: str) -> None:
    from plam_eval.evaluation.wandb import Settings

    Settings.read(text)


def _read_noise_words(text: str) -> None:
    from plam_eval.evaluation.noise.variant import Variant

    Variant.read(text)


def _read_settings(text: str) -> None:
    from plam_eval.evaluation.attend.settings import Settings
    from plam_eval.spec import load_spec

    Settings.read(load_spec({**SPEC, "evidence": None}), text.split(","))


def _in_words(text: str, *readers: Callable[[str], object]) -> None:
    """What readers of one value make of a text, each for itself."""
    for read in readers:
        try:
            read(text)
        except IN_WORDS as error:
            if not str(error) or not of_ours(error):
                raise Fault(f"{type(error).__name__} in place of a message: {error}") from error


def _read_layers(text: str) -> None:
    from plam_eval.layer_sets import read_layers, read_range, write_layers

    _in_words(text, read_range, read_layers)
    write_layers(read_layers(text))


def _read_documents(text: str) -> None:
    from plam_eval.document_sets import read_by_task, read_clusters, read_documents

    _in_words(text, read_documents, read_clusters, lambda word: read_by_task({"pope": word, "gqa": word}))


def _read_answer(text: str) -> None:
    from plam_eval.harness.answer_parser import Asked, is_right, read_answer

    for asked in (
        Asked("letter", ("B",), {"A": "red", "B": "a cat"}),
        Asked("yes or no", ("yes",)),
        Asked("words", ("2",)),
    ):
        is_right(read_answer(text, asked), text, asked)


def _read_cuts(text: str) -> None:
    from plam_eval.probing.cuts import parse_cuts

    parse_cuts(text, 32)


def _read_spec_words(text: str) -> None:
    from plam_eval.spec import load_spec

    load_spec(text)


def _read_excluded(text: str) -> None:
    from plam_eval.evaluation.excluded import read_excluded

    words = [word for word in text.split(",") if not _is_folder_elsewhere(word)]
    read_excluded(words, words[0] if words else None)


def _is_folder_elsewhere(word: str) -> bool:
    """Whether a word leads to a folder of this machine, which would be searched for runs."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = Path(word).expanduser().resolve()
        return path.is_dir() and not path.is_relative_to(Path.cwd())
    return False


def _read_numbers(text: str) -> None:
    from plam_eval.arguments import read_number, read_whole_number
    from plam_eval.evaluation.search.config import Span
    from plam_eval.weight_ramps import read_ends

    _in_words(text, read_number, read_ends, Span.read, lambda word: read_whole_number(word, 100))


def _read_tree(path: str) -> Callable[[Any], object]:
    """A function that takes a tree, by its dotted name."""

    def read(tree: Any) -> object:
        import importlib

        module, _, name = path.rpartition(".")
        if module.rpartition(".")[2][:1].isupper():
            module, _, kind = module.rpartition(".")
            return getattr(getattr(importlib.import_module(module), kind), name)(tree)
        return getattr(importlib.import_module(module), name)(tree)

    return read


def _read_file(path: str, name: str) -> Callable[[Path], object]:
    """A function that takes a file of the folder, by its dotted name."""
    read = _read_tree(path)
    return lambda folder: read(folder / name)


def _read_sweep_file(folder: Path) -> None:
    from plam_eval.evaluation.sweep.config import SweepConfig
    from plam_eval.evaluation.sweep.grid import make_grid

    make_grid(SweepConfig.load(folder / "sweep.yaml"), 8).to_dict()


def _read_search_file(folder: Path) -> None:
    from plam_eval.evaluation.search.config import SearchConfig
    from plam_eval.evaluation.search.space import Space

    space = Space.of(SearchConfig.load(folder / "search.yaml"), 8)
    space.size()
    space.corners()
    space.distributions()
    space.to_dict()


# ---- the table -------------------------------------------------------------------------------------------------------

_E, _P = "plam_eval.evaluation", "plam_eval.publishing"
_RUN_MODULES = ("plam_eval.harness.run_files", "plam_eval.harness.sample_lines", f"{_E}.records")

READERS = (
    Reader(
        "spec file",
        ("plam_eval.spec", "plam_eval.yaml_reader"),
        _read_file("plam_eval.spec.load_spec", "spec.yaml"),
        _yaml("spec.yaml", SPEC),
    ),
    Reader("spec mapping", ("plam_eval.spec",), _read_tree("plam_eval.spec.load_spec"), tree=SPEC),
    Reader(
        "plateau words",
        ("plam_eval.spec", "plam_eval.hub"),
        _read_spec_words,
        words=("demo", "owner/repo@main:plateau.yaml", "./a.yaml", "none", "~/x.yaml"),
        marks="/@:.",
        may_lead_out=True,
    ),
    Reader("sweep file", (f"{_E}.sweep.config",), _read_sweep_file, _yaml("sweep.yaml", SWEEP)),
    Reader("search file", (f"{_E}.search.config",), _read_search_file, _yaml("search.yaml", SEARCH)),
    Reader("model_args", ("plam_eval.arguments",), _read_args, words=MODEL_ARGS, may_lead_out=True),
    Reader(
        "--wandb_args",
        (f"{_E}.wandb",),
        _read_wandb,
        words=("project=plam,name=first", 'config={"a": 1},mode=offline'),
        may_lead_out=True,
        needs="wandb",
    ),
    Reader(
        "--noise",
        (f"{_E}.noise.variant",),
        _read_noise_words,
        words=("batch_size=4+dtype=float32", "model=plam_vllm"),
        refusals=IN_WORDS,
    ),
    Reader(
        "--settings",
        (f"{_E}.attend.settings",),
        _read_settings,
        words=("plain,merged,self_scale,demo", "noise,normalized"),
        may_lead_out=True,
    ),
    Reader("cuts", ("plam_eval.probing.cuts",), _read_cuts, words=("0,4,8:28", "0:33:4", "all")),
    Reader(
        "layer sets",
        ("plam_eval.layer_sets",),
        _read_layers,
        words=("3+9+20:24", "24:36", "1"),
        marks="+:,",
        refusals=IN_WORDS,
    ),
    Reader(
        "document sets",
        ("plam_eval.document_sets",),
        _read_documents,
        words=("0:500", "3+9+20:24", "17+18 5 0:2"),
        marks="+: ",
    ),
    Reader(
        "numbers",
        ("plam_eval.arguments", "plam_eval.weight_ramps"),
        _read_numbers,
        words=("0.9", "0.9:0.5", "0.5:1.0:0.1", "12", "1e-3"),
    ),
    Reader(
        "weights",
        ("plam_eval.weight_ramps",),
        _read_tree("plam_eval.weight_ramps.read_weights"),
        tree={"model": [0.9, 0.5], "base_model": 0.3},
        refusals=IN_WORDS,
    ),
    Reader(
        "documents by task",
        ("plam_eval.document_sets",),
        _read_tree("plam_eval.document_sets.read_by_task"),
        tree={"pope": "0:500", "gqa": "3+9+20:24"},
        refusals=IN_WORDS,
    ),
    Reader(
        "--exclude",
        (f"{_E}.excluded",),
        _read_excluded,
        _scan,
        words=(".", "./plateau.yaml,.", "scan", "demo"),
        marks="/,.",
        may_lead_out=True,
    ),
    Reader(
        "answers",
        ("plam_eval.harness.answer_parser",),
        _read_answer,
        refusals=(),
        words=(
            "The answer is (B).",
            "yes, it is",
            "<think>A or D?</think> D",
            "\\boxed{B} or $A$",
            "**B** a cat, not A",
        ),
        marks=" .,()\n",
    ),
    Reader(
        "checkpoint",
        (
            "plam_eval.merging.checkpoint",
            "plam_eval.merging.tensor_files",
            f"{_P}.card.licences",
            f"{_P}.checkpoint.source_files",
        ),
        _read_checkpoint,
        _checkpoint(),
    ),
    Reader("shards", ("plam_eval.merging.checkpoint",), _read_checkpoint, _checkpoint(sharded=True)),
    Reader(
        "bin shards",
        ("plam_eval.merging.checkpoint",),
        _read_checkpoint,
        _checkpoint(sharded=True, bin=True),
        share=0.5,
    ),
    Reader("bin header", ("plam_eval.merging.bin_header",), _read_bin, _bin, refusals=(*OURS, BinHeaderError)),
    Reader(
        "safetensors header",
        ("plam_eval.merging.tensor_files", f"{_P}.checkpoint.weight_writer"),
        _read_places,
        _checkpoint(),
        only=lambda name: name.endswith(".safetensors"),
    ),
    Reader("run folder", _RUN_MODULES, _read_run, _run),
    Reader("runs to rescore", (*_RUN_MODULES, f"{_E}.rescore"), _read_rescored, _two_runs, share=0.5),
    Reader("runs of a card", (*_RUN_MODULES, f"{_P}.card.results"), _read_card, _two_runs, share=0.3),
    Reader(
        "curve", ("plam_eval.probing.curve",), _read_file("plam_eval.probing.curve.Curve.read", "curve.csv"), _curve
    ),
    Reader("scan folder", (f"{_E}.scan_folder", f"{_E}.excluded", "plam_eval.probing.curve"), _read_scan, _scan),
    Reader(
        "sweep folder", (f"{_E}.sweep.folder", f"{_E}.sweep.findings"), _read_sweep, _sweep, only=_no_log, share=0.4
    ),
    Reader("noise folder", (f"{_E}.noise.floor",), _read_noise, _noise, only=_no_log, share=0.3),
    Reader(
        "premise folder",
        (f"{_E}.premise.job",),
        _read_file(f"{_E}.premise.findings.read_premise", "."),
        _premise,
        share=0.3,
    ),
    Reader(
        "search folder",
        (f"{_E}.search.job", f"{_E}.search.answers", f"{_E}.search.study"),
        _read_search,
        _search,
        share=0.4,
    ),
    Reader(
        "attend folder",
        (f"{_E}.attend.folder", f"{_E}.attend.findings", f"{_E}.attend.shown"),
        _read_attend,
        _attend,
        share=0.3,
    ),
    Reader("answer store", (f"{_E}.answer_store",), _read_store, _store),
    Reader("record of an export", ("plam_eval.merging.export_record",), _read_export, _export),
    Reader(
        "bundle",
        (f"{_P}.bundle.archive", f"{_P}.bundle.verify", f"{_P}.bundle.manifest"),
        _read_file(f"{_P}.bundle.verify.verify_bundle", "b.zip"),
        _bundle,
    ),
    Reader("members of a bundle", (f"{_P}.bundle.verify", f"{_P}.bundle.manifest"), _read_members, _members),
    Reader(
        "bundle of known tasks",
        ("plam_eval.harness.recompute", f"{_P}.bundle.verify"),
        _read_members,
        _known_members,
        share=0.3,
        long=True,
    ),
    Reader("runs to bundle", (f"{_P}.bundle.write", f"{_P}.bundle.scrub"), _read_and_bundle, _two_runs, share=0.5),
    Reader("submission again", (f"{_P}.boards.submission", f"{_P}.boards.run_answers"), _submit_again, _submitted),
    Reader("fetched file", ("plam_eval.test_sets.answer_file",), _read_fetched, _fetched),
    Reader("remembered hash", ("plam_eval.merging.content_hash",), _read_hashed, _hashed),
    Reader("files of boards", (f"{_P}.boards.files",), _read_boards, _board_files),
    Reader("questions of boards", (f"{_P}.boards.questions",), _read_questions, _questions),
    Reader("logs for a board", (f"{_P}.boards.run_answers",), _read_submission, _submission),
    Reader("MMBench's answers", ("plam_eval.test_sets.mmbench",), _read_mmbench, _mmbench),
    Reader("MMMU's answers", ("plam_eval.test_sets.mmmu",), _read_mmmu, _mmmu),
    Reader(
        "a repository's card and results",
        (f"{_P}.hub_results.repository", f"{_P}.hub_results.results"),
        _read_on_the_hub,
        _on_the_hub,
    ),
    Reader("request", ("plam_eval.serving.gate",), _read_body, _bodies, refusals=(*OURS, *IN_WORDS)),
    Reader(
        "request that names a file", ("plam_eval.serving.gate",), _read_body, _named_bodies, refusals=(*OURS, *IN_WORDS)
    ),
    Reader(
        "loader's options", ("plam_eval.serving.options",), _read_extra, tree={"plateau": SPEC, "layers": "3:5", "x": 1}
    ),
    Reader(
        "endpoint", ("plam_eval.serving.endpoint",), _ask_endpoint, _pair_bodies, needs="vllm", share=0.3, long=True
    ),
    Reader(
        "boxes", ("plam_eval.harness.boxes",), _read_file("plam_eval.harness.boxes.read_boxes", "boxes.jsonl"), _boxes
    ),
    Reader("image", ("plam_eval.harness.single_image",), _read_images, _image),
    Reader("report", ("plam_eval.report.sources",), _read_report, _run_and_scan, share=0.3, long=True),
    Reader("report of a sweep", ("plam_eval.report.sources",), _read_report, _sweep, share=0.1, long=True),
    Reader("report of attend", ("plam_eval.report.sources",), _read_report, _attend, share=0.1, long=True),
)
