"""One evaluation through lmms-eval in a process of its own, in the suite's folder; writes what was answered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(model_id: str, model_args: str, tasks: str, limit: str, output: str) -> None:
    """Evaluate, and write a JSON file with the answers by task and document.

    Args:
        model_id: a wrapper of ours.
        model_args: JSON of its arguments.
        tasks: separated by commas.
        limit: documents of each.
        output: the file.
    """
    import torch

    from plam_eval.harness.evaluate import evaluate, make_model

    arguments: dict[str, Any] = json.loads(model_args)
    wrapper = make_model(model_id, arguments)
    run = evaluate(wrapper, tasks.split(","), limit=int(limit), model_args=model_args)
    if run is None:  # of several processes not the first
        return
    answers = {task: {row["doc_id"]: row["filtered_resps"][0] for row in rows} for task, rows in run.samples.items()}
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    place = str(getattr(getattr(wrapper, "model", None), "device", ""))
    Path(output).write_text(json.dumps({"answers": answers, "device": place, "peak": peak}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
