"""`plam sweep` and `plam compare`: many merges on one resident model, each an lmms-eval run folder of its own.

A sweep is a grid of merges (layer ranges, weights, modules) with controls beside each, and the plain model. What is
swept (`config`) makes cells (`grid`); a `job` has them in a `folder`; `runner` evaluates them here, `ray` on workers on
the `nodes` of a cluster, several cells' answers at once by `joint`. What the cells say is read back from their folders
(`findings`).
"""
