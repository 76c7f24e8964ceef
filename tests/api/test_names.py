"""The names of plam-eval in Python: what is imported when, and that functions and commands take the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import plam_eval
from plam_eval import api, cli

package: Any = plam_eval  # for calls that a type checker would refuse
HEAVY = ("torch", "transformers", "lmms_eval", "pandas", "vllm", "matplotlib")


def test_names_are_there_before_anything_heavy_is() -> None:
    code = (
        "import sys, plam_eval\n"
        "found = [getattr(plam_eval, name) for name in plam_eval.__all__]\n"
        "assert all(map(callable, found)) and set(plam_eval.__all__) <= set(dir(plam_eval))\n"
        "assert plam_eval.load_spec('demo').layer_range == (4, 8)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "from plam_eval import report, scan\n"
        "import plam_eval.report.tables as tables\n"
        "from plam_eval import report as again\n"
        "assert callable(report) and report is again is plam_eval.report and plam_eval.report.tables is tables\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = package.swep


def test_names_are_those_of_the_command_line() -> None:
    """Every option of a command is an argument of its function; only the words around a result are the command's."""
    import typer

    group: Any = typer.main.get_command(cli.app)
    own = {"as_json", "quiet", "help", "dry_run", "kl_threshold", "stock"}
    for name in ("scan", "plateau", "attend", "compare", "sweep", "report", "export"):
        options = {parameter.name for parameter in group.commands[name].params}
        arguments = set(inspect.signature(getattr(api, name)).parameters)
        assert {"ray" if option == "use_ray" else option for option in options} - own <= arguments, name
        assert arguments <= {"ray" if option == "use_ray" else option for option in options}, name
        documented = inspect.getdoc(getattr(api, name)) or ""
        missing = [argument for argument in arguments if argument not in documented.partition("Returns:")[0]]
        assert not missing, f"{name}: {missing} are not in its docstring"
