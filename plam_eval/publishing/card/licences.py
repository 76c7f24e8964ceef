"""The licences of a merge's sources, as their own cards state them; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval import hub
from plam_eval.errors import OutsideError, first_line
from plam_eval.files import inside
from plam_eval.terminal import one_line
from plam_eval.yaml_reader import YamlError, parse_yaml

if TYPE_CHECKING:  # torch stays unimported until a checkpoint is there
    from plam_eval.merging.checkpoint import Checkpoint

README = "README.md"
NOT_STATED = "not stated"

_LARGEST_README = 1 << 20
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice)([._-].*)?", re.IGNORECASE)
_LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class Licence:
    """What a source's own card says of its licence.

    Attributes:
        names: as its front matter has them, such as "apache-2.0"; none where it states none.
        name, link: `license_name` and `license_link` of a licence that is "other".
        file: of a licence beside the weights, which says that there is one, and not which.
        unread: why its card could not be read; "" where it was, or there is none.
    """

    names: tuple[str, ...] = ()
    name: str | None = None
    link: str | None = None
    file: str | None = None
    unread: str = ""

    def __str__(self) -> str:
        text = ", ".join(self.names) or NOT_STATED
        if self.name:
            text += f" ({self.name}{f', {self.link}' if self.link else ''})"
        elif self.link:
            text += f" ({self.link})"
        if not self.names and self.file:
            text += f"; a file {self.file} lies beside its weights"
        return f"{text}; its card could not be read: {self.unread}" if self.unread else text


def read_licence(checkpoint: Checkpoint) -> Licence:
    """The licence that a checkpoint's own README states; of the hub's, at the commit that was read.

    A licence's file is not read for what it says: the names of licences are not guessed from their text.

    Args:
        checkpoint: folder or repository.
    """
    folder = Path(checkpoint.location)
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        file = next((name for name in names if _LICENCE_FILE.fullmatch(name)), None)
        if README in names:
            # Snapshots of the hub's cache are links into its blobs.
            follow = checkpoint.recorded_commit is None
            return _stated(lambda: inside(folder, README, str(folder), follow_links=follow), file)
        if checkpoint.recorded_commit is None or not hub.is_repository(checkpoint.model_name):
            return Licence(file=file)
    else:
        file = None
    repository, commit = checkpoint.model_name, checkpoint.recorded_commit
    return _stated(lambda: hub.small_file(repository, README, commit, _LARGEST_README)[0], file)


def _stated(find: Callable[[], Path], file: str | None) -> Licence:
    try:
        path = find()
        with path.open("rb") as opened:
            content = opened.read(_LARGEST_README + 1)
        if len(content) > _LARGEST_README:
            return Licence(file=file, unread=f"{README} is larger than {_LARGEST_README} bytes")
        matter = _FRONT_MATTER.match(content.decode("utf-8-sig"))
        fields = parse_yaml(matter[1]) if matter else None
    except (OSError, UnicodeDecodeError, hub.HubError, OutsideError, YamlError) as error:
        return Licence(file=file, unread=first_line(error))
    if not isinstance(fields, Mapping):
        return Licence(file=file)
    given = fields.get("license")
    names = tuple(str(name).strip() for name in (given if isinstance(given, list) else [given]) if name)
    texts = [fields.get(key) for key in ("license_name", "license_link")]
    name, link = (one_line(text)[:200] if isinstance(text, str) and text else None for text in texts)
    return Licence(tuple(one_line(name)[:200] for name in names), name, link, file)


def licence_fields(licences: Mapping[str, Licence]) -> dict[str, str]:
    """`license` of the card's front matter and what belongs to it; empty where a source states none.

    Licences that differ are "other", which has a name only where all call it by that.

    Args:
        licences: of "model" and "base", and of an "ancestor" that is merged as well.
    """
    stated = [licences.get(side, Licence()) for side in dict.fromkeys(("model", "base", *licences))]
    if not all(licence.names for licence in stated):
        return {}
    first, *others = stated
    alike = all(other.names == first.names for other in others)
    if not alike or len(first.names) > 1 or not _LICENCE_ID.fullmatch(first.names[0]):
        return {"license": "other"}
    fields = {"license": first.names[0]}
    if first.names == ("other",) and any(other.name != first.name for other in others):
        return fields
    if first.name and all(other.name == first.name for other in others):
        fields["license_name"] = first.name
    if first.link and all(other.link == first.link for other in others):
        fields["license_link"] = first.link
    return fields
