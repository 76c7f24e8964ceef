"""From stages to a plateau spec with its evidence, and to a file of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from plam_eval.document_sets import write_by_task
from plam_eval.errors import InputError
from plam_eval.probing.plateau import Stages, confidence_in_words
from plam_eval.spec import GROUPS, PlateauSpec, Weights, load_spec
from plam_eval.yaml_reader import Writer

_LONGEST_TEXT = 4000
"""Letters of the documents of a task in the evidence: a server takes no specs with longer texts."""


def to_spec(
    stages: Stages,
    *,
    model: str | None,
    base_model: str,
    weights: Weights | Mapping[str, float] = Weights(model=0.9, base_model=0.3),  # noqa: B008
    modules: Iterable[str] = GROUPS["qkvo"],
    scan: str | None = None,
    source: str | None = None,
    commits: Mapping[str, str] | None = None,
    doc_ids: Mapping[str, Sequence[int]] | None = None,
) -> PlateauSpec:
    """A spec that merges in the plateau, with its evidence.

    The default weights and modules are those of the authors' Qwen3-VL runs (arXiv 2601.07645).

    Args:
        stages: of the scan.
        model: hub id or folder of the MLLM that was scanned.
        base_model: hub id or folder of its base LLM.
        weights: `Weights`, or a mapping with its fields. A scan says nothing about them.
        modules: names of the projections to be merged.
        scan: where the scan is, for the evidence.
        source: the spec's free text; a sentence on the scan if left out.
        commits: of "model" and "base_model" on the hub at the time of the scan, for the evidence.
        doc_ids: task -> the documents that were scanned, for the evidence; left out where that would be long.

    Raises:
        InputError: there is no plateau; the message is the reason.
        SpecError: the spec has another fault.
    """
    if stages.plateau is None:
        raise InputError(f"no spec without a plateau. {stages.reason}")
    evidence: dict[str, Any] = {"scan": scan} if scan else {}
    if commits:
        evidence["commits"] = dict(commits)
    fields = stages.to_dict()
    for derived in ("num_layers", "plateau", "outcome"):  # told by the layer range, and by there being a spec
        del fields[derived]
    evidence.update({name: value for name, value in fields.items() if value is not None and value != []})
    written = write_by_task(doc_ids or {})
    if written and max(map(len, written.values())) <= _LONGEST_TEXT:
        evidence["doc_ids"] = written
    if source is None:
        source = (
            f"Scan of {model or 'the model'}: {sum(stages.documents.values())} documents of {len(stages.documents)} "
            f"task(s), margin {stages.margin:g}, {confidence_in_words(stages.confidence)} confidence. The weights are "
            "not from the scan."
        )
    spec = load_spec(
        {
            "model": model,
            "base_model": base_model,
            "layer_range": list(stages.plateau),
            "modules": list(modules),
            "weights": weights.model_dump() if isinstance(weights, Weights) else dict(weights),
            "evidence": evidence,
            "source": source,
        }
    )
    assert spec is not None  # only "none" gives None
    return spec


def write_spec(spec: PlateauSpec, path: str | Path) -> Path:
    """Write a spec as YAML that `load_spec` reads back to an equal spec.

    Args:
        spec: what to write.
        path: of the file; one that is there is replaced.

    Returns:
        The path.
    """
    path = Path(path)
    text = yaml.dump(spec.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")
    return path


class _Dumper(Writer):
    """Lists on one line each, as specs are written by hand; everything else in block style."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
