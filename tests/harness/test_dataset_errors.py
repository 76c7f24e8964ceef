from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx
import pytest
import tenacity
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from plam_eval.harness import dataset_errors
from plam_eval.harness.checks import check_tasks
from plam_eval.harness.dataset_errors import dataset_error
from plam_eval.harness.errors import EvaluationError


def response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub/api/datasets/org/data"))


def raised(outer: BaseException, cause: BaseException | None = None) -> tenacity.RetryError:
    """As lmms-eval raises it: wrapped by `datasets`, and by tenacity around that."""
    outer.__cause__ = cause
    attempt: Any = tenacity.Future(1)
    attempt.set_exception(outer)
    return tenacity.RetryError(attempt)


@pytest.mark.parametrize(
    ("error", "token", "says"),
    [
        (
            raised(ConnectionError("Couldn't reach 'org/data' on the Hub"), OfflineModeIsEnabled("x")),
            False,
            "HF_HUB_OFFLINE",
        ),
        (
            raised(DatasetNotFoundError("gated"), GatedRepoError("403", response=response(403))),
            True,
            "it is gated; accept its terms at https://huggingface.co/datasets/org/data, then `hf auth login`",
        ),
        (
            raised(DatasetNotFoundError("x"), RepositoryNotFoundError("401", response=response(401))),
            True,
            "the hub does not accept the token",
        ),
        (
            raised(DatasetNotFoundError("x"), RepositoryNotFoundError("401", response=response(401))),
            False,
            "the hub has no dataset of this name for you",
        ),
        (
            raised(DatasetNotFoundError("x"), HfHubHTTPError("404", response=response(404))),
            True,
            "no dataset of this name",
        ),
        (
            raised(ConnectionError("Couldn't reach 'org/data'"), httpx.ConnectError("refused")),
            False,
            "check the network",
        ),
        (raised(httpx.ReadTimeout("slow")), False, "the hub cannot be reached"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
            False,
            "/cache/x: No space left on device; free",
        ),
        (ModuleNotFoundError("No module named 'spacy'", name="spacy"), False, "needs the Python package spacy"),
        (ValueError("BuilderConfig 'x' not found.\nAvailable: y"), False, "ValueError: BuilderConfig 'x' not found."),
    ],
)
def test_each_cause_has_its_remedy_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, token: bool, says: str
) -> None:
    monkeypatch.setattr(dataset_errors, "_has_token", lambda: token)
    line = dataset_error("pope", "org/data", error)
    assert line.startswith("task pope, dataset org/data: ") and says in line
    assert "\n" not in line and len(line) < 320


def test_a_dataset_of_ours_is_not_looked_for_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError) as refused:
        check_tasks("plam_scene_text")
    assert "python -m plam_eval.demo.scene_text FOLDER" in str(refused.value) and "hf download" not in str(
        refused.value
    )
