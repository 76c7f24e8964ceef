"""The processes of one evaluation, as a launcher starts them: which is the first, and what all of them say."""

from __future__ import annotations

import os
import re
from typing import Any

# What gloo and NCCL say where the other side is gone: RuntimeErrors of torch's, without a class of their own.
_CUT_OFF = re.compile(r"closed by peer|reset by peer|Broken pipe|remote process exited|NCCL.*(timeout|abort)", re.I)


def is_first_process() -> bool:
    """Whether this is the one that prints and writes; as the launcher says, so that torch need not be imported."""
    return os.environ.get("RANK", "0") == "0"


def number() -> int:
    """How many there are, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def which() -> str:
    """Which process of how many this is, as launchers count, to stand in a message: " (rank 1 of 2)"; "" of one."""
    return f" (rank {os.environ.get('RANK', '0')} of {number()})" if number() > 1 else ""


def is_of_another(error: BaseException) -> bool:
    """Whether an error is torch's of a process that it waited for and that has ended.

    Args:
        error: what an evaluation raised.
    """
    return number() > 1 and isinstance(error, RuntimeError) and bool(_CUT_OFF.search(str(error)))


def all_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process has here, in the order of their ranks; waits for all of them.

    Args:
        value: of this process; whatever can be pickled.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def end_together() -> None:
    """Waits for the other processes and leaves their group; a process that just exits may abort while it is in one.

    A group of one has nobody to wait for, and may be that of a vLLM engine in this process, which goes on.
    """
    from torch import distributed

    initialized = distributed.is_available() and distributed.is_initialized()
    if initialized and distributed.get_world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()
