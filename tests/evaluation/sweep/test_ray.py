"""Sweeps on Ray's workers: on the nodes of a cluster, all of them on this machine, against one process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from plam_eval import cli
from plam_eval.evaluation.sweep import ray as ray_workers
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.evaluation.sweep.folder import cell_places, read_cell
from plam_eval.evaluation.sweep.nodes import Needs, Resources, share_out
from plam_eval.files import MARKER
from tests.helpers import clusters, recipes
from tests.helpers.clusters import eventually
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import CELLS, SPEC, answers, job, plam, words

needs_ray = pytest.mark.needs("ray")


def test_no_attempt_at_a_cell_is_made_where_another_cell_is(tmp_path: Path) -> None:
    """Names of cells end in weights: `0.9+0` and `0.9+0.1`."""
    cells = [f"layers-1-3_qkvo_0.9+{weight}" for weight in ("0", "0.1", "0.2", "0.1to1", "0.1to1.1")]
    places = [cell_places(tmp_path, name, attempt)[1] for name in cells for attempt in range(ray_workers.TRIES)]
    assert len(set(places)) == len(places)


# ---- how workers are shared out, and what a node lacks: without Ray --------------------------------------------------


def node(name: str, cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes()` has it."""
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})} if alive else {}
    return {
        "NodeID": name,
        "Alive": alive,
        "NodeName": name,
        "NodeManagerHostname": "host",
        "NodeManagerAddress": "10.0.0.1",
        "Resources": resources,
    }


@pytest.mark.parametrize(
    ("nodes", "workers", "each", "expected"),
    [
        ([node("a", 8)], None, 1, (0, 8, 1)),
        ([node("a", 8)], 3, 1, (0, 2, 3)),
        ([node("a", 1), node("b", 1), node("c", 1)], None, 1, (0, 1, 1)),  # not 3 cores: no node has them
        ([node("a", 1), node("b", 8)], 3, 1, (0, 2, 3)),  # three on b, none on a: better than one core each
        ([node("a", 4), node("b", 8, alive=False)], 9, 1, (0, 1, 4)),
        ([node("a", 32, 8), node("b", 32, 8)], None, 1, (1, 1, 16)),
        ([node("a", 32, 3), node("b", 32, 3)], None, 2, (2, 1, 2)),  # six GPUs, but no third pair on one node
        ([node("a", 2, 8), node("login", 16)], None, 1, (1, 1, 2)),
    ],
)
def test_a_worker_lies_on_one_node(nodes, workers, each, expected):
    resources, count = share_out(nodes, workers, each)
    assert (resources.gpus, resources.cores, count) == expected
    assert sum(map(resources.fit_on, nodes)) >= count


def test_what_no_node_has_room_for_is_said():
    nodes = [node("a", 32, 3), node("b", 32, 3)]
    with pytest.raises(
        SweepError, match=r"3 worker\(s\) of 2 GPU\(s\).*room for 2 \(node a \(10.0.0.1\) has 3 GPU\(s\)"
    ):
        share_out(nodes, 3, 2)
    with pytest.raises(SweepError, match="no node of the cluster has a CPU core"):
        share_out([node("a", 0)], None, 1)


def test_what_a_node_does_not_see_is_told_with_its_path(in_suite, tmp_path):
    shutil.copytree(PAIR / "base", tmp_path / "base")
    planned = job(tmp_path / "s", model_args=SPEC.replace(f"{PAIR}/base", str(tmp_path / "base")))
    planned.folder.mkdir()
    (planned.folder / "mark").touch()
    needs = Needs.of(planned, "mark")
    assert needs.problems() == []
    (tmp_path / "base" / "config.json").touch()  # another copy of it
    (told,) = needs.problems()
    assert told.startswith(f"base LLM or ancestor {tmp_path}/base: {tmp_path}/base is there, with other files or times")
    shutil.rmtree(tmp_path / "base")
    (planned.folder / "mark").unlink()
    versions = planned.settings["versions"] | {"transformers": "1.0", "vllm-gpu": "2"}
    away = replace(needs, settings=planned.settings | {"versions": versions})
    told_versions, told_folder, told_base = away.problems()
    assert told_versions.startswith("versions: transformers ") and ", expected 1.0" in told_versions
    assert "vllm-gpu not installed, expected 2" in told_versions
    assert (
        told_folder == f"the sweep's folder {tmp_path}/s: a folder of this path is there, but another one, not shared"
    )
    assert told_base == f"base LLM or ancestor {tmp_path}/base: the checkpoint {tmp_path}/base is not there"
    nowhere = replace(needs, folder="/nowhere/s", working_directory="/nowhere/suite")
    assert nowhere.problems() == [
        "the sweep's folder /nowhere/s: not there",
        "the working directory /nowhere/suite: No such file or directory",
    ]


