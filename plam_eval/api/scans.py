"""Scans: find the plateau, and read what was found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from plam_eval.api.shared import Arguments, Words, free_memory, sample_of, words_of
from plam_eval.arguments import (
    ARGUMENTS,
    NAME,
    PATH,
    PATHS,
    TEXT,
    WORDS,
    arguments_of,
    count,
    real,
    takes,
    write_words,
)
from plam_eval.errors import ArgumentError, InputError

if TYPE_CHECKING:
    from plam_eval.evaluation.costs import Estimate
    from plam_eval.evaluation.scan_folder import Scan
    from plam_eval.harness.checks import CheckedTasks
    from plam_eval.harness.sampling import Sample
    from plam_eval.probing.closed import ClosedTo


@takes(
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    limit=count(1),
    offset=count(0),
    sample=count(1),
    seed=count(0),
    exclude=PATHS,
    cuts=TEXT,
    gen_kwargs=TEXT,
    include_path=PATH,
    batch_size=count(1),
    closed_to=TEXT,
    base=NAME,
    margin=real,
    confidence=real,
    wandb_args=ARGUMENTS,
)
def scan(
    model: Any,
    model_args: Arguments | None = None,
    tasks: Words = (),
    output: str | Path = "scan",
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: int | None = None,
    seed: int = 0,
    exclude: Words | Path | Sequence[Path] = (),
    cuts: str | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    closed_to: str = "text",
    force_simple: bool = False,
    base: str | Path | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    wandb_args: Arguments | None = None,
) -> Scan | None:
    """Find the plateau: answer benchmarks with the image hidden from every layer on, and write a spec.

    Everything that can be known to be wrong is raised before the model is loaded. A scan that was stopped goes on where
    it was, with the same `output`; a higher `limit`, a larger `sample` or more tasks add to it.

    Args:
        model: id of one of our HF wrappers ("plam_llava"), or such a wrapper, loaded, which stays loaded.
        model_args: its arguments ("pretrained=...,dtype=bfloat16" or a mapping); none for a loaded one.
        tasks: names of tasks or groups.
        output: folder of the scan.
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        seed: of the drawing.
        exclude: leave out what was looked at before: folders of scans, sweeps, runs and the like.
        cuts: cut layers such as "0,4,8:28"; all by default.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: documents in one generation, each under every cut; more than 1 for Qwen2.5-VL and Qwen3-VL
            alone. A loaded wrapper must have been made with as much.
        closed_to: whom the image is closed to from a cut on: all "text"; the "question", the text of the prompt but its
            last token; or the "last" token and the answer. With the latter two there is no plateau, nor a spec.
        force_simple: the wrapper's simple mode.
        base: base LLM for the spec. Without one, known from a packaged spec or an earlier scan, no spec is written.
        margin: accuracy (0 to 1) that a plateau may lose.
        confidence: of the one-sided bounds, between 0 and 1.
        wandb_args: as lmms-eval takes them, such as "project=plam,job_type=scan".

    Returns:
        The scan: `curve.table()` is the accuracy by cut and task, `stages` what was concluded, `spec` the plateau spec,
        None where there is no plateau. Under several processes None on all but the first.

    Raises:
        InputError, ArgumentError: arguments. EvaluationError: tasks or datasets, an evaluation that failed. ScanError,
            FolderError: `output` holds something else. ProbeError: cuts, or a model whose image tokens or attention
            cannot be masked. MergeError, SpecError, CheckpointError: checkpoints and specs.
    """
    from plam_eval.evaluation import scan as scans
    from plam_eval.evaluation import wandb
    from plam_eval.harness.evaluate import make_model
    from plam_eval.harness.processes import is_first_process

    logged = wandb.Settings.read(wandb_args)
    asked: dict[str, Any] = {"limit": limit, "offset": offset, "gen_kwargs": gen_kwargs}
    asked["include_path"] = include_path and str(include_path)
    base, closed = None if base is None else str(base), cast("ClosedTo", closed_to)
    given = _Given(model, model_args, output, cuts, batch_size, closed_to, force_simple, base, margin, confidence)
    model_id, arguments, pretrained, merged, drawn, _ = _check(given, tasks, asked, (sample, seed, exclude))
    note = scans.no_spec(output, pretrained, base, merged=merged, closed_to=closed) if pretrained else None
    if note and is_first_process():
        print(note, file=sys.stderr, flush=True)
    settings = {"model": model_id, "model_args": arguments, "tasks": words_of(tasks), **asked, "closed_to": closed_to}
    settings["sample"] = None if drawn.is_whole else drawn.to_dict()
    with logged.run("scan", pretrained or model_id, settings) as log:
        wrapper = model
        if isinstance(model, str):
            wrapper = make_model(model, arguments, batch_size=batch_size, force_simple=force_simple)
        try:
            done = scans.scan(
                wrapper,
                tasks,
                output,
                cuts=cuts,
                batch_size=batch_size,
                closed_to=closed,
                base_model=base,
                margin=margin,
                confidence=confidence,
                sample=drawn,
                **asked,
            )
        finally:
            del wrapper
            free_memory()
        if done is not None:
            log.scan(done)
    return done


class _Given(NamedTuple):
    """What a scan is called with, but for its tasks and how they are asked."""

    model: Any
    model_args: Arguments | None
    output: str | Path
    cuts: str | None
    batch_size: int
    closed_to: str
    force_simple: bool
    base: str | None
    margin: float
    confidence: float


def _check(
    given: _Given, tasks: Words, asked: Mapping[str, Any], sampled: tuple[int | None, int, Any]
) -> tuple[str, dict[str, Any], str | None, bool, Sample, CheckedTasks]:
    """Wrapper's id and arguments, checkpoint and whether it is merged, sample and tasks; raises what is wrong."""
    from plam_eval.evaluation import scan as scans
    from plam_eval.evaluation import scan_folder
    from plam_eval.harness.checks import check_generation
    from plam_eval.harness.evaluate import check_model, parse_model_args
    from plam_eval.harness.registry import WRAPPERS
    from plam_eval.probing.masking import check_closed_to
    from plam_eval.probing.plateau import check_criteria

    model = given.model
    model_id = model if isinstance(model, str) else getattr(model, "model_id", type(model).__name__)
    scannable = [name for name, wrapper in WRAPPERS.items() if wrapper.hf and not wrapper.text]
    if model_id not in scannable:
        names = ", ".join(scannable)
        raise InputError(f"model is {model_id!r}; a scan needs one of our HF wrappers: {names}")
    check_criteria(given.margin, given.confidence)
    check_closed_to(given.closed_to)
    check_generation(asked["gen_kwargs"], greedy=True)
    scans.check_batch(model_id, given.batch_size)
    arguments = parse_model_args(write_words(given.model_args or "", "model_args"))
    plateau = arguments.get("plateau") if isinstance(model, str) else model.spec
    drawn = sample_of(*sampled, limit=asked["limit"], offset=asked["offset"], plateau=plateau)
    scan_folder.check_folder(given.output)
    scans.check_base(given.base)
    if isinstance(model, str):
        opened = check_model(model, arguments, force_simple=given.force_simple)
        if arguments.get("pretrained"):
            trusted = bool(arguments.get("trust_remote_code"))
            scans.check_scannable(str(arguments["pretrained"]), arguments.get("revision"), trust_remote_code=trusted)
        if given.cuts and arguments.get("pretrained"):
            scans.check_cuts(given.cuts, str(arguments["pretrained"]), arguments.get("revision"))
        pretrained, merged = (opened[0].name, opened[1] is not None) if opened else (None, False)
    elif given.model_args:
        raise ArgumentError("model_args with a model that is loaded; expected them with the id of a wrapper")
    else:
        pretrained, merged = model.pretrained_name, model.spec is not None
    checked = scans.check(given.output, tasks, model=model, sample=drawn, **asked)
    return model_id, arguments, pretrained, merged, drawn, checked


