"""Which files of a checkpoint an export takes along, and whether they are fit to leave this machine."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from plam_eval.errors import CheckpointError, DamagedFileError, OutsideError, system_error
from plam_eval.files import inside, read_json
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE
from plam_eval.merging.tensor_files import lfs_pointer

_TOKENIZER = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer", "tekken.json", "vocab", "vocab.*", "vocab-*.json"),
    *("*_vocab.json", "encoder.json", "merges.txt", "bpe.codes", "dict.txt"),
    *("normalizer.json", "emoji.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json"),
)

KINDS: dict[str, tuple[str, ...]] = {
    "configuration": ("config.json", "config.*.json", "generation_config.json"),
    # A processor of several tokenizers keeps all but the first of them in folders of their own.
    "tokenizer": (*_TOKENIZER, *(f"*tokenizer/{pattern}" for pattern in _TOKENIZER)),
    "chat template": ("chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
    "processor": ("*processor_config.json", "audio_tokenizer_config.json"),
    "code": ("*.py", "custom_generate/*.py", "custom_generate/requirements.txt"),
    "licence": (
        "*licen[cs]e*",
        "*notice*",
        "copying*",
        "copyright*",
        "*use[-_]policy*",
        "*terms*use*",
        "licen[cs]es/*",
    ),
}
"""Kind -> patterns of names that come along, each matched level by level; those of licences in small letters."""

_LICENCE_SUFFIXES = ("", ".txt", ".md", ".rst", ".pdf", ".html")
# What code may name and the export leaves out nevertheless: other weights, results, what shows or trains the model, and
# the record of an export, as there is one of its own.
_NEVER = (
    FILE,
    *(".*", "readme*", "modelcard*", "*result*", "train*", "optimizer*", "scheduler*", "scaler*", "rng_state*"),
    *("adapter_*", "*.index.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx"),
    *("*.npz", "*.pkl", "*.pickle", "*.tflite", "*.mlmodel", "*.gguf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp"),
)
_LISTED = 10_000  # names in a folder that are looked at
_LARGEST_CODE = 1 << 20  # bytes of a file of code that is looked through for names
_LARGEST_CONFIG = 1 << 24
_MAY_NAME_CODE = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
)


@dataclass(frozen=True)
class SourceFile:
    """A file of the checkpoint that is exported.

    Attributes:
        name: in the checkpoint's folder.
        path: where it lies, links followed.
        size: bytes.
        modified: its time, in nanoseconds, by which a change is noticed.
    """

    name: str
    path: Path
    size: int
    modified: int


@dataclass(frozen=True)
class Choice:
    """What an export takes from a checkpoint besides its weights.

    Attributes:
        names: of the files that come along, by their kinds.
        left_out: names that do not come along, those of folders with a slash behind them.
    """

    names: dict[str, str]
    left_out: tuple[str, ...]

    def of_kind(self, kind: str) -> list[str]:
        """Names of one `kind`, a key of `KINDS` or "named by code"."""
        return [name for name, its_kind in self.names.items() if its_kind == kind]


def kind_of(name: str) -> str | None:
    """The kind of `KINDS` that a file's name belongs to; None for a file that is left out.

    Args:
        name: relative to the checkpoint's folder, with slashes.
    """
    for kind, patterns in KINDS.items():
        licence = kind == "licence"
        if licence and PurePosixPath(name).suffix.lower() not in _LICENCE_SUFFIXES:
            continue
        if any(_matches(name.lower() if licence else name, pattern) for pattern in patterns):
            return kind
    return None


def _matches(name: str, pattern: str) -> bool:
    levels, wanted = name.split("/"), pattern.split("/")
    return len(levels) == len(wanted) and all(map(fnmatchcase, levels, wanted))


def choose_files(checkpoint: Checkpoint) -> Choice:
    """Decide by names which files come along; those of a model on the hub are not downloaded for it.

    Args:
        checkpoint: that is exported.

    Raises:
        CheckpointError: its files cannot be listed.
    """
    weights = {checkpoint.weights, *checkpoint.weight_files}
    listed = sorted(checkpoint.listing() if checkpoint.folder is None else _entries(checkpoint.folder))
    names = {name: kind for name in listed if name not in weights and (kind := kind_of(name.rstrip("/")))}
    folders = {name.split("/")[0] for name in (*names, *weights) if "/" in name.rstrip("/")}
    # A folder of licences is told by its files; one in the place of another file is told as what it is.
    names = {name.rstrip("/"): kind for name, kind in names.items() if not (name.endswith("/") and kind == "licence")}
    left_out = set()
    for name in listed:
        plain = name.rstrip("/")
        top, _, below = plain.partition("/")
        if plain in names or plain in weights:
            continue
        if name.endswith("/") or (below and top not in folders):
            left_out |= set() if top in folders else {f"{top}/"}
        else:
            left_out.add(name)
    return Choice(names, tuple(sorted(left_out)))


def _entries(folder: Path) -> Iterator[str]:
    """Names in a folder, and in those below it that may hold what comes along; folders have a slash behind them."""
    try:
        with os.scandir(folder) as listed:
            entries = [(entry.name, entry.is_dir()) for entry in itertools.islice(listed, _LISTED)]
        for name, is_folder in entries:
            below = f"{name}/"
            yield below if is_folder else name
            if is_folder and any("/" in p and fnmatchcase(name.lower(), p.split("/")[0]) for p in _PATTERNS):
                with os.scandir(folder / name) as listed:
                    yield from (f"{below}{entry.name}" for entry in itertools.islice(listed, _LISTED))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({system_error(error)})") from error


_PATTERNS = tuple(pattern for patterns in KINDS.values() for pattern in patterns)


def named_by_code(choice: Choice, files: Mapping[str, SourceFile]) -> list[str]:
    """Files that code which comes along names, in quotes, and that are of no kind known to be of no use for loading.

    A tokenizer of remote code reads its vocabulary under any name.

    Args:
        choice: what comes along.
        files: by name, those that do.
    """
    candidates = [
        name
        for name in choice.left_out
        if not name.endswith("/") and not any(fnmatchcase(name.lower(), pattern) for pattern in _NEVER)
    ]
    code = ""
    for name in choice.of_kind("code") if candidates else ():
        if files[name].size <= _LARGEST_CODE:
            code += files[name].path.read_text(encoding="utf-8", errors="replace")
    return [name for name in candidates if f'"{name}"' in code or f"'{name}'" in code]


def locate(checkpoint: Checkpoint, names: Iterable[str], problems: list[str]) -> dict[str, SourceFile]:
    """Where files of a checkpoint lie, each downloaded if need be and looked at: what is exported may be published.

    Args:
        checkpoint: that is exported.
        names: of its files.
        problems: what is no file, or a link that leads out of the checkpoint, is added to it, and names that cannot go
            everywhere.
    """
    files: dict[str, SourceFile] = {}
    by_letters: dict[str, str] = {}
    for name in names:
        if name != name.encode("utf-8", "replace").decode():
            problems.append(f"{checkpoint.name}: {name!r} is no name in UTF-8, so no record holds it; rename it")
        if (other := by_letters.setdefault(name.casefold(), name)) != name:
            problems.append(
                f"{checkpoint.name}: {other} and {name} differ in the case of letters alone, so that they are one file "
                "on macOS and Windows; take one of them away"
            )
        try:
            inside(Path(checkpoint.name), name, checkpoint.name, follow_links=False)
            path = checkpoint.find(name) if checkpoint.folder is None else checkpoint.folder / name
            if path is None:
                raise CheckpointError(f"{checkpoint.name}: {name} is listed, and not there; download it again")
            folder = checkpoint.folder or _snapshot(path, name)
            files[name] = _look_at(path, name, folder)
        except (CheckpointError, OutsideError) as error:
            problems += getattr(error, "problems", [str(error)])
        except OSError as error:
            problems.append(system_error(error))
    return files


def _snapshot(path: Path, name: str) -> Path:
    return path.parents[name.count("/")]


def _look_at(path: Path, name: str, folder: Path) -> SourceFile:
    """Raises OutsideError for a link that leads out, CheckpointError for what is no file, OSError."""
    try:
        real = path.resolve()
    except RuntimeError as error:  # Python before 3.13
        raise OutsideError(f"{path}: is a link that leads to itself; delete it") from error
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if not any(real.is_relative_to(root.resolve()) for root in (folder, blobs)):
        raise OutsideError(
            f"{path}: is a link that leads out of the checkpoint, to {real}, and what is exported may be published; "
            "put a copy of the file in its place, or take the link away"
        )
    if not os.path.lexists(real):
        what = "leads to nothing" if path.is_symlink() else "is not there"
        raise CheckpointError(f"{path}: {what}, expected a file; download it again")
    status = real.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is {_what(status.st_mode)}, expected a file; take it away")
    if not os.access(real, os.R_OK):
        raise CheckpointError(f"{path}: cannot be read; give yourself access to it")
    if status.st_size < 1024 and (pointer := lfs_pointer(real)):
        raise CheckpointError(pointer)
    return SourceFile(name, real, status.st_size, status.st_mtime_ns)


def _what(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def code_elsewhere(checkpoint: Checkpoint, files: Mapping[str, SourceFile]) -> list[str]:
    """What is to be said of the code that configs name (`auto_map`): it is in another repository, or is missing.

    Args:
        checkpoint: that is exported.
        files: by name, those that come along.
    """
    notes = []
    for name in _MAY_NAME_CODE:
        if name not in files or files[name].size > _LARGEST_CONFIG:
            continue
        try:
            content = read_json(files[name].path, "download it again")
        except (OSError, DamagedFileError) as error:
            notes.append(f"{name} cannot be read as JSON and is copied as it is ({error})")
            continue
        for value in sorted(set(_names_of_code(content.get("auto_map")))):
            repository, elsewhere, inside_it = value.rpartition("--")
            file = f"{inside_it.split('.')[0]}.py"
            if elsewhere:
                notes.append(
                    f"{name} names code of another repository, {repository} ({inside_it}): it does not come along, and "
                    "loading with trust_remote_code=True downloads it from there"
                )
            elif file not in files:
                notes.append(f"{name} names the code {value}, and {checkpoint.name} has no {file}")
    return notes


def _names_of_code(auto_map: Any) -> Iterator[str]:
    values = auto_map.values() if isinstance(auto_map, Mapping) else ()
    for value in values:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name:
                yield name