class Growing:
    """As `ray` has it: a cluster to which a node joins each time that it is looked at."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self._nodes, self.looked = nodes, 0

    def nodes(self) -> list[dict[str, Any]]:
        self.looked += 1
        return list(self._nodes[: self.looked])


def test_nodes_that_are_still_to_join_are_waited_for(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for gpus in (0, 1):
        growing = Growing(node("a", 1, gpus), node("b", 1, gpus), node("c", 1, gpus))
        assert ray_workers._share_out(growing, 3, 1, patience=60) == (Resources(gpus, 1), 3)
        assert growing.looked == 3
    alone = Growing(node("a", 1), node("b", 1))
    assert ray_workers._share_out(alone, 2, 1, patience=0) == (Resources(0, 1), 1) and alone.looked == 1
    with pytest.raises(SweepError, match=r"2 worker\(s\) of 1 GPU\(s\)"):
        ray_workers._share_out(Growing(node("a", 1, 1), node("b", 1, 1)), 2, 1, patience=0)


@needs_ray
@pytest.mark.parametrize(("named", "given"), [("", "local"), ("10.0.0.1:6379", None)])
def test_a_cluster_that_nobody_named_is_not_joined(in_suite, tmp_path, monkeypatch, named, given):
    import ray

    class StartedError(Exception):
        pass

    def init(address: str | None = None, **others: Any) -> None:
        assert address == given
        raise StartedError

    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(StartedError):
        ray_workers.run(job(tmp_path, tasks="pope", layers="6:8"))


@needs_ray
def test_a_cluster_that_cannot_be_used_is_told_with_its_address(in_suite, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for error in (ConnectionError("nobody is there"), ray.exceptions.AuthenticationError("a token is missing")):
        monkeypatch.setattr(ray, "init", mock.Mock(side_effect=error))
        with pytest.raises(SweepError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379: cannot be used: .*(nobody|token) is"):
            ray_workers.run(job(tmp_path, tasks="pope", layers="6:8"))


# ---- a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep by one process. Do not modify."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        assert len(runner.run(job(folder))) == CELLS
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A first node without a core for workers; others come and go."""
    with clusters.started() as found:
        yield found


@pytest.fixture
def add_node(cluster: Any) -> Iterator[Callable[..., Any]]:
    """`add_node(name)`: one more node of one core, or more; those that are left at the end are taken away."""
    added = []

    def add(name: str, cores: int = 1) -> Any:
        added.append(cluster.add_node(num_cpus=cores, node_name=name))
        return added[-1]

    yield add
    for one in added:
        if one in cluster.list_all_nodes():
            cluster.remove_node(one, allow_graceful=False)
    cluster.wait_for_nodes()  # or the next test still sees them


def at_a_cell(one: Any) -> int | None:
    """The process of a worker of a node that is at a cell."""
    raylet = one.all_processes["raylet"][0].process.pid
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = (folder / "cmdline").read_bytes().startswith(b"ray::_Worker.run")
            if is_worker and f"\nPPid:\t{raylet}\n" in (folder / "status").read_text():
                return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return None


def lose(cluster: Any, one: Any) -> int:
    """Take a node away while its worker is in the middle of a cell; gives the process, which has been stopped."""
    process: int = eventually(lambda: at_a_cell(one), "a worker at a cell")
    os.kill(process, signal.SIGSTOP)
    cluster.remove_node(one, allow_graceful=False)
    return process


