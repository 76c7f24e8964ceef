"""README's commands in bare clones: what is run, with which environment, and what is kept of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plam_eval import versions
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


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """This Python, which makes virtual environments of a folder alone: seconds less where nothing runs in them."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ncase "$1" in -m) mkdir -p env/bin ;; *) exec "{sys.executable}" "$@" ;; esac\n')
    script.chmod(0o755)
    return script


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


def test_a_failure_is_kept_with_its_last_line_and_the_others_go_on(repository, python, tmp_path):
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    failed, well = runner.run("sh bad && sh good", python), runner.run("sh good", python)
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


def test_a_relative_path_of_a_python_is_made_absolute(tmp_path, monkeypatch, python):
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "v" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(python)
    assert fresh.find_python("v/bin/python") == link
    assert fresh.find_python("./python") == fresh.find_python("python") == python


def test_a_version_is_not_the_beginning_of_another(tmp_path, monkeypatch):
    """Of pyenv's versions, of a name on the PATH that stands for another."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    home = tmp_path / "home"
    for name in (f"{own}.7", f"{own}0.1", "2.9"):
        place = home / ".pyenv" / "versions" / name / "bin" / "python"
        place.parent.mkdir(parents=True)
        place.symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.1").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert fresh.find_python(own) == home / ".pyenv" / "versions" / f"{own}.7" / "bin" / "python"
    for word in ("3.1", "2.9"):
        with pytest.raises(FileNotFoundError, match=f"no Python {word}"):
            fresh.find_python(word)


@pytest.mark.parametrize("word", ["", "*", "3", "3.1*", "3.12.1", "python3"])
def test_a_word_that_is_neither_a_version_nor_a_path_is_refused(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        fresh.main(["--python", word])
    assert stopped.value.code == 2
    assert f"--python {word!r}: expected a version such as 3.12, or a path" in capsys.readouterr().err


def test_what_is_no_python_is_refused_by_name_before_anything(tmp_path, capsys):
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    (tmp_path / "plain").write_text("")
    said = "is no Python with venv that can be run"
    words = [(shutil.which("true"), said), *((str(tmp_path / name), said) for name in ("text", "plain", "."))]
    for word, why in [*words, (str(tmp_path / "absent"), "is not there")]:
        with pytest.raises(SystemExit) as stopped:
            fresh.main(["--python", word, "--output", str(tmp_path / "output")])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and f"--python {word}: " in error and why in error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--output", "--scratch"])
def test_a_file_where_a_folder_is_expected_is_said(option, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    given = ["--python", sys.executable, "--output", str(tmp_path / "output")]
    with pytest.raises(SystemExit) as stopped:
        fresh.main([*given, option, str(tmp_path / "file")])
    assert stopped.value.code == 2
    assert f"{option} {tmp_path / 'file'}: File exists; expected a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_paths_with_a_space_are_one_word_for_the_shell(repository, python, tmp_path):
    place = tmp_path / "it's my place"
    place.mkdir()
    source, python = repository.rename(place / "repository"), python.rename(place / "python")
    trial = fresh.Runner(place / "output", place / "scratch", source=source).run("sh good", python)
    assert (trial.status, trial.says) == (0, "")


def test_the_help_is_called_three_times_and_the_best_counts(repository, python, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "HELP", "test -e mark || sleep 0.9; touch mark")
    monkeypatch.setattr(fresh, "HELP_SECONDS", 0.8)
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    trial = runner.run(fresh.HELP, python)
    assert trial.status == 0 and 0 < trial.help_seconds <= 0.8
    assert f"| well | 0.0 | {trial.help_seconds:.2f} |" in (tmp_path / "output/fresh.md").read_text()
    assert json.loads((tmp_path / "output/fresh.json").read_text())["trials"][0]["help_seconds"] == trial.help_seconds
    assert runner.run("sh good", python).help_seconds is None


def test_a_help_that_takes_too_long_fails_the_trial(repository, python, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "HELP", "sh good")
    monkeypatch.setattr(fresh, "HELP_SECONDS", 0.0)
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    trial = runner.run("sh good", python)
    assert (trial.status, trial.commands[-1]) == (1, "sh good")
    assert trial.says == f"sh good took {trial.help_seconds:.2f} s, the best of 3; expected 0.0 s at most"
    log = next((tmp_path / "output").glob("sh-good-*.log")).read_text()
    assert log.count("PATH=") == 3 and "**1**" in (tmp_path / "output/fresh.md").read_text()


def test_the_help_of_the_wheel_is_measured(repository, tmp_path):
    runner = fresh.Runner(tmp_path / "output", tmp_path / "scratch", source=repository)
    assert [command for _, command in runner._wheel(tmp_path)].count(fresh.HELP) == 1
    assert (fresh.HELP, fresh.HELP_SECONDS) == ("plam --help", 0.5)


def test_every_python_that_is_here_is_tried_and_the_others_are_named(repository, tmp_path, monkeypatch, capsys):
    assert tuple(versions.PYTHONS) == fresh.PYTHONS
    tried = []

    class Runner(fresh.Runner):
        def __init__(self, output, scratch, documents, absent):
            super().__init__(output, scratch, documents, repository, absent)

        def run(self, name, python):
            tried.append((name, python))
            self.write()

    here = {"3.11": Path("/a/python"), "3.13": Path("/b/python")}

    def find(word):
        if word not in here:
            raise FileNotFoundError(word)
        return here[word]

    monkeypatch.setattr(fresh, "Runner", Runner)
    monkeypatch.setattr(fresh, "find_python", find)
    assert fresh.main(["--only", "wheel", "--output", str(tmp_path / "output")]) == 0
    assert tried == [("wheel", python) for python in here.values()]
    said = capsys.readouterr()
    assert "Not tried, as not found here: Python 3.10, 3.12" in said.err
    assert "Not tried, as not found here: Python 3.10, 3.12." in said.out
    assert json.loads((tmp_path / "output/fresh.json").read_text())["absent"] == ["3.10", "3.12"]
    here.clear()
    with pytest.raises(SystemExit):
        fresh.main(["--only", "wheel", "--output", str(tmp_path / "output")])
    assert "no Python 3.10, 3.11, 3.12, 3.13: looked for on the PATH" in capsys.readouterr().err
