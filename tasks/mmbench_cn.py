"""What `mmbench_cn_dev_static` does differently from lmms-eval's `mmbench_cn_dev`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from lmms_eval.tasks.mmbench import cn_utils


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The stock prompt; a hint that is the text "nan" (or empty) counts as no hint, as it does in the English task.

    Args:
        doc: a row of MMBench.
        lmms_eval_specific_kwargs: what the task's YAML puts before and after the question.
    """
    if doc["hint"] in ("nan", ""):
        doc = {**doc, "hint": None}
    return cn_utils.mmbench_doc_to_text(doc, lmms_eval_specific_kwargs)


def aggregate_static(results: Sequence[Mapping[str, Any]], args: Any) -> float:
    """Accuracy in percent by rules alone; an answer without a recognisable letter or option is wrong.

    Writes `submissions/mmbench_cn_dev_static_results.json` with the accuracy by category, as the English task does.

    Args:
        results: one log entry per document, as the stock `process_results` gives it.
        args: lmms-eval's command line, which names the folder of the submission.
    """
    overall, by_category, by_l2_category = cn_utils.mmbench_evaluator.eval_result(results, eval_method="static")
    details = {"overall_acc": overall, "category_acc": by_category, "l2_category_acc": by_l2_category}
    Path(generate_submission_file("mmbench_cn_dev_static_results.json", args)).write_text(json.dumps(details))
    return float(overall * 100)
