"""What a bundle says of itself: its member `manifest.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plam_eval.errors import DamagedFileError, validation_problems
from plam_eval.files import json_object
from plam_eval.publishing.bundle.archive import BundleError

NAME = "manifest.json"
README = "README.md"
FORMAT: Literal[1] = 1
"""Version of the form."""
LARGEST = 1 << 26
"""Bytes of a manifest."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BundledFile(_Strict):
    """One member.

    Attributes:
        sha256: of its content, in hex.
        bytes: its size.
        original: SHA-256 of the file that it was made from, where something was left out.
        left_out: field -> why, of a record; line -> why, of a sample log.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    original: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    left_out: dict[str, str] = {}


class BundledTask(_Strict):
    """One task of a run.

    Attributes:
        samples: member that is its sample log.
        documents: lines of the first filter.
        version: that the task declares.
        config_sha256: of the configuration that the results hold, without the addresses of functions in memory.
    """

    samples: str
    documents: int = Field(ge=0)
    version: str
    config_sha256: str


class BundledRun(_Strict):
    """One run.

    Attributes:
        label: what the bundle calls it.
        results: member that is its results file.
        tasks: by name.
        digest: of the plateau spec; None for a plain model, or one of another wrapper.
        lmms_eval: version that made it, where the results say it.
    """

    label: str
    results: str
    tasks: dict[str, BundledTask]
    digest: str | None
    lmms_eval: str | None


class TaskFile(_Strict):
    """A task's YAML, as it was installed where the bundle was made.

    Attributes:
        sha256: of the file and of those that it includes, in their order.
        files: how many these are.
    """

    sha256: str
    files: int


class Manifest(_Strict):
    """Everything that is in a bundle but the manifest itself.

    Attributes:
        kind: what the file is.
        format: version of this form.
        runs: in the order in which they were named.
        records: other members, such as a sweep's settings -> what they are.
        files: member -> hash and size, of every member but the manifest.
        versions: of Python and the packages where the bundle was made; what a run was made with stands in its results.
        platform: system and machine where the bundle was made.
        task_files: task -> its YAML there.
        anonymous: whether what names authors was left out.
        notes: what a reader has to know, a sentence each.
    """

    kind: Literal["plam-eval bundle"] = "plam-eval bundle"
    format: Literal[1] = FORMAT
    runs: list[BundledRun]
    records: dict[str, str]
    files: dict[str, BundledFile]
    versions: dict[str, str]
    platform: dict[str, str]
    task_files: dict[str, TaskFile]
    anonymous: bool
    notes: list[str]


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a task's configuration as results have it, without the addresses of functions in memory.

    Args:
        config: the configuration.
    """
    text = json.dumps(config, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(_ADDRESS.sub("", text).encode()).hexdigest()


def parse_manifest(text: bytes, origin: str) -> Manifest:
    """The manifest that `text` is.

    Args:
        text: JSON.
        origin: what messages call the bundle.

    Raises:
        BundleError: it is none, or of another version; every problem is named.
    """
    try:
        content: Mapping[str, Any] = json_object(text, f"{origin}: {NAME}", "bundle again")
    except DamagedFileError as error:
        raise BundleError(str(error)) from error
    if content.get("kind") != "plam-eval bundle":
        raise BundleError(f"{origin}: {NAME} is not that of a bundle of `plam submit --bundle`")
    if content.get("format") != FORMAT or isinstance(content["format"], bool):
        raise BundleError(
            f"{origin}: is a bundle of format {content.get('format')!r:.40}, and this plam-eval reads format {FORMAT}; "
            "verify it with the version that it names"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        keys = {".".join(str(word) for word in finding["loc"][:-1]): _KEYS for finding in error.errors()}
        problems = validation_problems(error, {**keys, "": Manifest.model_fields})
        raise BundleError(
            *(f"{key}: {text}" for key, text in problems[:50]), origin=f"{origin}: {NAME} cannot be read"
        ) from error
    if faults := _problems(manifest):
        raise BundleError(*faults[:50], origin=f"{origin}: {NAME} does not fit itself")
    return manifest


_KEYS = [name for record in (BundledFile, BundledTask, BundledRun, TaskFile) for name in record.model_fields]


def _problems(manifest: Manifest) -> list[str]:
    """Members that are named and not listed, or used twice."""
    named = [README, *manifest.records]
    for run in manifest.runs:
        named += [run.results, *(task.samples for task in run.tasks.values())]
    every = set(named)
    unlisted = [f"{name!r:.120}: named, but it is not in files" for name in named if name not in manifest.files]
    unnamed = [f"{name!r:.120}: in files, but nothing says what it is" for name in manifest.files if name not in every]
    twice = [f"{name!r:.120}: named {count} times" for name, count in Counter(named).items() if count > 1]
    return [*unlisted, *unnamed, *twice, *([] if manifest.runs else ["runs: found none"])]
