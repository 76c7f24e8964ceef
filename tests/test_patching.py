"""Functions of other libraries are wrapped once, and stay what they were in all else."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from plam_eval.patching import wrap_once


class Library:
    factor = 2

    def scaled(self, number: int, *, plus: int = 0) -> int:
        """Scaled by the library's factor."""
        return self.factor * number + plus


Library.scaled.retry = "three times"  # type: ignore[attr-defined]


def test_a_method_is_wrapped_once_and_can_be_unwrapped() -> None:
    def negated(stock: Any, self: Library, number: int, *, plus: int = 1) -> int:
        return -int(stock(self, number, plus=plus))

    before = Library.scaled
    for _ in range(2):
        wrap_once(Library, "scaled", negated)
    assert Library().scaled(3) == -7 and Library().scaled(3, plus=0) == -6
    scaled: Any = Library.scaled
    assert scaled.retry == "three times" and scaled.__wrapped__ is before and scaled.__doc__ == before.__doc__
    assert inspect.signature(scaled) == inspect.signature(before)

    Library.scaled = scaled.__wrapped__  # type: ignore[method-assign]
    assert Library().scaled(3) == 6
    wrap_once(Library, "scaled", negated)
    assert Library().scaled(3) == -7


def test_what_another_package_has_wrapped_since_is_not_wrapped_again() -> None:
    class Owner:
        @staticmethod
        def function() -> list[str]:
            return []

    def named(stock: Any) -> list[str]:
        return [*stock(), "ours"]

    wrap_once(Owner, "function", named)
    ours = Owner.function

    @functools.wraps(ours)
    def theirs() -> list[str]:
        return [*ours(), "theirs"]

    Owner.function = theirs  # type: ignore[method-assign]
    wrap_once(Owner, "function", named)
    assert Owner.function() == ["ours", "theirs"]
