"""What an engine answers that was started with these options, and not re-merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ancestors import write_ancestor
from tests.helpers.engines import engine
from tests.helpers.paths import PAIR
from tests.helpers.served_pair import detailed


@pytest.fixture(scope="session")
def ancestor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ancestor of the embedded pair. Do not modify."""
    return write_ancestor(tmp_path_factory.mktemp("ancestor") / "old")


@pytest.fixture(scope="session")
def fresh() -> Callable[[dict[str, Any]], list[tuple[list[int], float]]]:
    """What an engine started with these options answers; each is started once."""
    known: dict[str, Any] = {}

    def get(options: dict[str, Any]) -> list[tuple[list[int], float]]:
        key = json.dumps(options)
        if key not in known:
            with engine(PAIR / "mllm", options) as llm:
                known[key] = detailed(llm)
        return known[key]

    return get
