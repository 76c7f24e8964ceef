"""The wrapper's contract: what an evaluation asks of a wrapper, whatever runs its model.

`PlateauWrapper` is what every wrapper offers: the evaluation of a run, a scan or a sweep needs no more of it.
`HFWrapper` is what those offer besides whose model lives in this process, so that the model's own `generate` can be
exchanged: answering for many variants of a model in one generation needs that. `AnsweringStrategy` is the other side:
what answers in a wrapper's place while `PlateauWrapper.answering` lasts.

`plam_eval.model_wrappers` keeps to it; who uses a wrapper knows no other name of it. Importing this module imports
neither torch nor lmms-eval.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from plam_eval.spec import PlateauSpec, digest_of


@dataclass(frozen=True)
class Prompt:
    """What a model is asked about one document.

    Attributes:
        text: as the chat template leaves it.
        ids: its token ids.
        max_new_tokens: the limit of the wrapper's own, where the task sets none; None where it does, or where nothing
            is generated.
    """

    text: str
    ids: tuple[int, ...]
    max_new_tokens: int | None = None


@dataclass
class GenerationRecord:
    """What one run's generations did on this process; calls and failures count documents, whatever the batch size.

    Attributes:
        calls: documents that the model was asked for.
        failed: those of them whose generation raised.
        errors: the first few of what was raised, in words.
        settings: generation settings, as JSON -> documents they were used for.
        altered: answers that hold characters no worksheet takes: task, doc_id, and the answer as it was (`raw`).
        prompts: where they are noted (`PlateauWrapper.notes_prompts`), of every document: task, doc_id, and digests of
            the prompt's text as the chat template leaves it (`text`) and of its token ids (`ids`).
        examples: task -> doc_id and the whole text of one such prompt.
        max_new_tokens: limits of the wrapper's own, for documents whose task sets none, of prompts that are noted.
        prompt_tokens, answer_tokens: of those calls that did not fail, images included; of a choice that was scored,
            its prompt and itself are the prompt, once for each choice.
        digests: of the weights (`plam_eval.spec.digest_of`) -> task and doc_id of each document that they answered.
    """

    calls: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    settings: Counter[str] = field(default_factory=Counter)
    altered: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_new_tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    digests: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def answered(self, request: Any, spec: PlateauSpec | None) -> None:
        """Keep which weights a document was answered by.

        Args:
            request: lmms-eval's, about the document.
            spec: what the weights were merged by then; None: they were the checkpoint's own.
        """
        self.digests.setdefault(digest_of(spec), []).append((request.task_name, request.doc_id))

    def note(self, task: str, doc_id: int, prompt: Prompt) -> None:
        """Keep what tells a document's prompt from others.

        Args:
            task: name of its task.
            doc_id: its number.
            prompt: what the model is asked.
        """
        ids = hashlib.sha256(" ".join(map(str, prompt.ids)).encode()).hexdigest()[:16]
        text = hashlib.sha256(prompt.text.encode("utf-8", "replace")).hexdigest()[:16]
        self.prompts.append({"task": task, "doc_id": doc_id, "text": text, "ids": ids})
        if task not in self.examples:
            self.examples[task] = {"doc_id": doc_id, "text": prompt.text}
        if prompt.max_new_tokens is not None and prompt.max_new_tokens not in self.max_new_tokens:
            self.max_new_tokens.append(prompt.max_new_tokens)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, by the names of the attributes."""
        return {**vars(self), "settings": dict(self.settings)}


