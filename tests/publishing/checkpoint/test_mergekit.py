"""Exports beside mergekit, which merges by the same formula and shares no code with us; see tools/mergekit_oracle.py.

It is LGPL and no dependency: PLAM_MERGEKIT names the Python of an environment that has it, as
`python tools/mergekit_oracle.py --make` sets one up.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from plam_eval import export
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.names import decoder_tensor
from plam_eval.spec import MODULES
from tests.helpers.pico import PicoPair, write_pico
from tools import mergekit_oracle

PYTHON = os.environ.get("PLAM_MERGEKIT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="PLAM_MERGEKIT names no Python of an environment with mergekit"),
]


def exported(folder: Path, family: str, dtype: torch.dtype, rule: str = "weighted_sum") -> PicoPair:
    pair = write_pico(family, folder, dtype=dtype)
    export(pair.mllm, None, folder / "out", base=pair.base, layers="1:3", modules="qkvo+down_proj", rule=rule)
    return pair


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_mergekit_reads_an_export_as_it_reads_the_source(family: str, tmp_path: Path) -> None:
    pair, python, out = exported(tmp_path, family, torch.float32), Path(PYTHON), tmp_path / "out"
    spec = mergekit_oracle.spec_of(out)
    source = mergekit_oracle.read_by_mergekit(python, pair.mllm, tmp_path / "one")
    found = mergekit_oracle.read_by_mergekit(python, out, tmp_path / "two")
    merged = [name for name in source.tensors if (key := decoder_tensor(name)) and mergekit_oracle.is_named(spec, key)]
    assert not source.error and found.tensors and found.equals(source, but=merged)
    if family == "qwen2_5_vl":  # mergekit 0.1.5 knows its layout, and of LLaVA's it reads the projector alone
        written = mergekit_oracle.tensors_in(out)
        assert found.tensors.keys() == written.keys()
        assert all(mergekit_oracle.same_bits(found.tensors[name], written[name]) for name in written)
        assert merged and not found.equals(source)


@pytest.mark.parametrize(
    ("family", "dtype", "rule", "units"),
    [
        ("llava", torch.float16, "weighted_sum", 1),
        ("llava", torch.float32, "weighted_sum", 1),
        ("qwen3_vl", torch.bfloat16, "weighted_sum", 1),
        ("qwen2_5_vl", torch.float32, "normalized", 2),  # mergekit divides the sum, we the weights
    ],
)
def test_merged_tensors_are_mergekits_but_for_a_last_place(
    family: str, dtype: torch.dtype, rule: str, units: int, tmp_path: Path
) -> None:
    """On a CPU, mergekit multiplies by the base's weight and adds in one step; we round in between, as on every device.

    So one float32 element in six is another, by one unit in the last place of a term. Rounded to a half precision they
    are nearly all the same again.
    """
    pair, out = exported(tmp_path, family, dtype, rule), tmp_path / "out"
    spec, model, base = mergekit_oracle.spec_of(out), Checkpoint.open(pair.mllm), Checkpoint.open(pair.base)
    theirs = mergekit_oracle.merge_by_mergekit(Path(PYTHON), model, base, spec, tmp_path / "mergekit")
    ours = mergekit_oracle.keyed(mergekit_oracle.tensors_in(out))
    table = dict(mergekit_oracle.differences(ours, theirs, model, base, spec))
    named = {key: entry for key, entry in table.items() if mergekit_oracle.is_named(spec, key)}
    assert {key[0] for key in named} == {1, 2}
    weights = [key for key in named if key[1].endswith(".weight")]
    assert len(weights) == 2 * len(spec.modules) and {MODULES[module] for module in spec.modules} == {
        key[1].removesuffix(".weight") for key in weights
    }
    assert all(entry.units <= units for entry in named.values())
    share = sum(entry.unequal for entry in named.values()) / sum(entry.elements for entry in named.values())
    assert share < (0.005 if dtype != torch.float32 else 0.25 if rule == "weighted_sum" else 1)
    assert not any(entry.unequal for key, entry in table.items() if key not in named)
