"""Recipes of a docs page, run as they stand there with stand-ins for what needs GPUs or a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
given.update(word[2:].split("=") for word in sys.argv[1:-1])
assert given["ntasks-per-node"] == "1" and given["gpus-per-node"] == os.environ["GPUS"]
os.environ.update(SLURM_JOB_ID=str(os.getpid()), SLURM_NNODES=given["nodes"], SLURM_JOB_NODELIST="node[1-2]")
sys.exit(subprocess.call(["bash", sys.argv[-1]]))
"""
_SRUN = """
import os, subprocess
command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    del command[0]
nodes = [
    subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node)})
    for node in range(int(os.environ["SLURM_NNODES"]))
]
sys.exit(max(abs(node.wait()) for node in nodes))
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


def words_of(name: str, program: str, **given: str) -> list[str]:
    """The words that a recipe calls a program with, as the shell passes them on; the program is not run."""
    script = f'{program}() {{ printf "%s\\0" "$@"; }}\n{recipe(name)}'
    done = subprocess.run(
        ["bash", "-euc", script], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def names() -> list[str]:
    return re.findall(r"<!-- recipe: (.+?) -->", PAGE.read_text())


def environment(folder: Path, **given: str) -> dict[str, str]:
    """Of a process in which the stand-ins are found first; `given` are the names that recipes share, and others."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, source in STAND_INS.items():
        (programs / name).write_text(f"#!{sys.executable}\nimport sys\n{source}")
        (programs / name).chmod(0o755)
    own = Path(sys.executable).parent
    return os.environ | {"PATH": f"{programs}:{own}:{os.environ['PATH']}"} | given
