"""Task YAMLs for lmms-eval: the group `plam9` and the tasks of ours that it needs.

`FOLDER` is what `lmms-eval --include_path` takes. The YAMLs build on lmms-eval's own; the modules beside them hold what
a YAML cannot say. Importing this package imports nothing else.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
