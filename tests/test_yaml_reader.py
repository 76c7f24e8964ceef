from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from plam_eval.yaml_reader import Writer, YamlError, parse_yaml, read_yaml
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("24:36", "24:36"),  # 1476 in YAML 1.1
        ("[24:36, 1:2]", ["24:36", "1:2"]),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("0o17", 15),
        ("0x1F", 31),
        ("0", 0),
        ("-3", -3),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("0.9", 0.9),
        (".5", 0.5),
        ("nan", "nan"),
        ("-.inf", -math.inf),
        ("0,9", "0,9"),
        ("[0,9]", [0, 9]),
        ("", None),
        ("~", None),
        ("true", True),
        ("True", True),
        ('"024"', "024"),
        ("'yes'", "yes"),
        ("2026-01-07", "2026-01-07"),
        ("8", 8),
        ("=", "="),
        ("plam9  # nine", "plam9"),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("{b: {c: [1, {d: x}]}}", {"b": {"c": [1, {"d": "x"}]}}),
        ("\n  3: 0.1\n  4: 0.2", {3: 0.1, 4: 0.2}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: Any) -> None:
    read = parse_yaml(f"a: {written}\n")["a"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [024, 036]", 'line 1: found 024, which some read as octal; write 24, or "024" in quotes'),
        ("a: 1\nb: -08", "line 2: found -08, which some read as octal; write -8"),
        ("a: 1\nb: 2\n\na: 3", "key given twice: a (lines 1 and 4)"),
        ("x:\n  a: 1\n  a: 2", "key given twice: a (lines 2 and 3)"),
        ("a: {model: 0,9, base_model: 0,3}", "found 0,9; a decimal fraction has a point: write 0.9"),
        ("a: 1\n---\na: 2", "line 2: a second document begins"),
        ("a: &x 1\nb: *x", "line 1: found the anchor &x"),
        ("a: 1\nb: *x", "line 2: found the alias *x"),
        ("a: !!python/object/apply:os.system [echo]", "found the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!str 8", "found the tag"),
        ("a: [1\nb: 2", "line 2"),
        ("a:\n\tb: 2", "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        ("? [1, 2]\n: 3", "found a list or mapping as a key"),
        ("a: " + "9" * 5000, "line 1: found a number of more than 40 digits"),
        ("a: 0x" + "f" * 5000, "line 1: found a number of more than 40 digits"),
        ("[" * 100_000, "more than 32 lists and mappings inside each other"),
        ("a: \x07", "unacceptable character #x0007"),
    ],
)
def test_what_is_refused_and_what_to_write(text: str, says: str) -> None:
    with pytest.raises(YamlError) as error:
        parse_yaml(text)
    assert says in str(error.value)
    assert len(str(error.value)) < 300


def test_aliases_that_would_fill_the_memory(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(YamlError, match="anchor &a"):
        read_yaml(tmp_path / "bomb.yaml")


def test_files_that_are_too_large_or_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(YamlError, match="larger than 1048576 bytes"):
        read_yaml(file)
    file.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(YamlError, match="line 2: byte 0xff is not UTF-8"):
        read_yaml(file)
    file.write_bytes(b"\xef\xbb\xbfa: \xc3\xa4")
    assert read_yaml(file) == {"a": "ä"}


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda file: file.name)
def test_files_that_were_valid_read_the_same(file: Path) -> None:
    assert read_yaml(file) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    "text", ["1e5", "0o17", "0x1f", "012", "1_000", "24:36", "yes", "~", "", ".inf", "9" * 50, "a"]
)
def test_text_that_looks_like_a_number_is_written_so_that_it_stays_text(text: str) -> None:
    written = yaml.dump({"a": text, text: 1}, Dumper=Writer)
    assert parse_yaml(written) == {"a": text, text: 1} == yaml.safe_load(written)
