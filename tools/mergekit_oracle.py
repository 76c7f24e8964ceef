"""Holds an exported checkpoint against mergekit: `python tools/mergekit_oracle.py EXPORT --model M --base B --make D`.

mergekit (LGPL) is another project's merge of the same formula, and so a second opinion. It runs as a program, in an
environment of its own; nothing here imports it. `--make FOLDER` creates such an environment with pip first.

Two questions are asked:

- `read`: mergekit reads the export with its own loader and writes every tensor again (merge method passthrough).
  The source goes through the same, as there are layouts that mergekit 0.1.5 reads in part, or not at all, whoever wrote
  them: what it makes of the export has to be what it makes of the source.
- `merged`: mergekit merges the tensors of both sources (linear, `normalize: false`, weights by layer and module) and
  rounds to the dtype that they are stored in. It knows no base LLM beside an MLLM, so it is given the MLLM's decoder as
  a language model of the base's kind. Every tensor of every decoder layer is compared, in units in the last place
  of the larger of the two terms.

Prints a Markdown table; the exit status is 1 where a tensor of the export is another than the source's without the spec
naming it, or a merged one is off by more than `--units`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import read_export_record
from plam_eval.merging.names import Key, decoder_tensor
from plam_eval.spec import MODULES, PlateauSpec, load_spec

REQUIREMENT = "mergekit==0.1.5"
RULES = {"weighted_sum": False, "normalized": True}
"""Rules that mergekit's linear merge has, and whether its weights are divided by their sum."""


class OracleError(RuntimeError):
    """mergekit failed; the text is the end of what it said."""


@dataclass
class Reading:
    """What mergekit makes of a checkpoint: `tensors` by the name it writes; none, and `error`, where it fails."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    error: str = ""

    def equals(self, other: Reading, but: Iterable[str] = ()) -> bool:
        """Whether both are the same, bit for bit.

        Args:
            other: what it makes of another checkpoint.
            but: names of tensors that may differ.
        """
        names = self.tensors.keys() - set(but)
        return (
            self.tensors.keys() == other.tensors.keys()
            and bool(self.error) == bool(other.error)
            and all(same_bits(self.tensors[name], other.tensors[name]) for name in names)
        )


@dataclass(frozen=True)
class Difference:
    """Of one tensor: `elements` in all, `unequal` ones, the largest distance in units in the last place of a term."""

    elements: int
    unequal: int
    units: float


def make_environment(folder: Path) -> Path:
    """The Python of an environment with mergekit in `folder`, which is created by pip unless it is there."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", f"torch=={torch.__version__.split('+')[0]}"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", REQUIREMENT], check=True)
    return python


