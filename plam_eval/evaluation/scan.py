"""`plam scan`: a model's benchmark answers under every cut layer, through the harness, and the plateau they show.

Prompts, images and scoring are lmms-eval's own. The wrapper's generation loop runs as in any evaluation; only its
`model.generate` is exchanged for `generate_all_cuts`, and the loop runs once more for each other answer that some cut
gave, to decode it, with images and inputs kept from the first time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from plam_eval.evaluation import harness, records, variants
from plam_eval.evaluation.harness import EvaluationError
from plam_eval.probing.plateau import (
    KL_THRESHOLD,
    OVERALL,
    Curve,
    Stages,
    check_criteria,
    find_plateau,
    to_spec,
    write_spec,
)
from plam_eval.provenance import versions
from plam_eval.spec import PlateauSpec, load_spec, packaged_specs
from plam_eval.terminal import PlainTable, Terminal

if TYPE_CHECKING:
    from plam_eval.model_wrappers.hf import HFPlateauMixin

SETTINGS, SAMPLES, STAGES, SPEC = "scan.json", "samples.parquet", "stages.json", "plateau.yaml"


class ScanError(EvaluationError):
    """A scan that cannot go on; the message says what was found and what to do. Finished documents are kept."""


@dataclass(frozen=True)
class Scan:
    """A finished scan: its folder, the curve, its stages, and the spec written from them (None without a plateau)."""

    folder: Path
    curve: Curve
    stages: Stages
    spec: PlateauSpec | None


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
        base_model: for the spec; see `conclude`.
        margin, confidence, kl_threshold: of `find_plateau`.

    Returns:
        None on every process but the first.

    Raises:
        ScanError: `output` holds a scan of other settings, or a prompt changed since. EvaluationError: as `evaluate`.
    """
    from plam_eval.probing.decoder import decoder_layers
    from plam_eval.probing.scan import parse_cuts

    check_criteria(margin, confidence, kl_threshold)
    layers = len(decoder_layers(model.model))
    chosen = parse_cuts(cuts, layers)
    folder = Path(output)
    settings = _settings(model, chosen, layers, gen_kwargs)
    store = _open_store(folder, settings, model.rank)
    with _Recorder(model, chosen, store).installed() as recorder:
        run = harness.evaluate(
            model,
            tasks,
            limit=limit,
            offset=offset,
            output=folder / "unmasked",
            gen_kwargs=gen_kwargs,
            include_path=include_path,
        )
    gathered = harness.all_ranks({"rows": recorder.rows})
    if run is None:
        return None
    samples = pd.DataFrame([row for part in gathered for row in part["rows"]])
    samples = samples.drop_duplicates(["task", "doc_id", "cut"]).sort_values(["task", "doc_id", "cut"])
    _atomically(folder / SAMPLES, lambda path: samples.to_parquet(path, index=False))
    return conclude(folder, base_model=base_model, margin=margin, confidence=confidence, kl_threshold=kl_threshold)


def check_cuts(cuts: str | None, pretrained: str, revision: str | None = None) -> None:
    """Raise ProbeError for cuts that a checkpoint's decoder has not, from file headers: loading it takes minutes."""
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import decoder_names
    from plam_eval.probing.scan import parse_cuts

    layers = {layer for layer, _ in decoder_names(Checkpoint.open(pretrained, revision=revision))}
    if layers:  # of a layout whose names are known
        parse_cuts(cuts, max(layers) + 1)


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
    from plam_eval.report.plots import plot_curve

    folder = Path(folder)
    settings = read_settings(folder)
    if not (folder / SAMPLES).is_file():
        raise ScanError(f"{folder}: the scan has not finished (no {SAMPLES}); run the same `plam scan` again")
    curve = Curve.read(folder / SAMPLES)
    if tasks is not None:
        curve = curve.only(tasks)
    stages = find_plateau(curve, margin=margin, confidence=confidence, kl_threshold=kl_threshold)
    table = curve.table()
    _atomically(folder / "curve.csv", lambda path: table.to_csv(path, index=False))
    _atomically(folder / "curve.parquet", lambda path: table.to_parquet(path, index=False))
    for suffix in (".png", ".svg"):
        _atomically(folder / f"curve{suffix}", lambda path: plot_curve(curve, stages, path))
    spec = None
    base_model = base_model or _known_base(folder, str(settings["pretrained"]))
    if stages.plateau is not None and base_model is not None and settings["spec"] is None:
        spec = to_spec(stages, model=settings["pretrained"], base_model=base_model, scan=folder.name)
        _atomically(folder / SPEC, lambda path: write_spec(spec, path))
    else:
        (folder / SPEC).unlink(missing_ok=True)
    content = json.dumps({"base_model": base_model, "stages": stages.to_dict()}, indent=2) + "\n"
    _atomically(folder / STAGES, lambda path: path.write_text(content, encoding="utf-8"))
    return Scan(folder, curve, stages, spec)


