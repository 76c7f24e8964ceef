"""Recipes of a docs page, run as they stand there with stand-ins for what needs GPUs or a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.paths import DOCS

PAGE = DOCS / "multi-gpu.md"

_ACCELERATE = """
import os
from accelerate.commands.launch import launch_command_parser

given = launch_command_parser().parse_args(sys.argv[2:])  # whose options are accelerate's own
assert sys.argv[1] == "launch" and given.module
nodes = given.num_machines or 1
words = ["--nproc_per_node", str(given.num_processes // nodes)]
if nodes > 1:
    assert given.multi_gpu
    words += ["--nnodes", str(nodes), "--node_rank", str(given.machine_rank)]
    words += ["--master_addr", given.main_process_ip, "--master_port", str(given.main_process_port)]
else:
    words += ["--standalone"]
os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
command = ["-m", "torch.distributed.run", *words, "-m", given.training_script, *given.training_script_args]
os.execv(sys.executable, [sys.executable, *command])
"""
_SBATCH = """
import os, re, subprocess
text = open(sys.argv[-1]).read()
assert text.startswith("#!/bin/bash")
given = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\\S+)$", text, re.M))
assert len(given) == text.count("#SBATCH"), given
words = [word[2:].partition("=") for word in sys.argv[1:-1]]
given.update((name, value) for name, _, value in words)
assert given["ntasks-per-node"] in ("1", os.environ["GPUS"]) and given["gpus-per-node"] == os.environ["GPUS"]
os.environ.update(SLURM_JOB_ID=str(os.getpid()), SLURM_NNODES=given["nodes"], SLURM_JOB_NODELIST="node[1-2]")
os.environ.update(SLURM_NTASKS_PER_NODE=given["ntasks-per-node"], SLURM_CPUS_PER_TASK="1")
sys.exit(subprocess.call(["bash", sys.argv[-1]]))
"""
_SRUN = """
import os, signal, subprocess, time
assert os.environ["SRUN_CPUS_PER_TASK"] == os.environ["SLURM_CPUS_PER_TASK"]
command, given = sys.argv[1:], {}
while command[0].startswith("--"):
    name, _, value = command.pop(0).partition("=")
    given[name] = value
nodes = int(given.get("--nodes", os.environ["SLURM_NNODES"]))
tasks = int(given.get("--ntasks", nodes * int(os.environ["SLURM_NTASKS_PER_NODE"])))
started, kill_wait = [], 30  # seconds between the two signals, SLURM's default

def tell(number):
    for each in started:
        if each.poll() is None:
            os.killpg(each.pid, number)  # all processes of a task

signal.signal(signal.SIGTERM, lambda *_: tell(signal.SIGTERM))
for task in range(tasks):
    own = {"SLURM_NODEID": str(task * nodes // tasks), "SLURM_PROCID": str(task)}
    started.append(subprocess.Popen(command, env=os.environ | own, start_new_session=True))
last = None
while None in (codes := [each.poll() for each in started]):
    if last is None and any(codes) and given.get("--kill-on-bad-exit", "0") != "0":
        last = time.monotonic() + kill_wait
        tell(signal.SIGTERM)
    if last is not None and time.monotonic() > last:
        tell(signal.SIGKILL)
    time.sleep(0.02)
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
_SCONTROL = """
assert sys.argv[1:3] == ["show", "hostnames"] and sys.argv[3]
print("127.0.0.1")
print("127.0.0.1")
"""
STAND_INS = {"accelerate": _ACCELERATE, "sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL}


def recipe(name: str) -> str:
    """The block of code behind the comment that names a recipe."""
    found = re.findall(rf"<!-- recipe: {re.escape(name)} -->\n```\w+\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(found) == 1, f"{PAGE} has {len(found)} recipes {name!r}"
    return str(found[0])


def language(name: str) -> str:
    """What a recipe's block of code says that it is written in."""
    found = re.search(rf"<!-- recipe: {re.escape(name)} -->\n```(\w+)\n", PAGE.read_text())
    assert found is not None
    return found[1]


def words_of(name: str, program: str, **given: str) -> list[str]:
    """The words that a recipe calls a program with, as the shell passes them on; the program is not run."""
    script = f'{program}() {{ printf "%s\\0" "$@"; }}\n{recipe(name)}'
    done = subprocess.run(
        ["bash", "-euc", script], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def names() -> list[str]:
    return re.findall(r"<!-- recipe: (.+?) -->", PAGE.read_text())


def environment(folder: Path, more: Mapping[str, str] | None = None, **given: str) -> dict[str, str]:
    """Of a process in which the stand-ins are found first; `given` are the names that recipes share, and others.

    Args:
        folder: for the stand-ins.
        more: further ones: sources in Python, by name.
        **given: variables of the environment.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, source in {**STAND_INS, **(more or {})}.items():
        (programs / name).write_text(f"#!{sys.executable}\nimport sys\n{source}")
        (programs / name).chmod(0o755)
    own = Path(sys.executable).parent
    return os.environ | {"PATH": f"{programs}:{own}:{os.environ['PATH']}"} | given
