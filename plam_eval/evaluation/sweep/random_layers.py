"""A merge before the cloud of its random layers: the same merge in as many others, drawn at random.

Two questions, answered apart. Would other *documents* say the same? The merge is compared with the mean of its draws on
the same documents, in pairs: the sets of layers are as they were drawn, documents are what is resampled. Would other
*sets of layers* say the same? The merge is counted in among its draws: if its layers were of no other kind than drawn
ones, it would stand first of n + 1 as often as any of them. n draws cannot give a smaller share than 1 / (n + 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.evaluation import stats
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import DIFFERENCE, SIGNIFICANT, Paired, format_p
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.evaluation.sweep.selection import signed_mean
from plam_eval.layer_sets import MOST_LAYERS, read_layers
from plam_eval.rules import RANDOM_LAYERS

NEEDED = math.floor(1 / SIGNIFICANT)
"""Draws from which on the rank of a merge can be told from chance: 1 / (n + 1) is below `stats.SIGNIFICANT`."""

COLUMNS = (
    *("merged", "draws", "planned", "sets", "shared", "better", "equal", "worse", "rank_p"),
    *("mean", "spread", "least", "most", *DIFFERENCE),
)
"""Of `among_draws`."""
_ROUNDING = 1e-12


def draws_of(controls: Mapping[str, Mapping[str, Sequence[str]]], merged: str) -> tuple[str, ...]:
    """The cells that are a merge in random layers.

    Args:
        controls: by merge and rule, as a sweep's plan has them.
        merged: the merge's cell.
    """
    return tuple(controls.get(merged, {}).get(RANDOM_LAYERS, ()))


def among_draws(
    runs: Mapping[str, Run],
    controls: Mapping[str, Mapping[str, Sequence[str]]],
    layers: Mapping[str, str],
    num_layers: int | None,
) -> pd.DataFrame:
    """One row for every finished merge that has a finished draw.

    Args:
        runs: finished ones by cell, plain among them, with the documents to report on.
        controls: by merge and rule, as a sweep's plan has them.
        layers: of each cell, as `layer_sets.write_layers` writes them.
        num_layers: decoder layers of the model; None where they are not known.

    Returns:
        merged (its cell); draws and planned, how many are finished and how many there are; sets, how many other sets of
        as many layers the decoder has; shared, the share of the merge's layers that is in a draw too, on average; how
        many draws the merge is better than, equal to and worse than, over the mean of tasks, each by its
        direction; rank_p, the share of
        merge and draws that do at least as well as the merge; mean, spread (standard deviation, NaN of one draw), least
        and most of the draws' differences against plain; and the fields of `stats.Paired` without `task`, of the mean
        of the draws (`first`) and the merge (`second`), document by document.
    """
    beside = {
        merged: finished
        for merged in controls
        if merged in runs and (finished := [name for name in draws_of(controls, merged) if name in runs])
    }
    if not beside or PLAIN not in runs:
        return pd.DataFrame(columns=list(COLUMNS))
    directions = runs[PLAIN].directions
    named = {PLAIN, *beside, *(d for ds in beside.values() for d in ds)}
    scores = {name: _mean_over_tasks(runs[name]) for name in named}
    signed = {name: signed_mean(runs[name].samples, directions) for name in named}
    compared = _against_their_mean(runs, beside)
    rows = []
    for merged, draws in beside.items():
        ahead = signed[merged] - np.array([signed[name] for name in draws])
        better, worse = int((ahead > _ROUNDING).sum()), int((ahead < -_ROUNDING).sum())
        gains = np.array([scores[name] - scores[PLAIN] for name in draws])
        own = set(read_layers(layers[merged]))
        rows.append(
            {
                "merged": merged,
                "draws": len(draws),
                "planned": len(draws_of(controls, merged)),
                "sets": _other_sets(len(own), num_layers),
                "shared": float(np.mean([len(own & {*read_layers(layers[name])}) / len(own) for name in draws])),
                "better": better,
                "equal": len(draws) - better - worse,
                "worse": worse,
                "rank_p": (len(draws) - better + 1) / (len(draws) + 1),
                "mean": float(gains.mean()),
                "spread": float(gains.std(ddof=1)) if len(draws) > 1 else math.nan,
                "least": float(gains.min()),
                "most": float(gains.max()),
                **{name: value for name, value in asdict(compared[merged]).items() if name != "task"},
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"needed": "Int64", "sets": object})


def _against_their_mean(runs: Mapping[str, Run], beside: Mapping[str, Sequence[str]]) -> dict[str, Paired]:
    """Each merge minus the mean of its draws, over the mean of tasks."""
    pairs = {merged: f"mean of {len(draws)} draws beside {merged}" for merged, draws in beside.items()}
    samples = {PLAIN: runs[PLAIN].samples, **{merged: runs[merged].samples for merged in beside}}
    samples |= {pairs[merged]: _mean_of([runs[name].samples for name in draws]) for merged, draws in beside.items()}
    compared = stats.compare_pairs(
        samples, [(mean, merged) for merged, mean in pairs.items()], directions=runs[PLAIN].directions
    )
    return {merged: compared[mean, merged][-1] for merged, mean in pairs.items()}


def _mean_of(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Samples of a run that scores on each document what some runs do on average, and is as often in form."""
    keys = ["task", "doc_id"]
    indexed = [table.set_index(keys) for table in tables]
    mean = indexed[0][["group"]].copy()
    for column in ("score", "parsable"):
        values = [
            table[column].reindex(mean.index).astype("boolean" if column == "parsable" else float) for table in indexed
        ]
        mean[column] = pd.concat([value.astype("Float64") for value in values], axis=1).mean(axis=1, skipna=False)
    return mean.astype({"score": float}).reset_index()