def show(found: Scan, console: Terminal) -> None:
    """Print the curve of the mean over tasks, the stages, and what was written."""
    curve, stages = found.curve, found.stages
    table = PlainTable(
        title=f"{sum(curve.documents.values())} documents of {', '.join(curve.tasks)}", title_justify="left"
    )
    for name in ("image seen in", "accuracy", "95 %", "against unmasked", "parsable", "KL", "stage"):
        table.add_column(name, justify="left" if name in ("image seen in", "stage") else "right", no_wrap=True)
    rows = curve.table()
    for row in rows[rows["task"] == OVERALL].itertuples():
        table.add_row(
            "all layers" if row.cut == stages.num_layers else f"layers below {row.cut}" if row.cut else "no layer",
            f"{row.accuracy:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            "" if row.cut == stages.num_layers else f"{row.difference:+.3f}",
            "" if math.isnan(row.parsable) else f"{row.parsable:.0%}",
            f"{row.kl:.4f}",
            stages.stage_from(int(row.cut)),
        )
    console.print(table)
    console.say(stages.reason[:1].upper() + stages.reason[1:])
    kl = f"cut {stages.kl_cut}" if stages.kl_cut < stages.num_layers else "no plateau"
    console.say(f"Second opinion, KL at or under {stages.kl_threshold:g}: {kl}")
    console.warn(stages.warnings)
    console.say(f"Curve, plot and answers: {found.folder}")
    if found.spec is not None:
        console.say(f"Spec: {found.folder / SPEC}, to be used as plateau={found.folder / SPEC}")
    elif stages.plateau is not None:
        why = (
            "a merged model was scanned"
            if read_settings(found.folder)["spec"]
            else "the base LLM is not known (--base)"
        )
        console.say(f"No spec was written: {why}")


def load(folder: Path) -> Scan:
    """A finished scan as it was concluded last. Raises ScanError where there is none."""
    if not (folder / STAGES).is_file():
        raise ScanError(f"{folder}: no finished scan (no {STAGES})")
    stages = Stages.from_dict(json.loads((folder / STAGES).read_text(encoding="utf-8"))["stages"])
    curve = Curve.read(folder / SAMPLES).only(stages.documents)
    spec = load_spec(folder / SPEC) if (folder / SPEC).is_file() else None
    return Scan(folder, curve, stages, spec)


