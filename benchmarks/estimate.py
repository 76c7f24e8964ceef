"""What each command takes on a 7B model and one GPU, worked out: `python benchmarks/estimate.py`.

Nothing here is measured on a GPU. Counted exactly, from the shapes in a model's config: bytes of weights, of the
tensors that a merge reads and holds, and of keys and values; and work, in tokens through decoder layers, as
docs/probe.md counts it (there the ratio of a scan to separate generations was measured on a CPU within a tenth of the
count). Assumed, and to be given for another machine: how fast a GPU computes and reads its memory, and the seconds of a
document in which it waits for image processing and the harness. The default model is LLaVA-1.5-7B; the default rates
are two fifths of the bfloat16 arithmetic, and half of the bandwidth, that the data sheet of an A100 80 GB names.

A document takes

    overhead + 2 * (parameters * prompt tokens) / arithmetic + answer tokens * bytes of weights / bandwidth

and everything else is made of that: a scan's prompt takes 1 + (L + 1)/2 * P/N times as long, where P of the N prompt
tokens are text behind the image; its L + 1 answers are one batch, which reads the weights as often as one answer does.

The better way, with a GPU at hand: time `lmms-eval ... --limit 50` and give `--seconds-per-document`; the ratios
between the commands are then all that is left to believe.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

PLAM9 = 38_052
"""Documents: GQA 12,578, POPE 9,000, MMBench 4,329 twice, MME 2,374, SEED-Bench-2-Plus 2,277, MMStar 1,500, MMMU 900,
RealWorldQA 765."""
ANSWERS, RUN = 220, 800
"""Bytes of a scan's answers, and of a run's logs, per document, as the demo writes them (1,080 short prompts)."""


@dataclass(frozen=True)
class Model:
    """Shapes of a decoder, and the parameters beside it."""

    layers: int
    hidden: int
    intermediate: int
    key_value: int
    """Width of keys, and of values."""
    vocabulary: int
    beside: float
    """Parameters of vision tower and projector."""

    @property
    def attention(self) -> int:
        """Parameters of q, k, v and o in one layer."""
        return 2 * self.hidden**2 + 2 * self.hidden * self.key_value

    @property
    def decoder(self) -> int:
        """Parameters of all decoder layers."""
        return self.layers * (self.attention + 3 * self.hidden * self.intermediate)

    @property
    def bytes(self) -> float:
        """Of all weights, two to a parameter."""
        return 2 * (self.decoder + 2 * self.vocabulary * self.hidden + self.beside)

    @property
    def token_bytes(self) -> int:
        """Of keys and values of one token."""
        return 2 * 2 * self.layers * self.key_value


@dataclass(frozen=True)
class Machine:
    """Rates in operations, bytes and seconds."""

    arithmetic: float
    bandwidth: float
    disk: float
    overhead: float
    per_document: float | None = None
    """Seconds of a plain document, where they were measured; else from the rates above."""


@dataclass(frozen=True)
class Prompt:
    tokens: int
    behind: int
    """Text tokens behind the image."""
    answer: int


def seconds(model: Model, machine: Machine, prompt: Prompt, prompts: float = 1.0) -> float:
    """Of one document on `machine`, of `model`, whose `prompt` takes `prompts` times the work."""
    read = prompt.answer * model.bytes / machine.bandwidth
    once = 2 * model.decoder * prompt.tokens / machine.arithmetic
    plain = machine.overhead + once + read
    scale = 1.0 if machine.per_document is None else machine.per_document / plain
    return scale * (plain + (prompts - 1) * once)


def table(model: Model, machine: Machine, prompt: Prompt, scanned: int, evaluated: int, cells: int) -> pd.DataFrame:
    """Time, memory and disk of scan, doctor, compare, sweep and report.

    Args:
        model: sizes of the MLLM.
        machine: what it runs on.
        prompt: tokens of a typical document.
        scanned: documents of the scan.
        evaluated: documents of each cell.
        cells: of the sweep.
    """
    half = model.layers // 2
    merged = 2 * half * model.attention  # bytes of a merge of q, k, v, o in the later half of the layers
    load = model.bytes / machine.disk
    merge = 2 * merged / machine.disk
    cuts = 1 + (model.layers + 1) / 2 * prompt.behind / prompt.tokens
    cache = model.token_bytes * (prompt.tokens + prompt.answer)
    scan_cache = model.token_bytes * (prompt.tokens * cuts + (model.layers + 1) * prompt.answer)
    document, one_scan = seconds(model, machine, prompt), seconds(model, machine, prompt, cuts)
    # Ten merges of the later half in one generation: each takes half a prompt beside what they share.
    ten = seconds(model, machine, prompt, 1 + 10 / 2)
    base = 2 * (model.decoder + 2 * model.vocabulary * model.hidden)
    rows = [
        (
            "scan",
            f"{scanned} documents",
            load + scanned * one_scan,
            model.bytes + scan_cache,
            scanned * (RUN + ANSWERS),
        ),
        ("doctor", "headers only", 0, 0, 0),
        (
            "compare",
            f"2 x {evaluated}",
            load + merge + 2 * evaluated * document,
            model.bytes + cache,
            2 * evaluated * RUN,
        ),
        (
            "sweep, cell by cell",
            f"{cells} x {evaluated}",
            load + cells * (merge + evaluated * document),
            model.bytes + cache,
            cells * evaluated * RUN,
        ),
        (
            "sweep --together 10",
            f"{cells} x {evaluated}",
            load + cells * merge + cells / 10 * evaluated * ten,
            model.bytes + 10 * (merged + cache),
            cells * evaluated * RUN,
        ),
    ]
    frame = pd.DataFrame(rows, columns=["command", "generations", "hours", "GPU memory, GB", "written, GB"])
    frame["hours"] /= 3600
    frame[["GPU memory, GB", "written, GB"]] /= 1e9
    frame.attrs |= {
        "downloaded": (model.bytes / 1e9, base / 1e9),
        "document": document,
        "scanned document": one_scan,
        "merged": merged / 1e9,
    }
    return frame


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = {"layers": 32, "hidden": 4096, "intermediate": 11008, "key-value": 4096, "vocabulary": 32064}
    for name, value in shapes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--beside", type=float, default=0.325e9, help="parameters of vision tower and projector")
    parser.add_argument("--prompt", type=int, default=640, help="tokens, 576 of them the image's")
    parser.add_argument("--behind", type=int, default=58, help="text tokens behind the image")
    parser.add_argument("--answer", type=int, default=4, help="tokens")
    parser.add_argument("--arithmetic", type=float, default=0.4 * 312e12, help="operations a second")
    parser.add_argument("--bandwidth", type=float, default=0.5 * 2.0e12, help="bytes a second")
    parser.add_argument("--disk", type=float, default=1e9, help="bytes a second")
    parser.add_argument("--overhead", type=float, default=0.05, help="seconds of a document beside the model's")
    parser.add_argument("--seconds-per-document", type=float, help="of a plain evaluation, measured; scales the rest")
    parser.add_argument("--scanned", type=int, default=1000)
    parser.add_argument("--evaluated", type=int, default=PLAM9 - 1000)
    parser.add_argument("--cells", type=int, default=19)
    given = parser.parse_args(arguments)
    sizes = {name.replace("-", "_"): getattr(given, name.replace("-", "_")) for name in shapes}
    model = Model(**sizes, beside=given.beside)
    machine = Machine(given.arithmetic, given.bandwidth, given.disk, given.overhead, given.seconds_per_document)
    prompt = Prompt(given.prompt, given.behind, given.answer)
    estimates = table(model, machine, prompt, given.scanned, given.evaluated, given.cells)
    print(estimates.to_markdown(index=False, floatfmt=".2f"))
    mllm, base = estimates.attrs["downloaded"]
    print(
        f"\nA document {estimates.attrs['document']:.3f} s, a scanned one {estimates.attrs['scanned document']:.3f} s; "
        f"a merge reads {estimates.attrs['merged']:.1f} GB of either checkpoint. "
        f"Downloaded: {mllm:.1f} GB for the MLLM, up to {base:.1f} GB for the base, and the datasets, which are not "
        "counted."
    )


if __name__ == "__main__":
    main()
