"""What several functions take and do."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Words = str | Sequence[str]
"""Words, as a list or in one text with commas."""
Arguments = str | Mapping[str, Any]
"""`key=value,...` as lmms-eval takes it, or a mapping."""


def words_of(words: Words) -> list[str]:
    """The words of `words` as a list; in one text they stand between commas."""
    return [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)


def free_memory() -> None:
    """Give a GPU back what a dropped model held of it: in a notebook the next call loads another, beside it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # a wrapper refers to itself
        torch.cuda.empty_cache()
