"""Words for numbers, p values, lists and names: once, for the page, its figures and the terminal.

The page writes with minus signs and dashes what it shows of a table; a value that is not there is a dash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from plam_eval.evaluation.stats import count_of, format_p
from plam_eval.provenance import read_identity

if TYPE_CHECKING:
    from markupsafe import Markup

_MINUS, NONE, SPACE = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"


def is_known(value: Any) -> bool:
    """Whether `value`, of a table, is there: None, NaN and NA are not."""
    return value is not None and not pd.isna(value)


def text_or_empty(value: Any) -> str:
    """`value` as text, "" where there is none."""
    return str(value) if is_known(value) else ""


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` decimals, or a dash."""
    return minus_signs(f"{round(value, digits) + 0.0:.{digits}f}") if is_known(value) else NONE  # no minus before 0


def signed(value: float) -> str:
    """A difference `value` with its sign and three decimals, or a dash."""
    if not is_known(value):
        return NONE
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else minus_signs(text)


def interval(low: float, high: float, *, plus: bool = True) -> str:
    """ "low to high", or a dash.

    Args:
        low: the lower end, NaN where there is no interval.
        high: the upper end.
        plus: whether they are differences, which have a sign.
    """
    if not is_known(low):
        return NONE
    form = signed if plus else number
    return f"{form(low)} to {form(high)}"


def percent(share: float) -> str:
    """`share`, from 0 to 1, in whole percents.

    One digit more where whole ones would hide that some, or not all, are left.
    """
    if not is_known(share):
        return NONE
    return f"{share:.1%}" if share not in (0, 1) and f"{share:.0%}" in ("0%", "100%") else f"{share:.0%}"


def p_value(p: float) -> str:
    """The p value `p` for a cell of a table, or a dash."""
    return NONE if not is_known(p) else "<0.0001" if p < 1e-4 else format_p(p)


def equal_p(p: float) -> str:
    """The p value `p` for a sentence: "= 0.03"."""
    return "< 0.0001" if p < 1e-4 else f"= {format_p(p)}"


def minus_signs(text: str) -> str:
    """Hyphens of `text` that stand before a number as minus signs; those within names and dates stay."""
    return re.sub(r"(?<![\w.+-])-(?=\d)", _MINUS, text)


def tasks_named(names: Sequence[str], said: list[Sequence[str]]) -> str:
    """Tasks by name, or by their number where there are many or the names have been said.

    Args:
        names: of the tasks.
        said: sorted lists that the page has named before, to which this one is added.
    """
    named_before = sorted(names) in said
    said.append(sorted(names))
    if len(names) == 1:
        return str(names[0])
    return count_of(len(names), "task") + ("" if named_before or len(names) > 12 else f" ({', '.join(names)})")


def listed(names: Sequence[str]) -> str:
    """`names` with "and" before the last; more than five are only counted."""
    if len(names) > 5:
        return f"{len(names)} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """`text` with a capital letter in front and a full stop behind, unless it has them."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def cut_short(text: str, length: int = 600) -> str:
    """`text` on one line, its first `length` letters and the number of those left out."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more letters)"


def printable(text: str) -> str:
    """Control characters of `text` as their pictures: they are not allowed in a page, and should be seen.

    Among them are those that turn the order of letters around, so that a command reads otherwise than it runs.
    """
    return str(text).translate(_PICTURES)


_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF), 0xFFFD),
}


def breakable(text: str) -> Markup:
    """The name `text`, which may be broken into lines after its underscores."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(piece) for piece in text.split("_"))


def identity_of(identity: Mapping[str, Any] | None) -> str:
    """What tells a checkpoint from others, as `identity` in its record holds it; None where nothing was recorded."""
    shown = {key: value for key, value in read_identity(identity or {}).items() if value and key != "files"}
    return ", ".join(f"{key} {value}" for key, value in shown.items()) or "identity not known"


def pairs_of(values: Mapping[str, Any] | None) -> str:
    """ "key value, key value" of `values`, such as versions; None where nothing was recorded."""
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items()) or "not known"
