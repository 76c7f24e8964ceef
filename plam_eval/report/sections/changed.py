"""What was gained and lost: documents whose score changed, with their images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from plam_eval.evaluation import harness
from plam_eval.evaluation.records import Run
from plam_eval.model_wrappers.manifest import WRAPPERS
from plam_eval.report.blocks import (
    Example,
    Examples,
    Paragraph,
    clip,
    cut_short,
    data_uri,
)

if TYPE_CHECKING:
    from PIL.Image import Image


_QUESTION, _ANSWER = 700, 240  # letters of a prompt, and of an answer, that are shown unasked
_SIDE = 320  # pixels of an image's longer side
_TINY = 160  # pixels up to which an image is shown enlarged
_IMAGES = 4  # of one document


@dataclass(frozen=True)
class Looking:
    """Where example images are looked for, and how many documents are shown: what the reader said, and no folder."""

    data: Path | None
    include_path: Path | None
    examples: int


def changed_documents(
    first: Run,
    second: Run,
    names: tuple[str, str],
    looking: Looking,
    plan: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Gained and lost documents with their images, from each task in turn, in the order of their numbers."""
    both = first.samples.merge(second.samples, on=["task", "doc_id"], suffixes=("_first", "_second"))
    sign = both["task"].map(lambda task: first.directions.get(task, 1))
    change = (both["score_second"] - both["score_first"]) * sign
    picked = {
        title: (int(where.sum()), _spread(both[where], looking.examples))
        for title, where in (("Gained", change > 0), ("Lost", change < 0))
    }
    wanted: dict[str, dict[int, str]] = {}
    for _, rows in picked.values():
        for row in rows:
            wanted.setdefault(row["task"], {})[row["doc_id"]] = row["prompt_first"]
    if not wanted:
        return [Paragraph("No document is scored otherwise.")]
    line = plan["config"] if plan else (first.results.get("config") or {}).get("resolved_cli_args") or {}
    wrapper = first.block.get("wrapper")
    images, missing = harness.document_images(
        wanted,
        looking.data,
        model=wrapper if isinstance(wrapper, str) and wrapper in WRAPPERS else None,
        include_path=looking.include_path,
    )
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
    for title, (total, rows) in picked.items():
        if not rows:
            blocks.append(Paragraph(f"{title}: none."))
            continue
        shown = f"{len(rows)} of {total}" if total > len(rows) else f"{total}"
        blocks.append(
            Examples(f"{title}: {shown}", tuple(_example(row, names, images, first.directions) for row in rows))
        )
    return blocks


def _spread(rows: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    turn = rows.sort_values("doc_id", kind="stable").groupby("task", sort=False).cumcount()
    order = {task: index for index, task in enumerate(rows["task"].unique())}
    place = rows.assign(turn=turn, order=rows["task"].map(order)).sort_values(["turn", "order"], kind="stable")
    picked: list[dict[str, Any]] = place.head(count).sort_values(["order", "turn"], kind="stable").to_dict("records")
    return picked


def _example(
    row: Mapping[str, Any],
    names: tuple[str, str],
    images: Mapping[tuple[str, int], list[Image]],
    directions: Mapping[str, int],
) -> Example:
    found = images.get((row["task"], row["doc_id"]), [])
    answers = []
    for name, side in zip(names, ("first", "second"), strict=True):
        score = row[f"score_{side}"]
        words = {0.0: "wrong", 1.0: "right"} if directions.get(row["task"], 1) > 0 else {}  # no errors are not wrong
        verdict = words.get(score, f"score {score:.3g}")
        answers.append((name, verdict, clip(str(row[f"answer_{side}"]), _ANSWER)))
    return Example(
        title=f"{row['task']}, document {row['doc_id']}",
        images=tuple(_embedded(image) for image in found[:_IMAGES]),
        more_images=max(0, len(found) - _IMAGES),
        question=clip(str(row["prompt_first"]), _QUESTION),
        target=clip(str(row["target_first"]), _ANSWER),
        answers=tuple(answers),
    )


def _embedded(image: Image) -> tuple[str, int, bool]:
    """A small copy as a data URI, in whichever of two formats is smaller."""
    from PIL import Image as pillow

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        small = pillow.new("RGB", layer.size, "white")
        small.paste(layer, mask=layer.getchannel("A"))
    else:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    encoded = []
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 82, "optimize": True})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **settings)
        encoded.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(encoded)
    side = max(small.size)
    times = max(1, 192 // side) if side <= _TINY else 1
    return data_uri(f"image/{kind}", content), small.size[0] * times, times > 1