def finished(folder: Path) -> dict[Path, int]:
    """Cells that have ended, and when."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("cells/[!.]*/cell.json")}


def check_equal(ours: Path, theirs: Path) -> None:
    """Answers, tables and verdicts, to the last bit."""
    assert answers(ours) == answers(theirs)
    assert not list((ours / "cells").glob(".*")) and not list(ours.glob(".ray-*"))
    found, expected = read_findings(ours), read_findings(theirs)
    for name in ("cells", "tasks", "controls"):
        table = getattr(expected, name)
        columns = [column for column in table.columns if "seconds" not in column]
        assert len(columns) >= len(table.columns) - 2 and getattr(found, name)[columns].equals(table[columns]), name
    assert found.verdict() == expected.verdict() and found.conclusion == expected.conclusion


@pytest.mark.slow
@needs_ray
def test_nodes_that_are_lost_cost_no_cell(cluster, add_node, one_process, in_suite, tmp_path, monkeypatch):
    """One of two nodes, then the other one, too; then what is left, in this process."""
    given = {"MODEL": f"{PAIR}/mllm", "SPEC": f"demo,base={PAIR}/base", "TASKS": "mmstar", "NODES": "2", "GPUS": "1"}
    recipe = recipes.words_of("ray", "plam", **given)  # of docs/multi-gpu.md, for a whole cluster
    assert "layers-2-6_qkvo_0.7+0.3" in plam(*recipe[:-1], str(tmp_path / "planned"), "--dry-run=0")
    on_ray = recipe[recipe.index("--ray") : recipe.index("--output")]
    assert on_ray == ["--ray", "--workers", "2"]
    folder = tmp_path / "sweep"
    first, second = add_node("first"), add_node("second")
    stopped: list[int] = []

    def take_away() -> None:
        stopped.append(lose(cluster, first))
        left = len(finished(folder))
        eventually(lambda: len(finished(folder)) > left + 1, "cells of the second node")
        stopped.append(lose(cluster, second))

    losing = threading.Thread(target=take_away)
    losing.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ray_workers, "PATIENCE", 1.0)
            done = CliRunner().invoke(cli.app, words(folder, *on_ray))
    finally:
        losing.join()
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert len(stopped) == 2 and done.exit_code == 1
    for name in ("first", "second"):
        assert f"node {name} (" in f"{done.output}{done.exception}", done.output
    assert "another answers it again" in done.output
    told = str(done.exception)
    assert isinstance(done.exception, SweepError) and "no node is left that has room for a worker (1 CPU core)" in told
    assert "node first (" in told and "the same command goes on" in told
    kept = finished(folder)
    assert 2 <= len(kept) < CELLS and {read_cell(folder, file.parent.name)["status"] for file in kept} == {"finished"}

    output = plam(*words(folder))
    assert "layers 6:8" in output and {file: finished(folder)[file] for file in kept} == kept
    check_equal(folder, one_process)


NODE_DIED = RuntimeError("The actor died because its node has died. Node Id: ab.")


def schedule_on(folder: Path, *nodes: dict[str, Any]) -> Any:
    """A schedule on nodes that are only told of."""
    ray, planned = SimpleNamespace(kill=lambda actor: None, nodes=lambda: [*nodes]), job(folder)
    return ray_workers.Schedule(ray, None, planned, Needs.of(planned, "mark"), Resources(0, 1))


def test_workers_that_die_while_they_load_with_the_last_node_are_lost_with_it(in_suite, tmp_path):
    schedule = schedule_on(tmp_path / "sweep", node("second", 1, alive=False))
    for _ in range(ray_workers.TRIES):
        schedule._lose(ray_workers._Member(None), NODE_DIED)
    with pytest.raises(SweepError, match=r"no node is left that has room .*lost: node second"):
        schedule._check_room()


def test_workers_that_die_while_they_load_with_a_node_are_no_sign_of_a_model_that_cannot_load(in_suite, tmp_path):
    schedule = schedule_on(tmp_path / "sweep", node("first", 2), node("second", 8, alive=False))
    for _ in range(8):
        schedule._lose(ray_workers._Member(None), NODE_DIED)
    assert not schedule._unfit, "eight may load in their place"
    for _ in range(ray_workers.TRIES):
        schedule._lose(ray_workers._Member(None), RuntimeError("The actor died because of a lack of memory."))
    assert len(schedule._unfit) == 1
    schedule._check_room()  # what died takes no room on the node that is left


def test_free_workers_of_a_node_that_is_gone_are_given_no_cell(in_suite, tmp_path):
    schedule = schedule_on(tmp_path / "sweep", node("first", 1), node("second", 1, alive=False))
    kept, lost = (ray_workers._Member(None, node=one["NodeID"]) for one in schedule._ray.nodes())
    schedule._idle = [lost, kept, lost]
    schedule._look_at_nodes()
    assert schedule._idle == [kept]


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5"])
def test_a_tensor_parallel_size_that_is_no_number_is_told(in_suite, tmp_path, given):
    pytest.importorskip("ray", reason="Ray is not installed")
    planned = job(tmp_path / "sweep")
    config = planned.config
    config = config.model_copy(update={"model_args": f"{config.model_args},tensor_parallel_size={given}"})
    with pytest.raises(SweepError, match=f"tensor_parallel_size: found .?{given}.*, expected"):
        ray_workers.run(replace(planned, config=config))


@pytest.mark.slow
@needs_ray
def test_what_happens_to_workers_is_their_cells_or_nobodys(cluster, add_node, in_suite, tmp_path):
    """One cannot load, one cell ends its worker each time, one raises outside of its evaluation: the others go on."""
    import ray

    class Worker:
        def __init__(self, needs: Needs) -> None:
            self.folder = Path(needs.folder)

        def load(self) -> tuple[str, str | None]:
            try:
                (self.folder / "loaded").mkdir()
            except FileExistsError:
                return "a node", None
            return "a node", "/data/mllm is not there"

        def run(self, cell: dict[str, Any], attempt: int) -> dict[str, Any]:
            if "self_scale" in cell["name"]:
                (self.folder / f"attempt {attempt}").touch()
                os._exit(1)
            if "noise" in cell["name"]:
                raise OSError("no space left")
            return {"status": "finished"}

    class Blind(Worker):
        def load(self) -> tuple[str, str | None]:
            return "a node", "/data/mllm is not there"

    add_node("one", cores=2)
    planned = job(tmp_path, layers="6:8")
    needs, resources = Needs.of(planned, "mark"), Resources(0, 1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        done = ray_workers.Schedule(ray, ray.remote(Worker), planned, needs, resources).run(2)
        with pytest.raises(SweepError, match="a node of the cluster: /data/mllm is not there"):
            ray_workers.Schedule(ray, ray.remote(Blind), planned, needs, resources).run(2)
    finally:
        ray.shutdown()
    merged = "layers-6-8_qkvo_0.3+1.2"
    assert {name for name, record in done.items() if record["status"] == "finished"} == {"plain", merged}
    lost, raised = (read_cell(tmp_path, f"{merged}_{control}") for control in ("self_scale", "noise0"))
    assert (lost, raised) == (done[f"{merged}_self_scale"], done[f"{merged}_noise0"])
    assert lost["error"].startswith(
        "3 workers were lost at this cell, the last one on a node of the cluster: The actor"
    )
    assert raised["error"] == "OSError: no space left"
    assert sorted(file.name for file in tmp_path.glob("attempt*")) == ["attempt 0", "attempt 1", "attempt 2"]


@pytest.mark.slow
@needs_ray
@pytest.mark.long
def test_two_nodes_give_the_results_of_one_process(cluster, add_node, one_process, in_suite, tmp_path):
    """All of it, and what a command that was stopped has left."""
    add_node("one")
    add_node("two")
    plam(*words(tmp_path, "--ray", "--workers", "2"))
    check_equal(tmp_path, one_process)
    for name in ("plain", "layers-0-8_qkvo_0.3+1.2"):
        shutil.rmtree(tmp_path / "cells" / name)
    left = cell_places(tmp_path, "plain", 1)[1]
    left.mkdir()
    (left / MARKER).touch()
    plam(*words(tmp_path, "--ray", "--workers", "2"))
    check_equal(tmp_path, one_process)


def own_mounts() -> bool:
    """Whether processes here can have mounts of their own, which takes root or user namespaces."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@needs_ray
