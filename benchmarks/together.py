"""Many merges at once against one generation per merge: `python benchmarks/together.py`.

The random LLaVA of `benchmarks/scan.py` (proportions of LLaVA-1.5, a small vision tower) with a base LLM answers the
same prompts both ways, in one process, in turn:

- `separate`  for every merge, a whole `model.generate` on the model merged in place; merging is not counted
- `together`  one `generate_all_merges`; working out the merged tensors is not counted

and the answers are compared token for token. Twelve merges and the plain model, three ways: all in the last quarter of
the layers, four each in the early, middle and late third, and all in every layer.

`ideal` counts rows of the decoder times layers: whole generations, over one prompt per group of merges that are the
same up to a layer, plus the generated tokens of every merge. Rows do not cost the same, so the measured ratio may
exceed it.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measured
import pandas as pd
import torch
from scan import PAD, add_model_arguments, build, prompt, seconds
from torch import Tensor
from transformers import LlamaForCausalLM

from plam_eval.decoding.all_merges import Merges, generate_all_merges
from plam_eval.merging.merge import merge_in_place
from plam_eval.spec import PlateauSpec, load_spec

MERGES = 12


def save_pair(model: Any, folder: Path) -> tuple[Path, Path]:
    """Write `model`, and a base LLM whose decoder differs from the model's by half, into `folder`."""
    model.save_pretrained(folder / "mllm")
    base = LlamaForCausalLM(model.config.text_config).to(model.dtype)
    own = dict(model.model.language_model.named_parameters())
    with torch.no_grad():
        for name, value in base.model.named_parameters():
            value.copy_(own[name] + 0.5 * own[name].std() * torch.randn_like(value) if value.dim() > 1 else own[name])
    base.save_pretrained(folder / "base")
    return folder / "mllm", folder / "base"


def specs_in(ranges: list[tuple[int, int]], base: Path) -> list[PlateauSpec | None]:
    """The plain model, and twelve merges with `base`, of other weights each, over `ranges` of layers in turn."""
    specs: list[PlateauSpec | None] = [None]
    for index in range(MERGES):
        weights = {"model": round(0.95 - 0.05 * index, 2), "base_model": 0.3}
        layers = list(ranges[index % len(ranges)])
        specs.append(load_spec({"base_model": str(base), "layer_range": layers, "modules": "qkvo", "weights": weights}))
    return specs


def ideal(specs: list[PlateauSpec | None], layers: int, prompt_tokens: int, new: int) -> float:
    """How many times less work one generation is, counted in tokens times layers.

    Args:
        specs: the merges, None for plain.
        layers: of the decoder.
        prompt_tokens: with the image's.
        new: tokens that are generated.
    """
    first = [spec.layers[0] if spec else layers for spec in specs]
    layer_passes = sum(1 + sum(start <= layer for start in first) for layer in range(layers))
    alone = len(specs) * (prompt_tokens + new - 1) * layers
    return alone / (prompt_tokens * layer_passes + len(specs) * (new - 1) * layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_model_arguments(parser)
    measured.add_json_argument(parser)
    arguments = parser.parse_args()

    model, inputs = build(arguments), prompt(arguments)
    layers, length = arguments.layers, inputs["input_ids"].shape[1]
    third, quarter = layers // 3, layers // 4
    ways = {
        "the last quarter": [(layers - quarter, layers)],
        "early, middle, late": [(0, third), (third, layers - third), (layers - third, layers)],
        "all layers": [(0, layers)],
    }
    # Whatever an end token would be, all answers are as long as they may be.
    settings = {"do_sample": False, "eos_token_id": PAD + 1, "suppress_tokens": [PAD, PAD + 1]}
    rows, told, equal = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        mllm, base = save_pair(model, Path(folder))

        def separate(specs: list[PlateauSpec | None], new: int) -> tuple[float, Tensor]:
            took, answers = 0.0, []
            for spec in specs:
                merge_in_place(model, spec, checkpoint=mllm)
                own, out = seconds(arguments.device, lambda: model.generate(**inputs, max_new_tokens=new, **settings))
                took += own
                answers.append(out[:, length:])
            merge_in_place(model, None, checkpoint=mllm)
            return took, torch.stack(answers)

        for name, ranges in ways.items():
            specs = specs_in(ranges, base)
            merges = Merges.of(model, specs, checkpoint=mllm)

            def together(merges: Merges, new: int) -> tuple[float, Tensor]:
                took, answers = seconds(
                    arguments.device,
                    lambda: generate_all_merges(model, merges, **inputs, max_new_tokens=new, **settings),
                )
                return took, answers.tokens

            together(merges, 2)  # both ways start warm
            separate(specs[:1], 2)
            for new in arguments.new_tokens:
                timed: dict[str, Callable[[], tuple[float, Tensor]]] = {
                    "separate": partial(separate, specs, new),
                    "together": partial(together, merges, new),
                }
                found = measured.in_turn(timed, arguments.repeats)
                times = {way: [took for took, _ in rounds] for way, rounds in found.items()}
                answers = [(one, all_at_once) for (_, one), (_, all_at_once) in zip(*found.values(), strict=True)]
                same = min((tokens == expected).all(-1).float().mean().item() for expected, tokens in answers)
                equal &= same == 1.0
                expected = answers[-1][0]
                alone, at_once = (statistics.median(times[way]) for way in ("separate", "together"))
                told.append(
                    measured.row(
                        f"{len(specs)} settings that merge in {name}, answers of {new} token(s)",
                        ("a generation per setting", times["separate"]),
                        ("all at once", times["together"]),
                        ideal=ideal(specs, layers, length, new),
                        ideal_is="rows of the decoder times layers",
                        merged_tensors_MB=round(merges.nbytes / 2**20),
                        same_answers=f"{same:.0%}",
                    )
                )
                rows.append(
                    {
                        "merged layers": name,
                        "new tokens": new,
                        "separate s": alone,
                        "together s": at_once,
                        "ratio": alone / at_once,
                        "ideal": ideal(specs, layers, length, new),
                        "same answers": same,
                        "different answers": len({tuple(answer.flatten().tolist()) for answer in expected}),
                        "merged tensors MB": merges.nbytes / 2**20,
                    }
                )
                print(rows[-1], file=sys.stderr)
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor()
    setting = (
        f"{MERGES} merges and plain, {layers} layers, hidden size {arguments.hidden}, {length} prompt tokens, "
        f"{arguments.documents} documents, {arguments.dtype}, {machine or platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{setting}; medians of {arguments.repeats}\n")
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))
    measured.write_rows(arguments.json, told, setting, table=rows)
    if not equal and arguments.dtype == "float32":
        sys.exit("the two ways gave different answers")


if __name__ == "__main__":
    main()
