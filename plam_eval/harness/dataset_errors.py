"""Why a task's dataset could not be loaded, in one line with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from plam_eval.errors import PlamError, system_error

_LONGEST = 300
_WRITTEN_HERE = {"plam-eval/SceneText": "python -m plam_eval.demo.scene_text FOLDER"}
"""Datasets that are on no hub: what writes them."""


def dataset_error(task: str, dataset: str | None, error: BaseException) -> str:
    """The line for a task. The cause is found below whatever lmms-eval, `datasets` and the hub have wrapped it in.

    Args:
        task: its name.
        dataset: hub id or folder, if it is known.
        error: what loading the task raised.
    """
    chain = list(_causes(error))
    if (own := next((each for each in chain if isinstance(each, PlamError)), None)) is not None:
        return str(own)  # of a released test set's file, which says all
    name = dataset or "DATASET"
    where = f"task {task}, dataset {dataset}: " if dataset else f"task {task}: "
    if (writes := _WRITTEN_HERE.get(name)) is not None:
        return f"{where}no folder of that name is here; `{writes}` writes it, to be started in"
    return where + (_hub_cause(chain, name) or _local_cause(chain))


def _hub_cause(chain: list[BaseException], name: str) -> str | None:
    kinds = {kind.__name__ for error in chain for kind in type(error).__mro__}
    said = " ".join(str(error) for error in chain)
    status = {getattr(getattr(error, "response", None), "status_code", None) for error in chain}
    if "OfflineModeIsEnabled" in kinds or "OfflineModeIsEnabled" in said:
        return (
            "it is not on this machine, and HF_HUB_OFFLINE is set; unset it, fetch it where there is a network "
            f"(hf download --repo-type dataset {name}), or start in the folder below which it lies"
        )
    if "GatedRepoError" in kinds or "gated dataset" in said:
        return f"it is gated; accept its terms at https://huggingface.co/datasets/{name}, then `hf auth login`"
    if "LocalTokenNotFoundError" in kinds:
        return "the task asks for a token of the hub, and this machine has none; `hf auth login`"
    if 401 in status and _has_token():
        return "the hub does not accept the token of this machine; log in again with `hf auth login`, or unset HF_TOKEN"
    if {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"} & kinds or 404 in status:
        return (
            "the hub has no dataset of this name for you, and no folder of it is here; check dataset_path in the "
            "task's YAML; if it is private, `hf auth login`"
        )
    if {"ConnectionError", "TransportError", "Timeout", "TimeoutError"} & kinds or "Couldn't reach" in said:
        return "the hub cannot be reached; check the network and the proxy (HF_ENDPOINT names a mirror), then try again"
    return None


def _local_cause(chain: list[BaseException]) -> str:
    for error in chain:
        if isinstance(error, OSError) and error.errno is not None:
            return system_error(error)
        if isinstance(error, ModuleNotFoundError):
            return f"it needs the Python package {error.name}, which is not installed; install it"
    cause = chain[0]
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0][:_LONGEST]}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What was raised, without tenacity's wrapping, and what it was raised from."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        attempt = getattr(now, "last_attempt", None)  # of tenacity's RetryError
        if attempt is not None:
            now = attempt.exception()
            continue
        yield now
        now = now.__cause__ or now.__context__


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
