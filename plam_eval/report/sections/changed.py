"""What was gained and lost: documents whose score changed, with their images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from plam_eval.evaluation.comparison import changed_table
from plam_eval.evaluation.records import Run
from plam_eval.harness import images
from plam_eval.harness.registry import WRAPPERS
from plam_eval.report.blocks import Example, Examples, Paragraph, clip_text, data_uri
from plam_eval.report.text import count_of, cut_short, is_known

if TYPE_CHECKING:
    from PIL.Image import Image


_QUESTION, _ANSWER = 700, 240  # letters of a prompt, and of an answer, that are shown unasked
_WHOLE, _BRIEF = 6000, 1000  # letters that are on the page at all: of the first documents, and of those behind them
_MOST = 100  # gained documents on a page, and lost ones
_BYTES = 6_000_000  # of images in one section
_SIDE = 320  # pixels of an image's longer side
_TINY = 160  # pixels up to which an image is shown enlarged
_IMAGES = 4  # of one document
_DRAWN = 512  # colours up to which an image counts as drawn: PNG keeps it exact, and is smaller


@dataclass(frozen=True)
class Looking:
    """Where example images are looked for, and how many documents are seen at once: what the reader said, no folder."""

    data: Path | None
    include_path: Path | None
    examples: int


def changed_documents(
    runs: Mapping[str, Run],
    looking: Looking,
    table: str,
    plan: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Gained and lost documents with their images, from each task in turn, in the order of their numbers.

    Args:
        runs: by the name that answers are shown with: two that are compared, and others whose answers stand beside.
        looking: where images are looked for.
        table: the file that lists all of them.
        plan: that of the sweep, if it is one.
    """
    first = next(iter(runs.values()))
    changed = changed_table(runs)
    picked = {title: changed[changed["change"] == title.lower()] for title in ("Gained", "Lost")}
    shown = {title: _spread(rows, max(_MOST, looking.examples)) for title, rows in picked.items()}
    wanted: dict[str, dict[int, str]] = {}
    for rows in shown.values():
        for row in rows:
            wanted.setdefault(row["task"], {})[row["doc_id"]] = row["prompt"]
    other = int((changed["change"] == "other answer").sum())
    if not wanted:
        more = f" {count_of(other, 'answer')} changed without it; {_listed(table)}." if other else ""
        return [Paragraph(f"No document is scored otherwise.{more}")]
    line = plan["config"] if plan else (first.results.get("config") or {}).get("resolved_cli_args") or {}
    wrapper = first.block.get("wrapper")
    by_document, missing = images.document_images(
        wanted,
        looking.data,
        model=wrapper if isinstance(wrapper, str) and wrapper in WRAPPERS else None,
        include_path=looking.include_path,
    )
    embedded = _Embedded(by_document)
    blocks: list[Any] = []
    if missing:
        reasons: dict[str, list[str]] = {}
        for task, reason in missing.items():
            reasons.setdefault(cut_short(reason, 300), []).append(task)
        text = "; ".join(f"{', '.join(tasks)}: {reason.rstrip('.')}" for reason, tasks in reasons.items())
        hint = "Sample logs hold no images; --data names the folder in which the evaluation found its datasets"
        started = plan.get("working_directory") if plan else None
        hint += f" (it was started in {started})." if started else "."
        if (include := line.get("include_path")) and looking.include_path is None:
            hint += (
                f" It had further tasks from {include}: images of those are not looked up, since it takes running the "
                "code in that folder. --include_path names a folder whose code you trust."
            )
        blocks.append(Paragraph(f"Images are missing. {text}. {hint}", "note"))
    for title, rows in shown.items():
        total = len(picked[title])
        if not total:
            blocks.append(Paragraph(f"{title}: none."))
            continue
        cards = [
            _example(row, list(runs), embedded, first.directions, brief=number >= looking.examples)
            for number, row in enumerate(rows)
        ]
        seen, behind = tuple(cards[: looking.examples]), tuple(cards[looking.examples :])
        counts = f"{len(seen)} of {total}" if total > len(seen) else f"{total}"
        rest = ""
        if total > len(cards):
            rest = f"On this page are {len(cards)} of the {total:,} {title.lower()}; {_listed(table)}."
        more = count_of(len(behind), f"more {title.lower()} document") if behind else ""
        blocks.append(Examples(f"{title}: {counts}", seen, behind, more, rest))
    if embedded.left_out:
        size = f"images of this section would take more than {_BYTES // 1_000_000} MB"
        blocks.append(Paragraph(f"{count_of(embedded.left_out, 'document')} without images: {size}.", "note"))
    if other:
        blocks.append(
            Paragraph(f"{count_of(other, 'more answer')} changed without a change of score; {_listed(table)}.", "note")
        )
    return blocks


