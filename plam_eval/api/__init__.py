"""plam-eval from Python: what the commands do, as functions. `import plam_eval` gives them all.

Arguments have the names that they have on the command line, results are records with pandas tables in them, and what
goes wrong is raised as one of the errors of `plam_eval.errors`. Nothing here ends the process or needs a terminal;
progress and notes go to standard error. Importing this module imports nothing heavy.
"""

from __future__ import annotations

from plam_eval.api.attention import attend, read_attend
from plam_eval.api.merging import merge
from plam_eval.api.premises import premise, read_premise
from plam_eval.api.publishing import bundle, check_submission, export, hub_results, submit, verify_bundle
from plam_eval.api.runs import compare, plan_compare, read_run, rescore
from plam_eval.api.scans import ScanPlan, plan_scan, plateau, read_scan, scan
from plam_eval.api.searches import SearchPlan, plan_search, read_search, search
from plam_eval.api.sweeps import SweepPlan, plan_sweep, read_sweep, sweep
from plam_eval.report import report
from plam_eval.spec import load_spec

__all__ = [
    "ScanPlan",
    "SearchPlan",
    "SweepPlan",
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
