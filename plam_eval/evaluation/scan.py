"""`plam scan`: a model's benchmark answers under every cut layer, through the harness, and the plateau they show.

Prompts, images and scoring are lmms-eval's own. The wrapper's generation loop runs as in any evaluation; only its
`model.generate` is exchanged for `generate_all_cuts`, and the loop runs once more for each other answer that some cut
gave, to decode it, with images and inputs kept from the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from loguru import logger
from tqdm import tqdm

from plam_eval import files
from plam_eval.errors import DamagedFileError, InputError
from plam_eval.evaluation import harness, records, variants
from plam_eval.evaluation.harness import EvaluationError
from plam_eval.evaluation.sweep.findings import write_csv
from plam_eval.harness.tasks import NoScoreError, score_of_task
from plam_eval.hub import COMMIT, is_folder, is_repository, name_problem, repository_of, split_revision
from plam_eval.probing.plateau import (
    KL_THRESHOLD,
    Curve,
    Stages,
    check_criteria,
    find_plateau,
    to_spec,
    what_can_be_found,
    write_spec,
)
from plam_eval.provenance import versions
from plam_eval.spec import PlateauSpec, load_spec, packaged_specs

if TYPE_CHECKING:
    from plam_eval.model_wrappers.hf import HFPlateauMixin

SETTINGS, SAMPLES, STAGES, SPEC = "scan.json", "samples.parquet", "stages.json", "plateau.yaml"
LOCK = "scan.lock"
_CURVE = ("curve.csv", "curve.parquet", "curve.png", "curve.svg")


class ScanError(EvaluationError):
    """A scan that cannot go on; the message says what was found and what to do. Finished documents are kept."""


@dataclass(frozen=True, repr=False)
class Scan:
    """A finished scan: its folder, the curve, its stages, and the spec written from them (None without a plateau)."""

    folder: Path
    curve: Curve
    stages: Stages
    spec: PlateauSpec | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: folder, spec (its file and content), stages, and the curve, a row for each task and cut."""
        return {
            "folder": str(self.folder),
            "spec_file": str(self.folder / SPEC) if self.spec is not None else None,
            "spec": self.spec.to_dict() if self.spec is not None else None,
            "stages": self.stages.to_dict(),
            "curve": self.curve.table().to_dict("records"),
        }

    def __repr__(self) -> str:
        return f"Scan({self.folder}, {sum(self.curve.documents.values())} documents: {self.stages.reason})"


def scan(
    model: HFPlateauMixin,
    tasks: str | Sequence[str],
    output: str | Path,
    *,
    cuts: str | None = None,
    limit: int | None = None,
    offset: int = 0,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    base_model: str | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float = KL_THRESHOLD,
) -> Scan | None:
    """Answer the tasks under every cut, score them, find the plateau, and write all of it into `output`.

    A scan that was stopped goes on where it was; more tasks or a higher limit add to it. Other weights, cuts or
    generation settings are refused. Under several processes each answers its share.

    Args:
        model: one of the HF wrappers, as it is: merged models can be scanned too, but give no spec.
        tasks, limit, offset, gen_kwargs, include_path: as in `harness.evaluate`.
        cuts: as `parse_cuts` takes them, such as "0,4,8:28"; all by default.
        batch_size: documents in one generation; more than 1 for wrappers that take batches, made with at least this.
        base_model: for the spec; see `conclude`.
        margin, confidence, kl_threshold: of `find_plateau`.

    Returns:
        None on every process but the first.

    Raises:
        ScanError: `output` holds a scan of other settings, a prompt changed since, or another process is at work there.
        FolderError: `output` cannot be written, or holds something else. EvaluationError: as `evaluate`.
    """
    from plam_eval.probing.decoder import decoder_layers

    check_criteria(margin, confidence, kl_threshold)
    check_batch(model.model_id, batch_size)
    checked = check(
        output,
        tasks,
        limit=limit,
        offset=offset,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
    )
    if model.rank == 0:
        for task, why in checked.unscored.items():
            logger.warning("{}: left out of the scan, no score per document is known: {}", task, why)
    layers = len(decoder_layers(model.model))
    chosen = _cuts_to_scan(cuts, layers)
    folder = Path(output)
    settings = _settings(model, chosen, layers, gen_kwargs, batch_size)
    with files.locked(folder, LOCK, ScanError) if model.rank == 0 else nullcontext():
        store = _open_store(folder, settings, model.rank)
        if model.rank == 0:
            late = min(8, len(chosen) - 1)
            for sentence in what_can_be_found(checked.clusters, margin, confidence, late=late):
                print(sentence, file=sys.stderr, flush=True)
        with _Recorder(model, chosen, store, batch_size).installed() as recorder:
            run = harness.evaluate(
                model,
                checked.scored,
                limit=limit,
                offset=offset,
                output=folder / "unmasked",
                gen_kwargs=gen_kwargs,
                include_path=include_path,
            )
        gathered = harness.all_ranks({"rows": recorder.rows, "unscored": recorder.unscored})
        if run is None:
            return None
        samples = _scored([row for part in gathered for row in part["rows"]], gathered)
        files.write_in_one_step(folder / SAMPLES, lambda path: samples.to_parquet(path, index=False))
        return conclude(folder, base_model=base_model, margin=margin, confidence=confidence, kl_threshold=kl_threshold)


