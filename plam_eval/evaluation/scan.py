"""`plam scan`: a model's benchmark answers under every cut layer, through the harness, and the plateau they show.

Prompts, images and scoring are lmms-eval's own. `scan_recorder` has how documents are answered, `scan_folder` what is
stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger

from plam_eval import files, table_files
from plam_eval.errors import DamagedFileError, InputError
from plam_eval.evaluation.records import clusters_by_content
from plam_eval.evaluation.scan_folder import (
    LOCK,
    SAMPLES,
    SPEC,
    STAGES,
    UNMASKED,
    Scan,
    ScanError,
    check_folder,
    concluded,
    open_store,
    whole_settings,
)
from plam_eval.evaluation.scan_recorder import CutRecorder
from plam_eval.harness import checks, evaluate, processes
from plam_eval.harness.registry import WRAPPERS
from plam_eval.harness.sampling import Sample
from plam_eval.harness.wrapper import HFWrapper
from plam_eval.hub import COMMIT, is_folder, is_repository, name_problem, repository_of, split_revision
from plam_eval.probing.closed import READERS, ClosedTo
from plam_eval.probing.curve import Curve
from plam_eval.probing.plateau import KL_THRESHOLD, check_criteria, find_plateau
from plam_eval.probing.power import what_can_be_found
from plam_eval.probing.spec_file import to_spec, write_spec
from plam_eval.provenance import versions
from plam_eval.spec import load_spec, packaged_specs


def scan(
    model: HFWrapper,
    tasks: str | Sequence[str],
    output: str | Path,
    *,
    cuts: str | None = None,
    limit: int | None = None,
    offset: int = 0,
    sample: Sample | None = None,
    documents: Mapping[str, Sequence[int]] | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    closed_to: ClosedTo = "text",
    base_model: str | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float = KL_THRESHOLD,
) -> Scan | None:
    """Answer the tasks under every cut, score them, find the plateau, and write all of it into `output`.

    A scan that was stopped goes on where it was; more tasks, a higher limit or a larger sample add to it. Other
    weights, cuts, generation settings, another `closed_to`, seed or exclusion are refused. Under several processes each
    answers its share.

    Args:
        model: one of the HF wrappers, as it is: merged models can be scanned too, but give no spec.
        output: folder of the scan; it need not exist.
        tasks: names of tasks or groups, as a list or separated by commas.
        limit: documents of each task, at most.
        offset: documents of each task that are left out, from its first one on.
        sample: so many documents of each task instead, and what is left out.
        documents: task -> doc_ids, of every task, in place of `limit` and `offset`.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        include_path: folder of further tasks.
        cuts: as `parse_cuts` takes them, such as "0,4,8:28"; all by default.
        batch_size: documents in one generation; more than 1 for wrappers that take batches, made with at least this.
        closed_to: whom the image is closed to, as for `mask_vision`; with other than all "text" no spec is written.
        base_model: for the spec; see `conclude`.
        margin: accuracy (0 to 1) that a plateau may lose.
        confidence: of the one-sided bounds.
        kl_threshold: nats, for the second opinion.

    Returns:
        None on every process but the first.

    Raises:
        ScanError: `output` holds a scan of other settings, a prompt changed since, or another process is at work there.
        FolderError: `output` cannot be written, or holds something else. EvaluationError: as `evaluate`.
    """
    from plam_eval.probing.decoder import decoder_layers
    from plam_eval.probing.masking import check_closed_to

    check_criteria(margin, confidence, kl_threshold)
    check_closed_to(closed_to)
    check_batch(model.model_id, batch_size)
    checked = check(
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
        for task, why in checked.unscored.items():
            logger.warning("{}: left out of the scan, no score per document is known: {}", task, why)
    layers = len(decoder_layers(model.model))
    chosen = _cuts_to_scan(cuts, layers)
    folder = Path(output)
    settings = _settings(model, chosen, layers, gen_kwargs, batch_size, closed_to)
    if sample is not None and not sample.is_whole:
        settings["sample"] = {key: value for key, value in sample.to_dict().items() if key != "size"}
    with files.locked(folder, LOCK, ScanError) if model.rank == 0 else nullcontext():
        store = open_store(folder, settings, model.rank)
        if model.rank == 0:
            late = min(8, len(chosen) - 1)
            for sentence in what_can_be_found(checked.clusters, margin, confidence, late=late, closed_to=closed_to):
                print(sentence, file=sys.stderr, flush=True)
        recorder = CutRecorder(model, chosen, store, batch_size, closed_to)
        with recorder.installed():
            run = evaluate.evaluate(
                model,
                checked.scored,
                **({"documents": documents} if documents else checked.asking),
                output=folder / UNMASKED,
                gen_kwargs=gen_kwargs,
                include_path=include_path,
            )
        gathered = processes.all_ranks({"rows": recorder.rows, "unscored": recorder.unscored})
        if run is None:
            return None
        samples = _scored([row for share in gathered for row in share["rows"]], gathered)
        files.write_in_one_step(folder / SAMPLES, lambda path: samples.to_parquet(path, index=False))
        return conclude(folder, base_model=base_model, margin=margin, confidence=confidence, kl_threshold=kl_threshold)


def check(
    output: str | Path,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: Sample | None = None,
    include_path: str | Path | None = None,
    gen_kwargs: str | None = None,
    model: Any = None,
) -> checks.CheckedTasks:
    """What can be known to be wrong before a model is loaded; nothing is left behind.

    Args:
        output: folder of the scan; it need not exist.
        tasks: names of tasks or groups, as a list or separated by commas.
        limit: documents of each task, at most.
        offset: documents of each task that are left out, from its first one on.
        sample: so many documents of each task instead, and what is left out.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        include_path: folder of further tasks.
        model: its wrapper, or the wrapper's id.

    Raises:
        EvaluationError: as `checks.check_tasks`. FolderError: `output` cannot be written, or holds files of these
            names that are no scan's.
    """
    checks.check_generation(gen_kwargs, greedy=True)
    check_folder(output)
    return checks.check_tasks(
        tasks,
        limit=limit,
        offset=offset,
        sample=sample,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
        by_document=True,
    )


def check_batch(model: str, batch_size: int) -> None:
    """Raise InputError for a batch size that a wrapper cannot have in a scan.

    Args:
        model: id of the wrapper.
        batch_size: documents in one generation.
    """
    batched = [wrapper.model_id for wrapper in WRAPPERS.values() if wrapper.batched]
    if batch_size < 1 or (batch_size > 1 and model not in batched):
        raise InputError(
            f"batch_size is {batch_size}; {model} answers one document at a time, under every cut at once. Expected 1, "
            f"or one of {', '.join(batched)}"
        )


def no_spec(
    folder: str | Path,
    pretrained: str,
    base_model: str | None,
    *,
    merged: bool = False,
    closed_to: ClosedTo = "text",
) -> str | None:
    """Why a scan will write no spec, and what to do, in a sentence; None where it may write one.

    Args:
        folder: of the scan; need not exist.
        pretrained: the MLLM's checkpoint.
        base_model: the base LLM that was given.
        merged: a merged model is scanned.
        closed_to: whom the image is closed to.
    """
    if closed_to != "text":
        return (
            f"No plateau spec will be written: the image is closed to {READERS[closed_to]} alone, so that what is "
            "found is no plateau. For one, scan without --closed-to, into another --output."
        )
    if merged:
        return "No plateau spec will be written: a merged model is scanned. For one, scan it with plateau=none."
    if base_model is not None or _known_base(Path(folder), pretrained) is not None:
        return None
    return (
        f"No plateau spec will be written: the base LLM of {pretrained} is not known. Give it with --base "
        f"(base= in Python), or when the scan has ended: plam plateau {folder} --base BASE"
    )


def _scored(rows: list[dict[str, Any]], gathered: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Documents that have a score at every cut; tasks and documents that have none are left out, and named."""
    unscored = {task: why for share in gathered for task, why in share["unscored"].items()}
    for task, why in sorted(unscored.items()):
        logger.warning("{}: left out of the curve, no score per document is known: {}", task, why)
    rows = [row for row in rows if row["task"] not in unscored]
    if not rows:
        raise ScanError("no task has a score per document, so there is no curve; see the warnings above")
    samples = pd.DataFrame(rows).drop_duplicates(["task", "doc_id", "cut"]).sort_values(["task", "doc_id", "cut"])
    samples["group"] = clusters_by_content(samples)
    unjudged = samples.groupby(["task", "doc_id"])["score"].transform(lambda scores: scores.isna().any())
    for task, count in samples[unjudged].groupby("task")["doc_id"].nunique().items():
        logger.warning("{}: {} documents left out that a judge came to no verdict on at some cut", task, count)
    return samples[~unjudged]


