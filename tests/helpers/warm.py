"""What nearly every evaluation on the CPU imports and reads, lmms-eval's index of tasks too, for `forked`."""

import lmms_eval.__main__
import matplotlib.pyplot
import transformers.models.llava.modeling_llava

import plam_eval.api
from plam_eval.harness.lookup import task_manager

task_manager()
__all__ = ["lmms_eval", "matplotlib", "plam_eval", "transformers"]