def noted_prompts(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the records of the processes hold of prompts, as one (`prompts`); nothing where none were noted.

    Args:
        records: `GenerationRecord.to_dict` of every process.
    """
    prompts = [row for record in records for row in record["prompts"]]
    if not prompts:
        return {}
    examples: dict[str, Any] = {}
    for record in records:
        examples = {**record["examples"], **examples}
    limits = sorted({limit for record in records for limit in record["max_new_tokens"]})
    return {"prompts": {"documents": prompts, "examples": examples, "max_new_tokens": limits}}


class Timed(NamedTuple):
    """Documents of one task that were answered at once, and the seconds that it took."""

    task: str
    documents: int
    seconds: float


class AnsweringStrategy(Protocol):
    """Answers in a wrapper's place, from a store of answers or by another generation."""

    def answer(self, requests: list[Any]) -> list[Any]:
        """An answer for each request, as the wrapper's `generate_until` would give it.

        Args:
            requests: lmms-eval's, of one evaluation; the same one may be in it several times.
        """

    def end_run(self, tasks: dict[str, Any]) -> None:
        """The evaluation's documents are answered and scored.

        Args:
            tasks: lmms-eval's task dictionary of the evaluation.
        """


@runtime_checkable
class PlateauWrapper(Protocol):
    """A model in one of lmms-eval's own wrappers, plain or merged as a plateau spec says, and merged again at will."""

    # --- what it is ---

    @property
    def model_id(self) -> str:
        """Its id in lmms-eval, such as "plam_llava"."""

    @property
    def wrapped_id(self) -> str:
        """The id of lmms-eval's own whose prompts and generation settings it uses."""

    @property
    def is_simple(self) -> bool:
        """Whether it makes prompts from a document's text (simple mode), and not from its messages (chat mode)."""

    @property
    def pretrained_name(self) -> str:
        """Folder or hub id of the checkpoint, with its revision where one was given."""

    @property
    def checkpoint(self) -> Any:
        """The `plam_eval.merging.checkpoint.Checkpoint` that the model was loaded from."""

    @property
    def running_dtype(self) -> str:
        """Dtype of the weights, such as "bfloat16"."""

    @property
    def running_attention(self) -> str | None:
        """Name of the decoder's attention, such as "sdpa"; None where the engine chooses it from call to call."""

    @property
    def rank(self) -> int:
        """Number of this process among those that evaluate together; the first one, 0, writes and speaks."""

    @property
    def world_size(self) -> int:
        """How many processes evaluate together, each with a model of its own."""

    # --- its weights ---

    @property
    def spec(self) -> PlateauSpec | None:
        """What the weights are merged by now; None: they are the checkpoint's own."""

    @property
    def merge_report(self) -> Any:
        """The `plam_eval.merging.report.MergeReport` of the merge that is in place; None where there is none."""

    def merge(self, plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, **overrides: Any) -> Any:
        """Bring the resident model to another spec, without loading it again; where that fails nothing has changed.

        Args:
            plateau: a spec, its name, file or content; None or "none" for the plain model.
            overrides: single fields of the spec, by their names in model_args ("layers", "base_weight").

        Returns:
            The merge's report; None for the plain model.
        """

    def cache_fingerprint(self) -> str:
        """Names the weights and the arguments that answers depend on."""

    # --- a run ---

    @property
    def max_error_share(self) -> float:
        """Share of a run's generations (0 to 1) that may raise before the run fails."""

    @property
    def generation(self) -> GenerationRecord:
        """What the generations of the present run did on this process, as far as it went."""

    notes_prompts: bool
    """Whether the record of a run says of every document what its prompt was, which takes some time."""

    def begin_run(self) -> None:
        """An evaluation begins: what was generated before is not its own."""

    def end_run(self, tasks: dict[str, Any]) -> None:
        """An evaluation's documents are answered and scored.

        Args:
            tasks: lmms-eval's task dictionary of the evaluation.
        """

    def run_record(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Our block of a results file.

        Args:
            records: `GenerationRecord.to_dict` of every process.
        """

    # --- answers ---

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """An answer for each request: the strategy's while there is one, otherwise the model's own.

        Args:
            requests: lmms-eval's.
        """

    def own_answers(self, requests: list[Any]) -> list[Any]:
        """As `generate_until` where no strategy is in place.

        Args:
            requests: lmms-eval's.

        Raises:
            GenerationError: more generations raised than `max_error_share` allows.
        """

    def timed(self, documents: int) -> AbstractContextManager[list[Timed]]:
        """While it lasts, requests are answered in parts of one task, whoever answers, and each part is timed.

        Args:
            documents: of a part, at most.
        """

    def in_batches_of(self, documents: int) -> AbstractContextManager[None]:
        """While it lasts, so many documents are answered at once, where the stock loop takes batches.

        Args:
            documents: at once.
        """

    def answering(
        self, strategy: AnsweringStrategy, *, max_error_share: float | None = None
    ) -> AbstractContextManager[None]:
        """While it lasts, the strategy answers in the wrapper's place, and is told of the end of each run.

        Args:
            strategy: what answers.
            max_error_share: in place of the wrapper's own, if it is given.
        """


@runtime_checkable
class HFWrapper(PlateauWrapper, Protocol):
    """A wrapper whose model is in this process and generates by transformers.

    The stock loop of the wrapper makes the prompts and reads the answers; what it calls as `model.generate` can be
    exchanged below it.
    """

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that its answers are decoded by."""

    @property
    def input_processor(self) -> Any:
        """The transformers processor that makes the model's inputs of texts and images."""

    @property
    def task_dict(self) -> Any:
        """Rows that its requests are about, by task, split and doc_id, as lmms-eval gives them to it."""

    def stock_answers(self, requests: list[Any], *, counted: bool = True) -> list[Any]:
        """What the stock loop answers, as it is; no strategy is asked.

        Args:
            requests: lmms-eval's.
            counted: whether these are generations of the present run. Where they are, a failed one is counted and its
                answer is empty, as long as not too many fail.

        Raises:
            GenerationError: too many of the counted generations raised.
        """

    def replayed(self, answer: Any, request: Any, settings: str) -> Any:
        """A known answer, counted as if it had been generated now.

        Args:
            answer: as `stock_answers` gave it.
            request: which it answers.
            settings: of its generation, as a key of `GenerationRecord.settings`.

        Returns:
            The answer as `own_answers` would give it.
        """

    def recorded_apart(self) -> AbstractContextManager[GenerationRecord]:
        """While it lasts, generations go to a record of their own, which it gives, and not to that of the run."""

    def generating(self, generate: Callable[..., Any]) -> AbstractContextManager[None]:
        """While it lasts, the stock loop gets what `generate` returns where it calls `model.generate`.

        Args:
            generate: takes what the loop hands over, and returns token ids of (documents, prompt and new tokens).
        """

    def generating_itself(self) -> AbstractContextManager[None]:
        """While it lasts, `model.generate` is the model's own: neither exchanged nor counted."""

    def processing_once(self) -> AbstractContextManager[Callable[[], None]]:
        """While it lasts, processors keep what they made of their inputs.

        It gives a function: called before the stock loop runs again over the same requests, it has them give out
        what they kept, from the first call on.
        """

    def quiet(self) -> AbstractContextManager[None]:
        """While it lasts, the stock loop shows no progress bar and logs nothing."""


# --- what an answer looks like ----------------------------------------------------------------------------------------

# XML 1.0 has no way to write these, so a worksheet refuses them, and MMBench writes worksheets while it aggregates.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def writable(answer: str) -> str:
    """`answer` without the characters a worksheet refuses.

    Those that Python counts as white space become spaces, so that a parser strips them as before; the others become
    U+FFFD, which no parser takes for an answer.

    Args:
        answer: a model's.
    """
    return _UNWRITABLE.sub(lambda match: " " if match.group().isspace() else "\ufffd", answer)


def text_of(answer: Any) -> str:
    """The text of a wrapper's answer, which lmms-eval may wrap with its number of tokens.

    Args:
        answer: a text, or a `GenerationResult` of lmms-eval's.
    """
    return answer if isinstance(answer, str) else str(answer.text)


def answer_to_dict(answer: Any) -> dict[str, Any]:
    """A wrapper's answer, JSON-able: its text and, where lmms-eval wraps it, its number of tokens.

    Args:
        answer: a text, or a `GenerationResult` of lmms-eval's.
    """
    if isinstance(answer, str):
        return {"text": answer}
    counts = answer.token_counts
    return {"text": answer.text, "tokens": counts.output_tokens if counts is not None else None}


def answer_from_dict(stored: Mapping[str, Any]) -> Any:
    """The answer that `answer_to_dict` was given.

    Args:
        stored: what it returned.
    """
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    if "tokens" not in stored:
        return stored["text"]
    tokens = stored["tokens"]
    counts = TokenCounts(output_tokens=tokens) if tokens is not None else None
    return GenerationResult(text=stored["text"], token_counts=counts)
