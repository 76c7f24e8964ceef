"""From stages to a spec and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plam_eval.probing.plateau import find_plateau
from plam_eval.probing.spec_file import to_spec, write_spec
from plam_eval.spec import SpecError, Weights, load_spec
from tests.helpers.curves import curve, three_stages


def test_spec_from_stages(tmp_path: Path) -> None:
    made = curve(three_stages, tasks=["mme", "gqa"])
    spec = to_spec(find_plateau(made), model="org/mllm", base_model="org/base", scan="out/scan")
    assert spec.layer_range == (5, 8)
    assert (spec.model, spec.base_model, spec.rule) == ("org/mllm", "org/base", "weighted_sum")
    assert spec.weights == Weights(model=0.9, base_model=0.3)
    assert spec.evidence is not None
    assert spec.evidence["documents"] == {"gqa": 400, "mme": 400}
    assert spec.evidence["accuracy"] == {"unmasked": 0.7, "plateau": 0.7, "blind": 0.3}
    assert spec.evidence["cuts"] == list(range(9))
    assert (spec.evidence["margin"], spec.evidence["confidence"]) == (0.02, 0.95)
    assert spec.evidence["kl_cut"] == 7  # 2 exp(-7) = 0.0018
    assert (spec.evidence["scan"], spec.evidence["curve_digest"]) == ("out/scan", made.digest())
    path = write_spec(spec, tmp_path / "plateau.yaml")
    assert load_spec(path) == spec
    assert "layer_range: [5, 8]\n" in path.read_text()
    assert yaml.safe_load(path.read_text()) == spec.to_dict()


def test_evidence_and_source_change_no_digest() -> None:
    found = find_plateau(curve(three_stages))
    one = to_spec(found, model="m", base_model="b", scan="here")
    other = to_spec(find_plateau(curve(three_stages), margin=0.03), model=None, base_model="b", source="by hand")
    assert one.evidence != other.evidence
    assert other.source == "by hand"
    assert one.digest() == other.digest()
    assert to_spec(found, model="m", base_model="b", weights={"model": 1.0, "base_model": 0.2}).digest() != one.digest()


def test_no_spec_without_a_plateau() -> None:
    found = find_plateau(curve(lambda cut: 0.6))
    with pytest.raises(ValueError, match=r"no spec without a plateau\. no plateau can be located: the blind model"):
        to_spec(found, model="m", base_model="b")
    with pytest.raises(SpecError, match="unknown module"):
        to_spec(find_plateau(curve(three_stages)), model="m", base_model="b", modules=["q_prj"])