@pytest.mark.long
def test_a_node_without_the_files_is_named_before_anything_is_loaded(
    cluster, add_node, one_process, in_suite, tmp_path, monkeypatch
):
    if not own_mounts():
        pytest.skip("processes cannot have mounts of their own here")
    shutil.copytree(one_process, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "cells" / "plain")
    kept = finished(tmp_path / "sweep")
    add_node("sees")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
    hidden = [tmp_path / "sweep", PAIR / "base"]
    mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in hidden)
    script = f'{mounts} && exec "$@" --node-name=blind --block'
    blind = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script, "sh", *start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    try:
        eventually(lambda: names_of(cluster) >= {"sees", "blind"}, "the node")
        done = CliRunner().invoke(cli.app, words(tmp_path / "sweep", "--ray", "--workers", "2"))
    finally:
        os.killpg(blind.pid, signal.SIGKILL)
        blind.wait()
    told = str(done.exception)
    assert isinstance(done.exception, SweepError) and "2 other node(s) of the cluster were asked" in told
    assert f"the sweep's folder {tmp_path}/sweep: a folder of this path is there, but another one, not shared" in told
    assert f"base LLM or ancestor {PAIR}/base: " in told and told.count("node blind (") == 2
    assert "node sees" not in told and "Mount or install what is missing" in told and "Traceback" not in told
    assert finished(tmp_path / "sweep") == kept and len(kept) == CELLS - 1


def names_of(cluster: Any) -> set[str]:
    """Of living nodes."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        return {one["NodeName"] for one in ray.nodes() if one["Alive"]}
    finally:
        ray.shutdown()
