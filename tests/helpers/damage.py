"""Inputs that are nearly right: valid ones, with a few of their values, keys or bytes changed, drawn by hypothesis."""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from hypothesis import strategies as st

Damage = st.SearchStrategy[bytes]
Draw = Callable[..., Any]

OUTSIDE = "outside.json"
"""Name of a file beside the folder that a reader is given: nothing in the folder may lead there."""

_RAW = "@raw{}@"
_RAW_JSON = (
    "1e999",
    "-1e999",
    "9" * 5000,
    "-" + "9" * 30,
    "1" + "0" * 400 + ".0",
    "NaN",
    "-Infinity",
    "[" * 60 + "]" * 60,
    "[" * 120 + "]" * 120,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 5000 + "1" + "}" * 5000,
    '{"a": 1, "a": 2}',
    '"\\ud800"',
    "01",
)
_RAWS = [_RAW.format(number) for number in range(len(_RAW_JSON))]
"""Texts that `as_json` writes as what Python's writer would not."""

# fmt: off
_WORDS = (
    "0", "-1", "1.5", "nan", "inf", "1e999", "1e400", "1_000", "0x10", "٣", "²", "½", "true", "null", "none",
    "None", "~", "[]", "{}", "[[[[", "@", "a\\b", "C:/x", "[bold]", "%s%n", "/etc/passwd", "..", ".", "/",
    "~root/x", "~nobody-of-this-name", "a/../../b", "0:10000000", "0:1:0", "5:2", "0+0", "1+1", "0:9999", "-1:3",
    "0.9:0.5:0.1", "0:0", "3+9+20", "all", "plateau", "a,b", "a;b", "a=b", "a=b=c", "=1+1", "@SUM(1)", "<script>",
    "os.system", "__class__", "__import__('os').system('x')", "float32", "20260101_000000", "2026-13-45", "pope",
    "gqa", "mmstar", "plain", "merged", "noise", "q_proj", "qkvo", "ties", "weighted_sum", "overall", "A", "yes",
    "scan",
    f"../{OUTSIDE}", f"../../{OUTSIDE}", f"./{OUTSIDE}", "", " ", "\n", "builtins eval", "\udc80",
    "\u202e\u0000\x1b[2J",
    "9" * 400, "9" * 5000, "x" * 3000, "é" * 300,
)
# fmt: on
_NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 8, 9, 100, 10_001, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30),
    *(0.5, -0.0, 1.5, -0.1, 1e-300, 1e16, 1e308, float("nan"), float("inf"), float("-inf")),
)
_MUCH = {f"task{number}": "0:10000000" for number in range(40)}
"""What is short, and would be gigabytes of numbers if it were spelled out."""
_CONTAINERS: tuple[Any, ...] = (
    _MUCH,
    " ".join(_MUCH.values()),
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [{}],
    {"a": None},
    [1, "a"],
    {"0": 0},
    [[1, 2], [3]],
)

odd_words = st.sampled_from(_WORDS) | st.text(max_size=12)
odd_values = st.one_of(
    odd_words,
    st.sampled_from(_NUMBERS),
    st.sampled_from((None, True, False)),
    st.sampled_from(_CONTAINERS).map(copy.deepcopy),
    st.sampled_from(_RAWS),
    st.integers(),
    st.floats(),
)


# ---- trees of JSON ---------------------------------------------------------------------------------------------------


def as_json(content: Any, **how: Any) -> str:
    """JSON, and what `odd_values` holds that is none."""
    text = json.dumps(content, **how)
    return re.sub(r'"@raw(\d+)@"', lambda match: _RAW_JSON[int(match[1])], text)


def _place(draw: Draw, content: Any) -> tuple[Any, Any]:
    """A container in a tree, and a key of it; shallow ones as often as deep ones."""
    while True:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = keys[draw(st.integers(0, len(keys) - 1))]
        inner = content[key]
        if not (isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 3))):
            return content, key
        content = inner


