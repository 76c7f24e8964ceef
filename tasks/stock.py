"""Where lmms-eval's own task YAMLs are, for the `include` of a YAML of ours.

lmms-eval reads an `include` as an absolute path or relative to the including file, and neither is known when the YAML
is written. `!function` yields any attribute of a module, so a YAML takes both the key and the value from here:

    !function stock.INCLUDE: !function stock.MMBENCH_CN_DEV

The key has to come from here as well. lmms-eval reads every YAML twice: to index it, with `!function` left unresolved,
and to load the task. An `include` with an unresolved value would stop the indexing; an unresolved key is passed over.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def _stock(path: str) -> str:
    spec = find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lmms-eval is not installed: its task YAMLs are needed")
    file = Path(spec.submodule_search_locations[0], "tasks", path)
    if not file.is_file():
        raise FileNotFoundError(f"this lmms-eval has no task file {path} ({file}): expected lmms-eval 0.7.3 or later")
    return str(file)


INCLUDE = "include"
MMBENCH_CN_DEV = _stock("mmbench/mmbench_cn_dev.yaml")
MMBENCH_EN_TEST = _stock("mmbench/mmbench_en_test.yaml")
MMBENCH_CN_TEST = _stock("mmbench/mmbench_cn_test.yaml")
MMMU_TEST = _stock("mmmu/mmmu_test.yaml")
