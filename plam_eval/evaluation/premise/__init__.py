"""`plam premise`: whether an MLLM has lost text ability to its base LLM, and whether a merge gives any back."""
