"""What a merge costs where a model is loaded, beside what others do for it: `PYTHONPATH=. python benchmarks/load.py`.

A random pair in LLaVA-1.5 format in bfloat16 (3.3 GB the MLLM, 3.3 GB the base, unless --layers says otherwise); q, k,
v and o of the upper half of the layers are merged, 0.9 of the MLLM and 0.3 of the base. Each way is a process of its
own, the ways take turns, and the files are in the page cache:

- `read`       the MLLM's file is read into a buffer, no more.
- `plain`      the MLLM is loaded by transformers in its own dtype.
- `merged`     the same, and `plam_eval.merge`.
- `in memory`  MLLM and base are both loaded, the parameters added up in place in their dtype, the model saved, and
               loaded again: the route that most scripts take.
- `mergekit`   mergekit's linear merge, in an environment of its own, that writes a checkpoint; the plain load that has
               to follow is added to it. Of LLaVA's layout mergekit 0.1.5 reads the projector alone, so it is given the
               MLLM's decoder as a language model of the base's kind; neither making that copy nor putting its merged
               tensors back into a LLaVA checkpoint is counted.

transformers maps a file, whose bytes come into the process only once somebody reads them. So each way ends with a value
read from every page of every parameter, which is timed with it: all end with a model that is in memory.

Seconds leave out imports, but those of mergekit's process, which are told beside it. `peak` is the most resident memory
of the whole process, mapped files included; `written` what it hands to the system to write. `inexact` is the share of
the merged elements that are another bfloat16 than the one nearest to the exact rational weighted sum; it does not vary,
and is counted in the first round alone.

Prints a Markdown table. `--mergekit PYTHON` names an environment's Python, `--make FOLDER` creates one there by pip;
where it cannot be had, the table says so.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import measured
from serving import write_pair

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Fraction(9, 10), Fraction(3, 10)
WAYS = ("read", "plain", "merged", "in memory", "mergekit")


def merged_layers(layers: int) -> range:
    """The layers that are merged, of so many `layers`: the upper half."""
    return range(layers // 2, layers)


# ---- the exact sum ---------------------------------------------------------------------------------------------------


def exact(mllm: Tensor, base: Tensor) -> Tensor:
    """The bfloat16 values, in float64, that are nearest to 9/10 of one tensor plus 3/10 of the other, ties to even.

    9 a + 3 b is exact in float64 wherever the two are within 40 powers of two; its tenth, rounded to 53 bits, lies on a
    bfloat16 or half way between two only if the exact one does, since no sum of so few bits is closer to one than that.
    Where the sum is not exact, it is worked out in rational arithmetic.

    Args:
        mllm: bfloat16, any shape.
        base: bfloat16, of that shape.
    """
    from merge import nearest

    a, b = mllm.double().mul_(9), base.double().mul_(3)
    total = a + b
    back = total - a
    lost = (a - (total - back)) + (b - back)
    found = _rounded(total / 10)
    for index in lost.flatten().nonzero().flatten().tolist():
        one, two = (Fraction(float(side.flatten()[index])) for side in (mllm, base))
        found.view(-1)[index] = nearest(WEIGHTS[0] * one + WEIGHTS[1] * two)
    return found


def _rounded(values: Tensor) -> Tensor:
    import torch

    _, exponent = torch.frexp(values)
    unit = torch.ldexp(torch.ones_like(values), exponent.clamp(min=-125) - 8)
    return (values / unit).round_().mul_(unit)


def inexact(pair: Path, layers: range, merged: Callable[[tuple[int, str]], Tensor]) -> dict[str, int]:
    """How many elements of the merged tensors are not the nearest to the exact sum.

    Args:
        pair: folder of mllm/ and base/.
        layers: that were merged.
        merged: what came of the tensor of a layer and suffix.
    """
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.names import decoder_tensor

    sources = [Checkpoint.open(pair / role) for role in ("mllm", "base")]
    names = [{decoder_tensor(name): name for name in source.names()} for source in sources]
    count = off = 0
    for layer in layers:
        for module in "qkvo":
            key = (layer, f"self_attn.{module}_proj.weight")
            expected = exact(*(source.tensor(own[key]) for source, own in zip(sources, names, strict=True)))
            off += int((merged(key).double() != expected).sum())
            count += expected.numel()
    return {"elements": count, "inexact": off}


def touch(model: nn.Module) -> int:
    """Read one value of every page that the model's parameters lie in, so that the system has to bring all of them.

    Args:
        model: as it was loaded; what it was mapped from is in the page cache or on disk.

    Returns:
        How many values were read.
    """
    read = 0
    for value in model.parameters():
        flat = value.detach().flatten()
        if len(flat):
            pages = flat[:: max(1, mmap.PAGESIZE // flat.element_size())]
            (pages.sum() + flat[-1]).item()  # a tensor need not begin where a page does: its last page, too
            read += len(pages) + 1
    return read


# ---- one way, in a process of its own --------------------------------------------------------------------------------


def one(way: str, pair: Path, output: Path, layers: range, look: bool) -> dict[str, Any]:
    """Do it once, in this process.

    Args:
        way: "plain", "merged" or "in memory".
        pair: folder of mllm/ and base/.
        output: where a checkpoint goes, if one is written.
        layers: that are merged.
        look: whether the elements are looked at afterwards.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    from plam_eval import merge
    from plam_eval.merging.names import decoder_tensor

    mllm, base, span = pair / "mllm", pair / "base", f"{layers.start}:{layers.stop}"
    written = measured.written_by()
    started = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(mllm, dtype="auto")
    loaded = time.perf_counter()
    if way == "merged":
        merge(model, "none", base=base, layers=span)
    elif way == "in memory":
        other = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        theirs = {decoder_tensor(name): value for name, value in other.named_parameters()}
        with torch.no_grad():
            for name, value in model.named_parameters():
                key = decoder_tensor(name)
                if key is not None and key[0] in layers and "self_attn" in key[1]:
                    value.copy_(0.9 * value + 0.3 * theirs[key])
        model.save_pretrained(output)
        AutoProcessor.from_pretrained(mllm).save_pretrained(output)
        del model, other, theirs
        model = AutoModelForImageTextToText.from_pretrained(output, dtype="auto")
    merged = time.perf_counter()
    touch(model)
    ended = time.perf_counter()
    assert model.dtype == torch.bfloat16
    result: dict[str, Any] = {"seconds": ended - started, "load": loaded - started, "merge": merged - loaded}
    result["touch"] = ended - merged
    result |= {"peak": measured.memory_of("VmHWM"), "written": measured.written_by() - written}
    if look and way != "plain":
        own = {decoder_tensor(name): value.detach() for name, value in model.named_parameters()}
        result |= inexact(pair, layers, own.__getitem__)
    return result


