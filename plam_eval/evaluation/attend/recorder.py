"""Documents of an evaluation, each answered and looked at under every setting in one generation.

`Recorder` answers in the wrapper's place while the plain model is evaluated: the wrapper's own loop runs, and what it
calls as `model.generate` is exchanged for a generation that also keeps attention rows. What comes of a document is a
line of a store as soon as it is known. Of more settings than are to be in memory at once, each part is a line of its
own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from loguru import logger
from tqdm import tqdm

from plam_eval.errors import InputError, PlamError, first_line
from plam_eval.evaluation import records, variants
from plam_eval.evaluation.answer_store import AnswerStore, Record, document_of, prompt_problem
from plam_eval.evaluation.attend.depth import depth_of
from plam_eval.evaluation.attend.document import (
    SINKS,
    finest,
    frame_of,
    mapped,
    measured,
    packed,
    sinks_of,
    unpacked,
)
from plam_eval.evaluation.attend.folder import DEPTH_OF_LAYERS, DEPTH_OF_STREAM, MEASURES, PLAIN, AttendError
from plam_eval.evaluation.attend.settings import Settings
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.harness.answers import score_answers, task_configs, tasks_of
from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.requests import Key, key_of
from plam_eval.harness.tasks import score_of_task
from plam_eval.harness.wrapper import HFWrapper, answer_from_dict, answer_to_dict, writable

if TYPE_CHECKING:
    from plam_eval.decoding.all_merges import Merges
    from plam_eval.decoding.merge_rows import Queries
    from plam_eval.harness.documents import Documents, Pictures

NO_IMAGE = "it has no image"
_NO_SETTINGS = "{}"  # of a generation that did not come to be


@dataclass
class _Known:
    """What the lines of a store say of a document, the last one first.

    Attributes:
        skipped: why it has no measures.
        failed: whether it is to be tried again when the folder is opened again.
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: str = _NO_SETTINGS
    measures: dict[str, str] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    depth: dict[str, Any] = field(default_factory=dict)
    sinks: list[list[int]] | None = None
    image_tokens: int | None = None
    skipped: str | None = None
    failed: bool = False

    @classmethod
    def of(cls, lines: Sequence[Record]) -> _Known:
        known = cls()
        for line in lines:
            known.skipped, known.failed = line["skipped"], line["failed"]
            known.settings = line["settings"]
            known.image_tokens = line["image_tokens"] or known.image_tokens
            known.answers |= {setting: line["answers"][index] for setting, index in line["of"].items()}
            for name in ("measures", "maps", "grid", "depth"):
                getattr(known, name).update(line.get(name, {}))
            known.sinks = line.get("sinks", known.sinks)
        return known