def check(
    output: str | Path,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    include_path: str | Path | None = None,
    gen_kwargs: str | None = None,
    model: Any = None,
) -> harness.CheckedTasks:
    """What can be known to be wrong before a model is loaded; nothing is left behind.

    Args:
        model: its wrapper, or the wrapper's id.

    Raises:
        EvaluationError: as `harness.check_tasks`. FolderError: `output` cannot be written, or holds files of these
            names that are no scan's.
    """
    check_folder(output)
    return harness.check_tasks(
        tasks,
        limit=limit,
        offset=offset,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
        by_document=True,
    )


def check_folder(output: str | Path) -> None:
    """Raise FolderError where `output` cannot be written, or holds files of a scan's names that are no scan's."""
    files.check_writable(output)
    files.check_free(Path(output), (SAMPLES, STAGES, SPEC, *_CURVE, "answers.rank0.jsonl"), SETTINGS)


def check_batch(model: str, batch_size: int) -> None:
    """Raise InputError for a batch size that the wrapper of this id cannot have in a scan."""
    if batch_size < 1 or (batch_size > 1 and model not in _BATCHED):
        raise InputError(
            f"batch_size is {batch_size}; {model} answers one document at a time, under every cut at once. Expected 1, "
            f"or one of {', '.join(_BATCHED)}"
        )


_BATCHED = ("plam_qwen2_5_vl", "plam_qwen3_vl")
"""Wrappers whose stock loop takes several documents, and pads them on the left: Qwen2-VL's pads on the right."""


def no_spec(folder: str | Path, pretrained: str, base_model: str | None, *, merged: bool = False) -> str | None:
    """Why a scan will write no spec, and what to do, in a sentence; None where it may write one.

    Args:
        pretrained: the MLLM's checkpoint. base_model: the base LLM that was given. merged: a merged model is scanned.
    """
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
    unscored = {task: why for part in gathered for task, why in part["unscored"].items()}
    for task, why in sorted(unscored.items()):
        logger.warning("{}: left out of the curve, no score per document is known: {}", task, why)
    rows = [row for row in rows if row["task"] not in unscored]
    if not rows:
        raise ScanError("no task has a score per document, so there is no curve; see the warnings above")
    samples = pd.DataFrame(rows).drop_duplicates(["task", "doc_id", "cut"]).sort_values(["task", "doc_id", "cut"])
    # Subjects are no reason to take documents for one: at every cut another question is asked of another image.
    subject = samples["group"].str.startswith("subject ")
    samples["group"] = samples["group"].mask(subject, "document " + samples["doc_id"].astype(str))
    unjudged = samples.groupby(["task", "doc_id"])["score"].transform(lambda scores: scores.isna().any())
    for task, count in samples[unjudged].groupby("task")["doc_id"].nunique().items():
        logger.warning("{}: {} documents left out that a judge came to no verdict on at some cut", task, count)
    return samples[~unjudged]


def check_cuts(cuts: str | None, pretrained: str, revision: str | None = None) -> None:
    """Raise ProbeError for cuts that a checkpoint's decoder has not, from file headers: loading it takes minutes."""
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import decoder_names

    layers = {layer for layer, _ in decoder_names(Checkpoint.open(pretrained, revision=revision))}
    if layers:  # of a layout whose names are known
        _cuts_to_scan(cuts, max(layers) + 1)


