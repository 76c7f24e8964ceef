"""Whether base LLM and MLLM were asked alike: what stood around a document in its prompt, and which prompts differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from plam_eval.evaluation import stats
from plam_eval.evaluation.records import Run

MLLM, OWN = "mllm", "own"
"""Whose chat template the base LLM is asked in."""


def _noted(run: Run) -> dict[str, Any]:
    noted = run.block.get("prompts")
    return noted if isinstance(noted, dict) else {}


def limits_of(run: Run) -> list[int]:
    """The limits of new tokens that its wrapper had where a task sets none.

    Args:
        run: one that has noted its prompts.
    """
    stored = _noted(run).get("max_new_tokens")
    return [limit for limit in stored if type(limit) is int and limit > 0] if isinstance(stored, list) else []


def _examples(run: Run) -> dict[str, tuple[Any, str]]:
    """Task -> the number of a document and the whole text of its prompt."""
    stored = _noted(run).get("examples")
    rows = stored.items() if isinstance(stored, dict) else ()
    return {
        str(task): (row.get("doc_id"), row["text"])
        for task, row in rows
        if isinstance(row, dict) and isinstance(row.get("text"), str)
    }


def template_of(plain: Run) -> str | None:
    """A chat template that puts around a text what stood around documents in a run; None where that is not known.

    Args:
        plain: a run that has noted its prompts.
    """
    for task, (document, text) in _examples(plain).items():
        rows = plain.samples[(plain.samples["task"] == task) & (plain.samples["doc_id"] == document)]
        for prompt in rows["prompt"]:
            for words in (prompt, prompt.strip()):
                before, found, behind = text.partition(words)
                if found:
                    return _around(before, behind)
    return None


def _around(before: str, behind: str) -> str:
    content = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    one, other = (f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for text in (before, behind))
    return f"{one}{content}{other}"


@dataclass(frozen=True)
class Prompts:
    """Whether the base LLM was asked as the MLLM was, document by document.

    Attributes:
        documents: that both runs have noted the prompt of.
        same_text: of them, those whose prompt is the same text, template included.
        same_ids: of them, those whose prompt is the same tokens, by number.
        template: whose chat template the base was asked in: "mllm" or "own".
        own_template: whether the base has a chat template of its own; None where that is not known.
        task: of the examples.
        mllm, base: one prompt of each, of the same document where both have noted it.
    """

    documents: int
    same_text: int
    same_ids: int
    template: str
    own_template: bool | None
    task: str = ""
    mllm: str = ""
    base: str = ""

    def sentence(self) -> str:
        """The same in words."""
        if not self.documents:
            return "Whether both were asked in the same words was not noted."
        number = stats.count_of(self.documents, "document")
        words = f"the same words, chat template included, in {self.same_text} of {number}"
        if self.same_text == self.documents:
            words = f"the same words, chat template included, in all {number}"
        elif not self.same_text:
            words = f"different words in all {number}: their chat templates differ"
        tokens = ""
        if self.same_text and self.same_ids < self.same_text:
            apart = self.same_text - self.same_ids
            tokens = f"; in {apart} of those the tokens have other numbers, since the tokenizers differ"
        none = ""
        if self.own_template is False:
            instead = "the MLLM's was used" if self.template == MLLM else "it was given the text as it is"
            none = f" The base LLM has no chat template of its own: {instead}."
        return f"Base and MLLM were asked in {words}{tokens}.{none}"


def compare_prompts(plain: Run, base: Run, template: str) -> Prompts:
    """Whether two runs were asked alike, by what they have noted.

    Args:
        plain: the MLLM's run.
        base: the base LLM's.
        template: whose chat template the base was asked in.
    """
    own = base.block.get("own_template")
    own = own if isinstance(own, bool) else None
    keys = ["task", "doc_id"]
    tables = []
    for run in (plain, base):
        stored = _noted(run).get("documents")
        rows = [row for row in stored if isinstance(row, dict)] if isinstance(stored, list) else []
        table = pd.DataFrame(rows, columns=[*keys, "text", "ids"]).astype(str)
        tables.append(table.drop_duplicates(keys))
    both = tables[0].merge(tables[1], on=keys, suffixes=("_mllm", "_base"))
    same_text = both["text_mllm"] == both["text_base"]
    same_ids = both["ids_mllm"] == both["ids_base"]
    mllm, other = _examples(plain), _examples(base)
    tasks = [task for task in mllm if task in other]
    task = next((task for task in tasks if mllm[task] != other[task]), tasks[0] if tasks else "")
    shown = (mllm[task][1], other[task][1]) if task else ("", "")
    return Prompts(
        len(both), int(same_text.sum()), int((same_text & same_ids).sum()), template, own, task, shown[0], shown[1]
    )
