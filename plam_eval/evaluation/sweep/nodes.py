"""The nodes of a Ray cluster, for a sweep: how many workers fit on them, and whether each sees what a worker opens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plam_eval.errors import PlamError, changes, first_line, listed, system_error
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.folder import identity_changes
from plam_eval.evaluation.sweep.job import Job, open_swept_model
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.provenance import versions

REMEDY = (
    "every node has to see the working directory, the sweep's folder and the checkpoints under the same paths (a "
    "shared file system), and to have the same packages. Mount or install what is missing, or stop Ray on the node "
    "(`ray stop` there); the same command goes on with what was finished"
)


@dataclass(frozen=True)
class Resources:
    """What a worker takes of its node: whole GPUs, and CPU cores beside them."""

    gpus: int
    cores: int

    def fit_on(self, node: Mapping[str, Any]) -> int:
        """Workers that a node has room for, whoever uses it now; none on a node that is gone.

        Args:
            node: of `ray.nodes()`.
        """
        if not node["Alive"]:
            return 0
        by_cores = int(node["Resources"].get("CPU", 0)) // self.cores
        return min(by_cores, int(node["Resources"].get("GPU", 0)) // self.gpus) if self.gpus else by_cores

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} and {cores}" if self.gpus else cores


def share_out(nodes: Sequence[Mapping[str, Any]], workers: int | None, each: int) -> tuple[Resources, int]:
    """What each worker takes, and how many workers there will be.

    A worker lies on one node, so what nodes have left over is not added up.

    Args:
        nodes: of `ray.nodes()`.
        workers: so many are asked for; by default as many as there are GPUs for, or one without any.
        each: GPUs of a worker, where there are any.

    Raises:
        SweepError: more are asked for than there are GPUs for, or no node has a core to spare.
    """
    living = [node for node in nodes if node["Alive"]]
    gpus = sum(int(node["Resources"].get("GPU", 0)) for node in living)
    wanted = Resources(each if gpus else 0, 1)
    room = sum(map(wanted.fit_on, living))
    if gpus and (workers or 1) > room:
        raise SweepError(
            f"{workers or 1} worker(s) of {each} GPU(s) and a CPU core each, all on one node: the cluster has room for "
            f"{room} ({_rooms(living)}); ask for fewer workers, or give the nodes more"
        )
    if not room:
        raise SweepError(f"no node of the cluster has a CPU core for a worker ({_rooms(living)}); `ray start` one")
    if gpus:
        return wanted, workers or room
    count = min(workers or 1, room)
    most = max(int(node["Resources"].get("CPU", 0)) for node in living)
    shares = (Resources(0, cores) for cores in range(most, 0, -1))
    return next(share for share in shares if sum(map(share.fit_on, living)) >= count), count


def _rooms(nodes: Sequence[Mapping[str, Any]]) -> str:
    has = (
        f"{label(node)} has {int(node['Resources'].get('GPU', 0))} GPU(s) and "
        f"{int(node['Resources'].get('CPU', 0))} core(s)"
        for node in nodes
    )
    return listed(has) or "no node is left"


def label(node: Mapping[str, Any]) -> str:
    """A node's name and address, for a reader.

    Args:
        node: of `ray.nodes()`.
    """
    address = node["NodeManagerAddress"]
    name = node.get("NodeName") or address
    return f"node {name if name != address else node['NodeManagerHostname']} ({address})"


def why(error: BaseException) -> str:
    """What `error`, of Ray or raised on another node, says to a reader: the cause, without Ray's traceback.

    Args:
        error: as `ray.get` raises it.
    """
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, PlamError):
        return str(cause)
    if isinstance(cause, OSError):
        return system_error(cause)
    return f"{type(cause).__name__}: {first_line(cause)}"


@dataclass(frozen=True)
class Needs:
    """What a node has to see to answer cells as the others do; `problems` looks for it where it is called.

    Attributes:
        config: of the sweep, as `SweepConfig.model_dump(mode="json")`.
        settings: of the sweep: identities of checkpoints, and versions.
        folder: the sweep's, absolute.
        mark: name of a file that this call has put into the folder, so that another folder of that path is told apart.
        working_directory: from which relative paths lead.
    """

    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    folder: str
    mark: str
    working_directory: str

    @classmethod
    def of(cls, job: Job, mark: str) -> Needs:
        """Those of a sweep that is started here.

        Args:
            job: the sweep.
            mark: as the attribute.
        """
        config = job.config.model_dump(mode="json")
        return cls(config, job.settings, str(job.folder.resolve()), mark, str(Path.cwd()))

    def problems(self) -> list[str]:
        """What is missing here, or is not what the sweep began with; the process goes to the working directory."""
        found = []
        different = changes(self.settings["versions"], (own := versions()), self.settings["versions"] | own)
        if different:
            told = (f"{name} {now or 'not installed'}, expected {was or 'none'}" for name, was, now in different)
            found.append(f"versions: {listed(told)}")
        folder = Path(self.folder)
        if not folder.is_dir():
            found.append(f"the sweep's folder {folder}: not there")
        elif not (folder / self.mark).is_file():
            found.append(f"the sweep's folder {folder}: a folder of this path is there, but another one, not shared")
        elif not os.access(folder, os.W_OK | os.X_OK):
            found.append(f"the sweep's folder {folder}: cannot be written by {_user()}")
        try:
            os.chdir(self.working_directory)  # offline datasets and relative checkpoints are found from there
        except OSError as error:
            return [*found, f"the working directory {self.working_directory}: {error.strerror}"]
        include = self.config["include_path"]
        if include and not Path(include).exists():
            found.append(f"include_path {include}: not there")
        return found + self._checkpoint_problems()

    def _checkpoint_problems(self) -> list[str]:
        """Of those that lie in folders: the hub's are asked for over the network, when they are loaded."""
        config, found = SweepConfig.model_validate(self.config), []
        opened = {"pretrained": (self.settings["checkpoint"], partial(open_swept_model, config))}
        for name, identity in self.settings["bases"].items():
            opened[f"base LLM or ancestor {name}"] = identity, partial(Checkpoint.open, name)
        for what, (identity, open_again) in opened.items():
            if "folder" not in identity:
                continue
            if not Path(identity["folder"]).is_dir():
                found.append(f"{what}: the checkpoint {identity['folder']} is not there")
                continue
            try:
                if changed := identity_changes(identity, open_again().identity()):
                    found.append(f"{what}: {identity['folder']} is there, with other files or times ({changed})")
            except (OSError, PlamError) as error:
                found.append(f"{what}: {why(error)}")
        return found


