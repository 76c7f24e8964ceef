"""`owner/name@revision` in scans, sweeps and plam doctor: where it is understood, and where its commit is recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plam_eval.cli import doctor
from plam_eval.errors import CheckpointError, InputError
from plam_eval.evaluation import scan
from plam_eval.evaluation.sweep import grid
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.job import Job
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.plan import plan_merge
from plam_eval.spec import PlateauSpec, load_spec
from plam_eval.terminal import Terminal
from tests.helpers.hub import COMMIT, Hub, serving
from tests.helpers.llamas import shard, write_llama

OTHER = "a" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name, seed in (("mllm", 1), ("base", 2)):
        shard(write_llama(tmp_path / "hub" / "org" / name, seed), bin=name == "base")
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        for name in ("mllm", "base"):
            hub.publish(f"org/{name}", tmp_path / "hub" / "org" / name, OTHER, "v2")
        yield hub


def test_a_sweep_is_planned_at_a_revision_and_goes_on_at_no_other(hub: Hub, tmp_path: Path) -> None:
    def planned(model_args: str, base: str = "org/base@v2") -> Job:
        config = SweepConfig.load(
            model="plam_llava", model_args=model_args, tasks="mmstar", base_model=base, layers="1:3", weights="0.9+0.3"
        )
        return Job.plan(config, tmp_path / "sweep")

    job = planned("pretrained=org/mllm@v2")
    assert job.settings["checkpoint"] == {"hub": "org/mllm", "commit": OTHER}
    assert job.settings["bases"] == {"org/base@v2": {"hub": "org/base", "commit": OTHER}}
    cell = next(cell for cell in job.grid.cells if cell.kind == "merged")
    arguments = grid.cell_arguments(job.config, cell)
    assert "pretrained=org/mllm@v2," in arguments and ",base=org/base@v2," in arguments
    assert planned("pretrained=org/mllm,revision=v2").settings["checkpoint"]["commit"] == OTHER
    assert planned("pretrained=org/mllm").settings["checkpoint"]["commit"] == COMMIT
    with pytest.raises(CheckpointError, match="names the revision 'v2', and revision=v1 is given"):
        planned("pretrained=org/mllm@v2,revision=v1")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".safetensors", ".bin")]


def test_doctor_tells_commits_and_what_would_be_downloaded(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    doctor._say_merge(Terminal(least_width=150), "org/mllm@v2", "none", {"base": "org/base@v2", "layers": "1:3"})
    said = capsys.readouterr().out
    assert f"org/mllm@v2 (commit {OTHER})" in said and f"org/base@v2 (commit {OTHER})" in said
    assert "of the model, 4 file(s)" in said and "of the base, 2 file(s), before a merge can begin" in said


def test_a_scan_knows_and_records_the_base_of_a_revision(hub: Hub, tmp_path: Path) -> None:
    assert scan._commit_of("org/base@v2") == OTHER and scan._commit_of("org/base") == COMMIT
    assert scan._commit_of(f"org/none@{OTHER}") == OTHER, "a commit is not looked up"
    assert scan._commit_of("org/none") is None and scan._commit_of(str(tmp_path)) is None
    assert scan._known_base(tmp_path, "Qwen/Qwen3-VL-8B-Instruct@v1") == "Qwen/Qwen3-8B"
    scan.check_base("org/base@v2")
    with pytest.raises(InputError, match=r"base: 'org/base@\.\./x': behind the @ found"):
        scan.check_base("org/base@../x")


def test_a_spec_for_another_revision_is_warned_of(hub: Hub) -> None:
    def warnings(made_for: str, model: str) -> tuple[str, ...]:
        spec = load_spec(None, {"base": "org/base", "layers": "1:3"})
        assert spec is not None
        spec = PlateauSpec.model_validate({**spec.to_dict(), "model": made_for})
        return plan_merge(spec, model=Checkpoint.open(model), base=Checkpoint.open("org/base")).warnings

    for made_for in ("org/mllm", "org/mllm@v2", f"org/mllm@{OTHER}", "elsewhere/mllm"):
        assert not warnings(made_for, "org/mllm@v2"), made_for
    assert warnings("org/mllm@v2", "org/mllm") == ("the spec was made for org/mllm@v2, and this is org/mllm",)
