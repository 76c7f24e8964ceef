"""Evaluations through lmms-eval in a process of its own, in the suite's folder; writes what was answered."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LENGTH = "max_new_tokens=8"
"""Of each answer: enough for a letter or a word, and for what a model whose merge spoils it says instead."""


def main(model_id: str, model_args: str, tasks: str, limit: str, output: str, merges: str = "[]") -> None:
    """Evaluate, and write a JSON file with the answers by task and document.

    Args:
        model_id: a wrapper of ours.
        model_args: JSON of its arguments.
        tasks: separated by commas.
        limit: documents of each.
        output: the file.
        merges: JSON list of further specs (a name, and overrides) that the running model is brought to, one after the
            other; it is evaluated under each, and what came of that stands below "merges".
    """
    import torch

    from plam_eval.harness.evaluate import evaluate, make_model

    arguments: dict[str, Any] = json.loads(model_args)
    started = time.perf_counter()
    wrapper = make_model(model_id, arguments)
    seconds = {"load s": time.perf_counter() - started}

    def answered() -> dict[str, Any] | None:
        run = evaluate(wrapper, tasks.split(","), limit=int(limit), model_args=model_args, gen_kwargs=LENGTH)
        if run is None:
            return None
        lines = {task: {row["doc_id"]: row["filtered_resps"][0] for row in rows} for task, rows in run.samples.items()}
        digests = sorted({row["digest"] for rows in run.samples.values() for row in rows})
        return {"answers": lines, "digests": digests, **_weights(wrapper)}

    first, others = answered(), []
    for plateau, overrides in json.loads(merges):
        started = time.perf_counter()
        wrapper.merge(plateau, **overrides)
        merged = time.perf_counter() - started
        others.append({"merge s": merged, "digest": _digest(wrapper), **(answered() or {})})
    if first is None:  # of several processes not the first
        return
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    model = getattr(wrapper, "model", None)
    place = {"device": str(getattr(model, "device", "")), "dtype": str(getattr(model, "dtype", ""))}
    told = {**first, **seconds, **place, "processes": wrapper.world_size, "peak": peak, "merges": others}
    Path(output).write_text(json.dumps(told), encoding="utf-8")


def _digest(wrapper: Any) -> str:
    from plam_eval.spec import digest_of

    return digest_of(wrapper.spec)


def _weights(wrapper: Any) -> dict[str, Any]:
    """Checksums of the weights that vLLM's workers hold: ours, and its own; nothing of a wrapper without an engine."""
    client = getattr(wrapper, "client", None)
    if client is None:
        return {}
    started = time.perf_counter()
    states = client.collective_rpc("plam_state", args=(True,))
    seconds = time.perf_counter() - started
    return {
        "checksums": [state["checksums"] for state in states],
        "checksums s": seconds,
        "own checksums": client.collective_rpc("compute_weight_checksums"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
