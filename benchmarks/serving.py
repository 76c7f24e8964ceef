"""vLLM on merged weights: what it costs to start, to re-merge, and what it gains: `python benchmarks/serving.py`.

- `start`    an engine with `load_format="plam"` and a merge, against the same engine without one, on a random
             LLaVA-1.5-format checkpoint in bfloat16. Every start is a process of its own, the two kinds alternate, and
             the files are in the page cache. Time is that of `LLM(...)`, imports left out.
- `memory`   peak of the process's own memory (RssAnon) above that of the plain start, in merged float32 tensors; bytes
             that a start wrote to disk beyond a plain start.
- `re-merge` a resident engine taken to another layer_range, against the restart it saves: a new process until it gives
             its first answer (of the merged starts, where those are measured, too).
- `suite`    `plam_vllm` and `plam_llava` on the offline suite, merged, float32: documents per second, load times left
             out, and the number of answers that differ.

Prints Markdown tables. `--only` runs one part; `--large` leaves the embedded pair out of `re-merge`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import measured
import pandas as pd

PAIR = Path(__file__).resolve().parents[1] / "plam_eval" / "demo" / "pair"
ENGINE = {
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 16,
    "limit_mm_per_prompt": {"image": 1, "video": 0},
    "skip_mm_profiling": True,
    "disable_log_stats": True,
}
PARTS = ("start", "remerge", "suite")


# ---- a large random pair ---------------------------------------------------------------------------------------------


def write_pair(folder: Path, hidden: int, layers: int) -> Path:
    """The embedded pair with a larger random decoder, in bfloat16.

    Args:
        folder: for mllm/ and base/.
        hidden: the decoder's width.
        layers: how many it has.
    """
    import torch
    from safetensors.torch import load_file, save_file

    done = folder / "done"
    if done.exists():
        return folder
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()

    wide = round(hidden * 2.6875)  # LLaVA-1.5-7B: 11008 / 4096
    for role, prefix in (("mllm", "language_model."), ("base", "")):
        target = folder / role
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(PAIR / role, target)
        config = json.loads((target / "config.json").read_text())
        text = config["text_config"] if role == "mllm" else config
        text |= {"hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers}
        text |= {"num_attention_heads": hidden // 128, "num_key_value_heads": hidden // 128, "head_dim": 128}
        config["dtype"] = text["dtype"] = "bfloat16"
        (target / "config.json").write_text(json.dumps(config))
        tensors = {
            name: tensor.bfloat16()
            for name, tensor in load_file(PAIR / role / "model.safetensors").items()
            if not name.startswith((f"{prefix}model.", "multi_modal_projector", f"{prefix}lm_head"))
        }
        stored = load_file(PAIR / role / "model.safetensors")
        vocabulary = stored[f"{prefix}model.embed_tokens.weight"].shape[0]
        if role == "mllm":
            seen = stored["multi_modal_projector.linear_1.weight"].shape[1]
            tensors |= {
                "multi_modal_projector.linear_1.weight": draw(hidden, seen),
                "multi_modal_projector.linear_1.bias": draw(hidden),
                "multi_modal_projector.linear_2.weight": draw(hidden, hidden),
                "multi_modal_projector.linear_2.bias": draw(hidden),
            }
        tensors[f"{prefix}model.embed_tokens.weight"] = draw(vocabulary, hidden)
        tensors[f"{prefix}lm_head.weight"] = draw(vocabulary, hidden)
        tensors[f"{prefix}model.norm.weight"] = torch.ones(hidden).bfloat16()
        for layer in range(layers):
            name = f"{prefix}model.layers.{layer}."
            for module in ("q_proj", "k_proj", "v_proj", "o_proj"):
                tensors[f"{name}self_attn.{module}.weight"] = draw(hidden, hidden)
            tensors[f"{name}mlp.gate_proj.weight"] = draw(wide, hidden)
            tensors[f"{name}mlp.up_proj.weight"] = draw(wide, hidden)
            tensors[f"{name}mlp.down_proj.weight"] = draw(hidden, wide)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{name}{norm}.weight"] = torch.ones(hidden).bfloat16()
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    done.touch()
    return folder


# ---- what runs in processes of its own -------------------------------------------------------------------------------


def stored() -> int:
    """Bytes that this process has had written to storage so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def start(settings: dict[str, Any]) -> dict[str, Any]:
    """Start an engine with `settings`, which are `LLM`'s, and let it answer once."""
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    imported = time.perf_counter()
    memory, before = measured.PeakMemory(), stored()
    memory.start()
    llm = LLM(**settings)
    started = time.perf_counter()
    peak, bytes_written = memory.stop(), stored() - before
    llm.generate(["USER: What is in the picture? ASSISTANT:"], SamplingParams(max_tokens=1), use_tqdm=False)
    answered = time.perf_counter()
    return {
        "start": started - imported,
        "to_first_answer": answered - began,
        "peak": peak,
        "written": bytes_written,
    }


