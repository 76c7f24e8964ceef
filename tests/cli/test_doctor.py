"""What `plam doctor` says of a spec that is none."""

from __future__ import annotations

import pytest

from plam_eval import cli
from tests.helpers.commands import Call


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--plateau", "demo", "--base-weight", "0,3"],
            "(override base_weight=): found '0,3'; a decimal fraction has a",
        ),
        (["--plateau", "demo", "--base-weight", "30%"], "found '30%', expected a number such as 0.9"),
        (["--plateau", ""], "found no name, expected a packaged spec, a YAML file or none"),
    ],
)
def test_the_doctor_says_what_to_write(
    plam: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)
    code, out, err = plam("doctor", *words)
    assert code == 1 and says in err and not out