def _listed(table: str) -> str:
    return f"all are listed in the table {table} beside this page"


def _spread(rows: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    turn = rows.sort_values("doc_id", kind="stable").groupby("task", sort=False).cumcount()
    order = {task: index for index, task in enumerate(rows["task"].unique())}
    place = rows.assign(turn=turn, order=rows["task"].map(order)).sort_values(["turn", "order"], kind="stable")
    picked: list[dict[str, Any]] = place.head(count).sort_values(["order", "turn"], kind="stable").to_dict("records")
    return picked


def _example(
    row: Mapping[str, Any], names: Sequence[str], embedded: _Embedded, directions: Mapping[str, int], *, brief: bool
) -> Example:
    sources, more = embedded.of(row["task"], row["doc_id"])
    whole = _BRIEF if brief else _WHOLE
    answers = []
    for name in names:
        score, answer = row[f"{name}_score"], row[f"{name}_answer"]
        if not is_known(score):
            continue
        words = {0.0: "wrong", 1.0: "right"} if directions.get(row["task"], 1) > 0 else {}  # no errors are not wrong
        verdict = words.get(score, f"score {score:.3g}")
        answers.append((name, verdict, clip_text(str(answer), _ANSWER, whole)))
    return Example(
        title=f"{row['task']}, document {row['doc_id']}",
        images=sources,
        more_images=more,
        question=clip_text(str(row["prompt"]), _QUESTION, whole),
        target=clip_text(str(row["target"]), _ANSWER, whole),
        answers=tuple(answers),
    )


class _Embedded:
    """Images of documents as data URIs, as long as a page's section has room for them."""

    def __init__(self, images: Mapping[tuple[str, int], list[Image]]) -> None:
        self._images = images
        self._left = _BYTES
        self.left_out = 0
        """Documents whose images found no room."""

    def of(self, task: str, doc_id: int) -> tuple[tuple[tuple[str, int, bool], ...], int]:
        """Of one document, with the number of those that are left out because it has many."""
        pictures = self._images.get((task, doc_id), [])
        if self._left <= 0:
            self.left_out += bool(pictures)
            return (), 0
        shown = tuple(_embedded(image) for image in pictures[:_IMAGES])
        self._left -= sum(len(source) for source, _, _ in shown)
        return shown, max(0, len(pictures) - _IMAGES)


def _embedded(image: Image) -> tuple[str, int, bool]:
    """A small copy as a data URI: PNG of what was drawn, JPEG of photographs."""
    from PIL import Image as pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        small = pillow.new("RGB", layer.size, "white")
        small.paste(layer, mask=layer.getchannel("A"))
    else:
        small = image.convert("RGB")
    drawn = small.getcolors(_DRAWN) is not None
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if drawn:
        small.save(buffer, "png", optimize=True)
    else:
        small.save(buffer, "jpeg", quality=82, optimize=True)
    side = max(small.size)
    times = max(1, 192 // side) if side <= _TINY else 1
    return data_uri(f"image/{'png' if drawn else 'jpeg'}", buffer.getvalue()), small.size[0] * times, times > 1