@st.composite
def changed(draw: Draw, content: Any, most: int = 3) -> Any:
    """A tree of lists and dictionaries with one to three changes."""
    content = [copy.deepcopy(content)]
    for _ in range(draw(st.integers(1, most))):
        holder, key = _place(draw, content)
        value = holder[key]
        how = draw(st.sampled_from(("odd", "odd", "odd", "gone", "other", "named", "twice", "text", "wrapped", "more")))
        if how == "gone" and holder is not content:
            del holder[key]
        elif how == "other":  # a value that stands elsewhere: of another kind, or of another document
            from_, at = _place(draw, content)
            holder[key] = copy.deepcopy(from_[at])
        elif how == "named" and isinstance(holder, dict):
            holder[draw(odd_words | st.just(f"{key}x") | st.just(str(key).upper()))] = holder.pop(key)
        elif how == "twice" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(value))
        elif how == "text":
            holder[key] = str(value)
        elif how == "wrapped":
            holder[key] = draw(st.sampled_from(([value], {"a": value}, [value, value])))
        elif how == "more" and isinstance(value, dict):
            value[draw(odd_words)] = draw(odd_values)
        elif how == "more" and isinstance(value, list):
            value.append(draw(odd_values))
        elif how == "more" and isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = draw(st.sampled_from((-value, value + 1, value * 1000, value / 2, float(value))))
        else:
            holder[key] = draw(odd_values)
    return content[0]


# ---- bytes and text --------------------------------------------------------------------------------------------------

_TOKENS = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\n",
        b"\r",
        b"\t",
        b",",
        b":",
        b'"',
        b"'",
        b"{",
        b"[",
        b"-",
    ),
    *(
        b"9" * 5000,
        b"[" * 2000,
        b"null",
        b"1e999",
        b"\x80\x04\x95",
        b"cos\nsystem\n",
        b"PK\x03\x04",
        b"\x1f\x8b",
        b"&a ",
    ),
)
_YAML = (
    *("a: &a [x]", "b: *a", "? [a]", "!!python/object/apply:os.system ['x']", "--- ", "...", "<<: {a: 1}", "%YAML 1.1"),
    *(
        "a: !!binary AAAA",
        "a: |\n  x",
        "a: 'x",
        "a: 1_000",
        "a: 0o17",
        "a: .inf",
        "a: 1e999",
        "\t- x",
        "- - - x",
        "a: @x",
    ),
    "a: &a [l,l,l]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c]",
    "[" * 3000,
    "a: " + "9" * 5000,
    "a: 0x" + "f" * 5000,
    "{a: " * 40,
)


