"""What results say of the file that they were scored with."""

from __future__ import annotations

from typing import Any

import pytest

from plam_eval.test_sets import vouched_note

ENGLISH = "plam_mmbench_en_test_v11"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"answers": {"md5": "0" * 40, "released": False}}, f"scored with MD5 {'0' * 32}, which is not the released"),
        ({"answers": {"released": "yes"}}, "scored with MD5 None"),
        ({"answers": "x"}, "do not say which file"),
        ({}, "do not say which file"),
        (None, "do not say which file"),
        ("x", "do not say which file"),
    ],
)
def test_what_results_of_others_say_of_their_file(metadata: Any, said: str) -> None:
    assert said in (vouched_note(ENGLISH, {"metadata": metadata}) or "")


def test_a_released_file_needs_no_word() -> None:
    assert vouched_note(ENGLISH, {"metadata": {"answers": {"md5": "1", "released": True}}}) is None
    assert vouched_note("mme", {"metadata": {"answers": {"released": False}}}) is None
