"""plam-eval: plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.

Importing this package imports nothing heavy: torch, transformers, lmms-eval and vLLM are imported where they are used.
What the commands do, from Python: `load_spec`, `merge`, `scan`, `plateau`, `attend`, `compare`, `sweep`, `search`, and
before these `plan_scan`, `plan_compare`, `plan_sweep` and `plan_search`; `rescore`, `premise`, `report`, `export`,
`submit`, `check_submission`, `hub_results`, `bundle`, `verify_bundle`, `read_run`, `read_scan`, `read_attend`,
`read_sweep`, `read_search` and `read_premise`, each loaded when it is first asked for (`plam_eval.api`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plam_eval import _checkout as _checkout

if TYPE_CHECKING:
    from plam_eval.api import (
        attend,
        bundle,
        check_submission,
        compare,
        export,
        hub_results,
        load_spec,
        merge,
        plan_compare,
        plan_scan,
        plan_search,
        plan_sweep,
        plateau,
        premise,
        read_attend,
        read_premise,
        read_run,
        read_scan,
        read_search,
        read_sweep,
        report,
        rescore,
        scan,
        search,
        submit,
        sweep,
        verify_bundle,
    )

__all__ = [
    "attend",
    "bundle",
    "check_submission",
    "compare",
    "export",
    "hub_results",
    "load_spec",
    "merge",
    "plan_compare",
    "plan_scan",
    "plan_search",
    "plan_sweep",
    "plateau",
    "premise",
    "read_attend",
    "read_premise",
    "read_run",
    "read_scan",
    "read_search",
    "read_sweep",
    "report",
    "rescore",
    "scan",
    "search",
    "submit",
    "sweep",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    if name == "report":  # a folder of modules, too, which is called like the function: see there
        return importlib.import_module("plam_eval.report")
    if name in __all__:
        return getattr(importlib.import_module("plam_eval.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
