"""What a merge at load costs, and how far its bits are from exact arithmetic: `python benchmarks/merge.py`.

A decoder of random bfloat16 weights (302 MB of them merged, unless --layers says otherwise) and a base beside it, on
disk as checkpoints and, the former, in memory as a loaded model. `merge_in_place` as a wrapper calls it while loading,
and once more from one spec to another on the resident model. Each is repeated after a round that is not counted, in
which libraries and files are read for the first time; the smallest time stands in the table, all rounds in `--json`.

- `seconds`, `CPU seconds`, `page faults`, `written`: of the merge alone. `written` is what it puts into TMPDIR.
- `memory limit`: seconds that copying the same bytes takes, two operands in and one result out.

`--bits` counts the elements of a merge that are others than the nearest bfloat16 to w_model * W_mllm + w_base * W_base
in exact rational arithmetic, for float32 (which is used), for float64 and for bfloat16 arithmetic.

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import measured
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plam_eval.merging.merge import merge_in_place
from plam_eval.spec import load_spec

WIDTH, MODULES = 2048, ("q_proj", "k_proj", "v_proj", "o_proj")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in MODULES:
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()


class Decoder(nn.Module):
    """A decoder of `layers` layers, under the names of a causal language model."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Layer() for _ in range(layers))


def write(folder: Path, layers: int, seed: int) -> Path:
    """A checkpoint of random weights of the size that trained ones have, the same in every layer.

    Args:
        folder: where it goes.
        layers: of the decoder.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    # Drawing takes longer than all that is measured, and no time depends on the values: one layer is enough.
    drawn = {name: (torch.randn(WIDTH, WIDTH, generator=generator) * 0.02).to(torch.bfloat16) for name in MODULES}
    tensors = {
        f"model.layers.{layer}.self_attn.{name}.weight": value.clone()
        for layer in range(layers)
        for name, value in drawn.items()
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spent(action: Callable[[], object]) -> dict[str, float]:
    """Seconds, CPU seconds, page faults and bytes written of `action`."""
    usage, started, before = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), measured.written_by()
    action()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "CPU seconds": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "page faults": after.ru_minflt - usage.ru_minflt,
        "written": measured.written_by() - before,
    }


def costs(layers: int, repeats: int, file: Path | None = None) -> None:
    """Print what a merge costs, the best of all.

    Args:
        layers: that are merged.
        repeats: so many.
        file: where the figures go as JSON.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = [write(Path(scratch, name), layers, seed) for seed, name in enumerate(("mllm", "base"))]
        stored = torch.cat([tensor.flatten() for tensor in _load(folders[0]).values()])
        specs = [
            load_spec(None, {"base": str(folders[1]), "layers": f"0:{layers}", "model_weight": weight})
            for weight in (0.9, 0.7)
        ]

        def merged() -> tuple[dict[str, float], dict[str, float]]:
            module = Decoder(layers)
            module.load_state_dict(_load(folders[0]))
            merge = functools.partial(merge_in_place, module, checkpoint=folders[0])
            at_load = spent(functools.partial(merge, specs[0], thrown_away_on_error=True))
            return at_load, spent(functools.partial(merge, specs[1]))  # which needs a model that is merged

        def added() -> tuple[dict[str, float]]:
            other, result = stored.clone(), torch.zeros_like(stored)
            return (spent(functools.partial(torch.add, stored, other, out=result)),)

        merged(), added()  # libraries are there, and files in the page cache, from here on
        turns = measured.in_turn({"merged": merged, "added": added}, repeats)
        rows = {
            "at load": [one for one, _ in turns["merged"]],
            "to another spec": [other for _, other in turns["merged"]],
            "memory limit": [each for (each,) in turns["added"]],
        }
        setting = f"{stored.nbytes / 1e6:.0f} MB merged of bfloat16, {torch.get_num_threads()} thread(s)"
        print(f"{setting}\n")
    print("| | seconds | CPU seconds | page faults | written |\n|---|---|---|---|---|")
    for name, repeated in rows.items():
        best = min(repeated, key=lambda row: row["seconds"])
        print(
            f"| {name} | {best['seconds']:.2f} | {best['CPU seconds']:.2f} | {best['page faults']:,.0f} "
            f"| {best['written'] / 1e6:.0f} MB |"
        )
    limit = [each["seconds"] for each in rows["memory limit"]]
    told = [
        measured.row(
            f"merge {name}",
            (name, [each["seconds"] for each in rows[name]]),
            ("the two operands added in memory", limit),
            ideal=1.0,
            ideal_is="two operands in, one result out, at the rate of memory",
            written_MB=round(max(each["written"] for each in rows[name]) / 1e6, 1),
            page_faults=int(measured.spread([each["page faults"] for each in rows[name]])["median"]),
        )
        for name in ("at load", "to another spec")
    ]
    measured.write_rows(file, told, setting, **rows)


def _load(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def nearest(exact: Fraction) -> float:
    """The bfloat16 nearest to the rational number `exact`, ties to even."""
    if exact == 0:
        return 0.0
    exponent = max(_exponent(abs(exact)), -126) - 7  # of one unit in the last of eight binary digits
    unit = Fraction(2) ** exponent
    return float(round(exact / unit) * unit)


def _exponent(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= value else guess - 1


def bits(count: int) -> None:
    """Print how many of `count` elements other arithmetic rounds otherwise than to the nearest bfloat16."""
    generator = torch.Generator().manual_seed(0)
    mllm, change = (torch.randn(count, generator=generator) * size for size in (0.02, 0.002))
    mllm, base = mllm.to(torch.bfloat16), (mllm + change).to(torch.bfloat16)
    weights = Fraction(9, 10), Fraction(3, 10)
    pairs = zip(mllm.tolist(), base.tolist(), strict=True)
    exact = [weights[0] * Fraction(one) + weights[1] * Fraction(other) for one, other in pairs]
    best = torch.tensor([nearest(value) for value in exact], dtype=torch.float64)
    steps = [float(2.0 ** (_exponent(abs(value)) - 7)) if value else 1.0 for value in exact]
    print(f"\n{count:,} elements of 0.9 and 0.3 times bfloat16 weights\n")
    print("| arithmetic | others than the nearest bfloat16 | by more than one unit |\n|---|---|---|")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        merged = mllm.to(dtype).mul(0.9).add(base.to(dtype).mul(0.3)).to(torch.bfloat16).double()
        off = (merged - best).abs() / torch.tensor(steps, dtype=torch.float64)
        print(f"| {str(dtype).removeprefix('torch.')} | {(off > 0).double().mean():.2%} | {(off > 1).sum().item()} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--bits", type=int, metavar="ELEMENTS", help="count elements that are not the nearest, instead")
    measured.add_json_argument(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.bits:
        bits(options.bits)
    else:
        costs(options.layers, options.repeats, options.json)


if __name__ == "__main__":
    main()
