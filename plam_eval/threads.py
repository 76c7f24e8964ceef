"""How many threads torch computes with on a CPU.

A small model answers in thousands of small operations, and each of them ends when its last thread does: on a machine
with other work that is whenever that thread is given its turn. One thread is as fast on an idle machine, and several
times as fast on a busy one. Importing this module imports no torch.
"""

from __future__ import annotations

import os

from plam_eval.errors import InputError

OWN = "PLAM_THREADS"
STANDARD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SMALL = 100_000_000
"""Parameters up to which a model is small: its operations are too short to be worth a barrier."""


def threads_wanted(parameters: int) -> int | None:
    """Threads for a model on a CPU; None leaves torch's own number.

    `PLAM_THREADS` says it for every model. Where one of the standard variables is set, it stands.

    Args:
        parameters: so many numbers in the model's weights.

    Raises:
        InputError: `PLAM_THREADS` is no whole number of at least 1.
    """
    said = os.environ.get(OWN, "").strip()
    if said:
        if not (said.isascii() and said.isdigit()) or not 1 <= int(said) <= 4096:
            raise InputError(f"{OWN} is {said!r}; expected a whole number of threads, from 1 on, or nothing")
        return int(said)
    if any(os.environ.get(name, "").strip() for name in STANDARD):
        return None
    return 1 if parameters <= SMALL else None


_changed: tuple[int, int] | None = None
"""Torch's number of threads as `use` found it, and as it left it."""


def use(parameters: int) -> None:
    """Let torch compute with as many threads as are wanted for a model on a CPU.

    The number is the whole process's. So a model that is left torch's own gets back what a smaller one before it has
    changed, unless somebody else has said another number since.

    Args:
        parameters: so many numbers in the model's weights.

    Raises:
        InputError: as `threads_wanted`.
    """
    global _changed
    import torch

    number, now = threads_wanted(parameters), torch.get_num_threads()
    own = _changed[0] if _changed is not None and _changed[1] == now else now
    torch.set_num_threads(own if number is None else number)
    _changed = None if number is None else (own, number)


def environment() -> dict[str, str]:
    """What makes a process of ours compute with one thread, for commands on small models; {} where the user says."""
    if any(os.environ.get(name, "").strip() for name in (OWN, *STANDARD)):
        return {}
    return dict.fromkeys(STANDARD, "1")
