"""The report page and what else finished work is shown in. Called, it is `plam_eval.api.report`.

`plam_eval.report` is this folder of modules once one of them is imported, and the function of that name before. So that
both are always there, the module can be called.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class _Report(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from plam_eval import api

        return api.report(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from plam_eval import api

        return inspect.signature(api.report)


sys.modules[__name__].__class__ = _Report
