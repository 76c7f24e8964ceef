"""Which cut layers: from a user's text, or from a program's numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plam_eval.errors import quoted
from plam_eval.probing.decoder import ProbeError

_CUTS = re.compile(r"\s*(\d{1,9})\s*(?::\s*(\d{1,9})\s*(?::\s*(\d{1,9})\s*)?)?")


def parse_cuts(text: str | None, layers: int) -> tuple[int, ...]:
    """Cut layers from text such as "0,4,8:28" or "0:33:4": single layers and ranges, end exclusive.

    Args:
        text: None, "" and "all" are every cut 0..L.
        layers: L, the number of decoder layers.

    Returns:
        The cuts, ascending. The unmasked model, L, is always among them: it is what others are compared with.

    Raises:
        ProbeError: naming every piece that is not a cut of a model with `layers` layers.
    """
    if text is None or text.strip() in ("", "all"):
        return tuple(range(layers + 1))
    cuts, wrong = {layers}, []
    for piece in text.split(","):
        match = _CUTS.fullmatch(piece)
        start, stop, step = (int(number) if number else None for number in match.groups()) if match else (0, 0, 0)
        chosen = range(start or 0, (start or 0) + 1 if stop is None else stop, 1 if step is None else step or 1)
        if match is None or step == 0 or not chosen or chosen[-1] > layers:
            wrong.append(quoted(piece.strip(), 30))
        else:
            cuts.update(chosen)
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ProbeError(
            f"cuts {quoted(text)}: {', '.join(wrong[:10])}{more}; expected layers from 0 to {layers}, or ranges "
            "start:end or start:end:step, end exclusive and not empty, separated by commas"
        )
    return tuple(sorted(cuts))


def ascending_cuts(cuts: Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """Cut layers in order, each once, with the unmasked model among them.

    Args:
        cuts: each in 0..L; None is all of them.
        layers: L, the number of decoder layers.

    Raises:
        ProbeError: naming every one that is not a cut of a model with `layers` layers.
    """
    if cuts is None:
        return tuple(range(layers + 1))
    wrong = [cut for cut in cuts if not isinstance(cut, int) or isinstance(cut, bool) or not 0 <= cut <= layers]
    if wrong:
        raise ProbeError(f"cuts {wrong} are not layers; expected integers from 0 to {layers}")
    return tuple(sorted({*cuts, layers}))