@dataclass(frozen=True, repr=False)
class ScanPlan:
    """What a scan would do.

    Attributes:
        folder: of the scan.
        documents: by task, those that have a score.
        warnings: what a reader should know, such as that no spec will be written.
        estimate: what all of it takes, from documents that were answered for it; None where none were.
    """

    folder: Path
    documents: dict[str, int]
    warnings: tuple[str, ...]
    estimate: Estimate | None = None

    def __repr__(self) -> str:
        return f"ScanPlan({self.folder}, {sum(self.documents.values())} documents)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, documents by task, warnings, estimate."""
        estimate = None if self.estimate is None else self.estimate.to_dict()
        return {
            "folder": str(self.folder),
            "documents": self.documents,
            "warnings": list(self.warnings),
            "estimate": estimate,
        }


@takes(model=TEXT, model_args=ARGUMENTS, tasks=WORDS, output=PATH, measure=count(0))
def plan_scan(
    model: str,
    model_args: Arguments,
    tasks: Words,
    output: str | Path = "scan",
    *,
    measure: int = 0,
    **given: Any,
) -> ScanPlan:
    """What `scan` with the same arguments would do; nothing is written into its folder.

    Args:
        model: as for `scan`, an id.
        model_args: as for `scan`.
        tasks: as for `scan`.
        output: as for `scan`.
        measure: so many documents are scanned, to tell the time, memory and disk of all; with 0 nothing is loaded.
        **given: what else `scan` takes; `wandb_args` has no part in it.

    Raises:
        What `scan` raises before it loads a model.
    """
    from plam_eval.evaluation import scan as scans
    from plam_eval.harness.evaluate import make_model

    call = arguments_of(scan, model, model_args, tasks, output, **given)
    asked = {name: call[name] for name in ("limit", "offset", "gen_kwargs")}
    asked["include_path"] = call["include_path"] and str(call["include_path"])
    call["base"] = None if call["base"] is None else str(call["base"])
    base, closed, batch_size = call["base"], call["closed_to"], call["batch_size"]
    sampled = (call["sample"], call["seed"], call["exclude"])
    _, arguments, pretrained, merged, _, checked = _check(
        _Given(**{name: call[name] for name in _Given._fields}), tasks, asked, sampled
    )
    warnings = [f"{task}: left out, no score per document is known: {why}" for task, why in checked.unscored.items()]
    if pretrained and (note := scans.no_spec(output, pretrained, base, merged=merged, closed_to=closed)):
        warnings.append(note)
    warnings += checked.notes
    documents = {task: number for task, number in checked.documents.items() if task not in checked.unscored}
    estimate = None
    if measure:
        from plam_eval.evaluation import costs

        try:
            estimate = costs.of_scan(
                lambda: make_model(model, arguments, batch_size=batch_size, force_simple=call["force_simple"]),
                checked.scored,
                documents,
                {task: checked.drawn[task] for task in documents},
                measure,
                cuts=call["cuts"],
                gen_kwargs=call["gen_kwargs"],
                include_path=asked["include_path"],
                batch_size=batch_size,
                closed_to=closed,
            )
        finally:
            free_memory()
    return ScanPlan(Path(output), documents, tuple(warnings), estimate)


