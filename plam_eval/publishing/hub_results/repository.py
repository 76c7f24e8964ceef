"""What a model's repository and a benchmark's board on the hub hold now; offline, that nobody knows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plam_eval import hub
from plam_eval.errors import CheckpointError, ProblemsError, first_line
from plam_eval.evaluation.exported_merge import EXPORTED, MERGED, ExportedMerge
from plam_eval.evaluation.records import Run
from plam_eval.merging.export_record import FILE, ExportRecord, read_export_record
from plam_eval.publishing.upload import UploadError, in_our_words
from plam_eval.spec import SpecError
from plam_eval.yaml_reader import YamlError, parse_yaml

_LARGEST = 1 << 20  # bytes of a card, or of a file of results
_LARGEST_RECORD = 1 << 24


class RepositoryError(ProblemsError, ValueError):
    """A repository whose files cannot be read, or are not what they should be."""


@dataclass
class ModelRepository:
    """A model's repository, as it is now.

    Attributes:
        name: owner/name.
        exists: whether it is there; False offline.
        offline: why nothing can be asked; "" where the hub answers.
        commit: the newest.
        files: names of all its files.
        record: of the export that it holds; None where it holds none.
        notes: what is said of it.
    """

    name: str
    exists: bool = False
    offline: str = ""
    commit: str | None = None
    files: frozenset[str] = frozenset()
    record: ExportRecord | None = None
    notes: list[str] = field(default_factory=list)

    def text(self, path: str) -> str | None:
        """A file's content; None where there is none, or nobody knows.

        Args:
            path: in the repository.

        Raises:
            RepositoryError: it cannot be read.
        """
        if path not in self.files:
            return None
        try:
            file, _ = hub.small_file(self.name, path, self.commit, _LARGEST)
            return file.read_bytes().decode("utf-8-sig")
        except (hub.HubError, OSError, UnicodeDecodeError) as error:
            raise RepositoryError(
                f"{path} of {self.name} cannot be read ({first_line(error)}); mend it there"
            ) from error

    def entries(self, path: str) -> list[dict[str, Any]]:
        """The entries of a file of results, as they stand there; none where there is no such file.

        Args:
            path: in the repository.

        Raises:
            RepositoryError: it holds something else.
        """
        text = self.text(path)
        if text is None:
            return []
        try:
            content = parse_yaml(text)
        except YamlError as error:
            raise RepositoryError(f"{path} of {self.name} cannot be read: {error}; mend it there") from error
        if not isinstance(content, list) or not all(map(_is_entry, content)):
            raise RepositoryError(
                f"{path} of {self.name}: expected a list of entries, each with dataset (id, task_id) and value; "
                "mend it there"
            )
        return content

    def tie(self, run: Run) -> tuple[str, Mapping[str, Any] | None]:
        """Why a run is not of this repository's model, and the spec of the merge that it ran; None for a plain model.

        Args:
            run: of lmms-eval.
        """
        own = (run.block.get("provenance") or {}).get("spec")
        if self.record is None:
            return "", own
        try:
            export = ExportedMerge.of_record(self.record)
        except SpecError as error:
            return f"{FILE} of {self.name} holds no spec that can be read: {'; '.join(error.problems)}", own
        problem, role = export.problem_or_role(run)
        if problem:
            return f"is not of the model in {self.name}: it {problem}", own
        if role not in (MERGED, EXPORTED):
            return f"is not of the model in {self.name}, which holds a merge: this is a run of its {role}", own
        return "", self.record.spec

    def board(self, dataset: str) -> tuple[list[float], str]:
        """The values on a benchmark's board, and why there are none.

        Args:
            dataset: of the benchmark.
        """
        from huggingface_hub import HfApi, errors

        try:
            entries = HfApi().get_dataset_leaderboard(dataset, base_model_only=False)
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status not in (401, 403, 404):  # the hub's own trouble says nothing of a board
                return [], f"the board of {dataset} cannot be asked (status {status})"
            return [], f"{dataset} has no board on the hub ({status}), so results of it are shown nowhere"
        except Exception as error:  # of the network, or the client's, of an answer that has another form
            return [], f"the board of {dataset} cannot be asked ({type(error).__name__}: {first_line(error)})"
        values = [entry.value for entry in entries]
        return [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)], ""


def _is_entry(entry: Any) -> bool:
    fields = entry.get("dataset") if isinstance(entry, Mapping) and "value" in entry else None
    return isinstance(fields, Mapping) and all(isinstance(fields.get(key), str) for key in ("id", "task_id"))


def read_repository(name: str) -> ModelRepository:
    """A model's repository on the hub, as far as it can be asked.

    Args:
        name: owner/name.

    Raises:
        RepositoryError: it holds a record of an export that cannot be read.
    """
    from huggingface_hub import HfApi, constants, errors

    info = None
    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
        return ModelRepository(name, offline=why, notes=[_unseen(name, why)])
    try:
        with in_our_words(name), contextlib.suppress(errors.RepositoryNotFoundError):
            info = HfApi().model_info(name)
    except UploadError as error:
        why = "; ".join(error.problems)
        return ModelRepository(name, offline=why, notes=[_unseen(name, why)])
    if info is None:
        return ModelRepository(name, notes=[f"{name}: the hub has no such repository, or shows it to its members only"])
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    remote = ModelRepository(name, exists=True, commit=info.sha, files=files)
    if FILE not in files:
        remote.notes.append(f"{name} holds no {FILE}, so nothing ties these runs to its model but your word")
        return remote
    try:
        file, _ = hub.small_file(name, FILE, info.sha, _LARGEST_RECORD)
        remote.record = read_export_record(file.parent)
    except (hub.HubError, CheckpointError) as error:
        raise RepositoryError(f"{name}: {error}") from error
    return remote


def _unseen(name: str, why: str) -> str:
    return (
        f"{name} was not looked at ({why}): what its files hold already, and whether these runs are of its model, is "
        "not known; files are shown as if they were new"
    )