def run(python: Path, config: Mapping[str, Any], folder: Path) -> dict[str, Tensor]:
    """What mergekit writes, by tensor name.

    Args:
        python: of the environment that has mergekit.
        config: as mergekit's YAML files have it.
        folder: an empty one to work in.

    Raises:
        OracleError: mergekit failed.
    """
    folder.mkdir(parents=True)
    file, out = folder / "config.yaml", folder / "out"
    file.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    words = [str(python), "-m", "mergekit.scripts.run_yaml", str(file), str(out), "--quiet", "--no-write-model-card"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise OracleError(done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}")
    return tensors_in(out)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the safetensors files in `folder`, by name."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def read_by_mergekit(python: Path, checkpoint: Path, folder: Path) -> Reading:
    """A checkpoint, as mergekit reads it.

    Args:
        python: of the environment that has mergekit.
        checkpoint: its folder.
        folder: one to work in, that does not exist yet.
    """
    config = {"merge_method": "passthrough", "models": [{"model": str(checkpoint.absolute())}]}
    try:
        return Reading(run(python, config, folder))
    except OracleError as error:
        return Reading(error=str(error))


def merge_by_mergekit(
    python: Path, model: Checkpoint, base: Checkpoint, spec: PlateauSpec, folder: Path
) -> dict[Key, Tensor]:
    """The decoder layers that mergekit's linear merge makes of both sources.

    Args:
        python: of the environment that has mergekit.
        model: the MLLM.
        base: the base LLM, whose folder `base.location` is.
        spec: of a rule in `RULES`.
        folder: one to work in, that does not exist yet.

    Raises:
        OracleError: mergekit failed.
    """
    layers = write_decoder(model, base, folder / "decoder")
    linear = linear_config(spec, layers, folder / "decoder", Path(base.location))
    return keyed(run(python, linear, folder / "merge"))


def write_decoder(model: Checkpoint, base: Checkpoint, folder: Path) -> int:
    """Write the decoder layers of an MLLM as a language model of the base's kind, and say how many there are.

    Embeddings, norm and head are the base's: vocabularies differ, and no spec names them.

    Args:
        model: the MLLM.
        base: the base LLM.
        folder: that does not exist yet.
    """
    mine = {key: name for name in model.names() if (key := decoder_tensor(name)) is not None}
    tensors = {
        name: model.tensor(mine[key]) if (key := decoder_tensor(name)) in mine else base.tensor(name)
        for name in base.names()
    }
    folder.mkdir(parents=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(base.config), encoding="utf-8")
    return 1 + max(layer for layer, _ in mine)


def linear_config(spec: PlateauSpec, layers: int, model: Path, base: Path) -> dict[str, Any]:
    """mergekit's words for a spec: slices of layers that are merged, and of those that are the model's own.

    Args:
        spec: of a rule in `RULES`.
        layers: of the decoder.
        model: folder of the MLLM's decoder.
        base: folder of the base LLM.
    """

    def weight(value: float, otherwise: float) -> dict[str, Any]:
        named = [{"filter": f".{MODULES[module]}.", "value": value} for module in spec.modules]
        return {"weight": [*named, {"value": otherwise}]}

    slices = []
    for own, run_of_layers in groupby(range(layers), lambda n: spec.weights_at(n) if n in spec.layers else None):
        numbers = list(run_of_layers)
        span = [numbers[0], numbers[-1] + 1]
        sources = [{"model": str(model), "layer_range": span, "parameters": {"weight": 1.0}}]
        if own is not None:
            sources[0]["parameters"] = weight(own.model, 1.0)
            parameters = weight(own.base_model, 0.0)
            sources.append({"model": str(base), "layer_range": span, "parameters": parameters})
        slices.append({"sources": sources})
    return {"merge_method": "linear", "parameters": {"normalize": RULES[spec.rule]}, "slices": slices}


def keyed(tensors: Mapping[str, Tensor]) -> dict[Key, Tensor]:
    """Tensors of decoder layers by layer and suffix, whatever stands before.

    Args:
        tensors: by the name that they have in a checkpoint.
    """
    return {key: tensor for name, tensor in tensors.items() if (key := decoder_tensor(name)) is not None}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have dtype, shape and every bit in common.

    Args:
        one: a tensor.
        other: another one.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def difference(one: Tensor, other: Tensor, terms: Tensor) -> Difference:
    """How far two results are from each other.

    Args:
        one: a result.
        other: another one, of its dtype and shape.
        terms: the larger of what was added up to it, element by element: where they nearly cancel, the units of the
            small sum say nothing of how it was computed.
    """
    distance = (one.double() - other.double()).abs()
    unit = torch.finfo(one.dtype).eps * torch.maximum(terms.double(), one.double().abs())
    units = torch.where(distance > 0, distance / unit, 0.0)
    return Difference(one.numel(), int((distance > 0).sum()), float(units.max()) if one.numel() else 0.0)


def differences(
    export: Mapping[Key, Tensor], mergekit: Mapping[Key, Tensor], model: Checkpoint, base: Checkpoint, spec: PlateauSpec
) -> Iterator[tuple[Key, Difference]]:
    """Of every tensor of the decoder layers; raises OracleError where one side has others than the other.

    Args:
        export: decoder tensors of the export.
        mergekit: those that mergekit made.
        model: the MLLM.
        base: the base LLM.
        spec: what was merged.
    """
    if export.keys() != mergekit.keys():
        raise OracleError(f"tensors of one side only: {sorted(export.keys() ^ mergekit.keys())[:4]}")
    mine, theirs = ({decoder_tensor(name): name for name in source.names()} for source in (model, base))
    for key, tensor in export.items():
        if (tensor.dtype, tensor.shape) != (mergekit[key].dtype, mergekit[key].shape):
            raise OracleError(f"layer {key[0]}, {key[1]}: of another dtype or shape")
        terms = (
            model.tensor(mine[key]).double().mul(spec.weights_at(key[0]).model).abs(),
            base.tensor(theirs[key]).double().mul(spec.weights_at(key[0]).base_model).abs(),
        )
        yield key, difference(tensor, mergekit[key], torch.maximum(*terms))


def spec_of(export: Path) -> PlateauSpec:
    """The spec that stands in the record of an export; raises OracleError where mergekit has no such rule.

    Args:
        export: its folder.
    """
    spec = load_spec(read_export_record(export).spec)
    if spec is None or spec.rule not in RULES:
        raise OracleError(f"rule {spec and spec.rule}: mergekit's linear merge has {', '.join(RULES)}")
    return spec


def is_named(spec: PlateauSpec, key: Key) -> bool:
    """Whether a spec merges a decoder tensor.

    Args:
        spec: the spec.
        key: layer and suffix of the tensor.
    """
    return key[0] in spec.layers and key[1].startswith(tuple(f"{MODULES[module]}." for module in spec.modules))


def main() -> None:
    """Reads the command line, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="folder that plam export wrote")
    parser.add_argument("--model", required=True, help="folder of the MLLM that it was made from")
    parser.add_argument("--base", required=True, help="folder of the base LLM")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--python", type=Path, help="Python of an environment that has mergekit")
    where.add_argument("--make", type=Path, metavar="FOLDER", help="create such an environment there, or use it")
    parser.add_argument("--units", type=float, default=1, help="units in the last place that are let pass (default: 1)")
    given = parser.parse_args()
    python = make_environment(given.make) if given.make else given.python
    spec, model, base = spec_of(given.export), Checkpoint.open(given.model), Checkpoint.open(given.base)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = read_by_mergekit(python, Path(given.model), work / "source")
        export = read_by_mergekit(python, given.export, work / "export")
        mergekit = merge_by_mergekit(python, model, base, spec, work / "linear")
        merged_names = [name for name in export.tensors if (key := decoder_tensor(name)) and is_named(spec, key)]
        alike = export.equals(source, but=merged_names)
        table = dict(differences(keyed(tensors_in(given.export)), mergekit, model, base, spec))
    print("| tensors | number | elements | unequal | most units |\n|---|---|---|---|---|")
    wrong = not alike
    for label, named in (("merged", True), ("others of the decoder", False)):
        rows = [entry for key, entry in table.items() if is_named(spec, key) == named]
        units = max((row.units for row in rows), default=0.0)
        counts = f"{len(rows)} | {sum(row.elements for row in rows)} | {sum(row.unequal for row in rows)} | {units:.2f}"
        print(f"| {label} | {counts} |")
        wrong |= units > (given.units if named else 0)
    for name, reading in (("source", source), ("export", export)):
        said = reading.error or "no error"
        print(f"\nmergekit reads {len(reading.tensors)} of {len(model.names())} tensors of the {name} ({said}).")
    print(f"Beside the merged ones they are {'the same' if alike else 'NOT the same'}.")
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
