"""How time and memory grow, with what a user can make larger: `python benchmarks/growth.py`.

- `model size`      a merge at load of half of the layers, the model having more and more of them
- `merged layers`   the same of one model, more and more of its layers being merged
- `cells`           a sweep of the embedded pair, by settings, two of which are always there
- `documents`       a comparison of the embedded pair, plain and merged, by documents
- `cuts`            one generation for all cuts, on a random LLaVA, by cuts
- `vision tokens`   the same by tokens of the image, under all cuts

Each is measured at several sizes in one process, the sizes taking turns. The slope is that of a straight line through
the last three points on logarithmic axes, of the medians and of each round: 1 is linear. Memory is the peak of the
process's own memory above what it held before, in a process in which the allocator gives freed memory back; its sizes
take turns in as many rounds.

Prints a Markdown table. Where something grows faster than in a line and no reason is known, that is said, and `make
bench` ends with exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import measured

AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
"""Variables of glibc, by which freed memory goes back to the system."""
LINEAR = 1.1
"""A slope up to which growth is called linear."""


@dataclass(frozen=True)
class Series:
    """What is made larger: its `sizes`, those of a quick run, what the axis says, and why it may grow faster."""

    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    axis: str
    why: str = ""


SERIES = {
    "model size": Series((2, 4, 8), (1, 2, 4), "layers of a model, half of them merged"),
    "merged layers": Series((2, 4, 8), (1, 2, 4), "merged layers of the largest model"),
    "cells": Series((2, 4, 8), (2, 3, 4), "settings of a sweep"),
    "documents": Series((8, 16, 32), (6, 10, 16), "documents of a comparison"),
    "cuts": Series((2, 4, 8, 16), (1, 2, 4), "cuts of a scan"),
    "vision tokens": Series(
        (144, 256, 576, 1024),
        (16, 64, 144),
        "vision tokens of a prompt",
        "attention multiplies all pairs of tokens, which outgrows the rest of a prefill",
    ),
}

Prepared = Callable[[int], Callable[[], object]]
"""Of a size: the action that is measured."""


@contextlib.contextmanager
def merging(name: str, sizes: tuple[int, ...]) -> Iterator[Prepared]:
    """Merges at load, of models on disk, by `sizes` of the series `name`."""
    from merge import Decoder, write
    from safetensors.torch import load_file

    from plam_eval.merging.merge import merge_in_place
    from plam_eval.spec import load_spec

    with tempfile.TemporaryDirectory() as scratch:
        largest, made = max(sizes), dict[int, tuple[Path, Path]]()
        for layers in sizes if name == "model size" else (largest,):
            folder = Path(scratch, str(layers))
            folder.mkdir()
            made[layers] = write(folder / "mllm", layers, 0), write(folder / "base", layers, 1)

        def prepared(size: int) -> Callable[[], object]:
            mllm, base = made[size if name == "model size" else largest]
            layers = size if name == "model size" else largest
            module = Decoder(layers)
            module.load_state_dict(load_file(mllm / "model.safetensors"))
            first = layers - max(1, layers // 2) if name == "model size" else layers - size
            spec = load_spec(None, {"base": str(base), "layers": f"{first}:{layers}"})
            return lambda: merge_in_place(module, spec, checkpoint=mllm, thrown_away_on_error=True)

        yield prepared


@contextlib.contextmanager
def evaluating(name: str, sizes: tuple[int, ...]) -> Iterator[Prepared]:
    """Sweeps or comparisons of the embedded pair, by `sizes` of the series `name`."""
    from plam_eval import api
    from plam_eval.demo.hub import write_hub

    pair = resources.files("plam_eval.demo") / "pair"
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(write_hub(Path(scratch, "suite"), documents_per_task=max(30, *sizes)))
        counted = iter(range(10**6))
        given: dict[str, Any] = {"model": "plam_llava", "tasks": "pope"}
        arguments = f"pretrained={pair}/mllm,base={pair}/base,layers=6:8,device_map=cpu"

        def prepared(size: int) -> Callable[[], object]:
            output = Path(scratch, f"out{next(counted)}")
            if name == "documents":
                return lambda: api.compare(**given, model_args=arguments, limit=size, output=output)
            weights = ",".join(f"{0.9 - 0.05 * number:.2f}+0.3" for number in range(size - 1))
            return lambda: api.sweep(
                **given, model_args=arguments, limit=4, weights=weights, controls="none", output=output
            )

        try:
            with (
                Path(os.devnull).open("w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                yield prepared
        finally:
            os.chdir(here)


@contextlib.contextmanager
def scanning(name: str, sizes: tuple[int, ...]) -> Iterator[Prepared]:
    """One generation under cuts, by `sizes` of the series `name`."""
    from scan import add_model_arguments, build, prompt

    from plam_eval.decoding.all_cuts import generate_all_cuts

    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    small = max(sizes) < (200 if name == "vision tokens" else 8)
    words = ["--hidden", "64"] if small else ["--hidden", "256"]
    layers = max(sizes) if name == "cuts" else 4 if small else 8

    def prepared(size: int) -> Callable[[], object]:
        tokens = size if name == "vision tokens" else 64 if max(sizes) <= 4 else 576
        given = parser.parse_args([*words, "--layers", str(layers), "--vision-tokens", str(tokens)])
        model, inputs = build(given), prompt(given)
        cuts = None if name == "vision tokens" else range(layers - size, layers)
        generate_all_cuts(model, cuts, **inputs, max_new_tokens=1, do_sample=False)
        return lambda: generate_all_cuts(model, cuts, **inputs, max_new_tokens=1, do_sample=False)

    yield prepared


MAKERS = {
    "model size": merging,
    "merged layers": merging,
    "cells": evaluating,
    "documents": evaluating,
    "cuts": scanning,
    "vision tokens": scanning,
}


def seconds_of(name: str, sizes: tuple[int, ...], rounds: int) -> dict[int, list[float]]:
    """Seconds of every size in every round.

    Args:
        name: of a series.
        sizes: of it.
        rounds: so many.
    """
    with MAKERS[name](name, sizes) as prepared:
        measured.clock(prepared(min(sizes)))  # libraries are there from here on
        ways = {str(size): (lambda size=size: measured.clock(prepared(size))) for size in sizes}
        return {int(size): taken for size, taken in measured.in_turn(ways, rounds).items()}


def memory_of(name: str, sizes: tuple[int, ...], rounds: int) -> dict[int, list[int]]:
    """Bytes of every size at its peak, above what this process held before, in every round.

    Args:
        name: of a series.
        sizes: of it.
        rounds: so many.
    """
    with MAKERS[name](name, sizes) as prepared:
        prepared(min(sizes))()

        def most(size: int) -> int:
            action = prepared(size)
            before, memory = measured.memory_of("RssAnon"), measured.PeakMemory()
            memory.start()
            action()
            return max(1, memory.stop() - before)

        turns = measured.in_turn({str(size): partial(most, size) for size in sizes}, rounds)
        return {int(size): found for size, found in turns.items()}


def slope(points: Mapping[int, float]) -> float:
    """Of the straight line through the last three points on logarithmic axes.

    Args:
        points: by size.
    """
    import numpy as np

    sizes = sorted(points)[-3:]
    return float(np.polyfit(np.log(sizes), np.log([points[size] for size in sizes]), 1)[0])


def slopes(rounds: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """The slope of the medians, and the smallest and the largest of a round.

    Args:
        rounds: by size, its figure in every round.
    """
    medians = {size: measured.spread(figures)["median"] for size, figures in rounds.items()}
    each = [slope(dict(zip(rounds, figures, strict=True))) for figures in zip(*rounds.values(), strict=True)]
    return {"median": slope(medians), "least": min(each), "most": max(each)}


def measure(name: str, sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """A series, as the page draws it.

    Args:
        name: its name.
        sizes: of it.
        rounds: so many.
    """
    seconds = seconds_of(name, sizes, rounds)
    words = ["--memory-of", name, "--sizes", ",".join(map(str, sizes)), "--repeats", rounds]
    memory = measured.run_process(measured.python(__file__, *words), AT_ONCE).result()
    held = {int(size): most for size, most in memory.items()}
    found = {
        "name": name,
        "axis": SERIES[name].axis,
        "why": SERIES[name].why,
        "seconds": seconds,
        "memory": held,
        "slope of time": slopes(seconds),
        "slope of memory": slopes(held),
    }
    return {**found, **judged(found)}


def judged(series: dict[str, Any]) -> dict[str, Any]:
    """What is said beside a series, that it is linear at most or why it is not, and whether there is a reason.

    Args:
        series: as `measure` makes it.
    """
    steep = [kind for kind in ("time", "memory") if series[f"slope of {kind}"]["median"] > LINEAR]
    if not steep:
        return {"said": "no more than linear", "unexplained": False}
    why = series["why"] or "NO REASON IS KNOWN"
    return {"said": f"{' and '.join(steep)} above linear: {why}", "unexplained": not series["why"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="some of: " + ", ".join(SERIES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--memory-of", choices=SERIES, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", help=argparse.SUPPRESS)
    measured.add_json_argument(parser)
    options = parser.parse_args()
    if options.memory_of:
        sizes = tuple(map(int, options.sizes.split(",")))
        print(json.dumps(memory_of(options.memory_of, sizes, options.repeats)), file=sys.__stdout__)
        return
    names = [name.strip() for name in options.only.split(",")] if options.only else [*SERIES]
    if unknown := [name for name in names if name not in SERIES]:
        parser.error(f"no series: {', '.join(unknown)}; expected some of {', '.join(SERIES)}")
    found = []
    print("Each figure: median/smallest/largest.\n")
    print("| grows | sizes | seconds | slope | MB | slope | |\n|---|---|---|---|---|---|---|")
    for name in names:
        started = time.perf_counter()
        found.append(measure(name, SERIES[name].quick if options.quick else SERIES[name].sizes, options.repeats))
        print(line(found[-1]), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    measured.write_rows(options.json, [], "the embedded pair, random decoders and a random LLaVA", series=found)


def line(series: dict[str, Any]) -> str:
    """A row of the table in Markdown.

    Args:
        series: as `measure` gives it.
    """

    def figures(kind: str, unit: float) -> str:
        spreads = map(measured.spread, series[kind].values())
        return ", ".join("/".join(f"{value / unit:.3g}" for value in each.values()) for each in spreads)

    cells = [
        series["axis"],
        ", ".join(str(size) for size in series["seconds"]),
        figures("seconds", 1),
        "/".join(f"{value:.2f}" for value in series["slope of time"].values()),
        figures("memory", 1e6),
        "/".join(f"{value:.2f}" for value in series["slope of memory"].values()),
        series["said"],
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
