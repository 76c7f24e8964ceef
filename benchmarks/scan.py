"""All cut layers at once against one masked generation per cut: `python benchmarks/scan.py`.

A random model in LLaVA format answers the same prompts both ways, in one process, in turn:

- `separate`  for every cut c = 0..L, `mask_vision(model, c)` and a whole `model.generate`, as a user would call it
- `scan`      one `generate_all_cuts`

and the answers are compared token for token. The vision tower is made small on purpose: each separate run encodes the
image again, and a large tower would flatter the scan.

`ideal` counts rows of the decoder times layers: (L + 1) whole generations, over one prompt plus the text behind the
image once more per layer and cut, plus the generated tokens of every cut. It is the ratio a machine would show on which
each row costs the same. Rows do not: a lone new token costs far more than its share of a batch, and attention to the
image is saved too, so the measured ratio may exceed it.

MB is the peak beside the loaded model: resident memory on CPU (Linux), allocated memory on CUDA. A separate run needs
the same for each cut.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measured
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from plam_eval.decoding.all_cuts import CutAnswers, generate_all_cuts
from plam_eval.probing.masking import mask_vision

PATCH = 14
VOCABULARY = 8192
IMAGE, PAD = VOCABULARY - 1, VOCABULARY - 2


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add to `parser` the options of the model, its prompts and how often they are answered."""
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of the head size")
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=None, help="default: as many as heads")
    parser.add_argument("--vision-tokens", type=int, default=576, help="a square number")
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--before", type=int, default=6, help="text tokens before the image, as in LLaVA-1.5's prompt")
    parser.add_argument("--documents", type=int, default=1, help="batch size")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="answers need only be equal in float32")


def build(arguments: argparse.Namespace) -> Any:
    """A random LLaVA as `arguments` size it. Weights have unit gain: every layer and the image move the answer."""
    side = round(arguments.vision_tokens**0.5)
    hidden = arguments.hidden
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side * PATCH,
            "patch_size": PATCH,
            "projection_dim": 64,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": round(hidden * 2.6875),  # LLaVA-1.5-7B: 11008 / 4096
            "num_hidden_layers": arguments.layers,
            "num_attention_heads": hidden // arguments.head_size,
            "num_key_value_heads": arguments.kv_heads or hidden // arguments.head_size,
            "vocab_size": VOCABULARY,
            "pad_token_id": PAD,
            "eos_token_id": None,
            "bos_token_id": None,
        },
        image_token_index=IMAGE,
        image_seq_length=side * side,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    for name, value in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
            elif value.dim() < 2:
                value.zero_()
            else:
                value.normal_(std=1.0 if "embed" in name else value[0].numel() ** -0.5)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    return model.to(dtype).eval()