@st.composite
def bytes_changed(draw: Draw, content: bytes, tokens: Sequence[bytes] = _TOKENS) -> bytes:
    """Bytes that were cut, flipped, moved, or have something else in between."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        end = min(len(content), place + draw(st.integers(1, 40)))
        how = draw(st.integers(0, 6))
        if how == 0:
            content = content[:place]
        elif how == 1 and content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
        elif how == 2:
            content = content[:place] + content[end:]
        elif how == 3:
            content = content[:end] + content[place:end] * draw(st.integers(1, 3)) + content[end:]
        elif how == 4:
            content = content[:place] + draw(st.binary(max_size=8)) + content[end:]
        else:
            content = content[:place] + draw(st.sampled_from(tokens)) + content[place:]
    return content


@st.composite
def words(draw: Draw, examples: Sequence[str], *, marks: str = ",=:+") -> str:
    """Text of a command line: pieces of valid examples and odd words, put together anew, or with letters changed."""
    if draw(st.booleans()):
        text = draw(st.sampled_from(examples)).encode()
        return draw(bytes_changed(text)).decode("utf-8", "replace")
    pieces = sorted({piece for text in examples for piece in re.split(f"[{re.escape(marks)}]", text)})
    parts = draw(st.lists(st.sampled_from(pieces) | odd_words, min_size=1, max_size=6))
    between = draw(st.lists(st.sampled_from(marks), min_size=len(parts), max_size=len(parts)))
    return "".join(part + mark for part, mark in zip(parts, between, strict=True))[: draw(st.sampled_from((-1, None)))]


# ---- files, by what they hold ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def _read_json(content: bytes) -> Any:
    return json.loads(content)


def json_changed(content: bytes) -> Damage:
    """A JSON file with changed values, or changed bytes."""
    return st.one_of(
        changed(_read_json(content)).map(lambda tree: as_json(tree).encode("utf-8", "surrogatepass")),
        changed(_read_json(content)).map(lambda tree: as_json(tree).encode("utf-8", "surrogatepass")),
        bytes_changed(content),
    )


@st.composite
def lines_changed(draw: Draw, content: bytes) -> bytes:
    """JSON lines, one of which has changed values, or is gone, or stands there twice."""
    lines = content.split(b"\n")[:-1] or [b"{}"]
    number = draw(st.integers(0, len(lines) - 1))
    how = draw(st.integers(0, 7))
    if how == 0:
        del lines[number]
    elif how == 1:
        lines.insert(draw(st.integers(0, len(lines))), lines[number])
    elif how == 2:
        return draw(bytes_changed(content))
    else:
        lines[number] = as_json(draw(changed(_read_json(lines[number])))).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n" * draw(st.sampled_from((1, 1, 1, 0)))


@st.composite
def yaml_changed(draw: Draw, content: bytes) -> bytes:
    """A YAML file with changed values, lines of what a strict reader refuses, or changed bytes."""
    import yaml

    how = draw(st.integers(0, 4))
    if how == 0:
        return draw(bytes_changed(content, [*_TOKENS, *(token.encode() for token in _YAML)]))
    if how == 1:
        lines = content.split(b"\n")
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(_YAML)).encode())
        return b"\n".join(lines)
    tree = draw(changed(yaml.safe_load(content)))
    if draw(st.booleans()):
        return as_json(tree, ensure_ascii=False, indent=1).encode("utf-8", "replace")
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return re.sub(r"'@raw(\d+)@'", lambda match: _RAW_JSON[int(match[1])], text).encode("utf-8", "replace")


def _with_value(draw: Draw, table: pd.DataFrame, name: str, row: int) -> pd.DataFrame:
    """Another value in one place, in a column of numbers where it is a number still."""
    values = table[name].astype(object).tolist()
    values[row] = draw(odd_values.filter(lambda value: not isinstance(value, (list, dict))))
    column = pd.Series(values, index=table.index, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = pd.to_numeric(column, errors="coerce")
    return table.assign(**{name: numbers if numbers.notna().all() else column})


_TABLES: tuple[Callable[[Draw, pd.DataFrame, str, int], pd.DataFrame], ...] = (
    lambda draw, table, name, row: table.drop(columns=name),
    lambda draw, table, name, row: table.iloc[: draw(st.sampled_from((0, 1, row)))],
    lambda draw, table, name, row: pd.concat([table, table.iloc[[row]]], ignore_index=True),
    lambda draw, table, name, row: table.rename(columns={name: draw(odd_words | st.sampled_from(list(table.columns)))}),
    lambda draw, table, name, row: table.assign(**{name: draw(st.sampled_from(("x", None, 1, 0.5, math.nan, True)))}),
    lambda draw, table, name, row: table.assign(**{name: table[name].astype(str)}),
    lambda draw, table, name, row: table.assign(**{name: [draw(st.sampled_from(([1], [], ["x"])))] * len(table)}),
    lambda draw, table, name, row: table.assign(**{name: pd.Timestamp("2026-01-01")}),
    _with_value,
    _with_value,
)


@st.composite
def table_changed(draw: Draw, content: bytes) -> bytes:
    """A parquet file with other columns, kinds of columns, rows or values, or changed bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(bytes_changed(content))
    table = pd.read_parquet(io.BytesIO(content))
    for _ in range(draw(st.integers(1, 2))):
        if len(table.columns) and len(table) and table.columns.is_unique:
            name = table.columns[draw(st.integers(0, len(table.columns) - 1))]
            row = draw(st.integers(0, len(table) - 1))
            table = draw(st.sampled_from(_TABLES))(draw, table, name, row)
    table = table.loc[:, ~table.columns.duplicated()]
    try:
        return table.to_parquet(index=False)
    except Exception:  # values of several kinds, or half a surrogate pair, which parquet has not: as text
        texts = {name: table[name].map(_text) for name in table.columns if table[name].dtype == object}
        return table.assign(**texts).rename(columns=_text).to_parquet(index=False)


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


