"""plam-eval: plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.

Importing this package imports nothing heavy: torch, transformers, lmms-eval and vLLM are imported where they are used.
"""

from plam_eval import _checkout as _checkout