def read_settings(folder: Path) -> dict[str, Any]:
    """What a scan folder was made with. Raises ScanError where there is no scan."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ScanError(f"{folder}: no scan there (no {SETTINGS}); expected the --output of `plam scan`")
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return settings


def _settings(model: HFPlateauMixin, cuts: tuple[int, ...], layers: int, gen_kwargs: str | None) -> dict[str, Any]:
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
        "versions": versions(),
    }


def _known_base(folder: Path, pretrained: str) -> str | None:
    if (folder / STAGES).is_file():
        before: str | None = json.loads((folder / STAGES).read_text(encoding="utf-8"))["base_model"]
        if before is not None:
            return before
    specs = (load_spec(name) for name in packaged_specs())
    return next((spec.base_model for spec in specs if spec is not None and spec.model == pretrained), None)


def _atomically(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(partial)
    partial.replace(path)


# ---- answers on disk -------------------------------------------------------------------------------------------------


def _open_store(folder: Path, settings: dict[str, Any], rank: int) -> variants.AnswerFile:
    """The answers known so far. Raises ScanError when the folder holds answers of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SETTINGS).is_file():
        before = read_settings(folder)
        changed = [
            f"{name} (was {before.get(name)!r}, is {settings.get(name)!r})"
            for name in dict.fromkeys([*before, *settings])
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ScanError(
                f"{folder} holds a scan of other settings: {'; '.join(changed)}. Answers of both cannot be mixed: "
                "name another --output, or delete this one"
            )
    elif rank == 0:
        text = json.dumps(settings, indent=2) + "\n"
        _atomically(folder / SETTINGS, lambda path: path.write_text(text, encoding="utf-8"))
    return variants.AnswerFile(folder, rank)


# ---- answers from the model ------------------------------------------------------------------------------------------


class _Recorder:
    """Stands in for a wrapper's `generate_until` and `end_run` while it is evaluated."""

    def __init__(self, model: HFPlateauMixin, cuts: tuple[int, ...], store: variants.AnswerFile) -> None:
        self.model, self.cuts, self.store = model, cuts, store
        self.known = {(record["task"], record["doc_id"]): record for record in store.read()}
        self.rows: list[dict[str, Any]] = []
        self._asked: set[variants.Key] = set()

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
        answers = []
        for request in tqdm(requests, "answering under every cut", unit="document", disable=self.model.rank != 0):
            key = request.task_name, request.doc_id
            prompt = variants.prompt_of(request)
            record = self.known.get(key)
            if record is None:
                record = {"task": key[0], "doc_id": key[1], "prompt": prompt, **self._answer(request)}
                self.store.add(record)
                self.known[key] = record
            elif record["prompt"] != prompt:
                raise ScanError(
                    f"document {key[1]} of {key[0]} is another than the one this scan has answered (its prompt "
                    "changed); name another --output"
                )
            self._asked.add(key)
            answers.append(record["answers"][record["by_cut"][-1]])
        return answers

    def _answer(self, request: Any) -> dict[str, Any]:
        """Distinct answers in the order of their first cut, which of them each cut gave, and each cut's KL."""
        from plam_eval.model_wrappers.mixin import writable
        from plam_eval.probing.scan import CutAnswers, generate_all_cuts

        model: Any = self.model
        found: list[CutAnswers] = []

        def all_cuts(**inputs: Any) -> Any:
            found.append(generate_all_cuts(model.model, self.cuts, **inputs))
            return list(found[-1].tokens[:, 0])

        texts = [writable(variants.text_of(answer)) for answer in variants.answer_all(model, request, all_cuts)]
        if model.journal.errors:  # with several processes the wrapper only counts a failure
            raise ScanError(
                f"document {request.doc_id} of {request.task_name} could not be answered: {model.journal.errors[0]}"
            )
        answers = list(dict.fromkeys(texts))
        kl = [round(float(value), 7) for value in found[0].kl[:, 0]]
        return {"answers": answers, "by_cut": [answers.index(text) for text in texts], "kl": kl}

    def end_run(self, tasks: dict[str, Any]) -> None:
        known = {key: record["answers"] for key, record in self.known.items() if key in self._asked}
        scored: dict[tuple[str, int, int], dict[str, Any]] = {}
        missing = sorted(harness.tasks_of(tasks) - {task for task, _ in known})
        if missing and self.model.world_size == 1:
            raise ScanError(f"{', '.join(missing)}: not answered by generate_until, so it cannot be scanned")
        for log in harness.score_answers(tasks, known):
            scored[log["task"], log["doc_id"], log["turn"]] = {**records.row(log["task"], log), "group": log["group"]}
        layers = self.cuts[-1]
        for task, doc_id in sorted(known):
            record = self.known[task, doc_id]
            for cut, index, kl in zip(self.cuts, record["by_cut"], record["kl"], strict=True):
                row = scored[task, doc_id, index]
                columns = ("task", "doc_id", "group", "target", "answer", "score", "parsable")
                self.rows.append({**{c: row[c] for c in columns}, "cut": cut, "kl": kl, "num_layers": layers})
