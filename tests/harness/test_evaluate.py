"""An evaluation that ends otherwise than it should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import evaluate


@pytest.mark.parametrize("status", [0, None, "the video is not there"])
def test_a_task_that_ends_the_process_has_failed(
    in_suite: Path, monkeypatch: pytest.MonkeyPatch, status: int | str | None
) -> None:
    from lmms_eval import evaluator

    monkeypatch.setattr(evaluator, "simple_evaluate", lambda **kwargs: sys.exit(status))
    with pytest.raises(EvaluationError, match="ended the process"):
        evaluate("plam_llava", "pope", limit=2)
