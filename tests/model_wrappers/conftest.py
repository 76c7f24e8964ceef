from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.pico import PicoPair
from tests.helpers.wrappers import WRAPPER, arguments


@pytest.fixture(scope="session")
def load(pico: Callable[[str], PicoPair]) -> Callable[..., Any]:
    """`load(family, mode, key=value, ...)` makes a wrapper the way lmms-eval's command line does."""
    from lmms_eval.models import get_model

    def make(family: str, mode: str = "chat", **given: Any) -> Any:
        model_id, _ = WRAPPER[family]
        cls = get_model(model_id, force_simple=mode == "simple")
        return cls.create_from_arg_string(arguments(pico(family), **given), {"batch_size": 1})

    return make
