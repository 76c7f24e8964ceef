from __future__ import annotations

import re
from pathlib import Path

import pytest

from plam_eval.errors import DamagedFileError, OutsideError
from plam_eval.files import inside, read_json, write_in_one_step, write_json


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b"[" * 100_000, b"[1]", b"null", b"3"])
def test_damaged_json_names_the_file_and_the_remedy(tmp_path, content):
    file = tmp_path / "index.json"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=re.escape(str(file)) + ".*; download it again"):
        read_json(file, "download it again")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_in_one_step(file, fail)
    assert read_json(file, "") == {"a": 1} and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/passwd", "", ".", 3, None, "a\0b", "..\\x", "C:x"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(OutsideError, match=r"sweep\.json"):
        inside(tmp_path, name, "sweep.json")


def test_links_that_lead_out_are_refused_unless_they_are_usual(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "blob").write_text("x")
    (folder / "link").symlink_to(tmp_path / "blob")
    (folder / "within").symlink_to(folder / "cells")
    with pytest.raises(OutsideError, match="leads to"):
        inside(folder, "link", "index.json")
    assert inside(folder, "link", "index.json", follow_links=False) == folder / "link"
    assert inside(folder, "within", "index.json") == folder / "within"
    assert inside(folder, "cells/a.json", "index.json") == folder / "cells" / "a.json"