@takes(curve=PATH, tasks=WORDS, base=NAME, margin=real, confidence=real, kl_threshold=real)
def plateau(
    curve: str | Path,
    *,
    tasks: Words | None = None,
    base: str | Path | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float | None = None,
) -> Scan:
    """Find the plateau again in a finished scan, by another margin or for other tasks; no model is needed.

    Writes the scan's conclusion, its spec included, anew.

    Args:
        curve: folder of the scan, or a file in it.
        tasks: only these.
        base: base LLM for the spec; that of the last spec by default.
        margin: accuracy (0 to 1) that a plateau may lose.
        confidence: of the one-sided bounds, between 0 and 1.
        kl_threshold: nats, for the second opinion.

    Raises:
        ScanError: no finished scan there. CurveError, InputError: no such tasks, or criteria that are none.
            DamagedFileError: it cannot be read.
    """
    from plam_eval.evaluation import scan as scans

    base = None if base is None else str(base)
    scans.check_base(base)
    folder = Path(curve)
    return scans.conclude(
        folder.parent if folder.is_file() else folder,
        tasks=words_of(tasks) if tasks else None,
        base_model=base,
        margin=margin,
        confidence=confidence,
        **({} if kl_threshold is None else {"kl_threshold": kl_threshold}),
    )


@takes(folder=PATH)
def read_scan(folder: str | Path) -> Scan:
    """A finished scan as it was concluded last.

    Args:
        folder: of the scan.

    Raises:
        ScanError: none there. DamagedFileError, CurveError, SpecError: it cannot be read.
    """
    from plam_eval.evaluation import scan_folder

    return scan_folder.load(Path(folder))
