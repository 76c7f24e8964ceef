"""Where a model looks, plain and merged; and what was found, read back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Arguments, Words, free_memory, sample_of, words_of
from plam_eval.arguments import ARGUMENTS, PATH, PATHS, TEXT, WORDS, count, paths, read_number, takes, write_words
from plam_eval.errors import ArgumentError, InputError, did_you_mean, quoted
from plam_eval.spec import OVERRIDE_KEYS

if TYPE_CHECKING:
    from plam_eval.evaluation.attend.findings import AttendFindings
    from plam_eval.harness.task_row import Box


@takes(
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    limit=count(1),
    offset=count(0),
    sample=count(1),
    seed=count(0),
    exclude=PATHS,
    settings=WORDS,
    queries=TEXT,
    together=count(1),
    show=count(0),
    select=count(0),
    scan=paths,
    image=PATH,
    question=TEXT,
    boxes=PATH,
    gen_kwargs=TEXT,
    include_path=PATH,
)
def attend(
    model: Any,
    model_args: Arguments | None = None,
    tasks: Words = (),
    output: str | Path = "attend",
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: int | None = None,
    seed: int = 0,
    exclude: Words | Path | Sequence[Path] = (),
    settings: Words | None = None,
    queries: str = "last",
    together: int | None = None,
    show: int = 6,
    select: int | None = None,
    depth: bool = False,
    scan: str | Path | Iterable[str | Path] = (),
    image: str | Path | None = None,
    question: str | None = None,
    box: str | Sequence[float] | Iterable[str | Sequence[float]] = (),
    boxes: str | Path | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    force_simple: bool = False,
) -> AttendFindings | None:
    """Where a model looks, plain, merged and under the controls, on the same documents: layer by layer, with tests.

    Everything that can be known to be wrong is raised before the model is loaded. What was stopped goes on where it
    was, with the same `output`; a higher `limit`, a larger `sample` or more tasks add to it.

    Args:
        model: id of one of our HF wrappers ("plam_llava"), or such a wrapper, loaded, which stays loaded and merged.
        model_args: its arguments with a plateau ("pretrained=...,plateau=..." or a mapping); none for a loaded one.
        tasks: names of tasks or groups.
        output: folder of what is found.
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        seed: of the drawing, of the documents to choose layers on as well.
        exclude: leave out what was looked at before: folders, or "scan" for that of the plateau.
        settings: what is looked at beside the plain model: "merged" (the plateau of model_args), rules that it is
            merged by instead, such as "self_scale", and specs by name or file; plain, merged, self_scale and normalized
            by default.
        queries: whose attention: "last" (the prompt's last token), "question" (all text behind the image), or "answer".
        together: settings whose merged tensors are in memory at once, at most; all by default.
        show: so many documents are drawn, those with boxes first.
        select: documents of each task on which the layers to quote are chosen, half of them by default.
        depth: also measure what each layer does: drift, contribution, logit lens, similarity to the plain model.
        scan: folders of scans of the model, drawn above what layers do.
        image: file of one image, in place of tasks.
        question: about it.
        box: left, top, right, bottom of what the question asks about, in pixels of the image, in one text with commas
            or as numbers; several in a list.
        boxes: file of boxes of documents, over those of datasets.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        force_simple: the wrapper's simple mode.

    Returns:
        What was found: `sentence` says it, `differences` and `levels` are tables by layer. Under several processes None
        on all but the first.

    Raises:
        InputError, ArgumentError: arguments. EvaluationError: tasks or datasets, an evaluation that failed.
            AttendError, FolderError: `output` holds something else. ProbeError: a model whose attention rows cannot be
            had. MergeError, SpecError, CheckpointError: checkpoints and specs.
    """
    from plam_eval.evaluation.attend import checks, run
    from plam_eval.evaluation.attend.folder import QUERIES, check_folder
    from plam_eval.evaluation.attend.settings import Settings
    from plam_eval.harness.checks import check_generation
    from plam_eval.harness.evaluate import check_model, make_model, parse_model_args
    from plam_eval.harness.processes import is_first_process
    from plam_eval.harness.registry import WRAPPERS

    model_id = model if isinstance(model, str) else getattr(model, "model_id", type(model).__name__)
    usable = [name for name, wrapper in WRAPPERS.items() if wrapper.hf]
    if model_id not in usable:
        raise InputError(f"model is {model_id!r}; attention is read off one of our HF wrappers: {', '.join(usable)}")
    if queries not in QUERIES:
        expected = f"expected {', '.join([*QUERIES][:-1])} or {[*QUERIES][-1]}"
        raise InputError(f"queries is {quoted(queries)}; {expected}{did_you_mean(queries, QUERIES)}")
    of_tasks: dict[str, Any] = {"tasks": tasks, "limit": limit, "offset": offset, "select": select, "boxes": boxes}
    of_tasks |= {"sample": sample, "exclude": exclude}
    _check_what(image, question, box, {**of_tasks, "include_path": include_path})
    check_generation(gen_kwargs, greedy=True)
    own_boxes = _boxes(box)
    if image is not None:
        checks.check_image(image, str(question), own_boxes)
    check_folder(output)
    arguments = parse_model_args(write_words(model_args or "", "model_args"))
    plateau = arguments.get("plateau") if isinstance(model, str) else model.spec
    drawn = sample_of(sample, seed, exclude, limit=limit, offset=offset, plateau=plateau)
    words = words_of(settings) if settings else None
    if isinstance(model, str):
        checkpoint, spec = check_model(model, arguments, force_simple=force_simple)
        attention, trusted = arguments.get("attn_implementation"), bool(arguments.get("trust_remote_code"))
        chosen = Settings.read(spec, words)
        layers = checks.check_model(checkpoint, chosen, attention=attention, trust_remote_code=trusted)
    elif model_args:
        raise ArgumentError("model_args with a model that is loaded; expected them with the id of a wrapper")
    else:
        chosen = Settings.read(model.spec, words)
        layers = checks.check_loaded(model)
    scans = checks.check_scans(paths(scan), layers)
    notes = chosen.notes()
    asked: dict[str, Any] = {"limit": limit, "offset": offset, "include_path": include_path}
    if image is None:
        asked["sample"] = drawn
        checked = checks.check_tasks(output, tasks, gen_kwargs=gen_kwargs, model=model, **asked)
        bare = checks.tasks_without_boxes(checked.documents, boxes=boxes, include_path=include_path, model=model)
        notes += [f"{task}: no boxes are known of its images, so measures of boxes are left out" for task in bare]
    if is_first_process():
        for note in notes:
            print(note, file=sys.stderr, flush=True)
    look: dict[str, Any] = {"gen_kwargs": gen_kwargs, "queries": queries, "together": together, "depth": depth}
    wrapper = model
    if isinstance(model, str):
        plain = {key: value for key, value in arguments.items() if key not in ("plateau", *OVERRIDE_KEYS)}
        wrapper = make_model(model, plain, force_simple=force_simple)
    try:
        if image is not None:
            return run.attend_image(wrapper, image, str(question), output, chosen, boxes=own_boxes, scans=scans, **look)
        return run.attend(
            wrapper, tasks, output, chosen, show=show, boxes=boxes, select=select, scans=scans, **asked, **look
        )
    finally:
        del wrapper
        free_memory()


@takes(folder=PATH, select=count(0))
def read_attend(folder: str | Path, *, select: int | None = None) -> AttendFindings:
    """What a finished `attend` has found; nothing is written.

    Args:
        folder: its output.
        select: documents of each task on which the layers to quote are chosen; as they were by default.

    Raises:
        AttendError: none there. DamagedFileError: it cannot be read. InputError: `select` leaves nothing to report on.
    """
    from plam_eval.evaluation.attend import findings
    from plam_eval.evaluation.attend import folder as layout

    attended = layout.load(folder)
    return findings.find(attended, select=findings.selected(attended.folder) if select is None else select)


def _check_what(image: Any, question: str | None, box: Any, of_tasks: dict[str, Any]) -> None:
    """Either tasks, or an image and a question; raises InputError that names all that does not go together."""
    problems = []
    if image is None:
        if question is not None:
            problems.append("question without image; give both, or tasks")
        if box:
            problems.append("box without image; for documents of tasks give a file of boxes")
        if not of_tasks["tasks"] and not problems:
            problems.append("neither tasks nor image is given; expected tasks, or an image and a question about it")
    else:
        if given := [name for name, value in of_tasks.items() if value]:
            problems.append(f"{', '.join(given)} with image; one image is looked at in place of tasks")
        if question is None:
            problems.append("image without question; give both")
    if problems:
        raise InputError(*problems)


def _boxes(given: Any) -> list[Box]:
    """Boxes as four numbers each."""
    one = isinstance(given, str) or (isinstance(given, (list, tuple)) and given and isinstance(given[0], (int, float)))
    boxes, problems = list[Any](), list[str]()
    if not isinstance(given, Iterable):
        raise InputError(f"found {quoted(given)}; expected left,top,right,bottom in pixels", origin="box")
    for box in [given] if one else given:
        try:
            words = box.split(",") if isinstance(box, str) else list(box)
            left, top, right, bottom = (read_number(word) for word in words)
        except (TypeError, ValueError):
            problems.append(f"found {quoted(box)}; expected left,top,right,bottom in pixels")
        else:
            boxes.append((left, top, right, bottom))
    if problems:
        raise InputError(*problems, origin="box")
    return boxes
