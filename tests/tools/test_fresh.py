"""README's commands in bare clones: what is run, with which environment, and what is kept of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tools import fresh

README = """# plam
Words.

```
good . && true   # what a user types

# nothing but a comment
make test
```

```
not this
```
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two scripts: one notes what it was given, the other fails behind a line."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "good").write_text('python3 -c "import sys; print(sys.prefix)"; env; touch written\n')
    (folder / "bad").write_text("echo nothing is here >&2; exit 3\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (folder / "good").write_text("exit 9\n")  # not committed, so not run
    return folder


def test_the_commands_are_those_of_the_first_block():
    assert fresh.readme_commands(README) == ["good . && true", "make test"]
    with pytest.raises(ValueError, match=r"README.md: expected a block of commands, found none"):
        fresh.readme_commands("# plam\n```\n# nothing\n```\n")


def test_this_readme_installs_demonstrates_and_tests():
    commands = fresh.readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert commands == ["pip install . && plam demo", "make demo", "make test"]


def test_a_command_runs_in_a_bare_clone_with_a_python_of_its_own(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example")
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    trial = runner.run("sh good", Path(sys.executable))
    log = next((tmp_path / "output").glob("sh-good-*.log")).read_text()
    assert (trial.status, trial.says) == (0, "")
    assert f"{tmp_path}/scratch/sh-good" in log.split("$ sh good\n")[1].splitlines()[0], "python3 is not the new one"
    assert "/nowhere" not in log and "PIP_INDEX_URL=https://index.example" in log
    assert not (repository / "written").exists() and not list((tmp_path / "scratch").iterdir())


def test_a_failure_is_kept_with_its_last_line_and_the_others_go_on(repository, tmp_path):
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    failed, well = runner.run("sh bad && sh good", Path(sys.executable)), runner.run("sh good", Path(sys.executable))
    assert (failed.status, failed.says, failed.commands[-1]) == (3, "nothing is here", "sh bad && sh good")
    assert well.status == 0
    kept = json.loads((tmp_path / "output/fresh.json").read_text())
    assert [trial["status"] for trial in kept["trials"]] == [3, 0]
    page = (tmp_path / "output/fresh.md").read_text()
    assert f"| `sh bad && sh good` | {failed.python} | **3** |" in page
    assert f"| `sh good` | {well.python} | well |" in page
    assert "at `sh bad && sh good`: `nothing is here`" in page
    assert list((tmp_path / "scratch").iterdir()), "what failed is kept to be looked at"


def test_a_python_that_is_not_there_and_a_word_that_is_no_command_are_said(capsys):
    for words, said in ((["--python", "2.99"], "no Python 2.99"), (["--only", "make coffee"], "--only make coffee")):
        with pytest.raises(SystemExit) as stopped:
            fresh.main(words)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_a_python_is_found_by_its_path():
    assert fresh.find_python(sys.executable) == Path(sys.executable)
