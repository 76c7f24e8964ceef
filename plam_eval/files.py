"""Reading and writing files of ours: in one step, inside their own folder, and with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from plam_eval.errors import DamagedFileError, OutsideError


def write_in_one_step(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, and move what it wrote there: a kill leaves the old file or the new one.

    Raises OSError when it cannot be written; nothing is left beside `path` then.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, in one step."""
    text = json.dumps(content, indent=2) + "\n"
    write_in_one_step(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what to do where it is none, such as "download it again".

    Raises:
        DamagedFileError: the file is not UTF-8, not JSON, or holds something else than an object.
        OSError: it cannot be opened.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path}: found {type(content).__name__}, expected a JSON object; {remedy}")
    return content


def inside(folder: Path, name: object, origin: str, *, follow_links: bool = True) -> Path:
    """The path of `name`, which stood in a file, below the folder that it belongs into.

    Args:
        origin: where the name was read, for the message.
        follow_links: refuse symbolic links that lead out, too. False where links are usual, as in a hub's cache.

    Raises:
        OutsideError: it is no relative path of plain names, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise OutsideError(f"{origin}: found {name!r} as the name of a file, expected text")
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and path.parts and "\\" not in name
    if not plain or PureWindowsPath(name).drive:
        raise OutsideError(f"{origin}: names {name!r}, expected a file inside {folder}")
    found = folder / path
    if follow_links and not found.resolve().is_relative_to(folder.resolve()):
        raise OutsideError(f"{origin}: {name!r} leads to {found.resolve()}, expected a file inside {folder}")
    return found
