"""A cluster of Ray's whose nodes are all on this machine."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

DEADLINE = 120.0  # seconds that something is waited for


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` whose first node has no core for workers; others come and go."""
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # Ray sets one of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()
    signal.signal(signal.SIGTERM, before)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")