def mergekit_once(python: Path, decoder: Path, pair: Path, output: Path, layers: range, look: bool) -> dict[str, Any]:
    """mergekit's merge of the decoder with the base, as a process.

    Args:
        python: of the environment that has it.
        decoder: the MLLM's decoder as a language model.
        pair: folder of mllm/ and base/.
        output: where the merged checkpoint goes; YAML beside it.
        layers: that are merged.
        look: whether the elements are looked at afterwards.
    """
    import yaml
    from safetensors import safe_open

    from plam_eval.merging.names import decoder_tensor
    from plam_eval.spec import load_spec
    from tools.mergekit_oracle import linear_config

    spec = load_spec(None, {"base": str(pair / "base"), "layers": f"{layers.start}:{layers.stop}"})
    assert spec is not None
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(linear_config(spec, layers.stop, decoder, pair / "base")), encoding="utf-8")
    words = [python, "-m", "mergekit.scripts.run_yaml", config, output, "--quiet", "--no-write-model-card"]
    spent = measured.run_process(words)
    result = {"seconds": spent.seconds, "peak": spent.peak, "written": spent.written}
    if look:
        result["imports"] = measured.run_process([python, "-c", "import mergekit.scripts.run_yaml"]).seconds
        files = [safe_open(file, framework="pt") for file in sorted(output.glob("*.safetensors"))]
        places = {decoder_tensor(name): (file, name) for file in files for name in file.keys()}  # noqa: SIM118

        def merged(key: tuple[int, str]) -> Tensor:
            file, name = places[key]
            return file.get_tensor(name)

        result |= inexact(pair, layers, merged)
    return result