def check_cuts(cuts: str | None, pretrained: str, revision: str | None = None) -> None:
    """Raise ProbeError for cuts that a checkpoint's decoder has not, from file headers: loading it takes minutes.

    Args:
        cuts: as `parse_cuts` takes them.
        pretrained: folder or hub id.
        revision: of the hub.
    """
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import decoder_names

    layers = {layer for layer, _ in decoder_names(Checkpoint.open(pretrained, revision=revision))}
    if layers:  # of a layout whose names are known
        _cuts_to_scan(cuts, max(layers) + 1)


def check_scannable(pretrained: str, revision: str | None = None, *, trust_remote_code: bool = False) -> None:
    """Raise ProbeError for a checkpoint that no scan can answer for, from its config: loading it takes minutes.

    Args:
        pretrained: folder or hub id.
        revision: of the hub.
        trust_remote_code: whether code that lies in the checkpoint may run.
    """
    from transformers import AutoConfig

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.probing.skeleton import check_probeable, check_shared_keys, skeleton

    checkpoint = Checkpoint.open(pretrained, revision=revision)
    config = AutoConfig.from_pretrained(
        checkpoint.location, revision=checkpoint.commit, trust_remote_code=trust_remote_code
    )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    check_probeable(model)
    check_shared_keys(model)


