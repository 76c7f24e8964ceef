"""What attention rows cost beside a prefill: `python benchmarks/attention.py`.

The random LLaVA of `benchmarks/scan.py` (28 layers, 576 image and 64 text tokens, a small vision tower) runs one
prompt, in one process, alternating:

- `prefill`            the model, with sdpa attention, without a KV cache and with the last token's logits alone, which
                       is the least that a prefill does; all ratios are to this one
- `rows`               `attention_rows`: the last token's, of all layers
- `rows, massive`      the same, and massive activations, of which sinks are found
- `rows of question`   those of all text behind the image
- `eager prefill`      the prefill with eager attention
- `output_attentions`  with eager attention, all weights, of which the last token's are taken: what others do

and then four settings (plain, merged, `self_scale`, `normalized`, all in the last quarter of the layers):

- `separate`  `attention_rows` for each on the model with its weights, one after another
- `together`  one `generate_with_rows`; `ideal` counts the layers that run. Working out merged tensors is not counted

Rows are compared: with those of eager attention, and of settings alone. Seconds are medians; ratios are of runs of the
same round, their median and, in brackets, the smallest and largest. MB is the peak of what tensors hold beside the
loaded model: CUDA's count, on a CPU that of PyTorch's profiler, in a run that is not timed.

plam-eval has to be installed, or the checkout named: `PYTHONPATH=. python benchmarks/attention.py`.

A GPU with the shape of a 7B model: `--device cuda --dtype bfloat16 --hidden 3584 --head-size 128 --kv-heads 4`. Besides
plam-eval's own modules this needs torch, transformers, safetensors and pydantic.

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measured
import torch
from safetensors.torch import save_file
from scan import add_model_arguments, build, prompt, seconds
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from plam_eval.decoding.all_merges import Merges
from plam_eval.decoding.merge_rows import generate_with_rows
from plam_eval.probing.attention import attention_rows, tokens_behind_images
from plam_eval.spec import load_spec

Ways = Mapping[str, Callable[[], Any]]
PREFILL = {"use_cache": False, "logits_to_keep": 1}


def single_ways(model: Any, inputs: dict[str, Tensor]) -> Ways:
    """The ways in which `model` runs `inputs`, by name; rows are (layers, documents, tokens)."""

    def attentions(implementation: str, **more: Any) -> Any:
        model.set_attn_implementation(implementation)
        try:
            with torch.no_grad():
                return model(**inputs, **PREFILL, **more)
        finally:
            model.set_attn_implementation("sdpa")

    def all_weights() -> Tensor:
        layers = attentions("eager", output_attentions=True).attentions
        return torch.stack([weights[:, :, -1].float().mean(1) for weights in layers]).cpu()

    def rows(**more: Any) -> Tensor:
        return attention_rows(model, inputs, **more).weights[:, :, 0, -1]

    return {
        "prefill": lambda: attentions("sdpa"),
        "rows": rows,
        "rows, massive": lambda: rows(massive=True),
        "rows of question": lambda: rows(queries=tokens_behind_images(model, inputs)),
        "eager prefill": lambda: attentions("eager"),
        "output_attentions": all_weights,
    }


def settings(model: Any, folder: Path, first: int) -> Merges:
    """Plain, merged, `self_scale` and `normalized` from decoder layer `first` on, with checkpoints below `folder`.

    These hold no more than the tensors that are merged, and a norm of each layer, so that a large model need not be
    written.

    Args:
        model: the MLLM.
        folder: where they go.
        first: the layer from which on settings differ.
    """
    layers = len(model.model.language_model.layers)
    place = "model.language_model.layers"
    names = [f"{place}.{layer}.input_layernorm.weight" for layer in range(layers)]
    names += [f"{place}.{layer}.self_attn.{name}_proj.weight" for layer in range(first, layers) for name in "qkvo"]
    own = {name: value.detach() for name, value in model.named_parameters() if name in names}
    other = {
        name.replace("language_model.", ""): value + 0.5 * value.std() * torch.randn_like(value)
        if value.dim() > 1
        else value
        for name, value in own.items()
    }
    for name, tensors, config in (("mllm", own, model.config), ("base", other, model.config.text_config)):
        config.save_pretrained(folder / name)
        save_file({key: value.cpu() for key, value in tensors.items()}, folder / name / "model.safetensors")
    spec = {
        "base_model": str(folder / "base"),
        "layer_range": [first, layers],
        "modules": "qkvo",
        "weights": {"model": 0.9, "base_model": 0.3},
    }
    controls = [load_spec({**spec, "rule": rule}) for rule in ("self_scale", "normalized")]
    return Merges.of(model, [None, load_spec(spec), *controls], checkpoint=folder / "mllm")


def setting_ways(model: Any, inputs: dict[str, Any], merges: Merges) -> Ways:
    """The ways to have rows of `model` on `inputs` under all `merges`: (settings, layers, documents, tokens)."""

    def separate() -> Tensor:
        each = []
        for number in range(len(merges.specs)):
            with merges.applied(number):
                each.append(attention_rows(model, inputs).weights[:, :, 0, -1])
        return torch.stack(each)

    def together() -> Tensor:
        got = generate_with_rows(model, merges, **inputs, max_new_tokens=1, do_sample=False, eos_token_id=0)
        return torch.stack([rows.weights[:, :, 0, -1] for rows in got.rows])

    return {"separate": separate, "together": together}


def peak(device: str, work: Callable[[], Any]) -> float:
    """MB that tensors hold at most while `work` runs, beside those that `device` holds already."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def compare(ways: Ways, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Seconds and peaks of each of `ways`, with ratios to the first, and what each of them gave.

    Args:
        ways: what to run, by name.
        arguments: with `repeats` and `device`.
    """
    results = {name: work() for name, work in ways.items()}  # all start warm
    times = measured.in_turn(
        {name: lambda work=work: seconds(arguments.device, work)[0] for name, work in ways.items()},
        arguments.repeats,
    )
    peaks = {name: peak(arguments.device, work) for name, work in ways.items()}
    base = next(iter(ways))
    rows = []
    for name in ways:
        ratio = measured.row(name, (name, times[name]), (base, times[base]), ideal=None, ideal_is="")["ratio"]
        rows.append(
            {
                "way": name,
                "seconds": statistics.median(times[name]),
                "rounds": times[name],
                "time": ratio["median"],
                "least": ratio["least"],
                "most": ratio["most"],
                "MB": peaks[name],
                "memory": peaks[name] / peaks[base],
            }
        )
    return rows, results


def table(rows: list[dict[str, Any]], base: str) -> str:
    """The `rows` that `compare` gives as Markdown, ratios being to `base`."""
    lines = [f"| | seconds | of {base} | MB | of {base} |", "|---|---|---|---|---|"]
    for row in rows:
        spread = f"{row['time']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        lines.append(f"| {row['way']} | {row['seconds']:.4f} | {spread} | {row['MB']:.1f} | {row['memory']:.2f} |")
    return "\n".join(lines) + "\n"


def extra(arguments: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """By way, the ideal of its time to a prefill's: what it multiplies besides, in multiplications.

    Args:
        arguments: that size the model.
    """
    tokens, hidden = arguments.vision_tokens + arguments.text_tokens, arguments.hidden
    behind = arguments.text_tokens - arguments.before
    layer = tokens * hidden * (4 * hidden + 3 * round(hidden * 2.6875)) + tokens**2 * hidden
    counted = "a prefill, and the products of these queries with all keys once more"
    return {
        "rows": (1 + tokens * hidden / layer, counted),
        "rows, massive": (1 + tokens * hidden / layer, counted),
        "rows of question": (1 + behind * tokens * hidden / layer, counted),
        "output_attentions": (1 + tokens**2 * hidden / layer / 2, "a prefill that multiplies all pairs of tokens"),
    }


def told_of(rows: list[dict[str, Any]], ideals: Mapping[str, tuple[float, str]]) -> list[measured.Row]:
    """Rows for `--json`, of the ways that have an ideal.

    Args:
        rows: that `compare` gives; the first is what others are held against.
        ideals: by way.
    """
    first = rows[0]
    return [
        measured.row(
            f"attention rows: {each['way']}",
            (each["way"], each["rounds"]),
            (first["way"], first["rounds"]),
            ideal=ideals[each["way"]][0],
            ideal_is=ideals[each["way"]][1],
            memory_of_B=round(each["memory"], 2),
        )
        for each in rows
        if each["way"] in ideals
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_model_arguments(parser)
    measured.add_json_argument(parser)
    parser.set_defaults(repeats=7)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, inputs = build(arguments), prompt(arguments)
    layers, first = arguments.layers, arguments.layers - arguments.layers // 4

    single, rows = compare(single_ways(model, inputs), arguments)
    with tempfile.TemporaryDirectory() as folder:
        merges = settings(model, Path(folder), first)
    several, all_rows = compare(setting_ways(model, inputs, merges), arguments)
    count = len(merges.specs)
    ideal = (first + count * (layers - first)) / (count * layers)
    eager = float((rows["rows"] - rows["output_attentions"]).abs().max())
    alone = float((all_rows["together"] - all_rows["separate"]).abs().max())
    different = float((all_rows["separate"][0] - all_rows["separate"][1]).abs().max())

    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor()
    setting = (
        f"{layers} layers, hidden size {arguments.hidden}, {inputs['input_ids'].shape[1]} prompt tokens, "
        f"{arguments.documents} documents, {arguments.dtype}, {machine or platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{setting}, torch {torch.__version__}; {arguments.repeats} rounds\n")
    print(table(single, "prefill"))
    print(f"Rows differ from those of eager attention by at most {eager:.1e}.\n")
    print(table(several, "separate"))
    print(
        f"{count} settings that share {first} of {layers} layers; ideal {ideal:.2f} of separate. Rows differ from "
        f"those of settings alone by at most {alone:.1e}, merged from plain by {different:.1e}."
    )
    told = [*told_of(single, extra(arguments)), *told_of(several, {"together": (ideal, "layers that run")})]
    differences = {"from eager": eager, "from settings alone": alone}
    measured.write_rows(arguments.json, told, setting, single=single, settings=several, differences=differences)
    if arguments.dtype == "float32" and not max(eager, alone) < 1e-5:
        sys.exit("the ways gave different rows")


if __name__ == "__main__":
    main()
