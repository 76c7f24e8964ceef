"""`--wandb_args`: checked before a model is loaded, and logged by wandb itself, offline."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.evaluation.wandb import Log, Settings
from plam_eval.harness import evaluate
from tests.helpers.run_folders import changed, documents, write_run, write_sweep


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import wandb

    for name, value in {"WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    return wandb


def test_what_cannot_be_logged_is_known_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluate, "check_model", lambda *a, **k: pytest.fail("its checkpoint was looked at"))
    given: dict[str, Any] = {"model_args": "pretrained=m", "tasks": "pope", "output": tmp_path / "scan"}
    for wandb_args, says in (
        ("project", "wandb_args: 1 problem"),
        ("projct=plam", "wandb.init takes no argument projct, did you mean 'project'"),
    ):
        with pytest.raises(InputError, match=says):
            plam_eval.scan("plam_llava", **given, wandb_args=wandb_args)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"wandb cannot be imported .* pip install wandb"):
        plam_eval.scan("plam_llava", **given, wandb_args="project=plam")
    assert not (tmp_path / "scan").exists()


def test_results_are_logged_by_wandb(offline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = documents(["pope", "mmstar"], 12, right=6)
    better = changed(plain, {("pope", 7): ("yes", 1.0)})
    runs = [tmp_path / "plain", tmp_path / "merged"]
    for folder, given in zip(runs, (plain, better), strict=True):
        write_run(folder, given)
    found = plam_eval.compare(runs, wandb_args={"project": "plam", "name": "first", "mode": "offline"})
    assert found is not None and offline.run is None  # it was ended
    (own,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    words, until = (b"pope/difference", b"overall/p", b"comparison", b"first"), time.monotonic() + 20
    while not all(word in own.read_bytes() for word in words):  # wandb's own process writes it, when it has its turn
        assert time.monotonic() < until, own.read_bytes()
        time.sleep(0.05)

    names = ["layers-6-8_qkvo_0.9+0.3", "layers-6-8_qkvo_0.9+0.3_self_scale"]
    write_sweep(tmp_path / "sweep", {"plain": plain, names[0]: better, names[1]: plain}, layers="6:8")
    logged: list[dict[str, Any]] = []
    with offline.init(mode="offline", project="mine") as run:  # the caller's is used, and left open
        monkeypatch.setattr(run, "log", logged.append)
        with Settings.read("project=other").run("sweep", "x", {"a": 1}) as log:
            log.sweep(plam_eval.read_sweep(tmp_path / "sweep"))
        assert run.config["a"] == 1 and run.summary["chosen"] == names[0] and offline.run is run
        tables = {name: table for row in logged for name, table in row.items()}
        assert set(tables) == {"cells", "tasks", "controls"} and len(tables["cells"].data) == 3
        monkeypatch.setattr(run, "log", lambda row: 1 / 0)
        Log(run, offline).sweep(plam_eval.read_sweep(tmp_path / "sweep"))  # a warning: results are on disk


def test_what_wandb_refuses_is_told(offline: Any) -> None:
    for wandb_args in ("mode=nope", "group=5", "config=5", "project=a/b"):
        key = wandb_args.partition("=")[0]
        with (
            pytest.raises(InputError, match=rf"could not begin a run .*{key}"),
            Settings.read(wandb_args).run("x", "y", {}),
        ):
            pytest.fail("it began")
