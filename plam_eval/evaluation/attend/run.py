"""`plam attend`: a model looked at under several settings, on the documents of benchmarks or on one image.

Prompts, images and scoring are lmms-eval's own, and its run of the plain model is kept. `recorder` has how a document
is looked at, `folder` what is stored, `findings` what is concluded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from loguru import logger

from plam_eval import files
from plam_eval.evaluation.attend.checks import check_boxes, check_loaded, check_tasks, given_boxes
from plam_eval.evaluation.attend.depth import depth_table
from plam_eval.evaluation.attend.document import SINKS
from plam_eval.evaluation.attend.findings import AttendFindings, conclude
from plam_eval.evaluation.attend.folder import (
    ANSWER_COLUMNS,
    DRAWN,
    LOCK,
    MEASURE_KEYS,
    MEASURES,
    PLAIN_RUN,
    SHOWN,
    AttendError,
    check_folder,
    open_store,
    write_tables,
)
from plam_eval.evaluation.attend.recorder import Recorder, Share, shown_first
from plam_eval.evaluation.attend.settings import Settings, check_merges
from plam_eval.evaluation.attend.shown import file_of
from plam_eval.evaluation.records import clusters_by_content
from plam_eval.evaluation.sweep.documents import documents_of, write_drawn
from plam_eval.harness import evaluate, processes
from plam_eval.harness.documents import Documents
from plam_eval.harness.lookup import load_tasks, task_manager
from plam_eval.harness.requests import Key
from plam_eval.harness.sampling import Sample
from plam_eval.harness.single_image import TASK, check_question, image_request, read_image
from plam_eval.harness.wrapper import HFWrapper
from plam_eval.provenance import versions

if TYPE_CHECKING:
    from plam_eval.decoding.merge_rows import Queries
    from plam_eval.harness.task_row import Box, Boxes

SHOW = 6
"""Documents that are drawn unless told otherwise."""
_LOOKED_FOR = 200
"""Documents of a task of which some with boxes are looked for, to be drawn."""


def attend(
    model: HFWrapper,
    tasks: str | Sequence[str],
    output: str | Path,
    settings: Settings,
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: Sample | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    queries: Queries = "last",
    together: int | None = None,
    depth: bool = False,
    show: int = SHOW,
    boxes: str | Path | None = None,
    select: int | None = None,
    scans: Sequence[Path] = (),
) -> AttendFindings | None:
    """Look at a model on the documents of tasks under every setting, compare them, and write all of it into `output`.

    What was stopped goes on where it was; more tasks, a higher limit or a larger sample add to it. Other weights,
    settings or queries, another seed or exclusion are refused. Under several processes each looks at its share. A
    merged model is plain meanwhile, and merged again after.

    Args:
        model: one of the HF wrappers.
        tasks: names of tasks or groups, as a list or separated by commas.
        output: folder; it need not exist.
        settings: what the model is looked at under.
        limit: documents of each task, at most.
        offset: documents of each task that are left out, from its first one on.
        sample: so many documents of each task instead, what is left out, and the seed by which those are drawn that
            layers are chosen on.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        include_path: folder of further tasks.
        queries: whose attention: "last" (of the prompt's tokens), "question" or "answer".
        together: settings whose merged tensors are in memory at once, at most; all by default.
        depth: also measure what each layer does.
        show: so many documents are drawn, those with boxes first.
        boxes: file of boxes of documents, over those of datasets.
        select: documents of each task to choose layers on, half of them by default.
        scans: folders of scans of the model, drawn above what layers do.

    Returns:
        None on every process but the first.

    Raises:
        AttendError: `output` was made with other settings, a prompt changed since, another process is at work there, or
            no document could be looked at. FolderError: `output` cannot be written, or holds something else.
        EvaluationError: as `evaluate`.
    """
    sample = Sample() if sample is None else sample
    checked = check_tasks(
        output,
        tasks,
        limit=limit,
        offset=offset,
        sample=sample,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
    )
    if model.rank == 0:
        for note in checked.notes:
            logger.warning(note)
    given = given_boxes(boxes)
    documents, folder = Documents(given), Path(output)
    asked = documents_of(checked.drawn)
    shown = _to_show(documents, asked, show, model=model, include_path=include_path)
    with _plain(model):
        made_with = _made_with(model, settings, queries, depth, gen_kwargs)
        if not sample.is_whole:
            made_with["sample"] = {key: value for key, value in sample.to_dict().items() if key != "size"}
        elif sample.seed:
            made_with["sample"] = {"seed": sample.seed}
        if boxes is not None:
            made_with["boxes"] = files.sha256_of_file(Path(boxes))
        with files.locked(folder, LOCK, AttendError) if model.rank == 0 else nullcontext():
            recorder = Recorder(
                model,
                settings,
                open_store(folder, made_with, model.rank),
                documents,
                num_layers=made_with["num_layers"],
                queries=queries,
                together=together,
                depth=depth,
                shown=shown,
            )
            with recorder.installed():
                run = evaluate.evaluate(
                    model,
                    checked.scored,
                    **checked.asking,
                    output=folder / PLAIN_RUN,
                    gen_kwargs=gen_kwargs,
                    include_path=include_path,
                )
            shares = [gathered["share"] for gathered in processes.all_ranks({"share": recorder.share})]
            if run is None:
                return None
            files.write_json(folder / DRAWN, {"drawn": write_drawn(checked.drawn, sample.seed)})
            _write(folder, shares, depth)
            return conclude(folder, select=select, scans=scans)


def attend_image(
    model: HFWrapper,
    image: str | Path,
    question: str,
    output: str | Path,
    settings: Settings,
    *,
    boxes: Sequence[Box] = (),
    gen_kwargs: str | None = None,
    queries: Queries = "last",
    together: int | None = None,
    depth: bool = False,
    scans: Sequence[Path] = (),
) -> AttendFindings | None:
    """As `attend`, on one image and a question about it: numbers by layer and a picture, and no statistics.

    Args:
        model: as for `attend`.
        image: file of the image.
        question: the prompt.
        output: as for `attend`.
        settings: as for `attend`.
        boxes: what the question asks about, in pixels of the image.
        gen_kwargs: generation settings over greedy decoding of 64 tokens at most.
        queries: as for `attend`.
        together: as for `attend`.
        depth: as for `attend`.
        scans: as for `attend`.

    Returns:
        None on every process but the first, which alone does it.

    Raises:
        InputError: no image, no question, a box that lies not in the image. AttendError, FolderError: as `attend`.
    """
    check_folder(output)
    check_question(question)
    picture = read_image(image)
    check_boxes(boxes, picture.size)
    if model.rank != 0:
        return None
    key: Key = (TASK, 0)
    with _plain(model):
        generation = evaluate.parse_model_args(gen_kwargs or "", "gen_kwargs")
        request = image_request(model, picture, question, gen_kwargs=generation)
        made_with = _made_with(model, settings, queries, depth, gen_kwargs)
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
        made_with["image"] = {"sha256": pixels, "size": list(picture.size), "question": question}
        made_with["image"]["boxes"] = [list(map(float, box)) for box in boxes]
        own: dict[Key, Boxes] = {key: [[*boxes]]} if boxes else {}
        with files.locked(Path(output), LOCK, AttendError):
            recorder = Recorder(
                model,
                settings,
                open_store(Path(output), made_with, model.rank),
                Documents(own),
                num_layers=made_with["num_layers"],
                queries=queries,
                together=together,
                depth=depth,
                shown=frozenset([key]),
            )
            model.begin_run()
            recorder.answer([request])
            recorder.gather_one(key, {"prompt": question, "target": "", "group": Path(image).name})
            _write(Path(output), [recorder.share], depth)
            return conclude(Path(output), select=0, scans=scans)


# ---- what is looked at -----------------------------------------------------------------------------------------------


@contextmanager
def _plain(model: HFWrapper) -> Iterator[None]:
    """The model is plain while it lasts."""
    spec = model.spec
    if spec is not None:
        model.merge(None)
    try:
        yield
    finally:
        if spec is not None:
            model.merge(spec)


def _made_with(
    model: HFWrapper, settings: Settings, queries: str, depth: bool, gen_kwargs: str | None
) -> dict[str, Any]:
    """What answers and measures depend on, apart from the documents."""
    num_layers = check_loaded(model)
    bases = check_merges(settings, model.checkpoint)
    return {
        "wrapper": model.model_id,
        "pretrained": model.pretrained_name,
        "mode": "simple" if model.is_simple else "chat",
        "dtype": model.running_dtype,
        "settings": settings.to_dict(),
        "equal": settings.equal,
        "bases": {name: _digest(base.identity()) for name, base in bases.items()},
        "weights and arguments": model.cache_fingerprint(),
        "num_layers": num_layers,
        "queries": queries,
        "depth": depth,
        "gen_kwargs": gen_kwargs,
        "versions": versions(),
        **({"commit": model.checkpoint.recorded_commit} if model.checkpoint.recorded_commit else {}),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _to_show(
    documents: Documents,
    asked: Mapping[str, Sequence[int]],
    count: int,
    *,
    model: Any,
    include_path: str | Path | None,
) -> frozenset[Key]:
    """The documents to draw: every process comes to the same ones."""
    if not count:
        return frozenset()
    manager = task_manager(include_path, model)
    tasks = {output.task_name: output.task for output in load_tasks(manager, list(asked))}

    def with_boxes(task: str) -> Iterator[int]:
        for doc_id in islice(asked[task], _LOOKED_FOR):
            try:
                pictures = documents.of_task(tasks[task], doc_id)
            except Exception:  # a task's code, or an image that cannot be read: it is skipped when it is its turn
                continue
            if pictures.boxes and pictures.boxes[0]:
                yield doc_id

    return shown_first(
        {task: with_boxes(task) for task in asked if task in tasks},
        {task: iter(ids) for task, ids in asked.items()},
        count,
    )


# ---- what comes of it ------------------------------------------------------------------------------------------------


def _write(folder: Path, shares: Sequence[Share], depth: bool) -> None:
    """The tables and the documents to draw, of all processes; says what was skipped."""
    rows = pd.DataFrame([row for share in shares for row in share.answers])
    answers = rows.drop_duplicates(["task", "doc_id", "setting"]).sort_values(["task", "doc_id"], kind="stable")
    answers["cluster"] = clusters_by_content(answers)
    answers["image_tokens"] = answers["image_tokens"].astype("Int64")
    clusters = dict(zip(zip(answers["task"], answers["doc_id"], strict=True), answers["cluster"], strict=True))
    measures = _measures([each for share in shares for each in share.measures], clusters)
    described = None
    if depth:
        by_key = {(record["task"], record["doc_id"]): record for share in shares for record in share.depth}
        described = depth_table({**record, "cluster": clusters[key]} for key, record in sorted(by_key.items()))
    write_tables(folder, measures, answers[list(ANSWER_COLUMNS)].reset_index(drop=True), described)
    for document in (document for share in shares for document in share.shown):
        (folder / SHOWN).mkdir(exist_ok=True)
        document.write(files.inside(folder, f"{SHOWN}/{file_of(document.task, document.doc_id)}", str(folder)))
    _warn_of_skipped(answers)


def _measures(found: Sequence[tuple[Key, str, Any]], clusters: Mapping[Key, str]) -> pd.DataFrame:
    """`MEASURES_FILE`: rows by document, setting in their order, `SINKS` and layer."""
    unique = {(key, setting): values for key, setting, values in found}
    ordered = sorted(unique.items(), key=lambda item: item[0][0])  # stable: settings as they were
    if not ordered:
        return pd.DataFrame({name: [] for name in (*MEASURE_KEYS, *MEASURES)})
    layers = ordered[0][1].shape[-1]
    each = len(SINKS) * layers
    values = np.stack([values for _, values in ordered]).transpose(0, 1, 3, 2).reshape(-1, len(MEASURES))
    keys = {
        "task": np.repeat([key[0] for (key, _), _ in ordered], each),
        "doc_id": np.repeat([key[1] for (key, _), _ in ordered], each),
        "cluster": np.repeat([clusters[key] for (key, _), _ in ordered], each),
        "setting": np.repeat([setting for (_, setting), _ in ordered], each),
        "layer": np.tile(np.arange(layers), len(ordered) * len(SINKS)),
        "sinks": np.tile(np.repeat(SINKS, layers), len(ordered)),
    }
    return pd.DataFrame({**keys, **dict(zip(MEASURES, values.T.astype(float), strict=True))})


def _warn_of_skipped(answers: pd.DataFrame) -> None:
    documents = answers.drop_duplicates(["task", "doc_id"])
    for task, rows in documents.groupby("task"):
        skipped = rows["skipped"].dropna()
        if skipped.empty:
            continue
        reasons = "; ".join(f"{reason} ({count})" for reason, count in skipped.value_counts().head(3).items())
        some = f"{len(skipped)} of its {len(rows)} documents" if len(skipped) < len(rows) else "all of its documents"
        logger.warning("{}: {} are skipped: {}", task, some, reasons)