def check_layout(pretrained: str, revision: str | None = None, *, trust_remote_code: bool = False) -> None:
    """Raise ProbeError for a checkpoint that no scan can answer for, from its config: loading it takes minutes."""
    from transformers import AutoConfig

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.probing.skeleton import check_layout, check_shared_keys, skeleton

    found = Checkpoint.open(pretrained, revision=revision)
    config = AutoConfig.from_pretrained(found.location, revision=found.commit, trust_remote_code=trust_remote_code)
    model = skeleton(config, trust_remote_code=trust_remote_code)
    check_layout(model)
    check_shared_keys(model)


def _cuts_to_scan(cuts: str | None, layers: int) -> tuple[int, ...]:
    """The cuts that text names. Raises ProbeError where they make no curve, which is known before documents are."""
    from plam_eval.decoding.all_cuts import parse_cuts
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
        tasks: only these.
        base_model: for the spec; by default that of the spec which is there, or of the packaged spec for this model.
            Without one no spec is written.
        margin, confidence, kl_threshold: of `find_plateau`.

    Raises:
        ScanError: no scan there. CurveError: its samples are no curve.
    """
    from plam_eval.probing.plot import plot_curve

    folder = Path(folder)
    settings = _whole_settings(folder)
    if not (folder / SAMPLES).is_file():
        raise ScanError(f"{folder}: the scan has not finished (no {SAMPLES}); run the same `plam scan` again")
    curve = Curve.read(files.inside(folder, SAMPLES, str(folder)))
    if tasks is not None:
        curve = curve.only(tasks)
    stages = find_plateau(curve, margin=margin, confidence=confidence, kl_threshold=kl_threshold)
    table = curve.table()
    write_csv(table, folder / "curve.csv")
    files.write_in_one_step(folder / "curve.parquet", lambda path: table.to_parquet(path, index=False))
    for suffix in (".png", ".svg"):
        files.write_in_one_step(folder / f"curve{suffix}", lambda path: plot_curve(curve, stages, path))
    spec = None
    base_model = base_model or _known_base(folder, str(settings["pretrained"]))
    if stages.plateau is not None and base_model is not None and settings["spec"] is None:
        found = {"model": settings.get("commit"), "base_model": _commit_of(base_model)}
        commits = {side: commit for side, commit in found.items() if commit}
        spec = to_spec(stages, model=settings["pretrained"], base_model=base_model, scan=folder.name, commits=commits)
        files.write_in_one_step(folder / SPEC, lambda path: write_spec(spec, path))
    else:
        (folder / SPEC).unlink(missing_ok=True)
    files.write_json(folder / STAGES, {"base_model": base_model, "stages": stages.to_dict()})
    return Scan(folder, curve, stages, spec)


def load(folder: Path) -> Scan:
    """A finished scan as it was concluded last.

    Raises ScanError where there is none. DamagedFileError, CurveError, SpecError, OutsideError: it cannot be read.
    """
    if not (folder / STAGES).is_file():
        raise ScanError(f"{folder}: no finished scan (no {STAGES})")
    _whole_settings(folder)
    stages = _concluded(folder)[0]
    curve = Curve.read(files.inside(folder, SAMPLES, str(folder))).only(stages.documents)
    spec = load_spec(files.inside(folder, SPEC, str(folder))) if (folder / SPEC).is_file() else None
    return Scan(folder, curve, stages, spec)


def _concluded(folder: Path) -> tuple[Stages, str | None]:
    """The stages that an earlier call found, and the base LLM that it knew."""
    file, remedy = files.inside(folder, STAGES, str(folder)), f"`plam plateau {folder}` writes it again"
    content = files.read_json(file, remedy)
    base = content.get("base_model")
    try:
        if not isinstance(base, (str, type(None))):
            raise ValueError(f"base_model: found {base!r:.80}")
        return Stages.from_dict(content["stages"]), base
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{file}: holds no stages that a scan writes ({error}); {remedy}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """What a scan folder was made with. Raises ScanError where there is no scan."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ScanError(f"{folder}: no scan there (no {SETTINGS}); expected the --output of `plam scan`")
    return files.read_json(files.inside(folder, SETTINGS, str(folder)), _REMEDY)


