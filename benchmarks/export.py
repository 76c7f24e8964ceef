"""What `plam export` costs, beside a plain copy and beside load, merge, save: `python benchmarks/export.py`.

A random checkpoint in LLaVA-1.5 format in bfloat16, in shards, and its base; q, k, v and o of a third of the layers are
merged. Each way is a process of its own, the ways take turns, and the files are in the page cache:

- `cp`                the folder copied by `cp -r`, and waited for until it is on disk (`sync`).
- `plam export`       with the hashes of the source's large files known from before, as after any evaluation of it.
- `plam export, new`  with nothing known: every file of the source is hashed as well.
- `save_pretrained`   the model loaded by transformers in its own dtype, merged in place, saved; its processor as well.

`seconds` leave out imports; `memory` is the peak of the process's own memory (RssAnon) above what imports take, and
`resident` that with mapped files (VmHWM). The fastest of the repeats.

Prints a Markdown table, and whether the merged tensors of both ways are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import measured
from serving import write_pair
from torch import Tensor

WAYS = ("cp", "plam export", "plam export, new", "save_pretrained")


def write_shards(folder: Path, size: int) -> None:
    """Split a one-file checkpoint into shards.

    Args:
        folder: of the checkpoint.
        size: bytes of a shard, at most.
    """
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    if not file.exists():
        return
    shards: list[dict[str, Tensor]] = [{}]
    held, weight_map = 0, dict[str, str]()
    for name, tensor in load_file(file).items():
        if held and held + tensor.nbytes > size:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    for number, shard in enumerate(shards, 1):
        target = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / target, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, target)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    file.unlink()


def one(way: str, pair: Path, output: Path, layers: str) -> dict[str, float]:
    """Do it once, in this process.

    Args:
        way: one of `WAYS`.
        pair: folder of mllm/ and base/.
        output: where the result goes.
        layers: that are merged, START:END.
    """
    if way == "save_pretrained":
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from plam_eval import merge
    elif way != "cp":
        import plam_eval.publishing.checkpoint.export  # noqa: F401
        from plam_eval import export
        from plam_eval.merging.geometry import decoder_geometry
    mllm, base = pair / "mllm", pair / "base"
    if "plam" in way:
        for folder in (mllm, base):
            decoder_geometry(json.loads((folder / "config.json").read_text()))  # imports what transformers has of it
    before = measured.memory_of("RssAnon"), measured.memory_of("VmRSS")
    memory = measured.PeakMemory()
    memory.start()
    started = time.perf_counter()
    if way == "cp":
        subprocess.run(["cp", "-r", str(mllm), str(output)], check=True)
        subprocess.run(["sync"], check=True)
    elif way == "save_pretrained":
        model = AutoModelForImageTextToText.from_pretrained(mllm, dtype="auto")
        assert model.dtype == torch.bfloat16
        merge(model, "none", base=base, layers=layers)
        model.save_pretrained(output)
        AutoProcessor.from_pretrained(mllm).save_pretrained(output)
        subprocess.run(["sync"], check=True)
    else:
        export(mllm, "none", output, base=base, layers=layers)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "memory": memory.stop() - before[0],
        "resident": measured.memory_of("VmHWM") - before[1],
    }


def in_a_process(way: str, pair: Path, output: Path, layers: str, cache: Path) -> dict[str, float]:
    """`one` in a process of its own.

    Args:
        way: as for `one`.
        pair: as for `one`.
        output: as for `one`.
        layers: as for `one`.
        cache: folder for the hashes that are remembered.
    """
    if way == "plam export, new":
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    command = [sys.executable, __file__, "--one", way, "--output", str(output), "--pair", str(pair), "--merge", layers]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def equal(one_folder: Path, other: Path, layers: range) -> str:
    """In words: whether the merged tensors of two checkpoints are equal, whatever they are called.

    Args:
        one_folder: of a checkpoint.
        other: of another one.
        layers: that were merged.
    """
    import torch

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.names import decoder_tensor

    sides = []
    for folder in (one_folder, other):
        checkpoint = Checkpoint.open(folder)
        keys = {key: name for name in checkpoint.names() if (key := decoder_tensor(name)) and key[0] in layers}
        sides.append({key: checkpoint.tensor(name) for key, name in keys.items()})
    different = [key for key in sides[0] if not torch.equal(sides[0][key], sides[1][key])]
    return f"{len(sides[0])} tensors of the merged layers, {len(different)} of them different"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=2048, help="width of the decoder")
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--shard", type=int, default=300, help="MB of a shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the pair, to keep it; a temporary one by default")
    measured.add_json_argument(parser)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pair", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--merge", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.pair, options.output, options.merge)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        pair = write_pair(folder, options.hidden, options.layers)
        write_shards(pair / "mllm", options.shard * 10**6)
        merged = range(options.layers // 2, options.layers // 2 + options.layers // 3)
        layers, cache = f"{merged.start}:{merged.stop}", folder / "cache"
        outputs = {way: folder / f"out {way}" for way in WAYS}
        for file in pair.rglob("*.safetensors"):
            measured.read_seconds(file)
        # In the first round the hashes are there once "new" has ended, which is before "plam export" needs them.
        order = ("cp", "plam export, new", "plam export", "save_pretrained")
        rows = measured.in_turn(
            {way: partial(in_a_process, way, pair, outputs[way], layers, cache) for way in order}, options.repeats
        )
        size = sum(path.stat().st_size for path in (pair / "mllm").iterdir())
        shards = len(list((pair / "mllm").glob("*.safetensors")))
        print(f"{size / 1e9:.2f} GB in {shards} shards, layers [{merged.start}, {merged.stop}) of {options.layers}\n")
        print("| | seconds | of cp | memory | resident |\n|---|---|---|---|---|")
        best = {way: min(found, key=lambda row: row["seconds"]) for way, found in rows.items()}
        for way, row in best.items():
            ratio = row["seconds"] / best["cp"]["seconds"]
            peaks = f"{row['memory'] / 1e6:.0f} MB | {row['resident'] / 1e6:.0f} MB" if way != "cp" else " | "
            print(f"| {way} | {row['seconds']:.2f} | {ratio:.2f} | {peaks} |")
        compared = equal(outputs["plam export"], outputs["save_pretrained"], merged)
        for output in outputs.values():
            shutil.rmtree(output)
        print(f"\nexport and save_pretrained: {compared}")
    setting = (
        f"{size / 1e9:.2f} GB in {shards} shards, layers [{merged.start}, {merged.stop}) of {options.layers} merged"
    )
    setting += f"; export and save_pretrained: {compared}"
    measured.write_rows(options.json, told_of(rows, size), setting, **rows)


def told_of(rows: dict[str, list[dict[str, float]]], size: int) -> list[measured.Row]:
    """Rows for `--json`.

    Args:
        rows: by way, what it came to in every round.
        size: bytes of the checkpoint.
    """
    taken = {way: [each["seconds"] for each in rounds] for way, rounds in rows.items()}
    hashing = size / measured.hash_rate() / measured.spread(taken["cp"])["median"]

    def told(first: str, second: str, ideal: float, ideal_is: str) -> measured.Row:
        peak = round(max(each["memory"] for each in rows[first]) / 1e6)
        ways = (first, taken[first]), (second, taken[second])
        return measured.row(f"{first} / {second}", *ways, ideal=ideal, ideal_is=ideal_is, own_memory_of_A_MB=peak)

    copy = "the copy, and SHA-256 of"
    return [
        told("plam export", "cp", 1 + hashing, f"{copy} what was written, at the measured rate"),
        told("plam export, new", "cp", 1 + 2 * hashing, f"{copy} what was read and written, at the measured rate"),
        told("save_pretrained", "cp", 1.0, "the copy; nothing is hashed"),
        told("plam export", "save_pretrained", 1 + hashing, "what save_pretrained takes, were it a copy, and SHA-256"),
    ]


if __name__ == "__main__":
    main()