def remerge(settings: dict[str, Any]) -> dict[str, Any]:
    """Take one engine through several ranges, and sum its weights up after each; `settings` are `LLM`'s."""
    from vllm import LLM

    from plam_eval.serving.engine import merge_engine

    llm = LLM(**settings)
    extra = dict(settings["model_loader_extra_config"])
    start, end = (int(edge) for edge in extra["layers"].split(":"))
    seconds, summed = [], []
    for _ in range(3):
        for layers in (f"{start - 1}:{end}", f"{start}:{end}"):
            began = time.perf_counter()
            merge_engine(llm, None, **{**extra, "layers": layers})
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            llm.collective_rpc("plam_state", args=(True,))
            summed.append(time.perf_counter() - began)
    return {"seconds": seconds, "checksums": summed}


def suite(arguments: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The offline suite through HF and through vLLM: seconds of each, and answers that differ.

    Args:
        arguments: of the command line.
        output: folder for the suite.
    """
    from plam_eval.demo import run
    from plam_eval.harness.evaluate import evaluate as run_evaluation
    from plam_eval.model_wrappers.llava import PlamLlavaChat
    from plam_eval.model_wrappers.vllm import PlamVLLMChat

    os.chdir(run.prepare(output / "suite", arguments.documents))
    given = {"pretrained": "pair/mllm", "plateau": "demo", "dtype": "float32"}
    models = {
        "plam_llava": (PlamLlavaChat(**given, device="cpu"), 1),
        "plam_vllm": (PlamVLLMChat(**given, **{**ENGINE, "max_num_seqs": 64}, batch_size=64), 64),
    }
    answers = {}
    for model, batch in models.values():
        run_evaluation(model, "plam9", limit=4, batch_size=batch)  # the first calls set caches up

    def evaluated(name: str) -> float:
        model, batch = models[name]
        began = time.perf_counter()
        finished = run_evaluation(model, "plam9", batch_size=batch)
        assert finished is not None
        taken = time.perf_counter() - began
        answers[name] = [
            (task, row["doc_id"], row["filtered_resps"]) for task, rows in finished.samples.items() for row in rows
        ]
        return taken

    turns = measured.in_turn({name: partial(evaluated, name) for name in models}, arguments.rounds)
    found: dict[str, Any] = {
        name: {"rounds": turns[name], "batch_size": batch, "documents": len(answers[name])}
        for name, (_, batch) in models.items()
    }
    one, other = (answers[name] for name in models)
    found["answers that differ"] = sum(a != b for a, b in zip(one, other, strict=True))
    return found


def child(kind: str, settings: dict[str, Any], separate: bool) -> dict[str, Any]:
    """What `kind` measures in a new process.

    Args:
        kind: "start" or "remerge".
        settings: `LLM`'s.
        separate: with the engine in yet another process, as `LLM` has it by default.
    """
    command = [sys.executable, __file__, "--child", kind, "--settings", json.dumps(settings)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if separate else "0"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return {**json.loads(lines[0].removeprefix("RESULT")), "process": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/serving"))
    parser.add_argument("--hidden", type=int, default=2048, help="of the random decoder")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5, help="starts of either kind")
    parser.add_argument("--documents", type=int, default=120, help="per task of the offline suite")
    parser.add_argument("--rounds", type=int, default=1, help="of the offline suite")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--large", action="store_true", help="re-merge the large pair alone")
    measured.add_json_argument(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        result = {"start": start, "remerge": remerge}[arguments.child](arguments.settings)
        print("RESULT" + json.dumps(result))
        return
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    parts = [arguments.only] if arguments.only else PARTS
    record: dict[str, Any] = {}
    rows: list[measured.Row] = []
    if "start" in parts or "remerge" in parts:
        large = write_pair(output / f"pair-{arguments.hidden}-{arguments.layers}", arguments.hidden, arguments.layers)
        options = {"base": str(large / "base"), "layers": f"{arguments.layers // 2}:{arguments.layers}"}
        plain = {"model": str(large / "mllm"), "dtype": "bfloat16", **ENGINE}
        merged = {**plain, "load_format": "plam", "model_loader_extra_config": options}
    if "start" in parts:
        record["start"] = compare_starts(plain, merged, arguments, large)
        rows.append(start_row(record["start"]))
    if "remerge" in parts:
        starts = record["start"]["runs"]["merged"] if "start" in parts else []
        record["remerge"] = compare_remerge(merged, starts, arguments.large)
        rows += remerge_rows(record["remerge"])
    if "suite" in parts:
        record["suite"] = found = suite(arguments, output)
        ways = {name: found[name] for name in ("plam_llava", "plam_vllm")}
        table = pd.DataFrame(
            {name: {**way, "seconds": statistics.median(way["rounds"])} for name, way in ways.items()}
        ).T
        table = table.drop(columns="rounds").astype(float).assign(per_second=lambda t: t.documents / t.seconds)
        print(f"\n{table.to_markdown(floatfmt='.2f')}\n")
        ratio = table.per_second["plam_vllm"] / table.per_second["plam_llava"]
        print(f"plam_vllm / plam_llava: {ratio:.2f}; answers that differ: {found['answers that differ']}")
        rows.append(
            measured.row(
                f"{ways['plam_llava']['documents']} documents of the offline suite, merged, float32",
                ("plam_llava, one at a time", ways["plam_llava"]["rounds"]),
                ("plam_vllm, 64 at a time", ways["plam_vllm"]["rounds"]),
                ideal=None,
                ideal_is="of so small a model nearly all is what a step costs whatever it computes",
                answers_that_differ=found["answers that differ"],
            )
        )
    setting = f"random pair of {arguments.layers} layers, width {arguments.hidden}, bfloat16; vLLM on this machine"
    measured.write_rows(arguments.json, rows, setting, **record)


def start_row(found: dict[str, Any]) -> measured.Row:
    """A merged start beside a plain one.

    Args:
        found: as `compare_starts` gives it.
    """
    plain, merged = ([run["start"] for run in found["runs"][name]] for name in ("plain", "merged"))
    typical = statistics.median(plain)
    return measured.row(
        f"engine start, {found['checkpoint bytes'] / 1e9:.2f} GB, {found['merged bytes'] / 1e6:.0f} MB of it merged",
        ("load_format=plam and a merge", merged),
        ("plain", plain),
        ideal=1 + 3 * found["merged bytes"] / found["memory rate"] / typical,
        ideal_is="a plain start; both operands read and one result written at memory's rate",
        peak_memory_of_B=round(found["peak ratio"], 3),
        written_beyond_B_MB=round(found["written beyond"] / 1e6, 2),
    )


def remerge_rows(found: dict[str, Any]) -> list[measured.Row]:
    """A restart beside a merge in the running engine.

    Args:
        found: as `compare_remerge` gives it.
    """
    rows = []
    for name, each in found.items():
        count = min(len(each["restarts"]), len(each["remerges"]))
        restart, moved = statistics.median(each["restarts"]), each.get("merged bytes")
        rows.append(
            measured.row(
                f"another layer_range, {name}",
                ("restart until the first answer", each["restarts"][:count]),
                ("re-merge", each["remerges"][:count]),
                ideal=restart / (3 * moved / measured.memory_rate()) if moved else None,
                ideal_is="both operands read and one result written at memory's rate"
                if moved
                else "too little is merged to be timed",
            )
        )
    return rows


def compare_starts(
    plain: dict[str, Any], merged: dict[str, Any], arguments: argparse.Namespace, large: Path
) -> dict[str, Any]:
    """Medians of a plain start and a merged one.

    Args:
        plain: settings of the plain engine.
        merged: of the merged one.
        arguments: of the command line.
        large: folder of the pair.
    """
    child("start", merged, separate=False)  # reads every file once
    runs = measured.in_turn(
        {
            name: partial(child, "start", settings, separate=False)
            for name, settings in (("plain", plain), ("merged", merged))
        },
        arguments.repeats,
    )
    median = {
        name: {key: statistics.median(run[key] for run in repeated) for key in repeated[0]}
        for name, repeated in runs.items()
    }
    decoder = (large / "mllm" / "model.safetensors").stat().st_size
    tensor = arguments.hidden**2 * 4
    rows = {
        name: {
            "start [s]": values["start"],
            "start, range [s]": " to ".join(f"{pick(run['start'] for run in runs[name]):.2f}" for pick in (min, max)),
            "peak [MB]": values["peak"] / 1e6,
            "written [MB]": values["written"] / 1e6,
        }
        for name, values in median.items()
    }
    print(f"\ncheckpoint {decoder / 1e9:.2f} GB, merged layers {merged['model_loader_extra_config']['layers']}\n")
    print(pd.DataFrame(rows).T.to_markdown(floatfmt=".2f"))
    ratio = median["merged"]["start"] / median["plain"]["start"]
    beyond = (median["merged"]["peak"] - median["plain"]["peak"]) / tensor
    print(f"\nstart, merged / plain: {ratio:.3f}")
    print(f"peak beyond plain: {beyond:.2f} float32 tensors of {tensor / 1e6:.0f} MB")
    return {
        "runs": runs,
        "ratio": ratio,
        "tensors beyond plain": beyond,
        "checkpoint bytes": decoder,
        "merged bytes": merged_bytes(merged),
        "memory rate": measured.memory_rate(),
        "peak ratio": median["merged"]["peak"] / median["plain"]["peak"],
        "written beyond": median["merged"]["written"] - median["plain"]["written"],
    }


def merged_bytes(settings: dict[str, Any]) -> int:
    """Bytes of the tensors that an engine of these settings merges: q, k, v and o in bfloat16.

    Args:
        settings: `LLM`'s, of the large pair.
    """
    config = json.loads((Path(settings["model"]) / "config.json").read_text())["text_config"]
    first, last = (int(edge) for edge in settings["model_loader_extra_config"]["layers"].split(":"))
    return 2 * 4 * int(config["hidden_size"]) ** 2 * (last - first)


def compare_remerge(large: dict[str, Any], starts: list[dict[str, Any]], alone: bool) -> dict[str, Any]:
    """A restart against a merge in the running engine.

    Args:
        large: settings of an engine on the large pair.
        starts: of that engine, where some were measured; otherwise one is.
        alone: without the embedded pair.
    """
    small = {
        "model": str(PAIR / "mllm"),
        "dtype": "float32",
        **ENGINE,
        "load_format": "plam",
        "model_loader_extra_config": {"base": str(PAIR / "base"), "layers": "4:8"},
    }
    found, rows = {}, {}
    engines = {"large random pair": large} if alone else {"embedded pair": small, "large random pair": large}
    for name, settings in engines.items():
        known = starts if settings is large and starts else [child("start", settings, separate=True)]
        restarts = [run["to_first_answer"] for run in known]
        told = child("remerge", settings, separate=True)
        remerges, checksums = told["seconds"], told["checksums"]
        restart, seconds, summed = (statistics.median(each) for each in (restarts, remerges, checksums))
        found[name] = {"restarts": restarts, "remerges": remerges, "checksums": checksums, "ratio": restart / seconds}
        if settings is large:
            found[name]["merged bytes"] = merged_bytes(settings)
        rows[name] = {
            "restart [s]": restart,
            "re-merge [s]": seconds,
            "ratio": restart / seconds,
            "checksums [s]": summed,
        }
    print(f"\n{pd.DataFrame(rows).T.to_markdown(floatfmt='.2f')}\n")
    return found


if __name__ == "__main__":
    main()
