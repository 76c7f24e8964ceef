"""Where an MLLM stops needing its image: hide it from a layer on, see what that costs, find the plateau.

`decoder`, `masking` and `depth` act on a model; `curve`, `plateau`, `power`, `spec_file` and `plot` are arithmetic on
scores. Nothing here knows how answers are decoded or weights merged.
"""
