"""vLLM on merged weights. What plam-eval uses of vLLM's internals is here and in `model_wrappers/vllm.py`.

A new vLLM begins in `versions`: the tables of what is used, which versions ran, and how a running engine is re-merged.
`loader` merges while weights stream in, `worker` re-merges inside of an engine, `engine` from outside of it, `endpoint`
over HTTP, where `gate` says what a request may name.
"""