def _user() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"


def check_nodes(ray: Any, needs: Needs, resources: Resources) -> None:
    """Ask every node on which a worker may be placed whether it sees what a worker opens; nothing is loaded for it.

    This process's own node is not asked: what is here was checked already.

    Args:
        ray: the module, connected.
        needs: of the sweep.
        resources: of a worker.

    Raises:
        SweepError: listing every node that lacks something, and what.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in ray.nodes() if resources.fit_on(node) and node["NodeID"] != here}
    asked = {}
    for node_id in others:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked[node_id] = ray.remote(needs_here).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    answers = {node_id: ask.remote(needs) for node_id, ask in asked.items()}
    problems = []
    for node_id, answer in answers.items():
        try:
            found = ray.get(answer)
        except ray.exceptions.RayError as error:
            if not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes()):
                continue  # gone meanwhile, and no worker will be placed there
            found = [f"could not be asked ({why(error)})"]
        problems += [f"{label(others[node_id])}: {problem}" for problem in found]
    if problems:
        raise SweepError(*problems, REMEDY, origin=f"{len(others)} other node(s) of the cluster were asked")


def needs_here(needs: Needs) -> list[str]:
    """`Needs.problems`, on the node that this is run on.

    Args:
        needs: of the sweep.
    """
    return needs.problems()