def _cuts_to_scan(cuts: str | None, layers: int) -> tuple[int, ...]:
    """The cuts that text names. Raises ProbeError where they make no curve, which is known before documents are."""
    from plam_eval.probing.cuts import parse_cuts
    from plam_eval.probing.decoder import ProbeError

    chosen = parse_cuts(cuts, layers)
    if len(chosen) == 1:
        raise ProbeError(f"cuts: found only {layers}, the unmasked model; expected at least one below it, to compare")
    return chosen


def conclude(
    folder: str | Path,
    *,
    tasks: Iterable[str] | None = None,
    base_model: str | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float = KL_THRESHOLD,
) -> Scan:
    """From a scan folder's samples to its curve, plots, stages and spec; what an earlier call concluded is replaced.

    Args:
        folder: of the scan.
        tasks: only these.
        base_model: for the spec; by default that of the spec which is there, or of the packaged spec for this model.
            Without one no spec is written.
        margin: accuracy (0 to 1) that a plateau may lose.
        confidence: of the one-sided bounds.
        kl_threshold: nats, for the second opinion.

    Raises:
        ScanError: no scan there. CurveError: its samples are no curve.
    """
    from plam_eval.probing.plot import plot_curve

    folder = Path(folder)
    settings = whole_settings(folder)
    if not (folder / SAMPLES).is_file():
        raise ScanError(f"{folder}: the scan has not finished (no {SAMPLES}); run the same `plam scan` again")
    curve = Curve.read(files.inside(folder, SAMPLES, str(folder)))
    if tasks is not None:
        curve = curve.only(tasks)
    criteria = {"margin": margin, "confidence": confidence, "kl_threshold": kl_threshold}
    stages = find_plateau(curve, **criteria, closed_to=settings.get("closed_to", "text"))
    table = curve.table()
    table_files.write_table(table, folder / "curve")
    for suffix in (".png", ".svg"):
        files.write_in_one_step(folder / f"curve{suffix}", lambda path: plot_curve(curve, stages, path))
    spec = None
    base_model = base_model or _known_base(folder, str(settings["pretrained"]))
    if stages.plateau is not None and base_model is not None and settings["spec"] is None:
        at_hub = {"model": settings.get("commit"), "base_model": _commit_of(base_model)}
        commits = {side: commit for side, commit in at_hub.items() if commit}
        spec = to_spec(
            stages,
            model=settings["pretrained"],
            base_model=base_model,
            scan=folder.name,
            commits=commits,
            doc_ids=_doc_ids(curve),
        )
        files.write_in_one_step(folder / SPEC, lambda path: write_spec(spec, path))
    else:
        (folder / SPEC).unlink(missing_ok=True)
    files.write_json(folder / STAGES, {"base_model": base_model, "stages": stages.to_dict()})
    return Scan(folder, curve, stages, spec)


