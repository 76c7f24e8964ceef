"""`plam attend`: where a model looks, and what its layers do, under several merges on the same documents.

Prompts are those of lmms-eval. A `recorder` answers each document under all settings in one generation and keeps what
its attention rows say; `folder` is what is stored. `findings` compares settings layer by layer, `plot` and `overlays`
draw, `depth` has what layers do beside where they look.
"""
