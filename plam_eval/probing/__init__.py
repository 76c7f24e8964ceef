"""Where an MLLM stops needing its image: hide it from a layer on, see what that costs, find the plateau.

And where it looks meanwhile: `attention` takes rows of attention from a model, `token_grid` tells which part of an
image each token is of, `attention_measures` is arithmetic on both.

`decoder`, `masking` and `depth` act on a model; `curve`, `plateau`, `power`, `spec_file` and `plot` are arithmetic on
scores. Nothing here knows how answers are decoded or weights merged.
"""
