"""What an engine is told beside vLLM's own options."""

from __future__ import annotations

from typing import Any

import pytest

from plam_eval.errors import InputError
from plam_eval.serving.options import split_options


def test_options_of_ours_are_parted_from_those_of_the_default_loader() -> None:
    assert split_options(None) == ({}, {}) == split_options({})
    assert split_options({"plateau": "demo", "layers": "4:8", "x": 1}) == (
        {"plateau": "demo", "layers": "4:8"},
        {"x": 1},
    )


@pytest.mark.parametrize("extra", ["plateau", 1.5, ["plateau"], [["plateau", "demo"]], "", 0, False])
def test_what_is_no_mapping_is_refused(extra: Any) -> None:
    with pytest.raises(InputError, match=r"model_loader_extra_config: found .*, expected an object"):
        split_options(extra)