_REMEDY = "restore it from a copy, or scan into another --output"
_KINDS: dict[str, Any] = {
    "pretrained": str,
    "wrapper": str,
    "mode": str,
    "dtype": str,
    "spec": (dict, type(None)),
    "versions": dict,
}


def _whole_settings(folder: Path) -> dict[str, Any]:
    """The settings, known to be what we write."""
    settings = read_settings(folder)
    for key, kind in _KINDS.items():
        if key not in settings or not isinstance(settings[key], kind):
            raise DamagedFileError(f"{folder / SETTINGS}: {key}: found {settings.get(key)!r:.80}; {_REMEDY}")
    return settings


def _settings(
    model: HFPlateauMixin, cuts: tuple[int, ...], layers: int, gen_kwargs: str | None, batch_size: int
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
        "versions": versions(),
        **({"commit": model.checkpoint.recorded_commit} if model.checkpoint.recorded_commit else {}),
    }


def check_base(base_model: str | None) -> None:
    """Raise InputError for a base with a revision that is none, which the spec would be refused for after the scan."""
    if problem := name_problem(base_model or ""):
        raise InputError(f"base: {problem}")


def _commit_of(base_model: str) -> str | None:
    """The commit on the hub that a base's name leads to now; None for a folder, or where that cannot be found out."""
    from plam_eval.merging.checkpoint import Checkpoint, CheckpointError

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
            if (before := _concluded(folder)[1]) is not None:
                return before
    specs = (load_spec(name) for name in packaged_specs())
    repository = repository_of(pretrained)  # of whichever revision
    return next((spec.base_model for spec in specs if spec is not None and spec.model == repository), None)


# ---- answers on disk -------------------------------------------------------------------------------------------------