def prompt(arguments: argparse.Namespace) -> dict[str, Tensor]:
    """Random inputs of `generate`, of as many documents and tokens as `arguments` say."""
    side = round(arguments.vision_tokens**0.5)
    text = torch.randint(0, PAD, (arguments.documents, arguments.text_tokens))
    image = torch.full((arguments.documents, side * side), IMAGE)
    ids = torch.cat([text[:, : arguments.before], image, text[:, arguments.before :]], dim=1).to(arguments.device)
    pixels = torch.rand(arguments.documents, 3, side * PATCH, side * PATCH, device=arguments.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def separate(model: Any, inputs: dict[str, Tensor], new: int, cuts: range) -> Tensor:
    """The answers under every cut by generations of their own: (cuts, documents, new).

    Args:
        model: the MLLM.
        inputs: of `generate`.
        new: tokens to generate.
        cuts: layers from which on the image is hidden.
    """
    answers = []
    for cut in cuts:
        with mask_vision(model, cut):
            out = model.generate(**inputs, max_new_tokens=new, do_sample=False)
        answers.append(out[:, inputs["input_ids"].shape[1] :])
    return torch.stack(answers)


def scan(model: Any, inputs: dict[str, Any], new: int) -> CutAnswers:
    """The answers of `model` to `inputs` under every cut in one generation of `new` tokens."""
    return generate_all_cuts(model, **inputs, max_new_tokens=new, do_sample=False)


def ideal(layers: int, prompt_tokens: int, after: int, new: int) -> float:
    """How many times less work one generation is, counted in tokens times layers.

    Args:
        layers: of the decoder.
        prompt_tokens: with the image's.
        after: tokens behind the image, which differ from cut to cut.
        new: tokens that are generated.
    """
    cuts_by_layer = layers * (layers + 1) // 2
    alone = (layers + 1) * (prompt_tokens + new - 1) * layers
    return alone / (prompt_tokens * layers + after * cuts_by_layer + (layers + 1) * (new - 1) * layers)


def seconds(device: str, work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds of `work(*given)` and what it returns, once everything on `device` is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work(*given)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak(way: str, new: int) -> float:
    """Peak memory in MB that one way needs beside the loaded model, in a process of its own.

    Args:
        way: "separate" or "scan".
        new: tokens to generate.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", way, "--new-tokens", str(new)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(arguments: argparse.Namespace) -> float:
    """Peak memory in MB of the way that `arguments` name, beside the loaded model, in this process."""
    model, inputs = build(arguments), prompt(arguments)
    new, cuda = arguments.new_tokens[0], arguments.device.startswith("cuda")
    # What libraries keep for themselves is not counted; a longer prompt would leave freed memory for the next to use.
    model.generate(input_ids=inputs["input_ids"][:, :2], max_new_tokens=1, do_sample=False)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: from here on a new peak
        before = measured.memory_of("VmRSS") / 2**20
    if arguments.peak_of == "scan":
        scan(model, inputs, new)
    else:  # every cut needs the same; the blind one stands for them
        separate(model, inputs, new, range(1))
    return (torch.cuda.max_memory_allocated() if cuda else measured.memory_of("VmHWM")) / 2**20 - before


def main() -> None:
    import pandas as pd  # which those who have the model from here can do without

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=None)
    measured.add_json_argument(parser)
    parser.add_argument("--peak-of", choices=["separate", "scan"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(measure_peak(arguments))
        return

    model, inputs = build(arguments), prompt(arguments)
    cuts = range(arguments.layers + 1)
    length, after = inputs["input_ids"].shape[1], arguments.text_tokens - arguments.before
    scan(model, inputs, 2)  # both ways start warm
    separate(model, inputs, 2, range(1))
    table, rows, equal = [], [], True
    for new in arguments.new_tokens:
        timed: dict[str, Callable[[], tuple[float, Any]]] = {
            "separate": partial(seconds, arguments.device, separate, model, inputs, new, cuts),
            "scan": partial(seconds, arguments.device, scan, model, inputs, new),
        }
        found = measured.in_turn(timed, arguments.repeats)
        times = {way: [took for took, _ in rounds] for way, rounds in found.items()}
        answers = [(one, all_at_once.tokens) for (_, one), (_, all_at_once) in zip(*found.values(), strict=True)]
        same = min((tokens == expected).all(-1).float().mean().item() for expected, tokens in answers)
        equal &= same == 1.0
        expected = answers[-1][0]
        alone, together = (statistics.median(times[way]) for way in ("separate", "scan"))
        best = ideal(arguments.layers, length, after, new)
        peaks = {way: peak(way, new) for way in ("separate", "scan")}
        rows.append(
            measured.row(
                f"answers of {new} token(s) under {len(cuts)} cuts",
                ("a masked generation per cut", times["separate"]),
                ("all cuts at once", times["scan"]),
                ideal=best,
                ideal_is="rows of the decoder times layers",
                peak_A_MB=round(peaks["separate"]),
                peak_B_MB=round(peaks["scan"]),
                same_answers=f"{same:.0%}",
            )
        )
        table.append(
            {
                "new tokens": new,
                "separate s": alone,
                "scan s": together,
                "ratio": alone / together,
                "ideal": best,
                "of ideal": alone / together / best,
                "same answers": same,
                "different answers": len({tuple(answer.flatten().tolist()) for answer in expected}),
                "separate MB": peaks["separate"],
                "scan MB": peaks["scan"],
            }
        )
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor()
    setting = (
        f"{arguments.layers} layers, hidden size {arguments.hidden}, {length} prompt tokens of which "
        f"{length - arguments.text_tokens} vision and {after} text behind it, {arguments.documents} documents, "
        f"{arguments.dtype}, {machine or platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{setting}; medians of {arguments.repeats}\n")
    print(pd.DataFrame(table).to_markdown(index=False, floatfmt=".2f"))
    measured.write_rows(arguments.json, rows, setting, table=table)
    if not equal and arguments.dtype == "float32":
        sys.exit("the two ways gave different answers")


if __name__ == "__main__":
    main()
