"""The one reader of YAML that users write: specs, sweeps, searches. Strict, so that nothing is read as something else.

Scalars are those of YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3): `24:36`, `yes` and `1_000` are text, where
YAML 1.1, which PyYAML follows, reads 1476, true and 1000. What the two read as different numbers (`024`) is refused, as
is whatever a list of settings has no need of: a key given twice, tags, anchors and aliases, a second document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plam_eval.errors import DamagedFileError, quoted

LARGEST_FILE = 1 << 20  # bytes
_DEEPEST = 32
_MOST_DIGITS = 40

_NULL = ("", "~", "null", "Null", "NULL")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"([-+]?)(\d+)", re.ASCII)
_OCTAL, _HEX = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")


class Writer(yaml.SafeDumper):
    """For `yaml.dump`: text that this reader, or one of YAML 1.1, would read as something else is written in quotes.

    PyYAML knows YAML 1.1 alone, in which `1e5` and `0o17` are text.
    """


def _written(writer: Writer, text: str) -> yaml.ScalarNode:
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _is_no_text(text) else None)


def _is_no_text(text: str) -> bool:
    try:
        return not isinstance(_plain(text, 0), str)
    except YamlError:
        return True


Writer.add_representer(str, _written)


class YamlError(DamagedFileError):
    """A file that is no YAML of the strict kind; the message has the line and says what to write."""


def read_yaml(path: str | Path) -> Any:
    """What a file holds: mappings with keys in their order, lists, text, numbers, booleans, None.

    Args:
        path: of the file.

    Raises:
        YamlError: it is larger than 1 MiB, not UTF-8, or not YAML as described above. The message does not name it.
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise YamlError(f"it is larger than {LARGEST_FILE} bytes; expected a list of settings")
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save it as UTF-8") from error


def mapping_problems(data: Any, expected: str) -> list[str]:
    """Why what a YAML file holds is no mapping with words as its keys, in words; empty where it is one.

    Args:
        data: what was read from the file.
        expected: what it should hold, with an example, for the message.
    """
    if not isinstance(data, dict):
        return [f"found {_not_a_mapping(data)}, expected {expected}"]
    return [f"found {quoted(key)} as a key, expected a word" for key in data if not isinstance(key, str)]


def _not_a_mapping(data: Any) -> str:
    if data is None:
        return "an empty file"
    if isinstance(data, str):
        return "text (a space belongs behind each colon)"
    return "a list" if isinstance(data, list) else type(data).__name__


def parse_yaml(text: str) -> Any:
    """What `text` holds, as `read_yaml` gives it; raises YamlError."""
    document = _Document()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            document.take(event)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_syntax(error)) from error
    except yaml.YAMLError as error:  # a character that no YAML file may hold
        raise YamlError(str(error).replace('in "<unicode string>", ', "")) from error
    return document.content


@dataclass
class _Open:
    """A list or mapping whose end has not come. `lines`: of each key; `last`: key and line of a value that is due."""

    content: list[Any] | dict[Any, Any]
    lines: dict[Any, int] = field(default_factory=dict)
    last: tuple[Any, int] | None = None
    before: Any = None  # the value of the key before


class _Document:
    """Puts the values of parse events together, without recursion, however deeply a file is nested."""

    def __init__(self) -> None:
        self.content: Any = None
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise YamlError(f"line {line}: a second document begins; expected one, so put it into another file")
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(f"line {line}: found the alias *{event.anchor}, which is not read; write the value again")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise YamlError(f"line {line}: found the anchor &{event.anchor}, which is not read; leave it out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise YamlError(f"line {line}: found the tag {tag}, which is not read; leave it out")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in (None, "")
            self._add(_plain(event.value, line) if plain else event.value, line, event)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) >= _DEEPEST:
                raise YamlError(f"line {line}: more than {_DEEPEST} lists and mappings inside each other")
            content: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            self._add(content, line, event)
            self._open.append(_Open(content))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()

    def _add(self, value: Any, line: int, event: yaml.Event) -> None:
        if not self._open:
            self.content = value
            return
        parent = self._open[-1]
        if isinstance(parent.content, list):
            parent.content.append(value)
        elif parent.last is None:
            self._add_key(parent, value, line)
        else:
            key, key_line = parent.last
            empty = isinstance(event, yaml.ScalarEvent) and not event.value and event.style in (None, "")
            if empty and isinstance(key, int) and isinstance(parent.before, int):
                raise YamlError(
                    f"line {key_line}: found {parent.before},{key}; a decimal fraction has a point: "
                    f"write {parent.before}.{key}"
                )
            parent.content[key] = parent.before = value
            parent.last = None

    def _add_key(self, parent: _Open, key: Any, line: int) -> None:
        if isinstance(key, (list, dict)):
            raise YamlError(f"line {line}: found a list or mapping as a key; expected a word")
        if key in parent.lines:
            raise YamlError(f"key given twice: {key} (lines {parent.lines[key]} and {line}); leave one of them out")
        parent.lines[key] = line
        parent.last = key, line


def _plain(text: str, line: int) -> Any:
    """The value of a scalar without quotes, by the core schema."""
    if text in _NULL:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    if len(text) > _MOST_DIGITS and any(form.fullmatch(text) for form in (_DECIMAL, _OCTAL, _HEX, _FLOAT)):
        raise YamlError(f"line {line}: found a number of more than {_MOST_DIGITS} digits, {quoted(text)}")
    if decimal := _DECIMAL.fullmatch(text):
        sign, digits = decimal.groups()
        if len(digits) > 1 and digits[0] == "0":
            raise YamlError(
                f"line {line}: found {text}, which some read as octal; write {sign}{int(digits)}, "
                f'or "{text}" in quotes where it is a name'
            )
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INFINITE.fullmatch(text):
        return float(f"{infinite[1]}inf")
    if text in (".nan", ".NaN", ".NAN"):
        return float("nan")
    return text


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's finding in one line."""
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = str(error.problem or error.context)
    if "\\t" in problem or "'\t'" in problem:
        problem += "; indent with spaces"
    elif error.context and error.problem:
        problem = f"{error.context}: {problem}"
    return where + problem
