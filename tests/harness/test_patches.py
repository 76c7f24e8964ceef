"""How many failed generations an evaluation may have, over all its processes."""

from __future__ import annotations

import pytest

from plam_eval.harness.errors import GenerationError
from plam_eval.harness.patches import check_failures


def test_failures_of_all_processes_count_together() -> None:
    records = [
        {"calls": 5, "failed": 0, "errors": []},
        {"calls": 5, "failed": 1, "errors": ["OutOfMemoryError: 3 GB"]},
    ]
    check_failures(records, 0.1)
    with pytest.raises(GenerationError, match=r"1 of 10 generations raised.*OutOfMemoryError: 3 GB"):
        check_failures(records, 0.09)