def _mean_over_tasks(run: Run) -> float:
    return float(run.samples.groupby("task")["score"].mean().mean())


def _other_sets(size: int, num_layers: int | None) -> int | None:
    """How many sets of so many layers there are beside a merge's own."""
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or not size <= num_layers <= MOST_LAYERS:
        return None
    return math.comb(num_layers, size) - 1


# --- in words ---------------------------------------------------------------------------------------------------------


def standing(row: Mapping[str, Any]) -> str:
    """Where a merge stands among its draws: "better than 5 of 5", "better than 3 of 5, equal to 1".

    Args:
        row: of `among_draws`.
    """
    equal = f", equal to {row['equal']}" if row["equal"] else ""
    return f"better than {row['better']} of {row['draws']}{equal}"


def in_words(row: Mapping[str, Any], *, sign: int = 1, layer_sets: int = 1) -> str:
    """What the draws say of a merge, and what so many of them cannot say.

    Args:
        row: of `among_draws`.
        sign: 1 where a higher score is better, -1 where a lower one is.
        layer_sets: sets of layers among which the merge was chosen; 1 where its own was named beforehand.
    """
    return " ".join(_sentences(row, sign, layer_sets))


def _sentences(row: Mapping[str, Any], sign: int, layer_sets: int) -> Iterator[str]:
    draws, better, sets, rank_p, p = (row[name] for name in ("draws", "better", "sets", "rank_p", "p"))
    every = sets is not None and draws == sets
    of = f"all {draws} other sets" if every else stats.count_of(draws, "draw")
    left = f" (of {row['planned']} drawn)" if draws != row["planned"] else ""
    equal = f" and does as well as {row['equal']}" if row["equal"] else ""
    yield (
        f"Random layers: it does better than {better} of {of} of as many layers{left}{equal}, "
        f"rank p = {format_p(rank_p)}."
    )
    if rank_p >= SIGNIFICANT:
        yield f"So it is not shown that these layers do better than others: {_limit(draws, better, sets)}."
    elif layer_sets == 1:
        yield "So these layers do better than others of that number."
    if layer_sets > 1:
        yield f"The rank does not count that the layers are the best of {layer_sets} sets."
    effect = stats.effect(row["difference"], p, sign)
    shown = f"{effect} than their mean" if effect else "not shown to differ from their mean"
    yield (
        f"Against the mean of these draws, on the same documents: {row['difference']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f}, p = {format_p(p)}): {shown}, whatever other sets would do."
    )


def _limit(draws: int, better: int, sets: int | None) -> str:
    """Why a rank says no more."""
    if better < draws:
        return f"{draws - better} of {draws} do at least as well"
    least = f"the first of {draws + 1} is so by chance with p = {format_p(1 / (draws + 1))}"
    if sets is not None and sets < NEEDED:
        return f"{least}, and with {stats.count_of(sets, 'other set')} in all no number of draws could show it"
    return f"{least}, and it takes {NEEDED} draws for p below {SIGNIFICANT:g}"
