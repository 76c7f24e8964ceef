"""All that is known of lmms-eval's internals, but for the classes that `model_wrappers` extends and what `tasks` adds.

- `registry`: what is registered with it: models, tasks, prompts. `patches`: its functions that are wrapped.
- `evaluate`: evaluation in this process. `checks`: what can be known of tasks before. `lookup`: tasks by name.
- `tasks`: what is known of single tasks, in one table. `scoring`: scores by lmms-eval's own functions.
- `requests`: what a model is asked. `answers`: answers scored and logged. `images`: what documents look like.
- `run_files`: what an evaluation leaves.
- `wrapper`: what is asked of a wrapper. `errors`: of evaluations and of what they leave.
- `loading`: tasks loaded faster. `dataset_errors`: datasets that cannot be loaded. `processes`: several of them.

Importing these modules imports neither torch nor lmms-eval.
"""
