"""Run folders beside each other: see `evaluation.comparison`."""

from plam_eval.evaluation.comparison import Comparisons as Comparisons  # shim
from plam_eval.evaluation.comparison import compare_with_one as compare  # shim

__all__ = ["Comparisons", "compare"]
