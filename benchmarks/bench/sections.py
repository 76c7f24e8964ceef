"""The sections of benchmarks/RESULTS.md: a line for each, and which script measures it how."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Section:
    """A part of the page, measured by one call of a script.

    Attributes:
        name: for `--only`, and of its JSON.
        title: on the page.
        script: of benchmarks/.
        budget: seconds of the full run on two quiet cores.
        full: arguments of the full run; "{work}" is a folder for what is kept between runs.
        quick: of a quick one.
        about: what A and B are, where the rows do not say it.
        needs: a module without which it is left out.
        environment: variables of it.
    """

    name: str
    title: str
    script: str
    budget: int
    full: tuple[str, ...]
    quick: tuple[str, ...]
    about: str
    needs: str = ""
    environment: dict[str, str] = field(default_factory=dict)


ROUNDS = 5
"""Of whatever a full run measures, at least."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SECTIONS = (
    Section(
        "load",
        "A merge at load",
        "load.py",
        400,
        _words("--folder {work}/pair-2048-32 --make {work}/mergekit --repeats 5"),
        _words("--hidden 128 --layers 2 --repeats 1"),
        "The largest pair: `plain` is transformers' load alone, `merged` that and plam-eval's merge, `in memory` the "
        "sum of both models' parameters in their own dtype, saved and loaded again, `mergekit` its linear merge as a "
        "process, with the plain load that has to follow. mergekit 0.1.5 reads no more than the projector of LLaVA's "
        "layout: it is given the MLLM's decoder as a language model of the base's kind, and neither making that copy "
        "nor putting its tensors back is counted. Files are mapped, so each way ends with a value read from every page "
        "of the model's parameters, which is timed with it. Peak is resident memory of the process, mapped files "
        "included; inexact is the share of merged elements that are not the bfloat16 nearest to the exact rational "
        "sum, which does not vary and is counted in the first round alone.",
    ),
    Section(
        "merge",
        "The merge alone",
        "merge.py",
        30,
        _words("--layers 9 --repeats 7"),
        _words("--layers 1 --repeats 2"),
        "Parameters in memory, both checkpoints in the page cache.",
    ),
    Section(
        "scan",
        "A scan: all cuts in one generation",
        "scan.py",
        160,
        _words("--layers 20 --hidden 256 --new-tokens 1 8 --repeats 5 --threads 1"),
        _words("--layers 2 --hidden 64 --vision-tokens 16 --text-tokens 12 --new-tokens 1 --repeats 2"),
        "A random LLaVA; answers are compared token for token. Rows cost less together than alone, so that a ratio may "
        "exceed its ideal.",
    ),
    Section(
        "together",
        "Joint answering: all merges in one generation",
        "together.py",
        200,
        _words("--layers 9 --hidden 256 --new-tokens 1 8 --repeats 5"),
        _words("--layers 4 --hidden 64 --vision-tokens 16 --text-tokens 12 --new-tokens 1 --repeats 2"),
        "A random LLaVA; merging itself is not counted, answers are compared token for token.",
    ),
    Section(
        "sweep",
        "A sweep: one resident model",
        "sweep.py",
        330,
        _words("--few --documents 4 --repeats 5 --output {work}/sweep"),
        _words("--few --documents 2 --repeats 1 --output {work}/sweep"),
        "The embedded pair, whole commands with imports and loading.",
    ),
    Section(
        "serving",
        "Serving: vLLM's start, a re-merge, and answers a second",
        "serving.py",
        360,
        _words("--layers 12 --repeats 5 --rounds 5 --documents 40 --large --output {work}/serving"),
        _words("--hidden 128 --layers 2 --repeats 1 --rounds 1 --documents 30 --large --output {work}/serving"),
        "Starts leave imports out; a restart is a process until its first answer. Restarts and re-merges cannot take "
        "turns: the former are the merged starts, and the ratios are of both in their order.",
        needs="vllm",
    ),
    Section(
        "attention",
        "Attention rows",
        "attention.py",
        150,
        _words("--layers 28 --hidden 512 --repeats 5 --threads 1"),
        _words("--layers 4 --hidden 64 --vision-tokens 16 --text-tokens 12 --repeats 2"),
        "B is a prefill that keeps nothing, or one run per setting. `output_attentions` is what others do.",
    ),
    Section(
        "export",
        "An export",
        "export.py",
        180,
        _words("--layers 6 --repeats 5 --folder {work}/export-2048-6"),
        _words("--hidden 128 --layers 3 --repeats 1"),
        "`cp` is `cp -r` and `sync`; `new` hashes the sources, too.",
    ),
    Section(
        "report",
        "Reading runs and testing",
        "report.py",
        40,
        _words("--cells 5 --read 2 --rounds 5"),
        _words("--cells 1 --read 1 --rounds 1"),
        "The nine benchmarks in their real sizes.",
    ),
    Section(
        "growth",
        "Growth",
        "growth.py",
        300,
        _words("--repeats 5"),
        _words("--quick --repeats 2"),
        "Time and memory against what a user can make larger.",
    ),
    Section(
        "stock",
        "Stock scores in a comparison",
        "stock_scores.py",
        20,
        _words("--cost --repeats 5 --share 4"),
        _words("--cost --repeats 1 --share 40"),
        "A quarter of the benchmarks' clusters.",
    ),
    Section(
        "start",
        "Starting",
        "start.py",
        150,
        _words("--repeats 5"),
        _words("--repeats 1 --documents 30"),
        "What a command costs before a model is loaded.",
    ),
    Section(
        "dry-run",
        "What a dry run says",
        "dry_run.py",
        30,
        _words("{work}/dry-run --documents 30 --tasks pope,mme --only compare --repeats 5"),
        _words("{work}/dry-run --documents 30 --sampled 6 --tasks pope --only compare"),
        "Here a ratio of 1 is right, and neither less nor more is better.",
    ),
    Section(
        "busy",
        "Beside other work",
        "busy.py",
        70,
        _words("--repeats 5 --busy 1 --limit 20"),
        _words("--repeats 1 --busy 1 --limit 2"),
        "",
    ),
    Section(
        "rules",
        "Merge rules",
        "rules.py",
        20,
        _words("--width 512 --repeats 5"),
        _words("--width 64 --repeats 2"),
        "What each costs, times the weighted sum.",
    ),
)
"""In the order of the page, and of the run: what matters most is there first."""


def chosen(names: str | None) -> list[Section]:
    """The sections that are named, in their order.

    Args:
        names: joined by commas; None for all.

    Raises:
        ValueError: one that there is not.
    """
    if names is None:
        return [*SECTIONS]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [section.name for section in SECTIONS]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no section {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [section for section in SECTIONS if section.name in wanted]
