"""`python -m tests.helpers.failing HOW CALL WORDS...`: `plam WORDS...`, in which the second process of a group fails.

HOW it does: it "raises", as a device that is lost would have it, or is "killed". It fails where it is to answer for the
CALL-th time, from 1 on.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from plam_eval.cli.app import main
from plam_eval.model_wrappers.mixin import PlateauMixin


def fail(how: str, call: int) -> None:
    answer, calls = PlateauMixin.generate_until, 0

    def failing(self: Any, requests: list[Any]) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls == call and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == call:
            raise RuntimeError("the device is lost")
        return answer(self, requests)

    PlateauMixin.generate_until = failing


if __name__ == "__main__":
    how, call = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    if os.environ.get("RANK") == "1":
        fail(how, call)
    import plam_eval.cli  # noqa: F401  its commands

    main()