def _open_store(folder: Path, settings: dict[str, Any], rank: int) -> variants.AnswerFile:
    """The answers known so far. Raises ScanError when the folder holds answers of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    store = variants.AnswerFile(folder, rank)
    if (folder / SETTINGS).is_file():
        before = read_settings(folder)
        changed = [
            f"{name} (was {before.get(name)!r}, is {settings.get(name)!r})"
            for name in dict.fromkeys([*before, *settings])
            if before.get(name) != settings.get(name)
        ]
        if changed and any(store.read()):  # else there is nothing that could be mixed
            raise ScanError(
                f"{folder} holds a scan of other settings: {'; '.join(changed)}. Answers of both cannot be mixed: "
                "name another --output, or delete this one"
            )
        if not changed:
            return store
    if rank == 0:
        files.write_json(folder / SETTINGS, settings)
    return store


# ---- answers from the model ------------------------------------------------------------------------------------------


class _Recorder:
    """Stands in for a wrapper's `generate_until` and `end_run` while it is evaluated."""

    def __init__(
        self, model: HFPlateauMixin, cuts: tuple[int, ...], store: variants.AnswerFile, batch_size: int
    ) -> None:
        self.model, self.cuts, self.store, self.batch_size = model, cuts, store, batch_size
        self.known = {(record["task"], record["doc_id"]): record for record in store.read(self._is_whole)}
        self.rows: list[dict[str, Any]] = []
        self.unscored: dict[str, str] = {}  # task -> why its documents have no score
        self._asked: set[variants.Key] = set()

    def _is_whole(self, record: dict[str, Any]) -> bool:
        """Whether a line of an answer file is one that this writes for these cuts."""
        texts = [record["task"], record["prompt"], *record["answers"]]
        numbers = [record["doc_id"], *record["by_cut"]]
        whole = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
        return (
            whole
            and len(record["by_cut"]) == len(record["kl"]) == len(self.cuts)
            and all(0 <= index < len(record["answers"]) for index in record["by_cut"])
            and all(isinstance(value, (int, float)) for value in record["kl"])
        )

    @contextmanager
    def installed(self) -> Iterator[_Recorder]:
        model: Any = self.model
        share, model.max_error_share = model.max_error_share, 0.0  # a curve needs every document at every cut
        model.generate_until, model.end_run = self.generate_until, self.end_run
        try:
            yield self
        finally:
            del model.generate_until, model.end_run
            model.max_error_share = share

    def generate_until(self, requests: list[Any]) -> list[str]:
        asked = {(request.task_name, request.doc_id): request for request in requests}
        prompts = {key: variants.prompt_of(request) for key, request in asked.items()}
        for task, doc_id in asked.keys() & self.known.keys():
            if self.known[task, doc_id]["prompt"] != prompts[task, doc_id]:
                raise ScanError(
                    f"document {doc_id} of {task} is another than the one this scan has answered (its prompt "
                    "changed); name another --output"
                )
        left = [key for key in asked if key not in self.known]
        bar = tqdm(total=len(asked), desc="answering under every cut", unit="document", disable=self.model.rank != 0)
        with bar:
            bar.update(len(asked) - len(left))
            for keys in self._batches(left, asked):
                for key, answer in zip(keys, self._answer([asked[key] for key in keys]), strict=True):
                    record = {"task": key[0], "doc_id": key[1], "prompt": prompts[key], **answer}
                    self.store.add(record)
                    self.known[key] = record
                bar.update(len(keys))
        self._asked |= asked.keys()
        records = [self.known[request.task_name, request.doc_id] for request in requests]
        return [record["answers"][record["by_cut"][-1]] for record in records]

    def _batches(self, keys: list[variants.Key], asked: Mapping[variants.Key, Any]) -> Iterator[list[variants.Key]]:
        """Documents to be answered together: neighbours that are to be generated for alike."""
        batch: list[variants.Key] = []
        for key in keys:
            if batch and (len(batch) == self.batch_size or asked[batch[0]].args[2] != asked[key].args[2]):
                yield batch
                batch = []
            batch.append(key)
        if batch:
            yield batch

    def _answer(self, requests: list[Any]) -> list[dict[str, Any]]:
        """By document: distinct answers in the order of their first cut, which of them each cut gave, each cut's KL."""
        from plam_eval.decoding.all_cuts import CutAnswers, generate_all_cuts

        model: Any = self.model
        found: list[CutAnswers] = []
        single = len(requests) == 1

        def all_cuts(**inputs: Any) -> Any:
            found.append(generate_all_cuts(model.model, self.cuts, **inputs))
            return list(found[-1].tokens[:, 0] if single else found[-1].tokens)

        if single:
            given, rows = [variants.answer_all(model, requests[0], all_cuts)], [0]
        else:
            given, rows = variants.answer_batch(model, requests, all_cuts)
        if model.journal.errors:  # with several processes the wrapper only counts a failure
            which = ", ".join(f"{request.doc_id} of {request.task_name}" for request in requests)
            document = "document" if single else "documents"
            raise ScanError(f"{document} {which} could not be answered: {model.journal.errors[0]}")
        return [self._compact(answers, found[0].kl[:, row]) for answers, row in zip(given, rows, strict=True)]

    def _compact(self, given: list[Any], kl: Any) -> dict[str, Any]:
        from plam_eval.model_wrappers.mixin import writable

        texts = [writable(variants.text_of(answer)) for answer in given]
        answers = list(dict.fromkeys(texts))
        rounded = [round(float(value), 7) for value in kl]
        return {"answers": answers, "by_cut": [answers.index(text) for text in texts], "kl": rounded}

    def end_run(self, tasks: dict[str, Any]) -> None:
        known = {key: record["answers"] for key, record in self.known.items() if key in self._asked}
        scored: dict[tuple[str, int, int], dict[str, Any]] = {}
        missing = sorted(harness.tasks_of(tasks) - {task for task, _ in known})
        if missing and self.model.world_size == 1:
            raise ScanError(f"{', '.join(missing)}: not answered by generate_until, so it cannot be scanned")
        configs = harness.task_configs(tasks)
        for log in harness.score_answers(tasks, known):
            task = log["task"]
            try:
                row = records.row(task, log, score_of_task(task, configs[task]))
            except NoScoreError as error:
                self.unscored[task] = str(error)
                continue
            scored[task, log["doc_id"], log["turn"]] = row
        layers = self.cuts[-1]
        for task, doc_id in sorted(known):
            if task in self.unscored:
                continue
            record = self.known[task, doc_id]
            for cut, index, kl in zip(self.cuts, record["by_cut"], record["kl"], strict=True):
                row = scored[task, doc_id, index]
                columns = ("task", "doc_id", "group", "target", "answer", "score", "parsable")
                self.rows.append({**{c: row[c] for c in columns}, "cut": cut, "kl": kl, "num_layers": layers})