class Recorder:
    """Answers each document under every setting, gives the plain model's answer, and scores all at the end of the run.

    Args:
        model: the wrapper that is evaluated, plain.
        settings: what it is looked at under.
        store: has what is known, and gets what comes.
        documents: where their images and boxes are from.
        num_layers: of the decoder.
        queries: whose attention, as `generate_with_rows` takes it.
        together: settings whose merged tensors are in memory at once, at most; all by default.
        depth: also measure what each layer does.
        shown: documents whose maps are kept.

    Attributes:
        share: once the run has ended, what this process knows of the documents that it was asked for.
    """

    def __init__(
        self,
        model: HFWrapper,
        settings: Settings,
        store: AnswerStore,
        documents: Documents,
        *,
        num_layers: int,
        queries: Queries = "last",
        together: int | None = None,
        depth: bool = False,
        shown: frozenset[Key] = frozenset(),
    ) -> None:
        self.model, self.settings, self.store, self.documents = model, settings, store, documents
        self.num_layers, self.queries, self.depth, self.shown = num_layers, queries, depth, shown
        self.together = together or len(settings.specs)
        self.share = Share()
        self._asked: dict[Key, Any] = {}
        self._given_up: set[Key] = set()  # by this process, until the folder is opened again
        store.load(self._is_whole)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the measures of a document under a setting: `SINKS`, `MEASURES` and layers."""
        return len(SINKS), len(MEASURES), self.num_layers

    def _is_whole(self, line: Record) -> bool:
        """Whether a line of a store is one that this writes; may raise where it is not."""
        texts = [line["task"], line["prompt"], line["settings"], *(answer["text"] for answer in line["answers"])]
        numbers = [line["doc_id"], *line["of"].values(), line["image_tokens"] or 0]
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            return False
        if not all(0 <= index < len(line["answers"]) for index in line["of"].values()):
            return False
        if not 0 <= (line["image_tokens"] or 0) <= np.iinfo(np.int32).max:
            return False
        if not isinstance(line["failed"], bool) or not isinstance(line["skipped"], (str, type(None))):
            return False
        if line["skipped"] is not None:
            return True
        of = set(line["of"])
        for packed_values in line["measures"].values():
            unpacked(packed_values, self.shape)
        for packed_values in line.get("maps", {}).values():
            unpacked(packed_values, (self.num_layers, *line["grid"]["shape"]))
        if line.get("grid"):
            left, top, right, bottom = line["grid"]["frame"]
            if not all(type(edge) in (int, float) and math.isfinite(edge) for edge in (left, top, right, bottom)):
                return False
        sinks = np.array(line.get("sinks", []), int).reshape(-1, 2)
        whole = set(line["measures"]) == of and (PLAIN not in of or "sinks" in line)
        if self.depth:
            lengths = dict.fromkeys(DEPTH_OF_LAYERS, self.num_layers) | dict.fromkeys(
                DEPTH_OF_STREAM, self.num_layers + 1
            )
            whole = whole and set(line["depth"]) == of
            whole = whole and all(
                len(columns[name]) == length and all(isinstance(v, (int, float, type(None))) for v in columns[name])
                for columns in line["depth"].values()
                for name, length in lengths.items()
            )
        return whole and bool(np.all((sinks >= 0) & (sinks < [self.num_layers, np.iinfo(np.int32).max])))

    def installed(self) -> AbstractContextManager[None]:
        """For the evaluation of the plain model."""
        return self.model.answering(self)

    # ---- answering ---------------------------------------------------------------------------------------------------

    def answer(self, requests: list[Any]) -> list[Any]:
        """The plain model's answers; those of every setting are stored, with what was measured.

        Args:
            requests: lmms-eval's.

        Raises:
            AttendError: a document is another than the one that was answered, or merges do not fit into memory.
        """
        asked = {key_of(request): request for request in requests}
        for key, request in asked.items():
            for line in self.store.of(key)[-1:]:
                if problem := prompt_problem(request, line, "that was looked at"):
                    raise AttendError(problem)
        self._asked |= asked
        lacking = {key: set(self._lacking(key)) for key in asked}
        names = [name for name in self.settings.specs if any(name in of for of in lacking.values())]
        parts = [names[start : start + self.together] for start in range(0, len(names), self.together)]
        wanted = [[key for key, of in lacking.items() if of & set(part)] for part in parts]
        count, about = sum(map(len, wanted)), f"looking under {len(self.settings.specs)} settings"
        with tqdm(total=count, desc=about, unit="document", disable=self.model.rank != 0 or not count) as bar:
            for part, keys in zip(parts, wanted, strict=True):
                merges = self._merges(part)
                for key in keys:
                    if key not in self._given_up:
                        self.store.add(self._line(asked[key], part, merges))
                    bar.update()
                del merges  # before the next ones are made
        return [self._plain_answer(request) for request in requests]

    def _lacking(self, key: Key) -> list[str]:
        """The settings that a document is still to be answered under."""
        known = _Known.of(self.store.of(key))
        if key in self._given_up:
            return []
        if known.failed:
            return list(self.settings.specs)
        return [
            name
            for name in self.settings.specs
            if name not in known.answers
            or (
                known.skipped is None and (name not in known.measures or (key in self.shown and name not in known.maps))
            )
        ]

    def _merges(self, names: Sequence[str]) -> Merges:
        import torch

        from plam_eval.decoding.all_merges import Merges

        specs = [self.settings.specs[name] for name in names]
        try:
            return Merges.of(self.model.model, specs, checkpoint=self.model.checkpoint)
        except torch.OutOfMemoryError as error:
            raise AttendError(
                f"the merged tensors of {', '.join(names)} do not fit into memory beside the model "
                f"({first_line(error)}); give --together {max(1, len(names) // 2)}"
            ) from error

    def _line(self, request: Any, names: Sequence[str], merges: Merges) -> Record:
        """What there is to store of a document under some settings."""
        key = key_of(request)
        known = _Known.of(self.store.of(key))
        line: Record = {**document_of(request), "settings": _NO_SETTINGS, "answers": [], "of": {}, "image_tokens": None}
        looking = _Looking(self, request, names, merges, known.sinks)
        answers, why = list[Any](), ""
        with self.model.recorded_apart() as generation:
            try:
                looking.open()
                answers = variants.answer_all(self.model, request, looking)
            except Exception as error:  # the task's code, the processor and the stock loop run here
                why = str(error) if isinstance(error, PlamError) else f"{type(error).__name__}: {first_line(error)}"
            why = next(iter(generation.errors), why)
        if answers:
            stored = [answer_to_dict(answer) for answer in answers]
            distinct = [answer for index, answer in enumerate(stored) if answer not in stored[:index]]
            of = {name: distinct.index(answer) for name, answer in zip(names, stored, strict=True)}
            skipped = looking.skipped
            line |= {"settings": next(iter(generation.settings)), "answers": distinct, "of": of}
            line |= {"image_tokens": looking.image_tokens, "skipped": skipped, "failed": False}
            return line | (looking.measured if skipped is None else {})
        self._given_up.add(key)
        why = looking.skipped or why or "no answer"
        logger.warning("document {} of {} is skipped: {}", key[1], key[0], why)
        return line | self._own_answer(request) | {"skipped": why, "failed": looking.skipped is None}

    def _own_answer(self, request: Any) -> Record:
        """The plain model's answer, from itself, where settings could not be answered for; none where it fails too."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        with self.model.recorded_apart() as generation, self.model.quiet():
            try:
                (answer,) = self.model.own_answers([request])
            except Exception:  # as above, and it was said why
                return {}
        if generation.failed or not generation.settings:
            return {}
        return {
            "settings": next(iter(generation.settings)),
            "answers": [answer_to_dict(answer)],
            "of": {PLAIN: 0},
        }

    def _plain_answer(self, request: Any) -> Any:
        known = _Known.of(self.store.of(key_of(request)))
        answer = answer_from_dict(known.answers[PLAIN]) if PLAIN in known.answers else ""
        return self.model.replayed(answer, request, known.settings)

    # ---- the end of the run ------------------------------------------------------------------------------------------

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Score every distinct answer as the tasks do, and gather what is known of each document.

        Args:
            tasks: lmms-eval's task dictionary.

        Raises:
            AttendError: a task was answered otherwise than by `generate_until`.
        """
        missing = sorted(tasks_of(tasks) - {task for task, _ in self._asked})
        if missing and self.model.world_size == 1:
            raise AttendError(f"{', '.join(missing)}: not answered by generate_until, so it cannot be looked at")
        known = {key: _Known.of(self.store.of(key)) for key in self._asked}
        texts = {key: [writable(answer["text"]) for answer in _distinct(each)] or [""] for key, each in known.items()}
        configs, scored = task_configs(tasks), dict[tuple[str, int, int], dict[str, Any]]()
        for log in score_answers(tasks, texts):
            task = log["task"]
            try:
                row = records.sample_row(task, log, score_of_task(task, configs[task]))
            except NoScoreError:
                row = records.sample_row(task, log, None)
            scored[task, log["doc_id"], log["turn"]] = row
        for key, each in sorted(known.items(), key=lambda item: item[0]):
            self._gather(key, each, [scored[key[0], key[1], turn] for turn in range(len(texts[key]))])

    def gather_one(self, key: Key, row: Mapping[str, Any]) -> None:
        """As `end_run`, for a document that is of no task.

        Args:
            key: the document, which was answered.
            row: its prompt, target and group, as `records.sample_row` has them.
        """
        known = _Known.of(self.store.of(key))
        texts = [writable(answer["text"]).strip() for answer in _distinct(known)] or [""]
        rows = [{**row, "answer": text, "score": np.nan, "parsable": None} for text in texts]
        self._gather(key, known, rows)

    def _gather(self, key: Key, known: _Known, rows: Sequence[Mapping[str, Any]]) -> None:
        task, doc_id = key
        distinct, document = _distinct(known), {"task": task, "doc_id": doc_id, "group": rows[0]["group"]}
        for name in self.settings.specs:
            answer = known.answers.get(name)
            row = rows[distinct.index(answer)] if answer is not None else None
            self.share.answers.append(
                {
                    **document,
                    "setting": name,
                    "target": rows[0]["target"],
                    "answer": row["answer"] if row is not None else None,
                    "score": row["score"] if row is not None else np.nan,
                    "parsable": row["parsable"] if row is not None else None,
                    "image_tokens": known.image_tokens,
                    "skipped": known.skipped,
                }
            )
        if known.skipped is not None:
            return
        for name in self.settings.specs:
            self.share.measures.append((key, name, unpacked(known.measures[name], self.shape)))
        if self.depth:
            self.share.depth.append({"task": task, "doc_id": doc_id, "depth": known.depth})
        if key in self.shown and set(known.maps) >= set(self.settings.specs):
            self.share.shown.append(self._shown(key, known, rows))

    def _shown(self, key: Key, known: _Known, rows: Sequence[Mapping[str, Any]]) -> ShownDocument:
        distinct = _distinct(known)
        pictures = self.documents.of_request(self._asked[key])
        shape = (self.num_layers, *known.grid["shape"])
        left, top, right, bottom = known.grid["frame"]
        return ShownDocument.of_image(
            pictures.images[0],
            task=key[0],
            doc_id=key[1],
            question=str(self._asked[key].args[0]),
            target=str(rows[0]["target"]),
            answers={name: rows[distinct.index(known.answers[name])]["answer"] for name in self.settings.specs},
            boxes=pictures.boxes[0] if pictures.boxes else [],
            maps={name: unpacked(known.maps[name], shape) for name in self.settings.specs},
            frame=(left, top, right, bottom),
        )


def _distinct(known: _Known) -> list[dict[str, Any]]:
    """The answers of a document, each once."""
    answers = list(known.answers.values())
    return [answer for index, answer in enumerate(answers) if answer not in answers[:index]]


@dataclass
class Share:
    """What one process knows of documents.

    Attributes:
        answers: rows of `ANSWERS_FILE`, with `group` in place of `cluster`.
        measures: document, setting, and its measures as `document.measured` gives them.
        depth: task, doc_id and what `depth_of` gave, of each document.
        shown: documents to draw.
    """

    answers: list[dict[str, Any]] = field(default_factory=list)
    measures: list[tuple[Key, str, Any]] = field(default_factory=list)
    depth: list[dict[str, Any]] = field(default_factory=list)
    shown: list[ShownDocument] = field(default_factory=list)


class _Looking:
    """Stands in for `model.generate`, of one document: answers under several settings, and measures.

    Attributes:
        skipped: why nothing is measured of it, which another try will not change; None where something is.
        image_tokens: of its prompt.
        measured: what is stored beside the answers.
    """

    def __init__(
        self, recorder: Recorder, request: Any, names: Sequence[str], merges: Merges, sinks: list[list[int]] | None
    ) -> None:
        self.recorder, self.request, self.names, self.merges, self.sinks = recorder, request, names, merges, sinks
        self.pictures: Pictures | None = None
        self.skipped: str | None = None
        self.image_tokens: int | None = None
        self.measured: Record = {}

    def open(self) -> None:
        """Read the document's images and boxes; raises whatever reading them does."""
        self.pictures = self.recorder.documents.of_request(self.request)
        if self.pictures.problem is not None:
            task, doc_id = key_of(self.request)
            logger.warning("document {} of {}: its boxes are not used: {}", doc_id, task, self.pictures.problem)
        if not self.pictures.images:
            self.skipped = NO_IMAGE

    def __call__(self, **inputs: Any) -> list[Any]:
        from plam_eval.decoding.all_merges import generate_all_merges
        from plam_eval.decoding.merge_rows import generate_with_rows
        from plam_eval.probing.decoder import ProbeError
        from plam_eval.probing.token_grid import token_grids

        recorder, model = self.recorder, self.recorder.model
        images: list[Any] = []
        assert self.pictures is not None  # opened
        if self.skipped is None:
            try:
                (images,) = token_grids(model.model, model.input_processor, inputs, self.pictures.sizes)
            except (ProbeError, InputError) as error:
                self.skipped = str(error)
        self.image_tokens = sum(len(image.positions) for image in images) or None
        if self.skipped is not None:
            generated = generate_all_merges(model.model, self.merges, **inputs)
        else:
            looked = generate_with_rows(
                model.model, self.merges, queries=recorder.queries, massive=PLAIN in self.names, **inputs
            )
            generated = looked.answers
            self._measure(images, self.pictures, dict(zip(self.names, looked.rows, strict=True)))
            if recorder.depth:
                self.measured["depth"] = depth_of(model.model, self.merges, self.names, inputs)
        pairs = zip(generated.tokens[:, 0], generated.lengths[:, 0].tolist(), strict=True)
        return [tokens[:length] for tokens, length in pairs]

    def _measure(self, images: Sequence[Any], pictures: Pictures, rows: Mapping[str, Any]) -> None:
        if PLAIN in rows:
            self.sinks = sinks_of(rows[PLAIN]).tolist()
            self.measured["sinks"] = self.sinks
        sinks = np.array(self.sinks, np.int64).reshape(-1, 2)
        self.measured["measures"] = {
            name: packed(measured(own, images, sinks, pictures.boxes, pictures.other_boxes))
            for name, own in rows.items()
        }
        if key_of(self.request) in self.recorder.shown:
            maps = {name: mapped(own, images[0]) for name, own in rows.items()}
            plane = finest(images[0])
            self.measured["maps"] = {name: packed(own) for name, own in maps.items()}
            self.measured["grid"] = {"shape": list(images[0].shape(plane)), "frame": frame_of(images[0], plane)}


def shown_first(
    with_boxes: Mapping[str, Iterator[int]], others: Mapping[str, Iterator[int]], count: int
) -> frozenset[Key]:
    """The documents to draw: evenly of all tasks, those with boxes first.

    Args:
        with_boxes: by task its documents with boxes.
        others: by task those without.
        count: so many of them, as far as there are any.
    """
    chosen: list[Key] = []
    for by_task in (with_boxes, others):
        left = {task: iter(ids) for task, ids in by_task.items()}
        while left and len(chosen) < count:
            for task in list(left):
                doc_id = next(left[task], None)
                if doc_id is None:
                    del left[task]
                elif len(chosen) < count:
                    chosen.append((task, doc_id))
    return frozenset(chosen)