def _doc_ids(curve: Curve) -> dict[str, list[int]]:
    """Task -> its documents; none at all where one has no number."""
    numbers = pd.to_numeric(curve.samples["doc_id"], errors="coerce")
    if numbers.isna().any():
        return {}
    return {str(task): sorted({*rows.astype(int).tolist()}) for task, rows in numbers.groupby(curve.samples["task"])}


def _settings(
    model: HFWrapper,
    cuts: tuple[int, ...],
    layers: int,
    gen_kwargs: str | None,
    batch_size: int,
    closed_to: ClosedTo,
) -> dict[str, Any]:
    """What answers depend on, apart from the documents."""
    return {
        "wrapper": model.model_id,
        "pretrained": model.pretrained_name,
        "mode": "simple" if model.is_simple else "chat",
        "dtype": model.running_dtype,
        "spec": model.spec.to_dict() if model.spec is not None else None,
        "weights and arguments": model.cache_fingerprint(),
        "num_layers": layers,
        "cuts": list(cuts),
        "gen_kwargs": gen_kwargs,
        **({"batch_size": batch_size} if batch_size > 1 else {}),  # which rounds sums in another order
        **({"closed_to": closed_to} if closed_to != "text" else {}),
        "versions": versions(),
        **({"commit": model.checkpoint.recorded_commit} if model.checkpoint.recorded_commit else {}),
    }


def check_base(base_model: str | None) -> None:
    """Raise InputError for a base with a revision that is none, which the spec would be refused for after the scan.

    Args:
        base_model: hub id, with its revision or without, or folder; None where none was given.
    """
    if problem := name_problem(base_model or ""):
        raise InputError(f"base: {problem}")


def _commit_of(base_model: str) -> str | None:
    """The commit on the hub that a base's name leads to now; None for a folder, or where that cannot be found out."""
    from plam_eval.errors import CheckpointError
    from plam_eval.merging.checkpoint import Checkpoint

    repository, revision = split_revision(base_model)
    if is_folder(base_model) or not is_repository(repository):
        return None
    if COMMIT.fullmatch(revision or ""):
        return revision
    try:
        return Checkpoint.open(base_model, role="base").recorded_commit
    except CheckpointError as error:
        logger.warning("the commit of the base is not recorded: {}", error)
        return None


def _known_base(folder: Path, pretrained: str) -> str | None:
    if (folder / STAGES).is_file():
        with suppress(DamagedFileError):  # it is about to be written again
            if (before := concluded(folder)[1]) is not None:
                return before
    specs = (load_spec(name) for name in packaged_specs())
    repository = repository_of(pretrained)  # of whichever revision
    return next((spec.base_model for spec in specs if spec is not None and spec.model == repository), None)
