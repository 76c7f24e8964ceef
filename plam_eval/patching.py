"""Functions of other libraries, wrapped where these have no hook, each once in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "_plam_eval"


def wrap_once(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Puts `replacement` in the place of a function, which it is given as its first argument; the second time nothing.

    The function keeps its attributes, its signature and, as `__wrapped__`, itself.

    Args:
        owner: the class or module that has the function.
        name: of the function.
        replacement: called as `replacement(stock, *args, **kwargs)`, with what the function was called with.
    """
    stock = getattr(owner, name)
    if hasattr(stock, _MARK):
        return

    @functools.wraps(stock)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(stock, *args, **kwargs)

    setattr(wrapper, _MARK, True)
    setattr(owner, name, wrapper)