def environment(options: argparse.Namespace) -> tuple[Path | None, str]:
    """The Python that has mergekit, and why there is none.

    Args:
        options: of the command line.
    """
    from tools.mergekit_oracle import REQUIREMENT, make_environment

    python = options.mergekit
    try:
        if python is None and options.make is not None:
            with tempfile.TemporaryFile("w+") as log:  # what pip says is not part of the table
                python = _quietly(make_environment, options.make, log.fileno())
        if python is None:
            return None, "mergekit was not asked for (--mergekit PYTHON or --make FOLDER)"
        measured.run_process([python, "-c", "import mergekit.scripts.run_yaml"])
    except subprocess.CalledProcessError as error:  # its text names folders of this machine
        return None, f"{REQUIREMENT} cannot be had here (pip: exit status {error.returncode})"
    except OSError as error:
        return None, f"{REQUIREMENT} cannot be had here ({error.strerror})"
    except RuntimeError as error:
        return None, f"{REQUIREMENT} cannot be had here ({str(error).strip().splitlines()[-1][:120]})"
    return python, ""


def _quietly(make: Callable[[Path], Path], folder: Path, log: int) -> Path:
    kept = os.dup(1)
    os.dup2(log, 1)
    try:
        return make(folder)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# ---- all ways, in turn -----------------------------------------------------------------------------------------------


