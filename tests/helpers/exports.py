"""Records of exports, and runs of what they merge, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plam_eval.merging.export_record import ExportedFile, ExportRecord
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.run_folders import VERSIONS, Document, write_run

SHA = "ab" * 32
"""What sweeps of `run_folders` record of their model's content."""
MODEL = {"name": "pair/mllm", "hub": "pair/mllm", "commit": "1" * 40, "sha256": SHA}
BASE = {"name": "pair/base", "hub": "pair/base", "commit": "2" * 40, "sha256": "cd" * 32}
EXPORTED = {"config.json": "0a" * 32, "model.safetensors": "0b" * 32}


def spec_of(**changes: Any) -> PlateauSpec:
    """That of the first merge in a sweep of `run_folders`, with other fields."""
    fields = {
        "model": "pair/mllm",
        "base_model": "pair/base",
        "layer_range": [6, 8],
        "modules": "qkvo",
        "weights": {"model": 0.9, "base_model": 0.3},
    }
    spec = load_spec(fields | changes)
    assert spec is not None
    return spec


def record_of(spec: PlateauSpec | None = None, **changes: Any) -> ExportRecord:
    spec = spec or spec_of()
    fields: dict[str, Any] = {
        "created": "2026-03-01T12:00:00+00:00",
        "command": "plam export --model pair/mllm --plateau demo --output merged",
        "spec": spec.to_dict(),
        "digest": spec.digest(),
        "model": MODEL,
        "base": BASE,
        "inputs": {"model": {"config.json": "0a" * 32}, "base": {"model.safetensors": "0c" * 32}},
        "files": {
            name: ExportedFile(sha256=sha, bytes=1234, how="copied" if name == "config.json" else "merged")
            for name, sha in EXPORTED.items()
        },
        "merge": {"tensors": 8, "relative_change": {"6": 0.2, "7": 0.3}, "warnings": ["rope_theta differs"]},
        "versions": {"plam-eval": "0.1.0"},
        "notes": ("stored in float16, so a load in bfloat16 rounds again",),
    }
    return ExportRecord(**(fields | changes))


def run_of(
    folder: Path,
    given: list[Document],
    spec: PlateauSpec | None = None,
    checkpoint: dict[str, Any] | None = None,
    **provenance: Any,
) -> Path:
    """A run's folder: plain, or of a spec; of the source, or of another `checkpoint`."""
    recorded = {
        "versions": VERSIONS,
        "commit": "c0ffee",
        "spec": spec.to_dict() if spec else None,
        "digest": spec.digest() if spec else None,
        "checkpoint": MODEL if checkpoint is None else checkpoint,
        "base": BASE if spec else None,
        "merge": None,
    }
    write_run(folder, given, plain=spec is None, provenance=recorded | provenance)
    return folder
