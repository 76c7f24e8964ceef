"""What a bundle leaves out of the records it holds: places on the machine, names of its users, secrets, and images.

Answers, prompts and what tasks logged stay as they are. What is taken out of a record is named in the manifest, field
by field; a file of which nothing was taken is the run's own, byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LEFT_OUT = "[left out]"
"""What stands in the place of a value that was taken out."""

_CALL = "config/resolved_cli_args"
FIELDS: Mapping[str, str] = {
    **dict.fromkeys(
        (f"{_CALL}/{name}" for name in ("output_path", "include_path", "use_cache", "config", "baseline")),
        "a path of the machine",
    ),
    **dict.fromkeys(
        (f"{_CALL}/{name}" for name in ("wandb_args", "swanlab_args", "hf_hub_log_args", "timezone")),
        "an account or a place",
    ),
    "config/use_cache": "a path of the machine",
    "git_hash": "the commit of whatever folder lmms-eval was called in",
    "git_branch": "the branch of whatever folder lmms-eval was called in",
    "plam_eval/provenance/checkpoint/folder": "a path of the machine",
    "plam_eval/provenance/base/folder": "a path of the machine",
    "plam_eval/provenance/ancestor/folder": "a path of the machine",
    "settings/checkpoint/folder": "a path of the machine",
    "settings/bases/*/folder": "a path of the machine",
    "working_directory": "a path of the machine",
}
"""Fields of records (results, sweep.json, scan.json) whose values are left out, and what they are."""
ANONYMOUS: Mapping[str, str] = {
    "plam_eval/provenance/commit": "of a checkout that may be somebody's own",
    "plam_eval/provenance/spec/source": "free text of an author",
    "plam_eval/provenance/spec/evidence": "where an author found the plateau",
    "spec/source": "free text of an author",
    "spec/evidence": "where an author found the plateau",
    "start_time": "a clock of the machine",
    "end_time": "a clock of the machine",
}
"""Fields that are left out besides where reviewers must not know the authors."""

_PATH = re.compile(
    r"""(?<![\w./\\<>~-])
    (?: ~?/(?:[^\s,;:'"`=()\[\]{}<>|/\\]+/)+[^\s,;:'"`=()\[\]{}<>|/\\]*   # /a/b, /a/, ~/a/b
      | ~/[^\s,;:'"`=()\[\]{}<>|/\\]+
      | [A-Za-z]:[\\/](?:[^\s,;:'"`=()\[\]{}<>|/\\]+[\\/])*[^\s,;:'"`=()\[\]{}<>|/\\]*
      | \\\\[^\s,;:'"`=()\[\]{}<>|/\\]+(?:\\[^\s,;:'"`=()\[\]{}<>|/\\]+)+ )""",
    re.VERBOSE,
)
_URL_OF_FILE = re.compile(r"file://[^\s,;'\"]+")
_TOKEN = re.compile(
    r"""\b(?: hf_[A-Za-z0-9]{20,} | sk-[A-Za-z0-9_-]{20,} | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_\w{30,}
      | glpat-[\w-]{20,} | wandb_v\d_\w{20,} | nvapi-[\w-]{20,} | r8_\w{30,} | xox[abeprs]-[\w-]{20,}
      | A(?:KI|SI)A[A-Z0-9]{16}\b | AIza[\w-]{35}
      | eyJ[\w-]{10,500}\.eyJ[\w-]{10,4000}\.[\w-]{10,} )""",
    re.VERBOSE,
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)(?=[^\s'\"]*\d)[\w.~+/=-]{12,}")
_URL_ACCOUNT = re.compile(r"(://)[^\s/@:'\"]*:[^\s/@'\"]+@")
_SECRET_NAME = r"[\w-]{0,64}(?:api[-_]?key|access[-_]?key|token|secret|passw(?:or)?d)"
_SECRET = re.compile(rf"(?i)(\b{_SECRET_NAME}(?:['\"]?\s*[=:]\s*['\"]?))(?![\[<])([^,\s&'\"]{{6,}})")
_SECRET_OPTION = re.compile(rf"(?i)(--{_SECRET_NAME}\s+)(?![\[<-])(\S{{6,}})")
_IMAGE = re.compile(r"data:(image|video|audio)/[\w.+-]+;base64,([A-Za-z0-9+/=\s]*)")
_SECRET_KEY = re.compile(
    r"(?i).*(?:api[-_]?key|access[-_]?key|openai[-_]key|[-_]token|[-_]secret|passw(?:or)?d)|token|secret|authorization"
)
_SECRET_VARIABLE = re.compile(r"(?i).*(?:key|token|secret|passw(?:or)?d|credentials?)")
"""Names in the environment, and of fields, whose values nobody publishes."""
_COMMON = {"root", "user", "localhost", "ubuntu", "admin", "runner", "nobody", "home"}


class Scrubber:
    """Takes out of records and sample logs what a bundle does not tell.

    Args:
        places: folders of this machine whose names are left out wherever they stand.
        anonymous: leave out what `ANONYMOUS` lists, too.
        hide: words that are left out of every record, whatever their case.
    """

    def __init__(self, places: Iterable[Path] = (), *, anonymous: bool = False, hide: Iterable[str] = ()) -> None:
        self._fields = {**FIELDS, **(ANONYMOUS if anonymous else {})}
        folders = {str(folder) for place in (*places, Path.home(), Path.cwd()) for folder in _forms(place)}
        folders = {folder for folder in folders if len(Path(folder).parts) > 2}  # /root and /data name nobody
        flat = {folder.strip("/\\").replace("/", "__").replace("\\", "__") for folder in folders}
        flat = {name for name in flat if "__" in name}  # how lmms-eval makes the name of a folder of a path
        names = {_user(), socket.gethostname(), socket.gethostname().partition(".")[0]} - _COMMON
        secrets = {value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name) and len(value) > 8}
        self._places = _any_of(folders | flat, end=r"(?![\w-])")
        self._secrets = _any_of(secrets)
        self._names = _any_of({name for name in names if len(name) > 3}, whole=True)
        self._hidden = _any_of({word for word in hide if word.strip()}, ignore_case=True)

    def record(self, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """A record without what is left out, and why, by field ("config/model_args").

        Args:
            content: a JSON object.
        """
        redacted: dict[str, str] = {}
        return self._walk(content, "", redacted), redacted

    def sample(self, line: bytes) -> tuple[bytes, bool]:
        """A line of a sample log, and whether something was taken out of it: images, secrets, places.

        Args:
            line: JSON, without its end.
        """
        sample = json.loads(line)
        kept = self._texts(sample, ())
        if kept == sample:
            return line, False
        return json.dumps(kept, ensure_ascii=False).encode("utf-8", "backslashreplace"), True

    def text(self, text: str) -> str:
        """A text of a record, such as the label of a run, without what is left out of records.

        Args:
            text: the text.
        """
        return self._scrubbed(text)[0]

    def _walk(self, value: Any, where: str, redacted: dict[str, str]) -> Any:
        if (why := self._declared(where)) is not None and value not in (None, "", [], {}, LEFT_OUT):
            redacted[where] = why
            return LEFT_OUT
        if where == "lmms_eval_version" and isinstance(value, str) and "@" in value:
            redacted[where] = "the branch of whatever folder lmms-eval was called in"
            return LEFT_OUT
        if isinstance(value, dict):
            walked = {}
            for key, inner in value.items():
                name = self.text(str(key))
                step = name.replace("~", "~0").replace("/", "~1")  # as a JSON pointer has it
                place = f"{where}/{step}".lstrip("/")
                if _SECRET_KEY.fullmatch(name) and _may_be_secret(inner):
                    redacted[place], inner = "a secret", LEFT_OUT
                walked[name] = self._walk(inner, place, redacted)
            return walked
        if isinstance(value, list):
            return [self._walk(inner, f"{where}/{number}", redacted) for number, inner in enumerate(value)]
        if isinstance(value, str):
            kept, taken = self._scrubbed(value)
            if taken:
                redacted[where] = ", ".join(taken)
            return kept
        return value

    def _declared(self, where: str) -> str | None:
        if where in self._fields:
            return self._fields[where]
        return next(
            (why for field, why in self._fields.items() if "*" in field and _matches(field, where)),
            None,
        )

    def _scrubbed(self, text: str) -> tuple[str, list[str]]:
        """A text of a record as it is kept, and what was taken out."""
        steps = (
            ("an image", _IMAGE, _without_content),
            ("a secret", self._secrets, LEFT_OUT),
            ("a secret", _TOKEN, LEFT_OUT),
            ("a secret", _BEARER, rf"\1{LEFT_OUT}"),
            ("a secret", _URL_ACCOUNT, rf"\1{LEFT_OUT}@"),
            ("a secret", _SECRET, rf"\1{LEFT_OUT}"),
            ("a secret", _SECRET_OPTION, rf"\1{LEFT_OUT}"),
            ("a path of the machine", _URL_OF_FILE, "[path]"),
            ("a path of the machine", _PATH, _last_name),
            ("a path of the machine", self._places, "[path]"),
            ("a name of the machine", self._names, LEFT_OUT),
            ("a word to hide", self._hidden, "[hidden]"),
        )
        why: dict[str, None] = {}
        for what, pattern, by in steps:
            if pattern is not None and (after := pattern.sub(by, text)) != text:
                text, _ = after, why.setdefault(what)
        return text, list(why)

    def _texts(self, value: Any, above: tuple[str, ...]) -> Any:
        """A value of a sample log as it is kept; paths are only looked for where lmms-eval names files."""
        if isinstance(value, dict):
            return {key: self._texts(inner, (*above, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._texts(inner, above) for inner in value]
        if not isinstance(value, str):
            return value
        if above[:1] == ("input_media",):
            return self._scrubbed(value)[0]
        for pattern, by in (
            (_IMAGE, _without_content),
            (self._secrets, LEFT_OUT),
            (_TOKEN, LEFT_OUT),
            (_BEARER, rf"\1{LEFT_OUT}"),
            (_URL_ACCOUNT, rf"\1{LEFT_OUT}@"),
            (self._places, "[path]"),
        ):
            if pattern is not None:
                value = pattern.sub(by, value)
        return value


def _may_be_secret(value: Any) -> bool:
    """Whether it is text, or texts, and none of the tokens of a tokenizer, which stand in brackets."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text and not text.startswith(("<", "[")) for text in texts)


def _without_content(match: re.Match[str]) -> str:
    try:
        content = base64.b64decode(match.group(2), validate=False)
    except (binascii.Error, ValueError):
        content = match.group(2).encode()
    return f"[{match.group(1)} of {len(content)} bytes left out, SHA-256 {hashlib.sha256(content).hexdigest()}]"


def _last_name(match: re.Match[str]) -> str:
    """Of a path, its last name: which file or folder it was, not where."""
    name = re.split(r"[\\/]", match.group().rstrip("\\/"))[-1]
    return f"[path]/{name}" if name and not name.startswith("~") and not name.endswith(":") else "[path]"


def _forms(place: Path) -> list[Path]:
    absolute = place.absolute()
    return [absolute, absolute.resolve()] if absolute.exists() else [absolute]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name
        return ""


def _any_of(
    words: Iterable[str], *, whole: bool = False, ignore_case: bool = False, end: str = ""
) -> re.Pattern[str] | None:
    escaped = sorted((re.escape(word) for word in words if word), key=lambda word: (-len(word), word))
    if not escaped:
        return None
    joined = f"(?:{'|'.join(escaped)}){end}"
    return re.compile(rf"(?<!\w){joined}(?!\w)" if whole else joined, re.IGNORECASE if ignore_case else 0)


def _matches(field: str, where: str) -> bool:
    names, steps = field.split("/"), where.split("/")
    return len(names) == len(steps) and all(name in ("*", step) for name, step in zip(names, steps, strict=True))