def in_turn(
    pair: Path, scratch: Path, layers: range, rounds: int, python: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """What each way came to in every round.

    Args:
        pair: folder of mllm/ and base/.
        scratch: for what they write.
        layers: that are merged.
        rounds: so many.
        python: of the environment that has mergekit, if there is one.
    """
    from plam_eval.merging.checkpoint import Checkpoint

    ways = [way for way in WAYS if way != "mergekit" or python]
    decoder = scratch / "decoder"
    if python:
        from tools.mergekit_oracle import write_decoder

        write_decoder(Checkpoint.open(pair / "mllm"), Checkpoint.open(pair / "base"), decoder)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}

    def once(way: str, look: bool) -> dict[str, Any]:
        output = scratch / f"out-{way.replace(' ', '-')}"
        for folder in (decoder if way == "mergekit" else pair / "mllm", pair / "base"):
            for file in sorted(folder.glob("*.safetensors")):
                measured.read_seconds(file)  # in the page cache, whatever the way before has pushed out
        shutil.rmtree(output, ignore_errors=True)
        try:
            if way == "read":
                return {"seconds": measured.read_seconds(pair / "mllm" / "model.safetensors")}
            if way == "mergekit":
                assert python is not None
                return mergekit_once(python, decoder, pair, output, layers, look)
            words = ["--one", way, "--pair", pair, "--output", output, "--layers", layers.stop]
            spent = measured.run_process(measured.python(__file__, *words, *(["--look"] if look else [])))
            return spent.result()
        finally:
            shutil.rmtree(output, ignore_errors=True)

    once("plain", False)  # libraries are in the page cache, too
    for number in range(rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            found[way].append(once(way, number == 0))
            seconds = found[way][-1]["seconds"]
            print(f"round {number + 1} of {rounds}, {way}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def rows_of(found: dict[str, list[dict[str, Any]]], sizes: dict[str, int], rates: dict[str, float]) -> list[Any]:
    """The rows of the table.

    Args:
        found: by way, what it came to in every round.
        sizes: bytes of the MLLM, of the base and of what is merged.
        rates: bytes a second: of reading from and writing into the page cache, and of memory.
    """
    ways = {way: [each["seconds"] for each in rounds] for way, rounds in found.items()}
    plain = measured.spread(ways["plain"])["median"]
    merging = sizes["merged"] / rates["read"] + 2 * sizes["merged"] / rates["memory"]

    def more(way: str) -> dict[str, object]:
        rounds = found[way]
        looked = next((each for each in rounds if "elements" in each), None)
        return {
            "peak_of_A_GB": round(max(each["peak"] for each in rounds) / 1e9, 2),
            "written_by_A_GB": round(max(each["written"] for each in rounds) / 1e9, 3),
            "inexact_in_A": f"{looked['inexact'] / looked['elements']:.3%}" if looked else "",
        }

    rows = [
        measured.row(
            "load the MLLM plain",
            ("plain", ways["plain"]),
            ("its file read", ways["read"]),
            ideal=None,
            ideal_is="mapped pages need not be copied; B copies every byte out of the page cache once",
            **more("plain"),
        ),
        measured.row(
            "load and merge",
            ("merged", ways["merged"]),
            ("plain", ways["plain"]),
            ideal=1 + merging / plain,
            ideal_is="a plain load; the base's operand read from the page cache, the MLLM's in and the result out at "
            "the rate of memory",
            **more("merged"),
        ),
        measured.row(
            "merge both in memory, save, load again",
            ("in memory", ways["in memory"]),
            ("merged", ways["merged"]),
            ideal=(2 * plain + merging + sizes["mllm"] / rates["write"]) / (plain + merging),
            ideal_is="A: two plain loads, the operands and the result, a checkpoint handed to the system; B: as above",
            **more("in memory"),
        ),
    ]
    if "mergekit" in ways:
        whole = [own + load for own, load in zip(ways["mergekit"], ways["plain"], strict=True)]
        imports = next(each["imports"] for each in found["mergekit"] if "imports" in each)
        rows.append(
            measured.row(
                f"mergekit, then a plain load ({imports:.1f} s of it mergekit's imports)",
                ("mergekit", whole),
                ("merged", ways["merged"]),
                ideal=(plain + merging + sizes["base"] / rates["read"] + sizes["base"] / rates["write"])
                / (plain + merging),
                ideal_is="A: the decoder read, the operands and the result, a checkpoint handed to the system, a plain "
                "load; B: as above",
                **more("mergekit"),
            )
        )
    return rows


def shown(rows: list[Any]) -> Iterator[str]:
    """Lines of a Markdown table of `rows`."""
    yield "| | A, s | B, s | A / B | ideal | peak, GB | written, GB | inexact |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        ratio = "{median:.2f} ({least:.2f} to {most:.2f})".format(**row["ratio"])
        ideal = "none" if row["ideal"] is None else f"{row['ideal']:.2f}"
        figures = f"{row['A']['median']:.2f} | {row['B']['median']:.2f} | {ratio} | {ideal}"
        yield f"| {row['what']} | {figures} | {' | '.join(str(value) for value in row['more'].values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hidden", type=int, default=2048, help="width of the decoder")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the checkpoints, to keep them; a temporary one by default")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", default=os.environ.get("PLAM_MERGEKIT"))
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="create an environment with mergekit there")
    parser.add_argument("--one", choices=WAYS[1:4], help=argparse.SUPPRESS)
    parser.add_argument("--pair", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    measured.add_json_argument(parser)
    options = parser.parse_args()
    layers = merged_layers(options.layers)
    if options.one:
        print(json.dumps(one(options.one, options.pair, options.output, layers, options.look)))
        return
    python, why = environment(options)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        for left in options.folder.glob("scratch-*"):  # of a run that was killed
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="scratch-") as scratch:
        pair = write_pair(options.folder or Path(scratch, "pair"), options.hidden, options.layers)
        files = {role: pair / role / "model.safetensors" for role in ("mllm", "base")}
        sizes = {role: file.stat().st_size for role, file in files.items()}
        sizes["merged"] = 2 * 4 * options.hidden**2 * len(layers)
        found = in_turn(pair, Path(scratch), layers, options.repeats, python)
        rates = {
            "read": sizes["mllm"] / measured.spread([each["seconds"] for each in found["read"]])["median"],
            "memory": measured.memory_rate(),
            "write": measured.write_rate(Path(scratch)),
        }
    rows = rows_of(found, sizes, rates)
    setting = (
        f"MLLM {sizes['mllm'] / 1e9:.2f} GB and base {sizes['base'] / 1e9:.2f} GB of bfloat16, q, k, v and o of layers "
        f"[{layers.start}, {layers.stop}) of {options.layers} merged ({sizes['merged'] / 1e6:.0f} MB), reading "
        f"{rates['read'] / 1e9:.1f}, writing {rates['write'] / 1e9:.1f} and memory {rates['memory'] / 1e9:.1f} GB/s"
    )
    print(f"{setting}\n")
    print("\n".join(shown(rows)))
    if why:
        print(f"\nmergekit: {why}")
        setting += f"; mergekit: {why}"
    measured.write_rows(options.json, rows, setting, found=found, sizes=sizes, rates=rates)


if __name__ == "__main__":
    main()
