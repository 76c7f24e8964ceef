"""Two processes at one search, of which one is killed or goes away with its node: the other one finishes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.search.answers import ANSWERS, Answers
from tests.helpers import clusters, meeting
from tests.helpers.clusters import eventually
from tests.helpers.kill_points import check_visible
from tests.helpers.paths import ROOT
from tests.helpers.sweeps import SPEC, plam

pytestmark = pytest.mark.long
SETTINGS = 8  # two that a search begins with and all of a space: the same ones, whoever proposes them
SELECT = 4


def words(folder: Path) -> list[str]:
    """Three ranges of layers by two pairs of weights, so strong that answers differ."""
    given = ["--model", "plam_llava", "--model_args", SPEC, "--tasks", "mmstar", "--limit", "10"]
    given += ["--select", str(SELECT), "--trials", str(SETTINGS), "--rungs", "0.5", "--prune", "0"]
    space = ["--within", "0:8", "--min_layers", "7", "--model_weight", "0.1", "--base_weight", "0.9:1.5:0.6"]
    return ["search", *given, *space, "--sampler", "grid", "--output", str(folder)]


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search by one process that nothing happens to. Do not modify."""
    folder = tmp_path_factory.mktemp("whole") / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        plam(*words(folder))
    answers = [[row["answer"] for row in setting["answers"]] for setting in settings(folder).values()]
    assert any(one != answers[0] for one in answers), "no merge changes an answer: whose it is would not be seen"
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """By setting its spec and answers; when it was proposed depends on who was first."""
    found = {file.stem: json.loads(file.read_text()) for file in (folder / ANSWERS).glob("[!.]*.json")}
    return {name: {key: value for key, value in one.items() if key != "number"} for name, one in found.items()}


def check_finished(folder: Path, marks: Path, whole: Path) -> None:
    """All settings are tried, each of their documents was asked once, and the answers are those of one process."""
    check_visible(folder)
    assert settings(folder) == settings(whole)
    assert len(Answers(folder).merges()) == SETTINGS
    chosen_on = {(row["task"], row["doc_id"]) for row in settings(whole)["plain"]["answers"]}
    assert len(chosen_on) >= SELECT  # those that share an image are chosen together
    asked = meeting.answered(marks)
    assert len(asked) == len(set(asked)) == (SETTINGS + 1) * len(chosen_on), "a document was asked twice, or never"
    assert {key for _, key in asked} == chosen_on
    assert not [lock for lock in (folder / "running").iterdir() if lock.stem.isdigit()], (
        "proposals that nobody has ended"
    )
    told = [json.loads((one / "documents.json").read_text()) for one in (folder, whole)]
    assert told[0] == told[1]
    cells = [json.loads(file.read_text()) for file in folder.glob("heldout/cells/[!.]*/cell.json")]
    assert cells and all(cell["status"] == "finished" for cell in cells)


@pytest.mark.parametrize("rung", [1, 2], ids=["before its first answer", "between its rungs"])
def test_where_one_of_two_is_killed_in_a_proposal_the_other_finishes(
    rung: int, whole: Path, suite: Path, tmp_path: Path
) -> None:
    folder, marks = tmp_path / "search", tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "-m", "tests.helpers.meeting", str(marks), str(rung), *words(folder)]
    environment, said = os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "said"
    with said.open("w") as log:
        both = [
            subprocess.Popen(command, cwd=suite, env=environment, stdout=log, stderr=subprocess.STDOUT)
            for _ in range(2)
        ]
    try:
        eventually(
            lambda: len(meeting.held(marks)) == 2 or any(one.poll() is not None for one in both), "both at a proposal"
        )
        assert len(meeting.held(marks)) == 2, said.read_text()
        killed, left = both
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(60) == -signal.SIGKILL
        (marks / "go").touch()
        assert left.wait(240) == 0, said.read_text()
    finally:
        for one in both:
            one.kill()
            one.wait()
    check_finished(folder, marks, whole)


@pytest.mark.needs("ray")
def test_where_one_of_two_nodes_goes_away_the_other_one_finishes(whole: Path, suite: Path, tmp_path: Path) -> None:
    """Ray starts one process on each node and takes no other part."""
    folder, marks = tmp_path / "search", tmp_path / "marks"
    marks.mkdir()
    given, root = words(folder), str(ROOT)

    def search() -> str:
        sys.path.insert(0, root)
        os.chdir(suite)
        from tests.helpers import meeting
        from tests.helpers.sweeps import plam

        meeting.hold(marks, 2)
        return str(plam(*given))

    with clusters.started() as cluster:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [cluster.add_node(num_cpus=1, node_name=name) for name in ("first", "second")]
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            task = ray.remote(num_cpus=1, max_retries=0)(search)
            lost, left = (
                task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one.node_id, soft=False)).remote()
                for one in nodes
            )
            eventually(
                lambda: len(meeting.held(marks)) == 2 or ray.wait([lost, left], timeout=0)[0], "both at a proposal"
            )
            before = meeting.held(marks)
            assert len(before) == 2, ray.get([lost, left])
            cluster.remove_node(nodes[0], allow_graceful=False)
            eventually(lambda: sum(Path(f"/proc/{process}").exists() for process in before) == 1, "the process to end")
            (marks / "go").touch()
            assert "Chosen of" in " ".join(ray.get(left, timeout=240).split())
            with pytest.raises(ray.exceptions.RayError):
                ray.get(lost, timeout=60)
        finally:
            ray.shutdown()
    check_finished(folder, marks, whole)