@st.composite
def cells_changed(draw: Draw, content: bytes, delimiter: str = "\t") -> bytes:
    """A table of text with changed cells, or changed bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(bytes_changed(content))
    rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))
    for _ in range(draw(st.integers(1, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        how = draw(st.integers(0, 5))
        if how == 0:
            rows.insert(draw(st.integers(0, len(rows))), list(row))
        elif how == 1 or not row:
            row.append(draw(odd_words))
        elif how == 2:
            row.pop(draw(st.integers(0, len(row) - 1)))
        else:
            row[draw(st.integers(0, len(row) - 1))] = draw(odd_words)
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode("utf-8", "replace")


@st.composite
def archive_changed(draw: Draw, content: bytes, inner: Callable[[str, bytes], Damage] | None = None) -> bytes:
    """A zip file with a changed, added, renamed or missing member, or changed bytes."""
    how = draw(st.integers(0, 7))
    if how == 0:
        return draw(bytes_changed(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        kinds = {member.filename: member.compress_type for member in archive.infolist()}
        members = [(name, archive.read(name)) for name in kinds]
    number = draw(st.integers(0, len(members) - 1))
    name, own = members[number]
    if how == 1:
        del members[number]
    elif how == 2:
        members[number] = draw(odd_words.filter(bool)).replace("\0", "0"), own
    elif how == 3:
        members.insert(number, members[number])
    else:
        members[number] = name, draw((inner or damaged)(name, own))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that stands there twice
        for name, own in members:
            word = name.encode("utf-8", "replace").decode()
            archive.writestr(word, own, compress_type=kinds.get(name, zipfile.ZIP_DEFLATED))
    return buffer.getvalue()


@st.composite
def weights_changed(draw: Draw, content: bytes) -> bytes:
    """A safetensors file with a changed header, a wrong length of it, or changed bytes."""
    length = int.from_bytes(content[:8], "little")
    how = draw(st.integers(0, 5))
    if how == 0:
        return draw(bytes_changed(content))
    if how == 1:
        size = draw(st.sampled_from((0, 1, length - 1, length + 1, 100_000_000, 100_000_001, 2**63, 2**64 - 1)))
        return size.to_bytes(8, "little") + content[8:]
    header = as_json(draw(changed(_read_json(content[8 : 8 + length])))).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


_OPCODES = (
    *(bytes([code]) for code in range(256)),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"2" * 40, b"h\x00" * 40),
)


def pickle_changed(content: bytes) -> Damage:
    """A pickle in which opcodes were put, taken out or changed."""
    return bytes_changed(content, _OPCODES)


_XML = (
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>",
    b"<c r='ZZZ99999'><v>1</v></c>",
    b"<f>1+1</f>",
    b"t='e'",
    b"t='s'",
    b"&#0;",
    b"</row>",
)


def damaged(name: str, content: bytes) -> Damage:
    """What a file may hold in place of its content, by its name.

    Args:
        name: of the file.
        content: its valid content.
    """
    suffix = name.rpartition(".")[2]
    if suffix == "json":
        return json_changed(content)
    if suffix == "jsonl":
        return lines_changed(content)
    if suffix in ("yaml", "yml"):
        return yaml_changed(content)
    if suffix == "parquet":
        return table_changed(content)
    if suffix in ("tsv", "csv"):
        return cells_changed(content, "\t" if suffix == "tsv" else ",")
    if suffix == "safetensors":
        return weights_changed(content)
    if suffix in ("zip", "xlsx", "npz", "bin"):
        return archive_changed(content)
    if suffix == "pkl":
        return pickle_changed(content)
    if suffix in ("xml", "rels"):
        return bytes_changed(content, _XML)
    return bytes_changed(content)


@st.composite
def folders(draw: Draw, files: Mapping[str, bytes], only: Callable[[str], bool] = bool) -> dict[str, bytes | None]:
    """What is other in a folder: one file, or two, with what it holds now; None where it is gone.

    Args:
        draw: of hypothesis.
        files: by name, with their valid content.
        only: which of them may change.
    """
    names = [name for name in files if only(name)]
    others: dict[str, bytes | None] = {}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
        name = names[draw(st.integers(0, len(names) - 1))]
        others[name] = draw(st.none() if draw(st.integers(0, 30)) == 7 else damaged(name, files[name]))
    return others
