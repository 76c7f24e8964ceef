"""Which recorded checkpoints hold the same; runs against exports are tested where cards, hub results and pages are."""

from __future__ import annotations

from typing import Any

import pytest

from plam_eval.evaluation.exported_merge import ran_files, same_content


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"sha256": "a"}, {"sha256": "a"}, True),
        ({"sha256": "a", "commit": "c"}, {"sha256": "b", "commit": "c"}, False),
        ({"commit": "c"}, {"commit": "c", "sha256": "a"}, True),
        ({"commit": "c"}, {"commit": "d"}, None),
        ({"folder": "/a", "sha256": "f"}, {"folder": "/a", "fingerprint": "f"}, True),
        ({"files": {"a": "1"}, "commit": "c"}, {"files": {"a": "2"}, "commit": "c"}, False),
        ({"name": "x"}, {"name": "x"}, None),
    ],
)
def test_which_checkpoints_are_the_same(one: Any, other: Any, same: bool | None) -> None:
    assert same_content(one, other) is same is same_content(other, one)


@pytest.mark.parametrize(
    ("ran", "same"),
    [
        ({"a.safetensors": "1", "config.json": "2"}, True),
        ({"a.safetensors": "1"}, True),
        ({"config.json": "2"}, False),
        ({"a.safetensors": "3"}, False),
        ({"a.safetensors": "1", "b.safetensors": "1"}, False),
        (None, False),
    ],
)
def test_a_run_of_the_exported_files_has_all_weights_and_no_others(ran: Any, same: bool) -> None:
    assert ran_files({"files": ran}, {"a.safetensors": "1", "config.json": "2"}) is same
